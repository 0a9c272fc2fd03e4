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

// `gradient` is row-major [samples, outputs]; it and the rest outlive this object.
class SlotGradient final : public LayerGradient {
  public:
    SlotGradient(const SlotRing& ring, const SlotLayout& layout, const RotationKeys& keys, View<const double> gradient,
                 double scale)
        : ring_(ring), layout_(layout), keys_(keys), gradient_(gradient), scale_(scale) {}

    void product(const std::vector<GroupInputs>& inputs, const GradientRun& run, std::uint64_t* c0,
                 std::uint64_t* c1) const override;

  private:
    // The inputs of all groups times G, in the slots of one shift before its rotation.
    SlotCiphertext shifted_sum(const std::vector<GroupInputs>& inputs, const GradientRun& run,
                               std::int64_t shift) const;

    const SlotRing& ring_;
    const SlotLayout& layout_;
    const RotationKeys& keys_;
    View<const double> gradient_;
    double scale_;
};

}  // namespace hesplit
