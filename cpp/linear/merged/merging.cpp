#include "linear/merged/merging.h"

#include <algorithm>
#include <utility>

#include "base/parallel.h"

namespace hesplit {

namespace {

std::uint64_t product_of(const Ring& key, std::size_t primes) {
    return primes == 1 ? key.prime(0) : key.prime(0) * key.prime(1);
}

}  // namespace

MergingKeys::MergingKeys(const Ring& key, std::size_t levels) : key_(key), levels_(levels), two_digits_(0) {
    // Three levels of babies leave an eighth of the rotations. There are two where only the third would make keys
    // longer than half a megabyte, some ten of them.
    constexpr std::size_t kKeys = 10;
    const std::size_t primes = key.prime_count() - 1;
    if (primes == 2 && product_of(key, primes) > key.prime(primes) / 4) {
        two_digits_ = std::min(levels, levels + 2 == kKeys ? std::size_t{2} : std::size_t{3});
    }
}

std::size_t MergingKeys::bytes() const {
    return galois_key_bytes(of_babies(), most_babies()) + galois_key_bytes(of_giants(), levels_ - most_babies());
}

void MergingKeys::write(const std::vector<std::uint64_t>& elements, const SecretKey& secret, WireWriter& writer) const {
    const auto giants = elements.begin() + static_cast<std::ptrdiff_t>(most_babies());
    write_galois_keys(of_babies(), {elements.begin(), giants}, secret, writer);
    write_galois_keys(of_giants(), {giants, elements.end()}, secret, writer);
}

std::vector<GaloisKey> MergingKeys::read(const std::vector<std::uint64_t>& elements, WireReader& reader) const {
    reader.require_remaining(bytes());
    const auto giants = elements.begin() + static_cast<std::ptrdiff_t>(most_babies());
    std::vector<GaloisKey> keys = read_galois_keys(of_babies(), {elements.begin(), giants}, reader);
    for (GaloisKey& key : read_galois_keys(of_giants(), {giants, elements.end()}, reader)) {
        keys.push_back(std::move(key));
    }
    return keys;
}

Merging::Merging(const Ring& data, const Ring& key)
    : data_(data),
      key_(key),
      modulus_(product_of(key, data.prime_count())),
      special_(key.prime(data.prime_count())),
      inverse_special_(inverse_special({key, 1})) {}

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
    constexpr std::size_t kSpreadLevels = 3;
    const std::size_t giants = layout.giants_of(r, babies), first = layout.levels - giants + 1;
    const std::size_t spread = std::min(giants, kSpreadLevels);
    const Tree tree{layout, product, keys};
    // Number p has the bits of the first levels, the highest first.
    std::vector<MergedCiphertext> parts(std::size_t{1} << spread);
    parallel_for(parts.size(),
                 [&](std::size_t p) { parts[p] = subtree(tree, first + spread, p << (giants - spread)); });
    for (std::size_t level = first + spread - 1; level >= first && parts.size() > 1; --level) {
        std::vector<MergedCiphertext> sums(parts.size() / 2);
        parallel_for(sums.size(), [&](std::size_t p) {
            add_rotated(parts[2 * p], parts[2 * p + 1], keys[level - 1]);
            sums[p] = std::move(parts[2 * p]);
        });
        parts = std::move(sums);
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

Merging::Digits Merging::decompose(const std::uint64_t* c1, std::size_t count) const {
    const std::size_t n = data_.degree(), last = data_.prime_count();
    Digits digits{count, {}, Buffer<std::uint64_t>((count == 1 ? 1 : 2 * last) * n)};
    Buffer<std::uint64_t> coefficients(c1, c1 + data_.size());
    data_.to_coefficients(coefficients.data());
    if (count == 1) {
        data_.compose(coefficients.data(), coefficients.data());
    }
    Buffer<std::int64_t> centred(n);
    std::uint64_t* lifted = digits.lifted.data();
    for (std::size_t digit = 0; digit < count; ++digit) {
        centre(coefficients.data() + digit * n, count == 1 ? modulus_ : data_.prime(digit), n, centred.data());
        for (std::size_t row = 0; row <= last; ++row) {
            const bool own = row < last && (count == 1 || row == digit);
            digits.rows[row][digit] = own ? c1 + row * n : lifted;
            if (!own) {
                key_.lift_row({centred.data(), n}, row, lifted);
                key_.to_ntt_row(lifted, row);
                lifted += n;
            }
        }
    }
    return digits;
}

void Merging::multiply_row(const Digits& digits, const Buffer<std::uint64_t>& half, std::size_t row,
                           std::uint64_t* out) const {
    const std::uint64_t* first = half.data() + row * key_.degree();
    const std::array<const std::uint64_t*, 2> keys{first, digits.count > 1 ? first + key_.size() : nullptr};
    key_.dot_row({digits.rows[row].data(), digits.count}, {keys.data(), digits.count}, row, out);
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
    const Digits digits = decompose(c1, digits_of(key));
    Buffer<std::uint64_t> switched(key_.size()), divided(data_.size());
    for (const bool half : {false, true}) {
        const Buffer<std::uint64_t>& part = half ? key.c1 : key.c0;
        for (std::size_t row = 0; row <= last; ++row) {
            multiply_row(digits, part, row, switched.data() + row * n);
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
    const Digits digits = decompose(term.c1.data(), digits_of(key));
    Buffer<std::uint64_t> product(n), moved(n), switched(key_.size());
    for (std::size_t row = 0; row <= last; ++row) {
        multiply_row(digits, key.c0, row, product.data());
        key_.add_row(product.data(), term.c0.data() + row * n, row);
        permute(key.permutation, product.data(), moved.data());
        key_.add_row(sum.c0.data() + row * n, moved.data(), row);
        multiply_row(digits, key.c1, row, switched.data() + row * n);
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
