// Coefficient blocks: where activations, weights and outputs sit among the coefficients of polynomials
// (docs/packing.md).
//
// Samples are laid side by side in blocks of `width` coefficients. One product of polynomials then holds up to
// `per_product` outputs of every sample at known coefficients; the other coefficients hold cross terms, which are never
// sent.
//
// clang-format off
// With n = group_size, k = width, c = per_product and o = p*c + u an output:
//   input j        sum_{s<n, i<k}  X[s, j*k+i]  x^(s*k + i)
//   weights p, j   sum_{u<c, i<k}  W[o, j*k+i]  x^(u*n*k - i)      (x^N = -1)
//   Y[s, o] is coefficient (u*n + s)*k of sum_j input_j * weights_{p,j}
//
// The same inputs and weights, multiplied by polynomials of the gradient G = dJ/dY, hold the other two gradients:
//   for the weight p   sum_{u,s}  G[s, o]  x^(u*n*k - s*k);            times input_j:
//                      dW[o, j*k+i] is coefficient u*n*k + i
//   for the input p    sum_{u,s}  G[s, o]  x^(s*k + k-1 - u*n*k);      times weights_{p,j}, summed over p:
//                      dX[s, j*k+i] is coefficient s*k + k-1 - i
// clang-format on
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "base/buffer.h"

namespace hesplit {

struct BlockLayout {
    std::size_t degree = 0;      // N
    std::size_t features = 0;    // d
    std::size_t outputs = 0;     // o
    std::size_t group_size = 0;  // n: samples of one group, which share their polynomials
    std::size_t width = 0;       // k: coefficients of a sample in one input polynomial

    std::size_t block() const { return group_size * width; }                                // n * k
    std::size_t inputs() const { return (features + width - 1) / width; }                   // J
    std::size_t per_product() const;                                                        // c
    std::size_t products() const { return (outputs + per_product() - 1) / per_product(); }  // P
    // Outputs of product p: per_product(), fewer in the last one.
    std::size_t outputs_of(std::size_t p) const;
    // Features of a sample in input j: width, fewer in the last one.
    std::size_t features_of(std::size_t j) const;
    bool operator==(const BlockLayout& other) const;
};

// Throws ParameterError unless 1 <= width, block() <= N, and every size is at least 1.
void check(const BlockLayout& layout);

// Encoded weights above this are made anew for every forward pass instead of kept.
inline constexpr std::size_t kMaxKeptBytes = std::size_t{256} << 20;

// Whether the forward pass is best done as a matrix product (linear/blocks/strands.h) instead of with transformed
// weights: where these are too many to keep, or where it takes no more multiplications.
bool prefers_strands(const BlockLayout& layout, std::size_t primes);

// What one batch on a layout costs, in nanoseconds of one core each, with weights that change at every batch.
struct BlockCost {
    double client = 0;
    double server = 0;
    double link = 0;

    double total() const { return client + server + link; }
};

// How ciphertexts of a layout are made and sent. The wire's bits are per coefficient.
struct BlockMedium {
    std::size_t primes = 1;
    double request_bits = 0;
    double reply_bits = 0;
    double byte_ns = 8;         // of the link; 8 is a gigabit per second
    bool short_primes = false;  // all of up to kCheapPrimeBits
};

// Sums of matrix products modulo primes of up to so many bits take 32-bit multiplications, on every processor.
inline constexpr int kCheapPrimeBits = 29;

// By a model whose constants were measured on AVX-512 IFMA (docs/benchmarks.md); the same on every processor, so that
// layouts are.
BlockCost block_cost(const BlockLayout& layout, const BlockMedium& medium, std::size_t samples);

// The next number of parts, above `parts`, that `size` things can be divided into so that each but the last holds
// ceil(size / parts): there are no more than 2 sqrt(size) such numbers. size + 1 after the last.
std::size_t next_division(std::size_t size, std::size_t parts);

// The layout with the least cost for `samples`; splits them into equal groups when they do not fit one polynomial. No
// more than `most_per_product` outputs share a product, or as few as can.
BlockLayout plan_blocks(std::size_t degree, std::size_t features, std::size_t outputs, std::size_t samples,
                        const BlockMedium& medium,
                        std::size_t most_per_product = std::numeric_limits<std::size_t>::max());

// The coefficients of input polynomial j for `count` <= group_size samples: x * scale, rounded at random
// (ring/rounding.h), negative ones plus `modulus`. `x` is row-major [count, features].
template <class T>
void place_input(const BlockLayout& layout, const T* x, std::size_t count, std::size_t j, double scale,
                 View<std::int64_t> out, std::int64_t modulus = 0);

// The coefficients of weight polynomial (p, j): round(w * scale). `weight` is row-major [outputs, features].
void place_weight(const BlockLayout& layout, const double* weight, std::size_t p, std::size_t j, double scale,
                  View<std::int64_t> out);

// The coefficients of product p that hold outputs of the first `count` samples, ordered by output, then sample.
std::vector<std::uint32_t> output_positions(const BlockLayout& layout, std::size_t p, std::size_t count);

// The gradient polynomials of product p: round(g * scale). `gradient` is row-major [count, outputs].
void place_gradient_for_weight(const BlockLayout& layout, const double* gradient, std::size_t count, std::size_t p,
                               double scale, View<std::int64_t> out);
void place_gradient_for_input(const BlockLayout& layout, const double* gradient, std::size_t count, std::size_t p,
                              double scale, View<std::int64_t> out);

// The coefficients that hold dW of product p and input j, ordered by output, then feature; and those that hold dX of
// input j for the first `count` samples, ordered by sample, then feature.
std::vector<std::uint32_t> weight_gradient_positions(const BlockLayout& layout, std::size_t p, std::size_t j);
std::vector<std::uint32_t> input_gradient_positions(const BlockLayout& layout, std::size_t j, std::size_t count);

}  // namespace hesplit
