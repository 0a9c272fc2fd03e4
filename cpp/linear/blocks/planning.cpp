#include "linear/blocks/planning.h"

#include <cmath>

#include "linear/blocks/layout.h"
#include "linear/messages.h"

namespace hesplit {

BlockPlan::BlockPlan(const Parameters& parameters, const PlannedLayer& layer)
    : choice_(parameters.choice()),
      layer_(layer),
      ring_(parameters.ring_degree(), parameters.primes()),
      codec_(ring_, dropped_bits(ring_)),
      layout_(planned_layout(choice_, layer.features, layer.outputs, layer.samples,
                             block_medium(ring_, kTypicalReplyBits, layer.byte_ns))),
      norms_(planned_norms(choice_, layer.weight_norm, layout_.per_product())) {}

Scaling BlockPlan::scaling(double scale) const {
    ParameterChoice choice = choice_;
    choice.scale = scale;
    return scale_blocks(choice, ring_, norms_, layer_.features, layout_.per_product(), {});
}

double BlockPlan::flooding(double scale, const Scaling& scaling) const {
    if (choice_.releases == 0) {
        return 0;
    }
    ParameterChoice choice = choice_;
    choice.scale = scale;
    const double l1 = agreed_weight_l1(choice, ring_, layer_.features, layout_.per_product(), scaling.product_scale);
    const double noise = released_noise(choice, ring_, l1, scaling.reply_bits);
    const double deviation = flood_deviation(choice, layer_.samples * layout_.outputs, noise);
    return deviation < kMostFloodDeviation ? deviation / scaling.reply_scale : HUGE_VAL;
}

LayerEstimate BlockPlan::estimate() const {
    const Scaling found = scaling(choice_.scale);
    const std::size_t groups = (layer_.samples + layout_.group_size - 1) / layout_.group_size;
    LayerEstimate estimate;
    estimate.group_size = layout_.group_size;
    estimate.width = layout_.width;
    estimate.inputs = layout_.inputs();
    estimate.products = layout_.products();
    estimate.error = found.error;
    estimate.reply_bits = found.reply_bits;
    estimate.flooding_deviation = flooding(choice_.scale, found);
    estimate.spread_bits = found.spread_bits;
    if (found.flood_bits > 0) {
        estimate.logit_noise = std::ldexp(1 / std::sqrt(3.0), found.flood_bits) / found.product_scale;
    }
    estimate.request_bytes = groups * estimate.inputs * codec_.bytes();
    const std::size_t coefficients = ring_.degree() + layout_.per_product() * layout_.group_size;
    estimate.reply_bytes = groups * estimate.products * packed_bytes(coefficients, found.reply_bits);
    const BlockMedium medium = block_medium(ring_, static_cast<double>(found.reply_bits), layer_.byte_ns);
    estimate.cost = block_cost(layout_, medium, layer_.samples);
    return estimate;
}

}  // namespace hesplit
