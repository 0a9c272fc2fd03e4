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
    // Whether some scale of the activations keeps the error bound.
    bool holds(std::size_t babies) const;

    ParameterChoice choice_;
    PlannedLayer layer_;
    Ring data_;
    Ring key_;
    PolynomialCodec codec_;
    std::size_t groups_;
    MergedLayout layout_;
    WeightNorms norms_;
    std::size_t babies_ = 0;  // that scales are found for
};

}  // namespace hesplit
