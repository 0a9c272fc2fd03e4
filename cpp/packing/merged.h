// Merged blocks: products of coefficient blocks (packing/blocks.h) whose outputs are gathered in as few polynomials as
// hold them (docs/packing.md).
//
// With a power of two k as width, outputs sit at multiples of k, and 2^m products fit one polynomial when product i is
// shifted by i * a, a = k / 2^m. What is between the outputs has to go before. The automorphisms
//     s_t: x -> x^(N / h_t + 1),  h_t = k / 2^t,  t = 1, ..., m
// leave x^k alone, and (1 + s_1) ... (1 + s_m), the trace, takes every power of x between multiples of k and k / 2^m to
// 0 (Chen, Dai, Kim and Song 2021, "Efficient homomorphic conversion between (ring) LWE ciphertexts"). So with p_i =
// sum_j input_j * weights_{i,j}, over the products s_e of some of them (e is a set of levels),
//     sum_i x^(i a) trace(p_i)  =  sum_e s_e( sum_j input_j * sum_i s_e^-1(x^(i a)) weights_{i,j} )
// has 2^m times every value. The weights of the right-hand side are known beforehand. The first levels may be taken
// from the sum over e to the inputs, s_e(input_j w) = s_e(input_j) s_e(w): few inputs are then rotated instead of many
// products, "babies" instead of "giants". (The last ones may not: they take to 0 what the noise of babies would leave
// between the outputs.)
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
    // The last levels of the m that its products need: a reply of few products takes no more.
    std::size_t levels_of(std::size_t r) const;
    std::size_t apart() const { return blocks.width >> levels; }  // a
    // The bit of e, and of i, that belongs to a level from 1 to m.
    std::size_t bit(std::size_t level) const { return std::size_t{1} << (levels - level); }
    // The levels that are left to giants of reply r, its last ones; the others of its levels are babies'.
    std::size_t giants_of(std::size_t r, std::size_t babies) const;
};

// The width: as large as a sample, so that requests are as short as can be; N at most.
std::size_t merged_width(std::size_t degree, std::size_t features);
// Groups of up to this many samples share their ciphertexts, of batches of up to `batch_size`.
std::size_t most_merged_samples(std::size_t degree, std::size_t features, std::size_t batch_size);
// How many of `samples` a group has, of groups that are as equal as can be.
std::size_t merged_group_size(std::size_t degree, std::size_t features, std::size_t samples, std::size_t batch_size);
MergedLayout merged_layout(std::size_t degree, std::size_t features, std::size_t outputs, std::size_t group_size);

// The exponents of the automorphisms s_1, s_2, ... for a width.
std::uint64_t merging_element(std::size_t degree, std::size_t width, std::size_t level);
// Those that batches of up to `batch_size` need: larger groups need more.
std::vector<std::uint64_t> merging_elements(std::size_t degree, std::size_t features, std::size_t outputs,
                                            std::size_t batch_size);

// The weight polynomials of reply r for input j, by e of its levels_of(r) levels: round(weight * scale) as in
// place_weight, rotated by those of the first `babies` levels that e has.
// [2^levels_of(r), N].
Buffer<std::int64_t> place_merged_weights(const MergedLayout& layout, const double* weight, std::size_t r,
                                          std::size_t j, double scale, std::size_t babies);

// The coefficients of reply r that hold outputs of the first `count` samples, ordered by output, then sample.
std::vector<std::uint32_t> merged_positions(const MergedLayout& layout, std::size_t r, std::size_t count);

// How many rotations a group takes when so many levels are taken to its inputs, and with how many, of up to `most`, it
// takes the fewest.
std::size_t merging_rotations(const MergedLayout& layout, std::size_t babies);
std::size_t best_babies(const MergedLayout& layout, std::size_t most);
// Weight polynomials of all replies, for each input.
std::size_t merged_polynomials(const MergedLayout& layout);

}  // namespace hesplit
