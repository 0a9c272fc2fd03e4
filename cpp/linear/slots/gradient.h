// The encrypted weight gradient on SIMD slots: one row of dW per block, gathered by rotations.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "ckks/slot_ring.h"
#include "linear/server_packing.h"
#include "packing/slots.h"

namespace hesplit {

// Of the message: its rounding then stays below 2^-18 of the largest possible entry, where the noise is.
inline constexpr int kSlotGradientBits = 34;

// How G is encoded for batches of a shape.
struct SlotGradientPlan {
    SlotGradientPlan(const SlotRing& ring, const SlotLayout& layout, std::size_t samples);

    std::size_t groups;
    std::vector<std::int64_t> shifts;
    // Inputs are rotated before they are multiplied, so that all rotations of one share its decomposition: where there
    // is but one group, whose sum is that of all groups, and where the noise of keys is low enough to meet G.
    bool rotates_inputs;
    const Ring& ring;  // of the encoded polynomials
    // All polynomials of a product are encoded once for all inputs, as long as they do not take much memory.
    bool shared;

    std::size_t polynomials() const { return shifts.size() * groups; }
};

// G of one product of a batch. `gradient` is row-major [samples, outputs]; it and the rest outlive this object.
class SlotGradient final : public LayerGradient {
  public:
    SlotGradient(const SlotRing& ring, const SlotLayout& layout, const RotationKeys& keys, View<const double> gradient,
                 double scale, std::size_t p);

    void product(const std::vector<GroupInputs>& inputs, const GradientRun& run, std::uint64_t* c0,
                 std::uint64_t* c1) const override;

  private:
    // G in the slots of one group for one shift, in NTT form; empty where that is 0.
    Buffer<std::uint64_t> encode(std::size_t shift, std::size_t group) const;
    // The inputs of all groups times G, in the slots of one shift before its rotation.
    SlotCiphertext shifted_sum(const std::vector<GroupInputs>& inputs, std::size_t j, std::size_t shift) const;
    // The terms of all shifts but that which stays in place, which is left in `result`.
    std::vector<SwitchedCiphertext> rotate_sums(const std::vector<GroupInputs>& inputs, std::size_t j,
                                                SlotCiphertext& result) const;
    std::vector<SwitchedCiphertext> rotate_input(const GroupInputs& inputs, std::size_t j,
                                                 SlotCiphertext& result) const;

    const SlotRing& ring_;
    const SlotLayout& layout_;
    const RotationKeys& keys_;
    View<const double> gradient_;
    double scale_;
    std::size_t p_;
    SlotGradientPlan plan_;
    std::vector<Buffer<std::uint64_t>> encoded_;  // [shift, group], where it is shared
};

}  // namespace hesplit
