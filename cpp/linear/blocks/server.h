// The layer on coefficient blocks, as a server computes it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "linear/blocks/forward.h"
#include "linear/server_packing.h"
#include "rlwe/parameters.h"
#include "wire/codec.h"

namespace hesplit {

class BlockServerPacking : public ServerPacking {
  public:
    BlockServerPacking(const Parameters& parameters, std::size_t features, std::size_t outputs);

    const Ring& ring() const override { return ring_; }
    ServingCost weights_cost() const override { return {}; }  // encoded when it is known in which layout
    std::shared_ptr<const LayerWeights> make_weights(std::vector<double> weight,
                                                     std::vector<double> bias) const override;

    void check_shape(const BatchShape& shape) const override;
    std::size_t inputs(const BatchShape& shape) const override;
    ServingCost cost(Served served, const BatchShape& shape, int bits) const override;

    void check_gradient(const BatchShape&) const override {}
    std::size_t gradient_products_at_once(const BatchShape& shape) const override;

    double gradient_scale(View<const double> gradient) const override;
    int gradient_bits(const BatchShape& shape, View<const double> gradient, double scale) const override;
    std::vector<GradientRun> gradient_runs(const BatchShape& shape) const override;
    std::vector<std::uint32_t> gradient_positions(const BatchShape& shape, const GradientRun& run) const override;
    std::unique_ptr<const LayerGradient> make_gradient(const BatchShape& shape, View<const double> gradient,
                                                       double scale, std::size_t first,
                                                       std::size_t count) const override;
    std::vector<double> decode_gradient(const GradientRun& run, View<const std::int64_t> values,
                                        double scale) const override;

  protected:
    const Parameters parameters_;
    const std::size_t features_;
    const std::size_t outputs_;
    const Ring ring_;
    const PolynomialCodec codec_;

  private:
    BlockLayout layout(const BatchShape& shape) const;

    mutable InversePowers powers_;
    mutable NextReplyC1 next_;  // last, so that its job ends before the rest
};

}  // namespace hesplit
