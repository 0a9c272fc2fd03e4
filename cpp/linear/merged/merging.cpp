#include "linear/merged/merging.h"

#include <algorithm>
#include <utility>

#include "base/parallel.h"

namespace hesplit {

Merging::Merging(const Ring& data, const Ring& key)
    : data_(data),
      key_(key),
      modulus_(data.prime_count() == 1 ? data.prime(0) : data.prime(0) * data.prime(1)),
      special_(key.prime(data.prime_count())),
      inverse_special_(inverse_special(one_digit(key))) {}

std::vector<GroupInputs> Merging::rotate(const MergedLayout& layout, GroupInputs inputs, std::size_t babies,
                                         const std::vector<GaloisKey>& keys) const {
    const std::size_t count = layout.blocks.inputs(), n = data_.degree(), rows = data_.prime_count();
    std::vector<GroupInputs> rotated(std::size_t{1} << babies);
    rotated[0] = std::move(inputs);
    for (std::size_t level = babies; level > 0; --level) {
        const std::size_t bit = std::size_t{1} << (babies - level);
        for (std::size_t e = bit; e < 2 * bit; ++e) {
            rotated[e] = {Buffer<std::uint64_t>(count * data_.size()), Buffer<std::uint64_t>(count * data_.size())};
        }
        parallel_for(bit * count, [&](std::size_t i) {
            rotate_input(rotated[i / count], i % count, keys[level - 1], rotated[bit + i / count]);
        });
    }
    parallel_for(rotated.size() * count * rows, [&](std::size_t i) {
        const std::size_t row = i % rows;
        std::uint64_t* residues = rotated[i / rows / count].c0.data() + i / rows % count * data_.size() + row * n;
        data_.scale_row({residues, n}, special_ % data_.prime(row), row);
    });
    return rotated;
}

MergedCiphertext Merging::merge(const MergedLayout& layout, std::size_t r, std::size_t babies,
                                const MakeProduct& product, const std::vector<GaloisKey>& keys) const {
    // The subtrees below this many levels are spread over the threads.
    constexpr std::size_t kSerialLevels = 3;
    const std::size_t giants = layout.giants_of(r, babies), first = layout.levels - giants + 1;
    const std::size_t serial = std::min(giants, kSerialLevels);
    const Tree tree{layout, product, keys};
    // Number p has the bits of the first levels, the highest first.
    std::vector<MergedCiphertext> parts(std::size_t{1} << serial);
    parallel_for(parts.size(),
                 [&](std::size_t p) { parts[p] = subtree(tree, first + serial, p << (giants - serial)); });
    for (std::size_t level = first + serial - 1; level >= first && parts.size() > 1; --level) {
        for (std::size_t p = 0; p < parts.size() / 2; ++p) {
            add_rotated(parts[2 * p], parts[2 * p + 1], keys[level - 1]);
            if (p > 0) {
                parts[p] = std::move(parts[2 * p]);
            }
        }
        parts.resize(parts.size() / 2);
    }
    return std::move(parts[0]);
}

MergedCiphertext Merging::subtree(const Tree& tree, std::size_t level, std::size_t e) const {
    if (level > tree.layout.levels) {
        return tree.product(e);
    }
    MergedCiphertext sum = subtree(tree, level + 1, e);
    MergedCiphertext term = subtree(tree, level + 1, e | tree.layout.bit(level));
    add_rotated(sum, term, tree.keys[level - 1]);
    return sum;
}

void Merging::multiply_row(const std::uint64_t* a, const std::uint64_t* b, std::size_t row, std::uint64_t* out) const {
    key_.dot_row({&a, 1}, {&b, 1}, row, out);
}

Buffer<std::uint64_t> Merging::special_digit(const std::uint64_t* c1) const {
    const std::size_t n = data_.degree(), last = data_.prime_count();
    Buffer<std::uint64_t> coefficients(c1, c1 + data_.size()), digit(n);
    Buffer<std::int64_t> centred(n);
    data_.to_coefficients(coefficients.data());
    data_.compose(coefficients.data(), coefficients.data());
    centre(coefficients.data(), modulus_, n, centred.data());
    key_.lift_row({centred.data(), n}, last, digit.data());
    key_.to_ntt_row(digit.data(), last);
    return digit;
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

void Merging::rotate_input(const GroupInputs& from, std::size_t j, const GaloisKey& key, GroupInputs& to) const {
    const std::size_t n = data_.degree(), last = data_.prime_count(), at = j * data_.size();
    const std::uint64_t* c1 = from.c1.data() + at;
    const Buffer<std::uint64_t> digit = special_digit(c1);
    Buffer<std::uint64_t> switched(key_.size()), divided(data_.size());
    for (const bool half : {false, true}) {
        const Buffer<std::uint64_t>& part = half ? key.c1 : key.c0;
        for (std::size_t row = 0; row <= last; ++row) {
            multiply_row(row < last ? c1 + row * n : digit.data(), part.data() + row * n, row,
                         switched.data() + row * n);
        }
        divide(switched.data(), divided.data());
        if (!half) {
            data_.add(divided.data(), from.c0.data() + at);
        }
        for (std::size_t row = 0; row < last; ++row) {
            permute(key.permutation, divided.data() + row * n, (half ? to.c1 : to.c0).data() + at + row * n);
        }
    }
}

void Merging::add_rotated(MergedCiphertext& sum, MergedCiphertext& term, const GaloisKey& key) const {
    const std::size_t n = data_.degree(), last = data_.prime_count();
    const Buffer<std::uint64_t> digit = special_digit(term.c1.data());
    Buffer<std::uint64_t> product(n), moved(n), switched(key_.size());
    for (std::size_t row = 0; row <= last; ++row) {
        const std::uint64_t* in = row < last ? term.c1.data() + row * n : digit.data();
        multiply_row(in, key.c0.data() + row * n, row, product.data());
        key_.add_row(product.data(), term.c0.data() + row * n, row);
        permute(key.permutation, product.data(), moved.data());
        key_.add_row(sum.c0.data() + row * n, moved.data(), row);
        multiply_row(in, key.c1.data() + row * n, row, switched.data() + row * n);
    }
    divide(switched.data(), term.c1.data());
    for (std::size_t row = 0; row < last; ++row) {
        permute(key.permutation, term.c1.data() + row * n, moved.data());
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
