#include "linear/sealed/server.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/parallel.h"
#include "linear/precision.h"
#include "linear/sealed/products.h"
#include "rlwe/encryption.h"

namespace hesplit {

SealedLayerServer::SealedLayerServer(View<const std::uint8_t> bytes, std::size_t max_samples,
                                     const ServingLimits& limits)
    : SealedLayerServer(WireReader(bytes, MessageType::sealed_weight), max_samples, limits) {}

SealedLayerServer::SealedLayerServer(WireReader reader, std::size_t max_samples, const ServingLimits& limits)
    : parameters_(read_sealed_parameters(reader)),
      key_id_(reader.header().key),
      layer_(read_sealed_layer(reader, parameters_)),
      max_samples_(std::min(max_samples, kMaxSamples)),
      limits_(limits),
      ring_(std::make_unique<const Ring>(parameters_.ring_degree(), parameters_.primes())),
      codec_(std::make_unique<const PolynomialCodec>(*ring_, dropped_bits(*ring_))),
      layout_(plan_sealed(parameters_.choice(), layer_.features, layer_.outputs, codec_->bits_per_coefficient(),
                          kTypicalReplyBits)),
      bias_codec_(std::make_unique<const PolynomialCodec>(*ring_, dropped_bits(*ring_), bias_coefficients(layout_))) {
    weights_ = read_sealed(reader, layer_.bits);
}

std::size_t SealedLayerServer::weight_bytes() const {
    return weight_count() * codec_->bytes() + bias_polynomials(layout_) * bias_codec_->bytes();
}

void SealedLayerServer::check_bits(const SealedBits& bits) const {
    if (!possible_gradient_dropped(*ring_, bits.gradient_dropped)) {
        throw WireError("sealed weights with an impossible number of bits dropped from gradients");
    }
}

// As many ciphertexts as there are bytes of; `index`: of the first one under the seed.
void SealedLayerServer::read_ciphertexts(const PolynomialCodec& codec, View<const std::uint8_t> bytes, const Seed& seed,
                                         std::size_t index, std::uint64_t* c0, std::uint64_t* c1) const {
    parallel_for(bytes.size / codec.bytes(), [&](std::size_t i) {
        std::uint64_t* poly = c0 + i * ring_->size();
        codec.unpack(bytes.data + i * codec.bytes(), poly);
        ring_->to_ntt(poly);
        expand_uniform(*ring_, seed, static_cast<std::uint32_t>(index + i), c1 + i * ring_->size());
    });
}

std::shared_ptr<const SealedLayerServer::Weights> SealedLayerServer::read_sealed(WireReader& reader,
                                                                                 const SealedBits& bits) const {
    check_shape(read_shape(reader));
    const Seed seed = reader.seed();
    reader.require_remaining(weight_bytes());
    return read_weights(reader.header().message, bits, seed, reader.raw(reader.remaining()));
}

std::shared_ptr<const SealedLayerServer::Weights> SealedLayerServer::read_weights(
    const Id& name, const SealedBits& bits, const Seed& seed, View<const std::uint8_t> ciphertexts) const {
    check_bits(bits);
    const std::size_t count = weight_count(), outputs = layout_.outputs, n = ring_->degree();
    auto fresh = std::make_shared<Weights>();
    fresh->name = name;
    fresh->bits = bits;
    fresh->seed = seed;
    fresh->ciphertexts.assign(ciphertexts.begin(), ciphertexts.end());
    fresh->c0.resize(count * ring_->size());
    fresh->c1.resize(count * ring_->size());
    read_ciphertexts(*codec_, {ciphertexts.data, count * codec_->bytes()}, seed, 0, fresh->c0.data(), fresh->c1.data());
    fresh->bias.resize(ring_->prime_count() * outputs);
    Buffer<std::uint64_t> poly(ring_->size());
    const std::uint8_t* in = ciphertexts.data + count * codec_->bytes();
    for (std::size_t first = 0; first < outputs; first += n, in += bias_codec_->bytes()) {
        bias_codec_->unpack(in, poly.data());
        for (std::size_t row = 0; row < ring_->prime_count(); ++row) {
            std::copy_n(poly.data() + row * n, std::min(n, outputs - first),
                        fresh->bias.data() + row * outputs + first);
        }
    }
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
    if (layer.features != layer_.features || layer.outputs != layer_.outputs) {
        throw WireError("refreshed weights of another shape");
    }
    std::shared_ptr<const Weights> fresh = read_sealed(reader, layer.bits);
    const std::lock_guard<std::mutex> lock(mutex_);
    weights_ = std::move(fresh);
    behind_ = 0;
}

// A request has the inputs of every group; an update the gradients of every group, after weights if these come with it.
SealedLayerServer::Batch SealedLayerServer::read_batch(View<const std::uint8_t> bytes, MessageType type,
                                                       const Weights& weights) const {
    const bool request = type == MessageType::sealed_request;
    WireReader reader(bytes, type);
    reader.require(parameters_.hash(), key_id_);
    Batch batch;
    batch.header = reader.header();
    batch.shape = read_shape(reader);
    check_shape(batch.shape);
    if (!request) {
        const std::uint8_t flag = reader.u8();
        if (flag > 1) {
            throw WireError("an update that neither brings weights nor does not");
        }
        batch.weights = flag == 1;
        batch.bits = batch.weights ? read_sealed_bits(reader, parameters_) : weights.bits;
        check_bits(batch.bits);
    }
    batch.seed = reader.seed();
    const std::size_t sealed = batch.weights ? weight_bytes() : 0;
    const std::size_t each = request ? codec_->bytes() : PolynomialCodec(*ring_, weights.bits.gradient_dropped).bytes();
    const std::size_t count = batch.shape.groups() * (request ? layout_.inputs() : layout_.products());
    reader.require_remaining(sealed + count * each);
    batch.sealed = reader.raw(sealed);
    batch.ciphertexts = reader.raw(count * each);
    return batch;
}

ServingCost SealedLayerServer::cost(const Batch& batch, const Weights& weights) const {
    const Served served = batch.header.type == MessageType::sealed_request ? Served::sealed_forward
                          : batch.weights                                  ? Served::sealed_update
                                                                           : Served::sealed_gradient;
    return sealed_serving_cost(served, *ring_, sealed_layer_bytes(parameters_), layout_, batch.shape, weights.bits);
}

ServingCost SealedLayerServer::cost(View<const std::uint8_t> message) const {
    const bool request = message.size > 5 && message[5] == static_cast<std::uint8_t>(MessageType::sealed_request);
    const std::shared_ptr<const Weights> weights = this->weights();
    return cost(read_batch(message, request ? MessageType::sealed_request : MessageType::sealed_update, *weights),
                *weights);
}

// To the coefficients that hold logits of one product, ordered by output, then sample.
void SealedLayerServer::add_bias(const Weights& weights, std::size_t product, std::size_t samples,
                                 const std::vector<std::uint32_t>& positions, std::uint64_t* c0) const {
    for (std::size_t row = 0; row < ring_->prime_count(); ++row) {
        const std::uint64_t prime = ring_->prime(row);
        const std::uint64_t* bias = weights.bias.data() + row * layout_.outputs + product * layout_.per_product();
        for (std::size_t i = 0; i < positions.size(); ++i) {
            std::uint64_t& value = c0[row * ring_->degree() + positions[i]];
            value += bias[i / samples];
            value = std::min(value, value - prime);  // modulo the prime
        }
    }
}

std::string SealedLayerServer::forward(View<const std::uint8_t> bytes) const {
    const std::size_t inputs = layout_.inputs(), products = layout_.products();
    const std::shared_ptr<const Weights> weights = this->weights();
    const Batch batch = read_batch(bytes, MessageType::sealed_request, *weights);
    check(cost(batch, *weights), limits_);
    const BatchShape& shape = batch.shape;
    std::vector<std::vector<std::uint32_t>> positions;
    for (std::size_t group = 0; group < shape.groups(); ++group) {
        for (std::size_t p = 0; p < products; ++p) {
            positions.push_back(output_positions(layout_, p, shape.samples_of(group)));
        }
    }
    SealedReply reply(*ring_, batch.header, shape, weights->name, weights->bits.logits, std::move(positions));
    parallel_for(shape.groups(), [&](std::size_t group) {
        Buffer<std::uint64_t> x0(inputs * ring_->size()), x1(inputs * ring_->size());
        const std::size_t each = inputs * codec_->bytes();
        read_ciphertexts(*codec_, {batch.ciphertexts.data + group * each, each}, batch.seed, group * inputs, x0.data(),
                         x1.data());
        const CiphertextList x(*ring_, x0, x1, 0, inputs);
        for (std::size_t p = 0; p < products; ++p) {
            const std::size_t index = group * products + p;
            SealedProduct product =
                multiply(*ring_, x, CiphertextList(*ring_, weights->c0, weights->c1, p * inputs, inputs));
            add_bias(*weights, p, shape.samples_of(group), reply.positions(index), product.c0.data());
            reply.write(index, product);
        }
    });
    return reply.finish();
}

std::string SealedLayerServer::update(View<const std::uint8_t> bytes) {
    std::shared_ptr<const Weights> weights;
    std::uint32_t behind = 0;
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        weights = weights_;
        behind = behind_ + 1;
    }
    const Batch batch = read_batch(bytes, MessageType::sealed_update, *weights);
    if (!batch.weights && behind >= parameters_.choice().updates) {
        throw WireError("the sealed weights are as many updates behind as the parameters allow; send them anew");
    }
    check(cost(batch, *weights), limits_);
    std::string reply = input_gradient(batch, *weights);
    std::shared_ptr<const Weights> next =
        batch.weights ? read_weights(batch.header.message, batch.bits, batch.seed, batch.sealed) : weights;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (weights_ != weights || behind_ + 1 != behind) {
        throw WireError("two updates of the same weights at once");
    }
    weights_ = std::move(next);
    behind_ = batch.weights ? 0 : behind;
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
    SealedReply reply(*ring_, batch.header, shape, weights.name, weights.bits.input_gradient, std::move(positions));
    Buffer<std::uint64_t> g0(gradients * ring_->size()), g1(gradients * ring_->size());
    const std::size_t first = batch.weights ? weight_count() + bias_polynomials(layout_) : 0;
    read_ciphertexts(PolynomialCodec(*ring_, weights.bits.gradient_dropped), batch.ciphertexts, batch.seed, first,
                     g0.data(), g1.data());
    parallel_for(shape.groups() * inputs, [&](std::size_t index) {
        const CiphertextList g(*ring_, g0, g1, index / inputs * products, products);
        const CiphertextList w(*ring_, weights.c0, weights.c1, index % inputs, products, inputs);
        reply.write(index, multiply(*ring_, g, w));
    });
    return reply.finish();
}

std::string SealedLayerServer::saved() const {
    const std::shared_ptr<const Weights> weights = this->weights();
    WireWriter writer({MessageType::sealed_weight, parameters_.hash(), key_id_, weights->name},
                      sealed_layer_bytes(parameters_) + kSealedRequestPrefix + weights->ciphertexts.size());
    write_sealed_layer(writer, parameters_, {layer_.features, layer_.outputs, weights->bits});
    const auto group = static_cast<std::uint32_t>(layout_.group_size);
    write_shape(writer, {group, group, static_cast<std::uint32_t>(layout_.width)});
    writer.seed(weights->seed);
    writer.raw({weights->ciphertexts.data(), weights->ciphertexts.size()});
    return writer.finish();
}

}  // namespace hesplit
