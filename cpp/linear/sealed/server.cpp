#include "linear/sealed/server.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/parallel.h"
#include "linear/precision.h"
#include "linear/sealed/products.h"
#include "rlwe/encryption.h"

namespace hesplit {

namespace {

MessageType type_of(View<const std::uint8_t> bytes) {
    const bool state = bytes.size > 5 && bytes[5] == static_cast<std::uint8_t>(MessageType::sealed_state);
    return state ? MessageType::sealed_state : MessageType::sealed_weight;
}

}  // namespace

SealedLayerServer::SealedLayerServer(View<const std::uint8_t> bytes, std::size_t max_samples,
                                     const ServingLimits& limits)
    : SealedLayerServer(WireReader(bytes, type_of(bytes)), max_samples, limits) {}

SealedLayerServer::SealedLayerServer(WireReader reader, std::size_t max_samples, const ServingLimits& limits)
    : parameters_(read_sealed_parameters(reader)),
      key_id_(reader.header().key),
      layer_(read_sealed_layer(reader, parameters_)),
      max_samples_(std::min(max_samples, kMaxSamples)),
      limits_(limits),
      ring_(std::make_unique<const Ring>(parameters_.ring_degree(), parameters_.primes())),
      codec_(std::make_unique<const PolynomialCodec>(*ring_, dropped_bits(*ring_))),
      layout_(plan_sealed(parameters_.choice(), layer_.features + 1, layer_.outputs, codec_->bits_per_coefficient(),
                          kTypicalReplyBits)) {
    weights_ = reader.header().type == MessageType::sealed_state ? read_state(reader, layer_.bits)
                                                                 : read_weights(reader, layer_.bits);
}

void SealedLayerServer::read_ciphertexts(View<const std::uint8_t> bytes, const Seed& seed, std::size_t first,
                                         std::size_t count, std::uint64_t* c0, std::uint64_t* c1) const {
    parallel_for(count, [&](std::size_t i) {
        std::uint64_t* poly = c0 + i * ring_->size();
        codec_->unpack(bytes.data + (first + i) * codec_->bytes(), poly);
        ring_->to_ntt(poly);
        expand_uniform(*ring_, seed, static_cast<std::uint32_t>(first + i), c1 + i * ring_->size());
    });
}

std::shared_ptr<const SealedLayerServer::Weights> SealedLayerServer::read_weights(WireReader& reader,
                                                                                  const SealedBits& bits) const {
    check_shape(read_shape(reader));
    const Seed seed = reader.seed();
    const std::size_t count = layout_.products() * layout_.inputs();
    reader.require_remaining(count * codec_->bytes());
    auto fresh = std::make_shared<Weights>();
    fresh->bits = bits;
    fresh->c0.resize(count * ring_->size());
    fresh->c1.resize(count * ring_->size());
    read_ciphertexts(reader.raw(reader.remaining()), seed, 0, count, fresh->c0.data(), fresh->c1.data());
    return fresh;
}

std::shared_ptr<const SealedLayerServer::Weights> SealedLayerServer::weights() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return weights_;
}

void SealedLayerServer::check_shape(const BatchShape& shape) const {
    if (shape.group_size != layout_.group_size || shape.width != layout_.width || shape.samples < 1 ||
        shape.samples > std::max<std::size_t>(max_samples_, layout_.group_size)) {
        throw WireError("a sealed message of " + std::to_string(shape.samples) +
                        " samples or of another layout; this server takes up to " + std::to_string(max_samples_));
    }
}

void SealedLayerServer::refresh(View<const std::uint8_t> sealed) {
    WireReader reader(sealed, MessageType::sealed_weight);
    reader.require(parameters_.hash(), key_id_);
    read_sealed_parameters(reader);
    const SealedLayer layer = read_sealed_layer(reader, parameters_);
    if (layer.features != layer_.features || layer.outputs != layer_.outputs ||
        layer.bits.input_gradient != layer_.bits.input_gradient) {
        throw WireError("refreshed weights of another shape or with other reply bits");
    }
    std::shared_ptr<const Weights> fresh = read_weights(reader, layer.bits);
    const std::lock_guard<std::mutex> lock(mutex_);
    weights_ = std::move(fresh);
}

