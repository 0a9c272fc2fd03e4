// Replies on SIMD slots.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "ckks/slot_ring.h"
#include "linear/server_packing.h"
#include "linear/slots/weights.h"
#include "packing/slots.h"
#include "wire/codec.h"

namespace hesplit {

class SlotLayerWeights final : public LayerWeights {
  public:
    // All but the weights are the server's, and outlive this object.
    SlotLayerWeights(SlotWeights weights, const SlotRing& ring, const SlotLayout& layout, const RotationKeys& keys,
                     const PolynomialCodec& codec)
        : weights_(std::move(weights)), ring_(ring), layout_(layout), keys_(keys), codec_(codec) {}

    int reply_bits(const BatchShape&) const override { return weights_.scaling().reply_bits; }
    std::string forward(const ForwardRequest& request, std::vector<GroupInputs>* kept,
                        LogitMasks* masks) const override;
    // Every rotation needs c0 and c1 of a product of both: a seed alone is not enough to begin with.
    void work_ahead() const override {}

  private:
    SlotWeights weights_;
    const SlotRing& ring_;
    const SlotLayout& layout_;
    const RotationKeys& keys_;
    const PolynomialCodec& codec_;
};

}  // namespace hesplit
