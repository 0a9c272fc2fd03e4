#include "linear/server.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/error.h"
#include "linear/blocks/server.h"
#include "linear/merged/server.h"
#include "linear/precision.h"
#include "linear/ranges.h"
#include "linear/slots/server.h"
#include "linear/traces/server.h"
#include "packing/merged.h"
#include "rlwe/galois.h"
#include "wire/codec.h"

namespace hesplit {

LinearServer::LinearServer(View<const std::uint8_t> public_material, std::size_t max_samples,
                           const ServingLimits& limits)
    : LinearServer(WireReader(public_material, MessageType::public_material), max_samples, limits, nullptr) {}

LinearServer::LinearServer(WireReader reader, std::size_t max_samples, const ServingLimits& limits,
                           const LinearServer* like)
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
    if (parameters_.choice().private_bits != 0) {
        if (key_id_ == Id{}) {
            throw WireError("public material without a key, which replies that hide the weights need");
        }
        public_key_ = PublicKey::read(reader, parameters_);
    }
    if (parameters_.packing() == Packing::merged) {
        const Ring key(parameters_.ring_degree(), parameters_.primes());
        const std::vector<std::uint64_t> elements =
            merging_elements(key.degree(), features_, outputs_, parameters_.choice().batch_size);
        merging_keys_ =
            std::make_shared<const std::vector<GaloisKey>>(MergingKeys(key, elements.size()).read(elements, reader));
    }
    if (like) {
        packing_ = like->packing_;
        weights_ = like->weights();
    } else if (parameters_.packing() == Packing::blocks) {
        packing_ = std::make_shared<BlockServerPacking>(parameters_, features_, outputs_);
    } else if (parameters_.packing() == Packing::merged) {
        packing_ = std::make_shared<MergedServerPacking>(parameters_, features_, outputs_);
    } else if (parameters_.traced()) {
        if (weight_gradients_) {
            throw WireError("public material for weight gradients, which private weights on slots do not have");
        }
        packing_ = std::make_shared<TraceServerPacking>(parameters_, features_, outputs_);
    } else {
        packing_ = std::make_shared<SlotServerPacking>(parameters_, features_, outputs_, weight_gradients_, reader);
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

std::unique_ptr<LinearServer> LinearServer::for_client(View<const std::uint8_t> public_material) const {
    if (parameters_.packing() == Packing::slots && !parameters_.traced()) {
        throw ParameterError("servers of slots share no weights: each has the rotation keys of its client");
    }
    WireReader reader(public_material, MessageType::public_material);
    reader.require(parameters_.hash(), reader.header().key);
    std::unique_ptr<LinearServer> made(new LinearServer(std::move(reader), max_samples_, limits_, this));
    if (made->features_ != features_ || made->outputs_ != outputs_) {
        throw WireError("public material for a layer of another shape");
    }
    return made;
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
    request.public_key = public_key_;
    request.merging_keys = merging_keys_;
    return request;
}

ServingCost LinearServer::cost(View<const std::uint8_t> bytes, bool keep) const {
    const BatchShape shape = read(bytes).head.shape;
    return packing_->cost(keep ? Served::training : Served::forward, shape, weights()->reply_bits(shape));
}

ServingCost LinearServer::gradient_cost(const Kept& kept) const {
    return packing_->cost(Served::weight_gradient, kept.shape, most_reply_bits(packing_->ring()));
}

std::string LinearServer::reply(View<const std::uint8_t> bytes, std::size_t* samples, std::shared_ptr<const Kept>* kept,
                                LogitMasks* masks) const {
    const ForwardRequest request = read(bytes);
    const std::shared_ptr<Kept> keep = kept ? std::make_shared<Kept>() : nullptr;
    const std::shared_ptr<const LayerWeights> weights = this->weights();
    check(packing_->cost(kept ? Served::training : Served::forward, request.head.shape,
                         weights->reply_bits(request.head.shape)),
          limits_);
    std::string reply = weights->forward(request, keep ? &keep->groups : nullptr, masks);
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

std::string LinearServer::forward(View<const std::uint8_t> request, std::size_t* samples,
                                  std::shared_ptr<const Kept>* kept) const {
    return reply(request, samples, kept, nullptr);
}

}  // namespace hesplit
