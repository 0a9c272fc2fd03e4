#include "linear/traces/planning.h"

#include <cmath>

namespace hesplit {

TracePlan::TracePlan(const Parameters& parameters, const PlannedLayer& layer)
    : choice_(parameters.choice()),
      layer_(layer),
      ring_(parameters.ring_degree(), parameters.data_primes()),
      codec_(ring_, dropped_bits(ring_)),
      layout_(plan_traces(ring_.degree() / 2, layer.features, layer.outputs, choice_.batch_size)),
      norms_(planned_norms(choice_, layer.weight_norm, 1)) {}

Scaling TracePlan::scaling(double scale) const {
    ParameterChoice choice = choice_;
    choice.scale = scale;
    return scale_traces(choice, ring_, norms_, layout_);
}

LayerEstimate TracePlan::estimate() const {
    const Scaling found = scaling(choice_.scale);
    const std::size_t groups = (layer_.samples + layout_.group_size - 1) / layout_.group_size;
    LayerEstimate estimate;
    estimate.group_size = layout_.group_size;
    estimate.width = layout_.width();
    estimate.inputs = layout_.inputs();
    estimate.products = layout_.products();
    estimate.rotations = LayerEstimate::Rotations{layout_.period, 1, 1, 0};
    estimate.error = found.error;
    estimate.reply_bits = found.reply_bits;
    estimate.spread_bits = found.spread_bits;
    estimate.logit_noise =
        std::ldexp(trace_deviation(layout_) / std::sqrt(3.0), found.flood_bits) / found.product_scale;
    estimate.request_bytes = groups * estimate.inputs * codec_.bytes();
    estimate.reply_bytes =
        groups * estimate.products *
        (packed_bytes(layout_.classes(), found.reply_bits) + packed_bytes(ring_.degree(), found.reply_bits));
    return estimate;
}

}  // namespace hesplit
