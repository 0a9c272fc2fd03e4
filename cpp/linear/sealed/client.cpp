#include "linear/sealed/client.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <utility>

#include "base/error.h"
#include "base/parallel.h"
#include "linear/precision.h"
#include "linear/ranges.h"
#include "linear/sealed/messages.h"

namespace hesplit {

namespace {

WeightNorms norms_of(const ParameterChoice& choice, View<const double> weight, View<const double> bias,
                     std::size_t features) {
    check_finite(weight, "weights contain");
    check_finite(bias, "weights contain");
    return weight_norms(choice, weight, bias, features, 1);
}

BlockLayout plan(const Parameters& parameters, const PolynomialCodec& codec, std::size_t features,
                 std::size_t outputs) {
    if (features < 1 || !possible_layer(features + 1, outputs)) {
        throw ParameterError("in_features and out_features must be between 1 and 65535");
    }
    check_sealed(parameters);
    return plan_sealed(parameters.choice(), features + 1, outputs, codec.bits_per_coefficient(), kTypicalReplyBits);
}

}  // namespace

SealedLayerClient::SealedLayerClient(std::shared_ptr<const SecretKey> key, std::size_t features, std::size_t outputs,
                                     double weight_norm)
    : parameters_(key->parameters()),
      ring_(parameters_.ring_degree(), parameters_.primes()),
      codec_(ring_, dropped_bits(ring_)),
      layout_(plan(parameters_, codec_, features, outputs)),
      widest_(widest_sealed(parameters_.choice(), ring_, layout_, weight_norm)),
      held_(std::make_shared<const Held>(Held{scale_sealed(parameters_.choice(), ring_, layout_, weight_norm), {}, 0})),
      session_(std::move(key), ring_, false) {}

std::shared_ptr<const SealedLayerClient::Held> SealedLayerClient::held() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return held_;
}

void SealedLayerClient::replace_held(Held next) {
    auto fresh = std::make_shared<const Held>(std::move(next));
    const std::lock_guard<std::mutex> lock(mutex_);
    held_ = std::move(fresh);
}

BatchShape SealedLayerClient::shape_of(std::size_t samples) const {
    check_samples(samples);
    return {static_cast<std::uint32_t>(samples), static_cast<std::uint32_t>(layout_.group_size),
            static_cast<std::uint32_t>(layout_.width)};
}

// [shape, seed, ciphertexts]
void SealedLayerClient::write_ciphertexts(WireWriter& writer, const BatchShape& shape, const Messages& messages,
                                          const ZeroEncryptions& zeros) const {
    write_shape(writer, shape);
    writer.seed(zeros.randomness.seed);
    std::uint8_t* out = writer.reserve(messages.size() * codec_.bytes());
    parallel_for(messages.size(), [&](std::size_t index) {
        Buffer<std::uint64_t> c0(ring_.size()), scratch;
        const Buffer<std::int64_t>& coefficients = messages[index].coefficients;
        ring_.lift(View<const std::int64_t>{coefficients.data(), coefficients.size()}, c0.data());
        if (messages[index].shift > 0) {
            ring_.multiply_power_of_two(c0.data(), messages[index].shift);
        }
        ring_.add(c0.data(), zeros.c0[index].data());
        codec_.pack(c0.data(), out + index * codec_.bytes(), scratch);
    });
}

std::string SealedLayerClient::write_message(MessageType type, const Id& id, const BatchShape& shape,
                                             const Messages& messages, const Encryptions& encryptions) const {
    WireWriter writer({type, parameters_.hash(), encryptions.key->key->id(), id},
                      kSealedRequestPrefix + messages.size() * codec_.bytes());
    write_ciphertexts(writer, shape, messages, encryptions.zeros);
    return writer.finish();
}

