// The layer of private weights on slots, as a server computes it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "linear/server_packing.h"
#include "linear/traces/weights.h"
#include "packing/traces.h"
#include "rlwe/parameters.h"
#include "wire/codec.h"

namespace hesplit {

class TraceLayerWeights final : public LayerWeights {
  public:
    // All but the weights are the server's, and outlive this object.
    TraceLayerWeights(TraceWeights weights, const Ring& ring, const TraceLayout& layout, const PolynomialCodec& codec)
        : weights_(std::move(weights)), ring_(ring), layout_(layout), codec_(codec) {}

    int reply_bits(const BatchShape&) const override { return weights_.scaling().reply_bits; }
    std::string forward(const ForwardRequest& request, std::vector<GroupInputs>* kept,
                        LogitMasks* masks) const override;
    void work_ahead() const override {}

  private:
    // Writes one ciphertext of the reply.
    void write_product(const ForwardRequest& request, const GroupInputs& inputs, std::size_t p, std::size_t samples,
                       std::uint8_t* out) const;

    TraceWeights weights_;
    const Ring& ring_;
    const TraceLayout& layout_;
    const PolynomialCodec& codec_;
};

class TraceServerPacking final : public ServerPacking {
  public:
    TraceServerPacking(const Parameters& parameters, std::size_t features, std::size_t outputs);

    const Ring& ring() const override { return ring_; }
    ServingCost weights_cost() const override;
    std::shared_ptr<const LayerWeights> make_weights(std::vector<double> weight,
                                                     std::vector<double> bias) const override;

    void check_shape(const BatchShape& shape) const override;
    std::size_t inputs(const BatchShape&) const override { return layout_.inputs(); }
    ServingCost cost(Served served, const BatchShape& shape, int bits) const override;

    // There are no weight gradients: their sums over samples are not traces.
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
    Ring ring_;
    TraceLayout layout_;
    PolynomialCodec codec_;
};

}  // namespace hesplit
