#include "linear/merged/server.h"

#include <utility>

#include "base/error.h"
#include "linear/merged/forward.h"

namespace hesplit {

MergedServerPacking::MergedServerPacking(const Parameters& parameters, std::size_t features, std::size_t outputs)
    : BlockServerPacking(parameters, features, outputs),
      key_(parameters.ring_degree(), parameters.primes()),
      merging_(ring_, key_) {}

std::shared_ptr<const LayerWeights> MergedServerPacking::make_weights(std::vector<double> weight,
                                                                      std::vector<double> bias) const {
    return std::make_shared<const MergedLayerWeights>(parameters_.choice(), merging_, codec_, features_,
                                                      std::move(weight), std::move(bias));
}

ServingCost MergedServerPacking::weights_cost() const {
    // Of one sample: what does not fit there fits nowhere.
    const auto width = static_cast<std::uint32_t>(merged_width(ring_.degree(), features_));
    return cost(Served::forward, {1, 1, width}, most_reply_bits(ring_));
}

void MergedServerPacking::check_shape(const BatchShape& shape) const {
    const std::size_t most = most_merged_samples(ring_.degree(), features_, parameters_.choice().batch_size);
    if (shape.width != merged_width(ring_.degree(), features_) || shape.group_size < 1 || shape.group_size > most ||
        shape.group_size > shape.samples) {
        throw WireError("a request with another layout of merged blocks");
    }
}

ServingCost MergedServerPacking::cost(Served served, const BatchShape& shape, int bits) const {
    const MergedLayout layout = merged_layout(ring_.degree(), features_, outputs_, shape.group_size);
    return merged_serving_cost(served, ring_, codec_.bytes(), layout, shape, bits);
}

}  // namespace hesplit
