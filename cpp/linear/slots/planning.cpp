#include "linear/slots/planning.h"

#include "linear/slots/layout.h"

namespace hesplit {

SlotPlan::SlotPlan(const Parameters& parameters, const PlannedLayer& layer)
    : choice_(parameters.choice()),
      layer_(layer),
      ring_(parameters),
      codec_(ring_.data(), dropped_bits(ring_.data())),
      layout_(plan_slots(ring_.slots(), layer.features, layer.outputs, choice_.batch_size, allow_babies(ring_), false)),
      norms_(planned_norms(choice_, layer.weight_norm, 1)) {}

Scaling SlotPlan::scaling(double scale) const {
    ParameterChoice choice = choice_;
    choice.scale = scale;
    return scale_slots(choice, ring_, norms_, layout_);
}

LayerEstimate SlotPlan::estimate() const {
    const Scaling found = scaling(choice_.scale);
    const std::size_t groups = (layer_.samples + layout_.group_size() - 1) / layout_.group_size();
    LayerEstimate estimate;
    estimate.group_size = layout_.group_size();
    estimate.width = layout_.width;
    estimate.inputs = layout_.inputs();
    estimate.products = layout_.products();
    estimate.rotations =
        LayerEstimate::Rotations{layout_.period, layout_.babies, layout_.giants(), rotation_steps(layout_).size()};
    estimate.error = found.error;
    estimate.reply_bits = found.reply_bits;
    estimate.key_bytes = rotation_key_bytes(ring_, rotation_steps(layout_));
    estimate.request_bytes = groups * estimate.inputs * codec_.bytes();
    estimate.reply_bytes = groups * estimate.products * packed_bytes(2 * ring_.data().degree(), found.reply_bits);
    return estimate;
}

}  // namespace hesplit
