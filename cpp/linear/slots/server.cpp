#include "linear/slots/server.h"

#include <cmath>
#include <string>
#include <utility>

#include "base/error.h"
#include "linear/precision.h"
#include "linear/slots/forward.h"
#include "linear/slots/gradient.h"
#include "linear/slots/layout.h"

namespace hesplit {

SlotServerPacking::SlotServerPacking(const Parameters& parameters, std::size_t features, std::size_t outputs,
                                     bool weight_gradients, WireReader& reader)
    : parameters_(parameters),
      ring_(parameters),
      layout_(plan_slots(ring_.slots(), features, outputs, parameters.choice().batch_size, allow_babies(ring_),
                         weight_gradients)),
      keys_(read_rotation_keys(ring_, server_rotations(layout_, parameters.choice().batch_size, weight_gradients),
                               reader)),
      codec_(ring_.data(), dropped_bits(ring_.data())) {}

ServingCost SlotServerPacking::weights_cost() const {
    const BatchShape one{1, static_cast<std::uint32_t>(layout_.group_size()), 0};
    return cost(Served::forward, one, most_reply_bits(ring()));
}

std::shared_ptr<const LayerWeights> SlotServerPacking::make_weights(std::vector<double> weight,
                                                                    std::vector<double> bias) const {
    return std::make_shared<const SlotLayerWeights>(
        SlotWeights(parameters_, ring_, layout_, {weight.data(), weight.size()}, {bias.data(), bias.size()}), ring_,
        layout_, keys_, codec_);
}

void SlotServerPacking::check_shape(const BatchShape& shape) const {
    if (shape.group_size != layout_.group_size() || shape.width != 0) {
        throw WireError("a request with another slot layout");
    }
}

double SlotServerPacking::gradient_scale(View<const double> gradient) const {
    // SlotRing::encode_ntt takes any scale.
    return largest_gradient_scale(parameters_.choice(), ring_.data(), gradient, layout_.outputs);
}

int SlotServerPacking::gradient_bits(const BatchShape&, View<const double>, double) const {
    return kSlotGradientBits;
}

std::vector<GradientRun> SlotServerPacking::gradient_runs(const BatchShape&) const {
    return weight_gradient_runs(layout_, ring_.data().degree());
}

std::vector<std::uint32_t> SlotServerPacking::gradient_positions(const BatchShape&, const GradientRun&) const {
    return all_positions(ring_.data().degree());
}

ServingCost SlotServerPacking::cost(Served served, const BatchShape& shape, int bits) const {
    return slot_serving_cost(served, ring_, codec_.bytes(), layout_, shape, bits);
}

void SlotServerPacking::check_gradient(const BatchShape& shape) const {
    for (const int step : gradient_steps(layout_, shape.samples)) {
        if (keys_.count(step) == 0) {
            throw WireError("the rotation keys are for weight gradients of batches of up to " +
                            std::to_string(parameters_.choice().batch_size) + " samples, this one has " +
                            std::to_string(shape.samples));
        }
    }
}

std::unique_ptr<const LayerGradient> SlotServerPacking::make_gradient(const BatchShape&, View<const double> gradient,
                                                                      double scale, std::size_t first,
                                                                      std::size_t) const {
    return std::make_unique<const SlotGradient>(ring_, layout_, keys_, gradient, scale, first);
}

std::vector<double> SlotServerPacking::decode_gradient(const GradientRun& run, View<const std::int64_t> values,
                                                       double scale) const {
    const SecretBuffer<double> slots = ring_.decode(values, scale);
    std::vector<double> part;
    for (const std::uint32_t slot : weight_gradient_slots(layout_, run.p, run.j)) {
        part.push_back(slots[slot]);
    }
    return part;
}

}  // namespace hesplit