// A request has the inputs of every group; an update the gradients of every group, then a step for every weight.
SealedLayerServer::Batch SealedLayerServer::read_batch(View<const std::uint8_t> bytes, MessageType type) const {
    const bool request = type == MessageType::sealed_request;
    const std::size_t per_group = request ? layout_.inputs() : layout_.products();
    const std::size_t per_message = request ? 0 : layout_.products() * layout_.inputs();
    WireReader reader(bytes, type);
    reader.require(parameters_.hash(), key_id_);
    Batch batch;
    batch.header = reader.header();
    batch.shape = read_shape(reader);
    check_shape(batch.shape);
    batch.seed = reader.seed();
    reader.require_remaining((batch.shape.groups() * per_group + per_message) * codec_->bytes());
    batch.ciphertexts = reader.raw(reader.remaining());
    return batch;
}

ServingCost SealedLayerServer::cost(const Batch& batch, const Weights& weights) const {
    const Served served =
        batch.header.type == MessageType::sealed_request ? Served::sealed_forward : Served::sealed_update;
    return sealed_serving_cost(served, *ring_, codec_->bytes(), sealed_layer_bytes(parameters_), layout_, batch.shape,
                               weights.bits);
}

ServingCost SealedLayerServer::cost(View<const std::uint8_t> message) const {
    const bool request = message.size > 5 && message[5] == static_cast<std::uint8_t>(MessageType::sealed_request);
    return cost(read_batch(message, request ? MessageType::sealed_request : MessageType::sealed_update), *weights());
}

std::string SealedLayerServer::forward(View<const std::uint8_t> bytes) const {
    const std::size_t inputs = layout_.inputs(), products = layout_.products();
    const Batch batch = read_batch(bytes, MessageType::sealed_request);
    const std::shared_ptr<const Weights> weights = this->weights();
    check(cost(batch, *weights), limits_);
    const BatchShape& shape = batch.shape;
    std::vector<std::vector<std::uint32_t>> positions;
    for (std::size_t group = 0; group < shape.groups(); ++group) {
        for (std::size_t p = 0; p < products; ++p) {
            positions.push_back(output_positions(layout_, p, shape.samples_of(group)));
        }
    }
    Degree2Reply reply(*ring_, batch.header, shape, weights->bits.logits, std::move(positions));
    parallel_for(shape.groups(), [&](std::size_t group) {
        Buffer<std::uint64_t> x0(inputs * ring_->size()), x1(inputs * ring_->size());
        read_ciphertexts(batch.ciphertexts, batch.seed, group * inputs, inputs, x0.data(), x1.data());
        const CiphertextList x(*ring_, x0, x1, 0, inputs);
        for (std::size_t p = 0; p < products; ++p) {
            const CiphertextList w(*ring_, weights->c0, weights->c1, p * inputs, inputs);
            reply.write(group * products + p, multiply(*ring_, x, w));
        }
    });
    return reply.finish();
}

std::string SealedLayerServer::update(View<const std::uint8_t> bytes) {
    const Batch batch = read_batch(bytes, MessageType::sealed_update);
    const std::shared_ptr<const Weights> weights = this->weights();
    if (weights->updates >= parameters_.choice().updates) {
        throw WireError("the sealed weights have taken all the updates that the parameters allow; refresh them");
    }
    check(cost(batch, *weights), limits_);
    std::string reply = input_gradient(batch, *weights);
    std::shared_ptr<const Weights> next = updated(batch, *weights);
    const std::lock_guard<std::mutex> lock(mutex_);
    if (weights_ != weights) {
        throw WireError("two updates of the same weights at once");
    }
    weights_ = std::move(next);
    return reply;
}

