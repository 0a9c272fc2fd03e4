// The encrypted linear layer on coefficient blocks: no rotations, no keys, no rescaling.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/ring.h"
#include "linear/precision.h"
#include "packing/blocks.h"

namespace hesplit {

// The ciphertexts of one group: `count` pairs over the ring. c1 is in NTT form, c0 too unless the layout is scalar.
struct GroupInputs {
    std::size_t count = 0;
    Buffer<std::uint64_t> c0;
    Buffer<std::uint64_t> c1;

    GroupInputs(std::size_t ciphertexts, std::size_t poly_size)
        : count(ciphertexts), c0(ciphertexts * poly_size), c1(ciphertexts * poly_size) {}
};

// Weights and bias encoded for one layout. Immutable.
class BlockWeights {
  public:
    // `weight` and `bias` must outlive this object when the encoded weights are too large to keep.
    BlockWeights(const Parameters& parameters, const Ring& ring, const BlockLayout& layout, View<const double> weight,
                 View<const double> bias);

    const BlockLayout& layout() const { return layout_; }
    const Scaling& scaling() const { return scaling_; }

    // Product p of a group, with bias, both polynomials in coefficient form; c0 is meaningful only at output_positions.
    void product(const GroupInputs& inputs, std::size_t p, std::uint64_t* c0, std::uint64_t* c1) const;

  private:
    void encode(std::size_t p, std::uint64_t* polys) const;  // inputs() polynomials in NTT form
    void add_bias(std::size_t p, std::uint64_t* c0) const;

    const Ring& ring_;
    BlockLayout layout_;
    Scaling scaling_;
    View<const double> weight_;
    View<const double> bias_;
    std::vector<Buffer<std::uint64_t>> encoded_;  // by product; empty when not kept
    std::vector<std::uint64_t> scalars_;          // scalar layouts: [product, row, input]
};

}  // namespace hesplit
