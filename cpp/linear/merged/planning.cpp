#include "linear/merged/planning.h"

#include <cmath>

#include "base/error.h"
#include "linear/merged/merging.h"

namespace hesplit {

MergedPlan::MergedPlan(const Parameters& parameters, const PlannedLayer& layer)
    : choice_(parameters.choice()),
      layer_(layer),
      data_(parameters.ring_degree(), parameters.data_primes()),
      key_(parameters.ring_degree(), parameters.primes()),
      codec_(data_, dropped_bits(data_)) {
    const std::size_t group_size = merged_group_size(data_.degree(), layer.features, layer.samples, choice_.batch_size);
    groups_ = (layer.samples + group_size - 1) / group_size;
    layout_ = merged_layout(data_.degree(), layer.features, layer.outputs, group_size);
    norms_ = planned_norms(choice_, layer.weight_norm, 1);
    norms_.reach *= 1.02;  // room for a bias
    babies_ = most_useful_babies(choice_, data_, key_, layer.features, layer.outputs);
    while (babies_ > 0 && !holds(babies_)) {
        --babies_;
    }
}

bool MergedPlan::holds(std::size_t babies) const {
    for (int bits = 8; bits <= 50; ++bits) {
        ParameterChoice choice = choice_;
        choice.scale = std::ldexp(1.0, bits);
        try {
            scale_merged(choice, data_, key_, norms_, layer_.features, layer_.outputs, {}, babies);
            return true;
        } catch (const RangeError&) {
            continue;
        }
    }
    return false;
}

Scaling MergedPlan::scaling(double scale) const {
    ParameterChoice choice = choice_;
    choice.scale = scale;
    return scale_merged(choice, data_, key_, norms_, layer_.features, layer_.outputs, {}, babies_);
}

LayerEstimate MergedPlan::estimate() const {
    const Scaling found = scale_merged_fast(choice_, data_, key_, norms_, layer_.features, layer_.outputs, {});
    LayerEstimate estimate;
    estimate.group_size = layout_.blocks.group_size;
    estimate.width = layout_.blocks.width;
    estimate.inputs = layout_.blocks.inputs();
    estimate.products = layout_.replies();
    estimate.error = found.error;
    estimate.reply_bits = found.reply_bits;
    const std::size_t levels =
        merging_elements(data_.degree(), layer_.features, layer_.outputs, choice_.batch_size).size();
    const MergingKeys keys(key_, levels);
    estimate.key_bytes = keys.bytes();
    estimate.request_bytes = groups_ * estimate.inputs * codec_.bytes();
    std::size_t reply = 0;
    for (std::size_t r = 0; r < layout_.replies(); ++r) {
        reply += packed_bytes(layout_.outputs_of(r) * layout_.blocks.group_size, found.reply_bits) +
                 packed_bytes(data_.degree(), found.reply_bits);
    }
    estimate.reply_bytes = groups_ * reply;
    // Nanoseconds per coefficient and prime, as those of block_cost.
    constexpr double kEncrypt = 7.5, kReceive = 9, kEncode = 3, kMultiply = 0.5, kMerge = 7, kFinish = 4, kDecrypt = 2;
    const auto coefficients = static_cast<double>(groups_ * data_.size());
    const auto inputs = static_cast<double>(estimate.inputs), products = static_cast<double>(layout_.blocks.products()),
               replies = static_cast<double>(layout_.replies());
    const double once = static_cast<double>(data_.size()) * inputs * products * kEncode;
    const double rotations = static_cast<double>(merging_rotations(layout_, static_cast<std::size_t>(found.babies)));
    estimate.cost = BlockCost{coefficients * (inputs * kEncrypt + replies * kDecrypt),
                              once + coefficients * (inputs * kReceive + inputs * products * kMultiply +
                                                     rotations * kMerge + replies * kFinish),
                              layer_.byte_ns * static_cast<double>(estimate.request_bytes + estimate.reply_bytes)};
    return estimate;
}

}  // namespace hesplit
