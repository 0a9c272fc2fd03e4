// The plan of a layer on merged blocks.
#pragma once

#include "linear/planning.h"
#include "packing/merged.h"
#include "ring/ring.h"
#include "wire/codec.h"

namespace hesplit {

class MergedPlan final : public LayerPlan {
  public:
    MergedPlan(const Parameters& parameters, const PlannedLayer& layer);

    Scaling scaling(double scale) const override;
    double flooding(double, const Scaling&) const override { return 0; }  // parameters of them allow no releases
    LayerEstimate estimate() const override;

  private:
    ParameterChoice choice_;
    PlannedLayer layer_;
    Ring data_;
    Ring key_;
    PolynomialCodec codec_;
    std::size_t groups_;
    MergedLayout layout_;
    WeightNorms norms_;
};

}  // namespace hesplit
