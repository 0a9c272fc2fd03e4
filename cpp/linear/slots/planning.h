// The plan of a layer on SIMD slots.
#pragma once

#include "ckks/slot_ring.h"
#include "linear/planning.h"
#include "packing/slots.h"
#include "wire/codec.h"

namespace hesplit {

class SlotPlan final : public LayerPlan {
  public:
    SlotPlan(const Parameters& parameters, const PlannedLayer& layer);

    Scaling scaling(double scale) const override;
    double flooding(double, const Scaling&) const override { return 0; }  // parameters of slots allow no releases
    LayerEstimate estimate() const override;

  private:
    ParameterChoice choice_;
    PlannedLayer layer_;
    SlotRing ring_;
    PolynomialCodec codec_;
    SlotLayout layout_;
    WeightNorms norms_;
};

}  // namespace hesplit
