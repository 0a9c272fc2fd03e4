#include "linear/server.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/error.h"
#include "linear/blocks/server.h"
#include "linear/precision.h"
#include "linear/ranges.h"
#include "linear/slots/server.h"
#include "wire/codec.h"

namespace hesplit {

LinearServer::LinearServer(View<const std::uint8_t> public_material, std::size_t max_samples,
                           const ServingLimits& limits)
    : LinearServer(WireReader(public_material, MessageType::public_material), max_samples, limits) {}

LinearServer::LinearServer(WireReader reader, std::size_t max_samples, const ServingLimits& limits)
    : parameters_(read_parameters(reader)),
      key_id_(reader.header().key),
      max_samples_(std::min(max_samples, kMaxSamples)),
      limits_(limits) {
    features_ = reader.u32();
    outputs_ = reader.u32();
    weight_gradients_ = reader.u8() == 1;
    if (!possible_layer(features_, outputs_)) {
        throw WireError("public material for an impossible layer of " + std::to_string(features_) + " -> " +
                        std::to_string(outputs_));
    }
    if (parameters_.packing() == Packing::blocks) {
        if (parameters_.choice().private_bits != 0) {
            public_key_ = PublicKey::read(reader, parameters_);
        }
        packing_ = std::make_unique<BlockServerPacking>(parameters_, features_, outputs_, public_key_.get());
    } else {
        packing_ = std::make_unique<SlotServerPacking>(parameters_, features_, outputs_, weight_gradients_, reader);
    }
    reader.require_remaining(0);
    ciphertext_bytes_ = PolynomialCodec(packing_->ring(), dropped_bits(packing_->ring())).bytes();
}

void LinearServer::set_weight(View<const double> weight, View<const double> bias) {
    check_weights(weight, bias, features_, outputs_);
    check(packing_->weights_cost(), limits_);
    const std::shared_ptr<const LayerWeights> fresh =
        packing_->make_weights({weight.begin(), weight.end()}, {bias.begin(), bias.end()});
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        weights_ = fresh;
    }
    fresh->work_ahead();
}

std::shared_ptr<const LayerWeights> LinearServer::weights() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!weights_) {
        throw ParameterError("set_weight must be called before forward");
    }
    return weights_;
}

ForwardRequest LinearServer::read(View<const std::uint8_t> bytes) const {
    WireReader reader(bytes, MessageType::request);
    // Without rotation keys the server has no need to know the key: a client may take a fresh one for every request.
    reader.require(parameters_.hash(), key_id_ == Id{} ? reader.header().key : key_id_);
    ForwardRequest request;
    request.header = reader.header();
    request.head = read_request_head(reader);
    const BatchShape& shape = request.head.shape;
    if (shape.samples < 1 || shape.samples > max_samples_) {
        throw WireError("a request of " + std::to_string(shape.samples) + " samples; this server takes 1 to " +
                        std::to_string(max_samples_));
    }
    packing_->check_shape(shape);
    reader.require_remaining(shape.groups() * packing_->inputs(shape) * ciphertext_bytes_);
    request.ciphertexts = reader.raw(reader.remaining());
    return request;
}

ServingCost LinearServer::cost(View<const std::uint8_t> bytes, bool keep) const {
    const BatchShape shape = read(bytes).head.shape;
    return packing_->cost(keep ? Served::training : Served::forward, shape, weights()->reply_bits(shape));
}

ServingCost LinearServer::gradient_cost(const Kept& kept) const {
    return packing_->cost(Served::weight_gradient, kept.shape, most_reply_bits(packing_->ring()));
}

std::string LinearServer::forward(View<const std::uint8_t> bytes, std::size_t* samples,
                                  std::shared_ptr<const Kept>* kept) const {
    const ForwardRequest request = read(bytes);
    const std::shared_ptr<Kept> keep = kept ? std::make_shared<Kept>() : nullptr;
    const std::shared_ptr<const LayerWeights> weights = this->weights();
    check(packing_->cost(kept ? Served::training : Served::forward, request.head.shape,
                         weights->reply_bits(request.head.shape)),
          limits_);
    std::string reply = weights->forward(request, keep ? &keep->groups : nullptr);
    if (samples) {
        *samples = request.head.shape.samples;
    }
    if (keep) {
        keep->header = request.header;
        keep->shape = request.head.shape;
        *kept = keep;
    }
    return reply;
}

}  // namespace hesplit
