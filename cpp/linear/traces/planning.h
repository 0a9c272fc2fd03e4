// The plan of a layer of private weights on slots.
#pragma once

#include "linear/planning.h"
#include "packing/traces.h"
#include "wire/codec.h"

namespace hesplit {

class TracePlan final : public LayerPlan {
  public:
    TracePlan(const Parameters& parameters, const PlannedLayer& layer);

    Scaling scaling(double scale) const override;
    double flooding(double, const Scaling&) const override { return 0; }  // parameters of slots allow no releases
    LayerEstimate estimate() const override;

  private:
    ParameterChoice choice_;
    PlannedLayer layer_;
    Ring ring_;
    PolynomialCodec codec_;
    TraceLayout layout_;
    WeightNorms norms_;
};

}  // namespace hesplit
