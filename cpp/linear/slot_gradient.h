// The encrypted weight gradient on SIMD slots: one row of dW per block, gathered by rotations.
#pragma once

#include <cstdint>
#include <vector>

#include "ckks/slot_ring.h"
#include "packing/slots.h"

namespace hesplit {

using SlotGroupInputs = std::vector<SlotCiphertext>;  // one per input of the layout

// The ciphertext of dW of product p and input j, in coefficient form. `inputs` are the groups of a batch, `gradient` is
// row-major [samples, outputs].
SlotCiphertext slot_gradient(const SlotRing& ring, const SlotLayout& layout, const std::vector<SlotGroupInputs>& inputs,
                             const RotationKeys& keys, View<const double> gradient, double scale, std::size_t p,
                             std::size_t j);

}  // namespace hesplit
