// What a layer needs under given parameters, before there are keys or weights: precision, bytes and time.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>

#include "linear/precision.h"
#include "packing/blocks.h"
#include "rlwe/parameters.h"

namespace hesplit {

// A layer to plan for: `samples` to a batch, rows of the weight of l2 norm up to `weight_norm`, and what a byte between
// client and server costs.
struct PlannedLayer {
    std::size_t features = 0;
    std::size_t outputs = 0;
    std::size_t samples = 0;
    double weight_norm = 0;
    double byte_ns = 8;
};

struct LayerEstimate {
    // The rotations of slots.
    struct Rotations {
        std::size_t period = 0, babies = 0, giants = 0, steps = 0;
    };

    std::size_t group_size = 0;
    std::size_t width = 0;
    std::size_t inputs = 0;    // ciphertexts of a group in a request
    std::size_t products = 0;  // and in a reply
    std::optional<Rotations> rotations;
    double error = 0;
    int reply_bits = 0;
    double flooding_deviation = 0;  // of the noise that floods every logit of a batch; 0 without releases
    int spread_bits = 0;            // of private weights (linear/private_replies.h)
    double logit_noise = 0;         // deviation of the flood that hides private weights, in every logit
    std::size_t key_bytes = 0;      // of evaluation keys, sent once
    std::size_t request_bytes = 0;
    std::size_t reply_bytes = 0;
    std::optional<BlockCost> cost;  // where there is a model of it
};

// One packing's plan of a layer.
class LayerPlan {
  public:
    virtual ~LayerPlan() = default;

    // How weights and replies are scaled when activations are scaled by `scale`. Throws RangeError when the parameters
    // cannot hold such weights.
    virtual Scaling scaling(double scale) const = 0;
    // The deviation of the noise that floods every logit of a batch, 0 without releases.
    virtual double flooding(double scale, const Scaling& scaling) const = 0;
    virtual LayerEstimate estimate() const = 0;
};

std::unique_ptr<const LayerPlan> plan_layer(const Parameters& parameters, const PlannedLayer& layer);

// With releases the power of two with the least flooding that keeps the error bound; otherwise the one with the
// shortest reply, among those the one with the least error; 0 if none keeps the bound.
double best_scale(const LayerPlan& plan, const ParameterChoice& choice);

}  // namespace hesplit
