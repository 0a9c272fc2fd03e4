#include "linear/merged/merging.h"

#include <algorithm>
#include <utility>

#include "base/parallel.h"

namespace hesplit {

Merging::Merging(const Ring& data, const Ring& key, std::size_t width)
    : data_(data),
      key_(key),
      modulus_(data.prime_count() == 1 ? data.prime(0) : data.prime(0) * data.prime(1)),
      special_(key.prime(data.prime_count())),
      inverse_special_(inverse_special(one_digit(key))) {
    for (std::size_t half = width / 2; half > 0; half /= 2) {
        Buffer<std::uint64_t> monomial(key.size(), 0);
        for (std::size_t row = 0; row < key.prime_count(); ++row) {
            monomial[row * key.degree() + half] = 1;
        }
        key.to_ntt(monomial.data());
        monomials_.push_back(std::move(monomial));
    }
}

MergedCiphertext Merging::merge(const MakePair& pair, std::size_t count, std::size_t levels,
                                const std::vector<GaloisKey>& keys) const {
    // Below this many levels from the top, subtrees are spread over the threads.
    constexpr std::size_t kSerialLevels = 3;
    const std::size_t below = std::max(levels, kSerialLevels + 1) - kSerialLevels;
    if (levels == 0) {
        MergedCiphertext none;
        return pair(0, none);
    }
    const Tree tree{pair, count, levels, keys};
    std::vector<MergedCiphertext> parts(std::min(count, tree.apart(below)));
    parallel_for(parts.size(), [&](std::size_t r) { parts[r] = subtree(tree, below, r); });
    for (std::size_t level = below + 1; level <= levels; ++level) {
        const std::size_t apart = tree.apart(level);
        for (std::size_t r = 0; r < std::min(apart, parts.size()); ++r) {
            if (r + apart < parts.size()) {
                merge_pair(parts[r], std::move(parts[r + apart]), level, keys[level - 1]);
            } else {
                merge_nothing(parts[r]);
            }
        }
        parts.resize(std::min(apart, parts.size()));
    }
    return std::move(parts[0]);
}

MergedCiphertext Merging::subtree(const Tree& tree, std::size_t level, std::size_t r) const {
    if (level == 1) {
        MergedCiphertext difference, sum = tree.pair(r, difference);
        if (!difference.c1.empty()) {
            add_switched(sum, difference, tree.keys[0]);
        }
        return sum;
    }
    MergedCiphertext made = subtree(tree, level - 1, r);
    const std::size_t other = r + tree.apart(level);
    if (other < tree.count) {
        merge_pair(made, subtree(tree, level - 1, other), level, tree.keys[level - 1]);
    } else {
        merge_nothing(made);
    }
    return made;
}

void Merging::merge_nothing(MergedCiphertext& a) const {
    key_.add(a.c0.data(), a.c0.data());
    data_.add(a.c1.data(), a.c1.data());
}

void Merging::multiply_special(std::uint64_t* a) const {
    const std::size_t n = data_.degree();
    for (std::size_t row = 0; row < data_.prime_count(); ++row) {
        data_.scale_row({a + row * n, n}, special_ % data_.prime(row), row);
    }
}

void Merging::divide(std::uint64_t* a, std::uint64_t* out) const {
    const std::size_t n = data_.degree(), last = data_.prime_count();
    Buffer<std::int64_t> remainder(n);
    key_.to_coefficients_row(a + last * n, last);
    centre(a + last * n, special_, n, remainder.data());
    for (std::size_t row = 0; row < last; ++row) {
        std::uint64_t* to = out + row * n;
        data_.lift_row({remainder.data(), n}, row, to);
        data_.to_ntt_row(to, row);
        data_.subtract_from_row(to, a + row * n, row);
        data_.scale_row({to, n}, inverse_special_[row], row);
    }
}

void Merging::merge_pair(MergedCiphertext& a, MergedCiphertext b, std::size_t level, const GaloisKey& key) const {
    const std::size_t n = data_.degree();
    const std::uint64_t* shift = monomials_[level - 1].data();
    Buffer<std::uint64_t> product(n);
    // y = x - x^h y, x = x + x^h y.
    const auto butterfly = [&](std::uint64_t* x, std::uint64_t* y, std::size_t row) {
        const std::uint64_t *in = y, *by = shift + row * n;
        key_.dot_row({&in, 1}, {&by, 1}, row, product.data());
        std::copy_n(product.data(), n, y);
        key_.subtract_from_row(y, x, row);
        key_.add_row(x, product.data(), row);
    };
    for (std::size_t row = 0; row < key_.prime_count(); ++row) {
        butterfly(a.c0.data() + row * n, b.c0.data() + row * n, row);
    }
    for (std::size_t row = 0; row < data_.prime_count(); ++row) {
        butterfly(a.c1.data() + row * n, b.c1.data() + row * n, row);
    }
    add_switched(a, b, key);
}

void Merging::add_switched(MergedCiphertext& sum, MergedCiphertext& difference, const GaloisKey& key) const {
    const std::size_t n = data_.degree(), last = data_.prime_count();
    Buffer<std::uint64_t> product(n), moved(n), switched(key_.size());
    // The digit: in the rows of the data ring it is c1 itself.
    Buffer<std::uint64_t> digit = difference.c1;
    Buffer<std::int64_t> centred(n);
    data_.to_coefficients(digit.data());
    data_.compose(digit.data(), digit.data());
    centre(digit.data(), modulus_, n, centred.data());
    key_.lift_row({centred.data(), n}, last, digit.data());
    key_.to_ntt_row(digit.data(), last);
    for (std::size_t row = 0; row <= last; ++row) {
        const std::uint64_t* in = row < last ? difference.c1.data() + row * n : digit.data();
        const std::uint64_t *key0 = key.c0.data() + row * n, *key1 = key.c1.data() + row * n;
        key_.dot_row({&in, 1}, {&key0, 1}, row, product.data());
        key_.add_row(product.data(), difference.c0.data() + row * n, row);
        permute(key.permutation, product.data(), moved.data());
        key_.add_row(sum.c0.data() + row * n, moved.data(), row);
        key_.dot_row({&in, 1}, {&key1, 1}, row, switched.data() + row * n);
    }
    divide(switched.data(), difference.c1.data());
    for (std::size_t row = 0; row < last; ++row) {
        permute(key.permutation, difference.c1.data() + row * n, moved.data());
        data_.add_row(sum.c1.data() + row * n, moved.data(), row);
    }
}

void Merging::finish(MergedCiphertext& merged) const {
    Buffer<std::uint64_t> divided(data_.size());
    divide(merged.c0.data(), divided.data());
    merged.c0 = std::move(divided);
    data_.to_coefficients(merged.c0.data());
    data_.to_coefficients(merged.c1.data());
}

}  // namespace hesplit
