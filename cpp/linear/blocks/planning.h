// The plan of a layer on coefficient blocks.
#pragma once

#include "linear/planning.h"
#include "packing/blocks.h"
#include "ring/ring.h"
#include "wire/codec.h"

namespace hesplit {

class BlockPlan final : public LayerPlan {
  public:
    BlockPlan(const Parameters& parameters, const PlannedLayer& layer);

    Scaling scaling(double scale) const override;
    double flooding(double scale, const Scaling& scaling) const override;
    LayerEstimate estimate() const override;

  private:
    ParameterChoice choice_;
    PlannedLayer layer_;
    Ring ring_;
    PolynomialCodec codec_;
    BlockLayout layout_;
    WeightNorms norms_;
};

}  // namespace hesplit