std::vector<std::int64_t> SealedLayerClient::with_bias(View<const double> weight, View<const double> bias,
                                                       double scale) const {
    std::vector<std::int64_t> integers(layout_.outputs * layout_.features);
    for (std::size_t o = 0; o < layout_.outputs; ++o) {
        std::int64_t* row = integers.data() + o * layout_.features;
        for (std::size_t i = 0; i < features(); ++i) {
            row[i] = std::llrint(weight[o * features() + i] * scale);
        }
        row[features()] = std::llrint(bias[o] * scale);
    }
    return integers;
}

void SealedLayerClient::place_weights(const std::vector<std::int64_t>& integers, Messages& messages) const {
    // Integers below 2^53 survive the way through double, and scale 1 leaves them as they are.
    const std::vector<double> values(integers.begin(), integers.end());
    for (std::size_t p = 0; p < layout_.products(); ++p) {
        for (std::size_t j = 0; j < layout_.inputs(); ++j) {
            messages.push_back({Buffer<std::int64_t>(ring_.degree()), 0});
            place_weight(layout_, values.data(), p, j, 1.0, {messages.back().coefficients.data(), ring_.degree()});
        }
    }
}

bool SealedLayerClient::refresh_due(const Held& held, View<const double> weight, View<const double> bias) const {
    const WeightNorms norms = norms_of(parameters_.choice(), weight, bias, features());
    return norms.reach > held.scaling.reach || held.updates >= parameters_.choice().updates;
}

bool SealedLayerClient::refresh_due(View<const double> weight, View<const double> bias) const {
    return refresh_due(*held(), weight, bias);
}

std::string SealedLayerClient::seal(View<const double> weight, View<const double> bias) {
    const std::lock_guard<std::mutex> order(order_mutex_);
    const ParameterChoice& choice = parameters_.choice();
    const WeightNorms norms = norms_of(choice, weight, bias, features());
    Held next{held()->scaling, {}, 0};
    if (norms.reach > next.scaling.reach) {
        // As far as these parameters reach at all: a refresh that W is the reason for then comes once at most.
        if (norms.reach > widest_.reach) {
            const double norm = std::sqrt(choice.activation_norm * choice.activation_norm + 1);
            throw RangeError("sealed weights with a row of l2 norm " + std::to_string(norms.reach / norm) +
                             " (bias included): within their error bound these parameters hold up to " +
                             std::to_string(widest_.reach / norm) +
                             ". Choose parameters with a larger weight_norm or error_bound");
        }
        next.scaling = widest_;
    }
    next.integers = with_bias(weight, bias, next.scaling.weight_scale);
    Messages messages;
    place_weights(next.integers, messages);
    const Encryptions encryptions = session_.encryptions(messages.size());
    WireWriter writer({MessageType::sealed_weight, parameters_.hash(), encryptions.key->key->id(), random_id()},
                      sealed_layer_bytes(parameters_) + kSealedRequestPrefix + messages.size() * codec_.bytes());
    write_sealed_layer(writer, parameters_, {features(), outputs(), {next.scaling.logit_bits, kInputGradientBits}});
    write_ciphertexts(writer, shape_of(layout_.group_size), messages, encryptions.zeros);
    replace_held(std::move(next));
    return writer.finish();
}

SealedLayerClient::Messages SealedLayerClient::place_activations(View<const double> x, const BatchShape& shape) const {
    std::vector<double> with_one(shape.samples * layout_.features, 1.0);  // the bias is the weight of that 1
    for (std::size_t s = 0; s < shape.samples; ++s) {
        std::copy_n(x.data + s * features(), features(), with_one.data() + s * layout_.features);
    }
    Messages messages;
    for (std::size_t group = 0; group < shape.groups(); ++group) {
        for (std::size_t j = 0; j < layout_.inputs(); ++j) {
            messages.push_back({Buffer<std::int64_t>(ring_.degree()), 0});
            place_input(layout_, with_one.data() + group * layout_.group_size * layout_.features,
                        shape.samples_of(group), j, parameters_.choice().scale,
                        {messages.back().coefficients.data(), ring_.degree()});
        }
    }
    return messages;
}

