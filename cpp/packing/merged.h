// Merged blocks: products of coefficient blocks (packing/blocks.h) whose outputs are gathered in as few polynomials as
// hold them (docs/packing.md).
//
// With a power of two k as width, outputs sit at multiples of k, and 2^m products fit one polynomial when product i is
// shifted by i * k / 2^m. What is between the outputs has to go before, and what makes it go merges at the same time
// (Chen, Dai, Kim and Song 2021, "Efficient homomorphic conversion between (ring) LWE ciphertexts", algorithm 2): with
// A and B that have their values at multiples of 2h, and the automorphism x -> x^(N/h + 1), which leaves x^(2h) and
// negates x^h,
//     A + x^h B + automorphism(A - x^h B)
// has twice A's values at multiples of 2h and twice B's half-way between; h = k/2, k/4, ..., k/2^m. At the first level,
// h = k/2, A + x^h B and A - x^h B are products with sums and differences of weights.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "packing/blocks.h"

namespace hesplit {

struct MergedLayout {
    BlockLayout blocks;      // its width may be larger than a sample
    std::size_t levels = 0;  // m

    std::size_t most_merged() const { return std::size_t{1} << levels; }
    std::size_t replies() const { return (blocks.products() + most_merged() - 1) >> levels; }
    // Products of reply r, its first, and the outputs of them all.
    std::size_t products_of(std::size_t r) const;
    std::size_t first_product(std::size_t r) const { return r << levels; }
    std::size_t outputs_of(std::size_t r) const;
    // h of a level, from 1 to `levels`.
    std::size_t half(std::size_t level) const { return blocks.width >> level; }
};

// The width: as large as a sample, so that requests are as short as can be; N at most.
std::size_t merged_width(std::size_t degree, std::size_t features);
// Groups of up to this many samples share their ciphertexts, of batches of up to `batch_size`.
std::size_t most_merged_samples(std::size_t degree, std::size_t features, std::size_t batch_size);
MergedLayout merged_layout(std::size_t degree, std::size_t features, std::size_t outputs, std::size_t group_size);

// The automorphisms, by level from 1 on, that merging takes in batches of up to `batch_size`: larger groups take more.
std::vector<std::uint64_t> merging_elements(std::size_t degree, std::size_t features, std::size_t outputs,
                                            std::size_t batch_size);

// The weight polynomials of products i and i + 2^(m-1) of reply r, w and v, as w + x^(k/2) v and w - x^(k/2) v:
// round(weight * scale) as in place_weight. Where there is no such v, `difference` is left alone and the sum is 2w;
// with m = 0 it is w.
bool place_weight_pair(const MergedLayout& layout, const double* weight, std::size_t r, std::size_t i, std::size_t j,
                       double scale, View<std::int64_t> sum, View<std::int64_t> difference);
// How many pairs reply r has.
std::size_t pairs_of(const MergedLayout& layout, std::size_t r);

// The coefficients of reply r that hold outputs of the first `count` samples, ordered by output, then sample.
std::vector<std::uint32_t> merged_positions(const MergedLayout& layout, std::size_t r, std::size_t count);

}  // namespace hesplit
