// Merging of products (packing/merged.h): what it computes on ciphertexts.
//
// c1 is one digit, so that there is one key for each level. c0 stays over the key ring, multiplied by the special
// prime, and is divided once at the end; only c1, which the next merge decomposes again, is divided every time: a merge
// takes 2 (data primes + 1) transforms of a row.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "base/buffer.h"
#include "packing/merged.h"
#include "ring/ring.h"
#include "rlwe/galois.h"
#include "rlwe/parameters.h"

namespace hesplit {

// In NTT form: c0 over the key ring, times the special prime; c1 over the data ring.
struct MergedCiphertext {
    Buffer<std::uint64_t> c0, c1;
};

// How keys for merging are made.
inline KeySwitching one_digit(const Ring& key) {
    return {key, 1};
}

// Safe to use from several threads.
class Merging {
  public:
    // Of a composable data ring.
    Merging(const Ring& data, const Ring& key, std::size_t width);

    const Ring& data() const { return data_; }
    const Ring& key() const { return key_; }
    // a *= the special prime, a polynomial over the data ring, which is then one over the key ring: 0 in its last row.
    void multiply_special(std::uint64_t* a) const;

    // The products of one reply, merged: their values come out 2^levels times as large. The first level is merged in
    // the weights: of products i and i + 2^(levels - 1), pair(i) makes the sum and, in `difference`, what the
    // automorphism then meets; nothing where there is no second product, and the sum is twice the first. Without levels
    // it makes the only product. It may be called from several threads.
    using MakePair = std::function<MergedCiphertext(std::size_t i, MergedCiphertext& difference)>;
    MergedCiphertext merge(const MakePair& pair, std::size_t count, std::size_t levels,
                           const std::vector<GaloisKey>& keys) const;
    // Both halves in coefficient form over the data ring.
    void finish(MergedCiphertext& merged) const;

  private:
    struct Tree {
        const MakePair& pair;
        std::size_t count, levels;
        const std::vector<GaloisKey>& keys;

        std::size_t apart(std::size_t level) const { return std::size_t{1} << (levels - level); }
    };
    // The subtree of that level whose products have the indices r, r + apart(level), r + 2 apart(level), ...
    MergedCiphertext subtree(const Tree& tree, std::size_t level, std::size_t r) const;
    // a = a + x^h b + automorphism(a - x^h b).
    void merge_pair(MergedCiphertext& a, MergedCiphertext b, std::size_t level, const GaloisKey& key) const;
    // sum += automorphism(difference), which is used up.
    void add_switched(MergedCiphertext& sum, MergedCiphertext& difference, const GaloisKey& key) const;
    // a = 2a: what merging with nothing leaves of the values, and of nothing else that is read.
    void merge_nothing(MergedCiphertext& a) const;
    // a / the special prime, of a polynomial over the key ring, which is used up; out is one over the data ring.
    void divide(std::uint64_t* a, std::uint64_t* out) const;

    const Ring& data_;
    const Ring& key_;
    std::uint64_t modulus_, special_;
    std::vector<std::uint64_t> inverse_special_;    // modulo each data prime
    std::vector<Buffer<std::uint64_t>> monomials_;  // x^h over the key ring in NTT form, by level from 1 on
};

}  // namespace hesplit
