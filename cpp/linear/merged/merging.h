// Merging of products (packing/merged.h): what it computes on ciphertexts.
//
// c1 is one digit, so that there is one key for each level. Of products c0 stays over the key ring, multiplied by the
// special prime, and is divided once at the end; only c1, which the next rotation decomposes again, is divided every
// time: a giant takes 2 (data primes + 1) transforms of a row, a baby half as many more.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "base/buffer.h"
#include "linear/server_packing.h"
#include "packing/merged.h"
#include "ring/ring.h"
#include "rlwe/galois.h"

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
    Merging(const Ring& data, const Ring& key);

    const Ring& data() const { return data_; }
    const Ring& key() const { return key_; }

    // The inputs of a group rotated by the automorphisms of the sets of the first `babies` levels, c0 times the special
    // prime: [2^babies]. Keys are by level.
    std::vector<GroupInputs> rotate(const MergedLayout& layout, GroupInputs inputs, std::size_t babies,
                                    const std::vector<GaloisKey>& keys) const;
    // The sum of all giants of reply r, each rotated by its automorphism: product(e) makes the one with that number. It
    // may be called from several threads.
    using MakeProduct = std::function<MergedCiphertext(std::size_t e)>;
    MergedCiphertext merge(const MergedLayout& layout, std::size_t r, std::size_t babies, const MakeProduct& product,
                           const std::vector<GaloisKey>& keys) const;
    // Both halves in coefficient form over the data ring.
    void finish(MergedCiphertext& merged) const;

  private:
    struct Tree {
        const MergedLayout& layout;
        const MakeProduct& product;
        const std::vector<GaloisKey>& keys;
    };
    // The giants with these bits of the levels before `level` and any of it and those behind it.
    MergedCiphertext subtree(const Tree& tree, std::size_t level, std::size_t e) const;
    // to = automorphism(from), input j of a group.
    void rotate_input(const GroupInputs& from, std::size_t j, const GaloisKey& key, GroupInputs& to) const;
    // sum += automorphism(term), which is used up.
    void add_rotated(MergedCiphertext& sum, MergedCiphertext& term, const GaloisKey& key) const;
    // c1, in NTT form, as one digit in the special prime's row, in NTT form: N residues.
    Buffer<std::uint64_t> special_digit(const std::uint64_t* c1) const;
    // a / the special prime, of a polynomial over the key ring, which is used up; out is one over the data ring.
    void divide(std::uint64_t* a, std::uint64_t* out) const;
    void multiply_row(const std::uint64_t* a, const std::uint64_t* b, std::size_t row, std::uint64_t* out) const;

    const Ring& data_;
    const Ring& key_;
    std::uint64_t modulus_, special_;
    std::vector<std::uint64_t> inverse_special_;  // modulo each data prime
};

}  // namespace hesplit
