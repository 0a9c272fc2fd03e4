// The encrypted layer on coefficient blocks as a matrix product of residues: for layouts whose weight polynomials are
// so sparse that transforming them costs more than multiplying by them.
//
// Let m = group_size * width be a power of two, and C = N / m. Then R_q = Z_q[x]/(x^N + 1) splits into the C rings
// Z_q[x]/(x^m - z), one for every C-th root z of -1, and the weight polynomial of product p and input j becomes
//
//     sum_{i<width} V[z, p, j*width + i] x^-i,     V[z, p, f] = sum_u W[p*per_product + u, f] z^u.
//
// So coefficient r of a product is the sum over all features f = j*width + i of V[z, p, f] and coefficient r + i of
// input j: a matrix product of [products, features] and [features, m], with d * o encoded residues and no transform of
// N.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "packing/blocks.h"
#include "ring/ring.h"

namespace hesplit {

class StrandWeights {
  public:
    // `residues` of the rounded weights: [primes, outputs, padded_features(layout)], zero beyond d.
    StrandWeights(const Ring& ring, const BlockLayout& layout, const Buffer<std::uint64_t>& residues);

    static std::size_t padded_features(const BlockLayout& layout) { return (layout.features + 15) / 16 * 16; }

    std::size_t bytes() const { return values_.size() * sizeof(std::uint64_t); }

    // The c1 of a group's inputs, in NTT form one after the other, as products() reads them.
    Buffer<std::uint64_t> prepare_c1(const Buffer<std::uint64_t>& c1) const;
    // Their c0, in coefficient form, as outputs() reads them.
    Buffer<std::uint64_t> prepare_c0(Buffer<std::uint64_t> c0) const;

    // c1 of products first, ..., first + count - 1 in coefficient form: [count, ring size].
    void products(const Buffer<std::uint64_t>& prepared, std::size_t first, std::size_t count,
                  std::uint64_t* out) const;
    // The outputs of `samples` samples among the coefficients of their c0, in the order of output_positions: product
    // p's at out + p * product_stride, row r of the ring at + r * row_stride.
    void outputs(const Buffer<std::uint64_t>& prepared, std::size_t first, std::size_t count, std::size_t samples,
                 std::uint64_t* out, std::size_t product_stride, std::size_t row_stride) const;

  private:
    std::size_t block() const { return layout_.block(); }             // m
    std::size_t strands() const { return ring_.degree() / block(); }  // C
    // A window is m coefficients and, for reading x^-i further along, the first ones times 1/z.
    std::size_t window() const { return block() + (layout_.width - 1 + 15) / 16 * 16; }
    std::size_t padded_group() const { return (layout_.group_size + 15) / 16 * 16; }
    // Where V[z, p] begins among values_.
    std::size_t place(std::size_t row, std::size_t z, std::size_t p) const {
        return ((row * strands() + z) * layout_.products() + p) * layout_.features;
    }

    // [C, size] to [C, size]: coefficients to values at every z, and back.
    void split(std::size_t row, const std::uint64_t* coefficients, std::size_t size,
               View<std::uint64_t* const> out) const;
    void join(std::size_t row, const std::uint64_t* values, std::size_t size, std::uint64_t* out) const;

    const Ring& ring_;
    BlockLayout layout_;
    Buffer<std::uint64_t> powers_;   // [primes, C, C]: z^u
    Buffer<std::uint64_t> inverse_;  // [primes, C, C]: z^-u / C, by u, then z
    Buffer<std::uint64_t> wrap_;     // [primes, C]: 1 / z
    Buffer<std::uint64_t> values_;   // V: [primes, C, products, features]
};

}  // namespace hesplit
