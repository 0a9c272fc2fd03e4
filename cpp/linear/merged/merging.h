// Merging of products (packing/merged.h): what it computes on ciphertexts.
//
// There is a key for each level. c1 is one digit where that adds little noise; else, of the levels that may be babies',
// whose noise meets the weights, one for each data prime. Of products c0 stays over the key ring, multiplied by the
// special prime, and is divided once at the end; only c1, which the next rotation decomposes again, is divided every
// time: a giant takes 2 (data primes + 1) transforms of a row, a baby half as many more and those of another digit.
#pragma once

#include <array>
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

// How the keys of merging are made for so many levels. Where one digit would add more noise than a division rounds, the
// first levels have two, and only they may be babies'.
class MergingKeys {
  public:
    MergingKeys(const Ring& key, std::size_t levels);

    KeySwitching of_babies() const { return {key_, two_digits_ > 0 ? std::size_t{2} : std::size_t{1}}; }
    KeySwitching of_giants() const { return {key_, 1}; }  // at the worst
    std::size_t most_babies() const { return two_digits_ > 0 ? two_digits_ : levels_; }
    std::size_t digits() const { return levels_ + two_digits_; }  // of all keys

    std::size_t bytes() const;
    // By level; there are as many elements. read throws WireError.
    void write(const std::vector<std::uint64_t>& elements, const SecretKey& secret, WireWriter& writer) const;
    std::vector<GaloisKey> read(const std::vector<std::uint64_t>& elements, WireReader& reader) const;

  private:
    const Ring& key_;
    std::size_t levels_, two_digits_;
};

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
    // c1, in NTT form over the data ring, in one or two digits over the key ring. One digit is c1 itself but for the
    // special prime's row, which is lifted; of two, each is a row of c1 in its own row.
    struct Digits {
        std::size_t count;
        std::array<std::array<const std::uint64_t*, 2>, 3> rows;  // by row of the key ring and digit
        Buffer<std::uint64_t> lifted;
    };
    Digits decompose(const std::uint64_t* c1, std::size_t count) const;
    // A row of the digits times that of half a key.
    void multiply_row(const Digits& digits, const Buffer<std::uint64_t>& half, std::size_t row,
                      std::uint64_t* out) const;
    std::size_t digits_of(const GaloisKey& key) const { return key.c0.size() / key_.size(); }
    // a / the special prime, of a polynomial over the key ring, which is used up; out is one over the data ring.
    void divide(std::uint64_t* a, std::uint64_t* out) const;

    const Ring& data_;
    const Ring& key_;
    std::uint64_t modulus_, special_;
    std::vector<std::uint64_t> inverse_special_;  // modulo each data prime
};

}  // namespace hesplit
