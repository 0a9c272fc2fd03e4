// The encrypted linear layer on SIMD slots: generalised diagonals, baby-step giant-step.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "ckks/slot_ring.h"
#include "linear/precision.h"
#include "linear/server_packing.h"
#include "packing/slots.h"

namespace hesplit {

// Weights and bias encoded for the layout. Immutable.
class SlotWeights {
  public:
    SlotWeights(const Parameters& parameters, const SlotRing& ring, const SlotLayout& layout, View<const double> weight,
                View<const double> bias);

    const Scaling& scaling() const { return scaling_; }

    // All products of a group, with bias, from its input ciphertexts, in coefficient form.
    std::vector<SlotCiphertext> products(const GroupInputs& inputs, const RotationKeys& keys) const;

  private:
    // Every input rotated by every baby step: [input, baby].
    std::vector<SlotCiphertext> rotate_inputs(const GroupInputs& inputs, const RotationKeys& keys) const;
    const Buffer<std::uint64_t>& diagonal(std::size_t p, std::size_t g, std::size_t j, std::size_t b) const;
    SlotCiphertext giant_sum(const std::vector<SlotCiphertext>& rotated, std::size_t p, std::size_t g) const;

    const SlotRing& ring_;
    SlotLayout layout_;
    Scaling scaling_;
    std::vector<Buffer<std::uint64_t>> diagonals_;  // [product, giant, input, baby] in NTT form; empty when all zero
    std::vector<Buffer<std::uint64_t>> bias_;       // [product] coefficients; empty without bias
};

}  // namespace hesplit
