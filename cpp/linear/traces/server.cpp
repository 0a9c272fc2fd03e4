#include "linear/traces/server.h"

#include <utility>

#include "base/error.h"
#include "base/parallel.h"
#include "linear/precision.h"
#include "linear/private_replies.h"
#include "linear/traces/refusal.h"

namespace hesplit {

void TraceLayerWeights::write_product(const ForwardRequest& request, const GroupInputs& inputs, std::size_t p,
                                      std::size_t samples, std::uint8_t* out) const {
    const Scaling& scaling = weights_.scaling();
    const std::vector<std::uint32_t>& positions = weights_.positions();
    const std::size_t padded = weights_.padded();
    Buffer<std::uint64_t> c0(ring_.size()), c1(ring_.size());
    weights_.product(inputs, p, c0.data(), c1.data());
    SecretBuffer<std::uint64_t> sent = hide_product(*request.public_key, {positions.data(), positions.size()}, padded,
                                                    scaling.flood_bits, scaling.spread_bits, c1.data());
    const SecretBuffer<std::uint64_t> bias = weights_.bias(p, samples);
    add_residues(ring_, bias.data(), padded, sent.data());
    Buffer<std::uint64_t> exact(ring_.prime_count() * padded, 0), switched(padded);
    for (std::size_t row = 0; row < ring_.prime_count(); ++row) {
        for (std::size_t i = 0; i < positions.size(); ++i) {
            exact[row * padded + i] = c0[row * ring_.degree() + positions[i]];
        }
    }
    add_residues(ring_, exact.data(), padded, sent.data());
    ring_.switch_to_bits(sent.data(), padded, scaling.reply_bits, switched.data());
    pack_bits({switched.data(), positions.size()}, scaling.reply_bits, out);
    pack_switched(ring_, c1.data(), scaling.reply_bits, out + packed_bytes(positions.size(), scaling.reply_bits));
}

std::string TraceLayerWeights::forward(const ForwardRequest& request, std::vector<GroupInputs>* kept,
                                       LogitMasks* masks) const {
    if (masks) {
        refuse_on_traces("shares of logits");
    }
    const Scaling& scaling = weights_.scaling();
    const BatchShape& shape = request.head.shape;
    const std::size_t products = layout_.products();
    CiphertextRuns runs(ring_.degree(), scaling.reply_bits);
    for (std::size_t run = 0; run < shape.groups() * products; ++run) {
        runs.add(layout_.classes());
    }
    WireWriter writer =
        begin_reply(request.header, MessageType::reply, {shape, scaling.reply_bits, scaling.reply_scale}, runs.bytes());
    std::uint8_t* out = writer.reserve(runs.bytes());
    for (std::size_t group = 0; group < shape.groups(); ++group) {
        GroupInputs inputs = read_group(ring_, codec_, request, group, layout_.inputs());
        parallel_for(products, [&](std::size_t p) {
            write_product(request, inputs, p, shape.samples_of(group), out + runs.offset(group * products + p));
        });
        if (kept) {
            kept->push_back(std::move(inputs));
        }
    }
    return writer.finish();
}

TraceServerPacking::TraceServerPacking(const Parameters& parameters, std::size_t features, std::size_t outputs)
    : parameters_(parameters),
      ring_(parameters.ring_degree(), parameters.data_primes()),
      layout_(plan_traces(ring_.degree() / 2, features, outputs, parameters.choice().batch_size)),
      codec_(ring_, dropped_bits(ring_)) {}

ServingCost TraceServerPacking::weights_cost() const {
    const BatchShape one{1, static_cast<std::uint32_t>(layout_.group_size), 0};
    return cost(Served::forward, one, most_reply_bits(ring_));
}

std::shared_ptr<const LayerWeights> TraceServerPacking::make_weights(std::vector<double> weight,
                                                                     std::vector<double> bias) const {
    return std::make_shared<const TraceLayerWeights>(
        TraceWeights(parameters_, ring_, layout_, {weight.data(), weight.size()}, std::move(bias)), ring_, layout_,
        codec_);
}

void TraceServerPacking::check_shape(const BatchShape& shape) const {
    if (shape.group_size != layout_.group_size || shape.width != 0) {
        throw WireError("a request with another slot layout");
    }
}

ServingCost TraceServerPacking::cost(Served served, const BatchShape& shape, int bits) const {
    return trace_serving_cost(served, ring_, codec_.bytes(), layout_, shape, bits);
}

void TraceServerPacking::check_gradient(const BatchShape&) const {
    refuse_on_traces("weight gradients");
}

double TraceServerPacking::gradient_scale(View<const double>) const {
    refuse_on_traces("weight gradients");
}

int TraceServerPacking::gradient_bits(const BatchShape&, View<const double>, double) const {
    refuse_on_traces("weight gradients");
}

std::vector<GradientRun> TraceServerPacking::gradient_runs(const BatchShape&) const {
    refuse_on_traces("weight gradients");
}

std::vector<std::uint32_t> TraceServerPacking::gradient_positions(const BatchShape&, const GradientRun&) const {
    refuse_on_traces("weight gradients");
}

std::unique_ptr<const LayerGradient> TraceServerPacking::make_gradient(const BatchShape&, View<const double>, double,
                                                                       std::size_t, std::size_t) const {
    refuse_on_traces("weight gradients");
}

std::vector<double> TraceServerPacking::decode_gradient(const GradientRun&, View<const std::int64_t>, double) const {
    refuse_on_traces("weight gradients");
}

}  // namespace hesplit
