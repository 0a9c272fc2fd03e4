// The encrypted linear layer on coefficient blocks: weights encoded for one layout, and the products with input
// ciphertexts.
//
// A reply needs all of a product's c1, but of c0 only the few coefficients that hold outputs. c1 comes from a seed, so
// it begins in NTT form; c0 arrives as coefficients, and with few outputs it stays that way: inner products are then
// cheaper than its transforms.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "linear/blocks/strands.h"
#include "linear/precision.h"
#include "packing/blocks.h"
#include "ring/inverse_powers.h"
#include "ring/ring.h"

namespace hesplit {

// Direct inner products cost about one multiplication per output and coefficient of c0; a transform as much as 20.
inline constexpr std::size_t kMaxDirectOutputs = 20;

// Weights and bias encoded for one layout. Immutable.
class BlockWeights {
  public:
    // `weight` and `bias` must outlive this object when the encoded weights are too large to keep.
    BlockWeights(const Ring& ring, InversePowers& powers, const BlockLayout& layout, const Scaling& scaling,
                 View<const double> weight, View<const double> bias);

    const BlockLayout& layout() const { return layout_; }
    const Scaling& scaling() const { return scaling_; }
    std::size_t bytes() const;  // of all that is kept
    // Turns the c0 of a group's inputs, coefficients one polynomial after the other, into what outputs() reads.
    Buffer<std::uint64_t> prepare_c0(Buffer<std::uint64_t> c0) const;
    // The same for c1, in NTT form, and products(); empty where products() reads c1 itself.
    Buffer<std::uint64_t> prepare_c1(const Buffer<std::uint64_t>& c1) const;
    // How many products are best computed in one call.
    std::size_t products_at_once() const { return strands_ ? std::max<std::size_t>(24, layout_.products() / 8) : 1; }

    // c1 of products first, ..., first + count - 1 of a group: [count, ring size] in coefficient form.
    void products(const Buffer<std::uint64_t>& c1, std::size_t first, std::size_t count, std::uint64_t* out) const;
    // The outputs among the coefficients of their c0, with bias, for a group of `samples`, in the order of
    // output_positions: [count, primes, padded_outputs()] residues. `prepared` is made by prepare_c0().
    void outputs(const Buffer<std::uint64_t>& prepared, std::size_t first, std::size_t count, std::size_t samples,
                 std::uint64_t* out) const;
    // Outputs of one product, rounded up to what Ring::switch_to_bits takes.
    std::size_t padded_outputs() const { return (layout_.per_product() * layout_.group_size + 15) / 16 * 16; }

  private:
    bool direct() const { return layout_.outputs <= kMaxDirectOutputs; }
    std::size_t padded_width() const { return (layout_.width + 7) / 8 * 8; }
    std::size_t window() const { return 2 * layout_.degree + 8; }

    void encode(std::size_t p, std::uint64_t* polys) const;  // inputs() polynomials in NTT form
    // The residues of the weights of one output and input, the last feature first.
    void place_residues(std::size_t output, std::size_t j, std::size_t row, std::uint64_t* out) const;
    // Residues of the rounded weights, [row of the ring, output, input, padded]: `width` to an input, then zeros.
    Buffer<std::uint64_t> weight_residues(std::size_t inputs, std::size_t width, std::size_t padded) const;
    void multiply(const Buffer<std::uint64_t>& inputs, std::size_t p, std::uint64_t* out) const;  // in NTT form
    void direct_outputs(const Buffer<std::uint64_t>& windows, std::size_t p, std::size_t samples,
                        std::uint64_t* outputs) const;
    void add_bias(std::size_t p, std::size_t samples, std::uint64_t* outputs) const;

    const Ring& ring_;
    BlockLayout layout_;
    Scaling scaling_;
    // Weights have exponents u * block - i for i < width. They are encoded times x^(width - 1): none is negative then,
    // and mostly they leave parts of the polynomial out, which makes their transforms shorter. Inputs in NTT form are
    // multiplied by `shift_`, x^-(width - 1) where that is not 1.
    Support support_;
    std::shared_ptr<const Buffer<std::uint64_t>> shift_;
    View<const double> weight_;
    View<const double> bias_;
    std::vector<Buffer<std::uint64_t>> encoded_;    // by product; empty when not kept
    Buffer<std::uint64_t> residues_;                // with padded_width(), for direct outputs
    std::unique_ptr<const StrandWeights> strands_;  // does all the work where it is set
};

}  // namespace hesplit