Outstanding SealedLayerClient::request(Awaited awaited, const BatchShape& shape, std::shared_ptr<ClientKey> key,
                                       int bits, double product_scale) const {
    return {awaited, shape, std::move(key), bits, product_scale / ring_.modulus_value() * std::ldexp(1.0, bits)};
}

std::string SealedLayerClient::encrypt(View<const double> x) {
    const ParameterChoice& choice = parameters_.choice();
    const std::size_t samples = x.size / features();
    const BatchShape shape = shape_of(samples);
    if (!samples_beyond(x.data, samples, features(), choice).empty()) {
        throw RangeError("activations beyond the agreed ranges; clip them first");
    }
    const Messages messages = place_activations(x, shape);
    const Encryptions encryptions = session_.encryptions(messages.size());
    const Id id = random_id();
    const SealedScaling scaling = this->scaling();
    std::string bytes = write_message(MessageType::sealed_request, id, shape, messages, encryptions);
    session_.remember(
        id, request(Awaited::logits, shape, encryptions.key, scaling.logit_bits, choice.scale * scaling.weight_scale));
    return bytes;
}

// The scale of dJ/dY: as large as the range of dJ/da by the weights before the update allows, which only this client
// can know.
double SealedLayerClient::gradient_scale(View<const double> gradient, const Held& held) const {
    constexpr double kRoom = 1.05;  // between the largest value and a wrap-around
    const double weight_scale = held.scaling.weight_scale;
    double reach = 0, square = 0;
    for (std::size_t s = 0; s < gradient.size / outputs(); ++s) {
        for (std::size_t i = 0; i < features(); ++i) {
            double sum = 0;
            for (std::size_t o = 0; o < outputs(); ++o) {
                sum += gradient[s * outputs() + o] *
                       (static_cast<double>(held.integers[o * layout_.features + i]) / weight_scale);
            }
            reach = std::max(reach, std::abs(sum));
        }
    }
    for (const double value : gradient) {
        square += value * value;
    }
    // The noise that updates left in the weights comes on top.
    const double variance = request_noise_variance(ring_) * (1.0 + parameters_.choice().updates);
    reach += kTail * std::sqrt(square * variance) / weight_scale;
    return ring_.modulus_value() / (2 * kRoom * std::max(reach, 1e-12) * weight_scale);
}

void SealedLayerClient::place_gradients(View<const double> gradient, const BatchShape& shape, double scale,
                                        Messages& messages) const {
    const int shift = gradient_shift(gradient, scale);
    for (std::size_t group = 0; group < shape.groups(); ++group) {
        for (std::size_t p = 0; p < layout_.products(); ++p) {
            messages.push_back({Buffer<std::int64_t>(ring_.degree()), 0});
            place_gradient_for_input(layout_, gradient.data + group * layout_.group_size * outputs(),
                                     shape.samples_of(group), p, std::ldexp(scale, -shift),
                                     {messages.back().coefficients.data(), ring_.degree()});
            messages.back().shift = shift;
        }
    }
}

std::string SealedLayerClient::update(View<const double> gradient, View<const double> weight, View<const double> bias) {
    const std::lock_guard<std::mutex> order(order_mutex_);
    const std::shared_ptr<const Held> now = held();
    const BatchShape shape = shape_of(gradient.size / outputs());
    if (now->integers.empty()) {
        throw ParameterError("seal() comes before update()");
    }
    if (refresh_due(*now, weight, bias)) {
        throw ParameterError("the sealed weights must be refreshed before this update");
    }
    check_finite(gradient, "gradient contains");
    const double weight_scale = now->scaling.weight_scale, scale = gradient_scale(gradient, *now);
    Held next{now->scaling, with_bias(weight, bias, weight_scale), now->updates + 1};
    std::vector<std::int64_t> step(next.integers.size());
    std::transform(next.integers.begin(), next.integers.end(), now->integers.begin(), step.begin(), std::minus<>());
    Messages messages;
    place_gradients(gradient, shape, scale, messages);
    place_weights(step, messages);

    const Encryptions encryptions = session_.encryptions(messages.size());
    const Id id = random_id();
    std::string bytes = write_message(MessageType::sealed_update, id, shape, messages, encryptions);
    session_.remember(
        id, request(Awaited::input_gradient, shape, encryptions.key, kInputGradientBits, scale * weight_scale));
    replace_held(std::move(next));
    session_.prepare({shape.groups() * layout_.inputs(), messages.size()});
    return bytes;
}