std::string SealedLayerServer::input_gradient(const Batch& batch, const Weights& weights) const {
    const BatchShape& shape = batch.shape;
    const std::size_t inputs = layout_.inputs(), products = layout_.products();
    const std::size_t gradients = shape.groups() * products;
    std::vector<std::vector<std::uint32_t>> positions;
    for (std::size_t group = 0; group < shape.groups(); ++group) {
        for (std::size_t j = 0; j < inputs; ++j) {
            positions.push_back(input_gradient_positions(layout_, j, shape.samples_of(group)));
        }
    }
    Degree2Reply reply(*ring_, batch.header, shape, weights.bits.input_gradient, std::move(positions));
    Buffer<std::uint64_t> g0(gradients * ring_->size()), g1(gradients * ring_->size());
    read_ciphertexts(batch.ciphertexts, batch.seed, 0, gradients, g0.data(), g1.data());
    parallel_for(shape.groups() * inputs, [&](std::size_t index) {
        const CiphertextList g(*ring_, g0, g1, index / inputs * products, products);
        const CiphertextList w(*ring_, weights.c0, weights.c1, index % inputs, products, inputs);
        reply.write(index, multiply(*ring_, g, w));
    });
    return reply.finish();
}

std::shared_ptr<const SealedLayerServer::Weights> SealedLayerServer::updated(const Batch& batch,
                                                                             const Weights& weights) const {
    const std::size_t gradients = batch.shape.groups() * layout_.products();
    const std::size_t steps = layout_.products() * layout_.inputs(), size = ring_->size();
    auto next = std::make_shared<Weights>();
    next->c0.resize(steps * size);
    next->c1.resize(steps * size);
    next->updates = weights.updates + 1;
    next->bits = weights.bits;
    read_ciphertexts(batch.ciphertexts, batch.seed, gradients, steps, next->c0.data(), next->c1.data());
    for (std::size_t i = 0; i < steps; ++i) {
        ring_->add(next->c0.data() + i * size, weights.c0.data() + i * size);
        ring_->add(next->c1.data() + i * size, weights.c1.data() + i * size);
    }
    return next;
}

std::string SealedLayerServer::saved() const {
    const std::shared_ptr<const Weights> weights = this->weights();
    const PolynomialCodec exact(*ring_, 0);
    const std::size_t count = layout_.products() * layout_.inputs();
    WireWriter writer({MessageType::sealed_state, parameters_.hash(), key_id_, Id{}},
                      sealed_layer_bytes(parameters_) + 4 + 2 * count * exact.bytes());
    write_sealed_layer(writer, parameters_, {layer_.features, layer_.outputs, weights->bits});
    writer.u32(weights->updates);
    Buffer<std::uint64_t> scratch;
    for (const Buffer<std::uint64_t>* part : {&weights->c0, &weights->c1}) {
        for (std::size_t i = 0; i < count; ++i) {
            exact.pack(part->data() + i * ring_->size(), writer.reserve(exact.bytes()), scratch);
        }
    }
    return writer.finish();
}

std::shared_ptr<const SealedLayerServer::Weights> SealedLayerServer::read_state(WireReader& reader,
                                                                                const SealedBits& bits) const {
    const PolynomialCodec exact(*ring_, 0);
    const std::size_t count = layout_.products() * layout_.inputs();
    auto state = std::make_shared<Weights>();
    state->bits = bits;
    state->updates = reader.u32();
    reader.require_remaining(2 * count * exact.bytes());
    for (Buffer<std::uint64_t>* part : {&state->c0, &state->c1}) {
        part->resize(count * ring_->size());
        for (std::size_t i = 0; i < count; ++i) {
            exact.unpack(reader.raw(exact.bytes()).data, part->data() + i * ring_->size());
        }
    }
    return state;
}

}  // namespace hesplit
