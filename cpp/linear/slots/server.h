// The layer on SIMD slots, as a server computes it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "ckks/slot_ring.h"
#include "linear/server_packing.h"
#include "packing/slots.h"
#include "rlwe/parameters.h"
#include "wire/codec.h"

namespace hesplit {

class SlotServerPacking final : public ServerPacking {
  public:
    // Reads the rotation keys, with which public material ends.
    SlotServerPacking(const Parameters& parameters, std::size_t features, std::size_t outputs, bool weight_gradients,
                      WireReader& reader);

    const Ring& ring() const override { return ring_.data(); }
    ServingCost weights_cost() const override;
    std::shared_ptr<const LayerWeights> make_weights(std::vector<double> weight,
                                                     std::vector<double> bias) const override;

    void check_shape(const BatchShape& shape) const override;
    std::size_t inputs(const BatchShape&) const override { return layout_.inputs(); }
    ServingCost cost(Served served, const BatchShape& shape, int bits) const override;

    void check_gradient(const BatchShape& shape) const override;
    std::size_t gradient_products_at_once(const BatchShape&) const override { return 1; }

    double gradient_scale(View<const double> gradient) const override;
    int gradient_bits(const BatchShape& shape, View<const double> gradient, double scale) const override;
    std::vector<GradientRun> gradient_runs(const BatchShape& shape) const override;
    std::vector<std::uint32_t> gradient_positions(const BatchShape& shape, const GradientRun& run) const override;
    std::unique_ptr<const LayerGradient> make_gradient(const BatchShape& shape, View<const double> gradient,
                                                       double scale, std::size_t first,
                                                       std::size_t count) const override;
    std::vector<double> decode_gradient(const GradientRun& run, View<const std::int64_t> values,
                                        double scale) const override;

  private:
    Parameters parameters_;
    SlotRing ring_;
    SlotLayout layout_;
    RotationKeys keys_;
    PolynomialCodec codec_;
};

}  // namespace hesplit