std::size_t SealedLayerClient::samples_of(View<const std::uint8_t> reply) const {
    WireReader reader(reply, MessageType::sealed_reply);
    reader.require(parameters_.hash(), reader.header().key);
    return session_.samples_of(reader.header());
}

void SealedLayerClient::decrypt(View<const std::uint8_t> reply, double* y) {
    open(reply, Awaited::logits, y);
}

void SealedLayerClient::decrypt_input_gradient(View<const std::uint8_t> reply, double* gradient) {
    open(reply, Awaited::input_gradient, gradient);
}

void SealedLayerClient::open(View<const std::uint8_t> bytes, Awaited awaited, double* out) {
    WireReader reader(bytes, MessageType::sealed_reply);
    reader.require(parameters_.hash(), reader.header().key);
    ClientSession::Answer answer = session_.answer(reader.header(), awaited);
    const Outstanding& request = answer.request();
    const BatchShape& shape = request.shape;
    if (!(read_shape(reader) == shape)) {
        throw WireError("a reply for a batch of another shape");
    }
    const bool logits = awaited == Awaited::logits;
    const std::size_t per_group = logits ? layout_.products() : layout_.inputs();
    std::vector<std::vector<std::uint32_t>> positions;
    CiphertextRuns runs(ring_.degree(), request.bits, 2);
    for (std::size_t index = 0; index < shape.groups() * per_group; ++index) {
        const std::size_t samples = shape.samples_of(index / per_group), run = index % per_group;
        positions.push_back(logits ? output_positions(layout_, run, samples)
                                   : input_gradient_positions(layout_, run, samples));
        runs.add(positions.back().size());
    }
    reader.require_remaining(runs.bytes());
    const View<const std::uint8_t> payload = reader.raw(runs.bytes());
    parallel_for(positions.size(), [&](std::size_t index) {
        const SecretBuffer<std::int64_t> values =
            request.key->open(payload.data + runs.offset(index), positions[index], request.bits, 2);
        scatter(request, index / per_group, index % per_group, values, out);
    });
    answer.done();
}

// One ciphertext's values to their places in the logits, [samples, outputs], or in dJ/da, [samples, features].
void SealedLayerClient::scatter(const Outstanding& request, std::size_t group, std::size_t run,
                                const SecretBuffer<std::int64_t>& values, double* out) const {
    const std::size_t first = group * layout_.group_size, samples = request.shape.samples_of(group);
    const double scale = request.scale;
    if (request.awaited == Awaited::logits) {
        check_edge({values.data(), values.size()}, request.bits);
        for (std::size_t i = 0; i < values.size(); ++i) {
            const std::size_t output = run * layout_.per_product() + i / samples;
            out[(first + i % samples) * outputs() + output] = static_cast<double>(values[i]) / scale;
        }
        return;
    }
    const std::size_t width = layout_.features_of(run), first_feature = run * layout_.width;
    const std::size_t used = std::min(width, features() - first_feature);
    for (std::size_t s = 0; s < samples; ++s) {
        // Without the gradient of the bias' constant 1, for which the scale leaves no room: it may have wrapped around.
        const View<const std::int64_t> row{values.data() + s * width, used};
        check_edge(row, request.bits);
        for (std::size_t i = 0; i < used; ++i) {
            out[(first + s) * features() + first_feature + i] = static_cast<double>(row[i]) / scale;
        }
    }
}

}  // namespace hesplit
