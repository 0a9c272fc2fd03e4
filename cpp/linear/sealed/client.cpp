#include "linear/sealed/client.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/error.h"
#include "base/parallel.h"
#include "linear/precision.h"
#include "linear/ranges.h"
#include "linear/sealed/messages.h"

namespace hesplit {

namespace {

BlockLayout plan(const Parameters& parameters, const PolynomialCodec& codec, std::size_t features,
                 std::size_t outputs) {
    if (!possible_layer(features, outputs)) {
        throw ParameterError("in_features must be between 1 and " + std::to_string(kMaxFeatures) +
                             " and out_features between 1 and " + std::to_string(kMaxOutputs));
    }
    check_sealed(parameters);
    return plan_sealed(parameters.choice(), features, outputs, codec.bits_per_coefficient(), kTypicalReplyBits);
}

double inner(const double* a, const double* b, std::size_t n) {
    constexpr std::size_t kLanes = 8;  // sums that do not wait for each other
    double sums[kLanes] = {}, sum = 0;
    std::size_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
        for (std::size_t lane = 0; lane < kLanes; ++lane) {
            sums[lane] += a[i + lane] * b[i + lane];
        }
    }
    for (; i < n; ++i) {
        sum += a[i] * b[i];
    }
    for (const double lane : sums) {
        sum += lane;
    }
    return sum;
}

// x W^T + b, row-major [samples, outputs].
SecretBuffer<double> linear(View<const double> x, View<const double> weight, View<const double> bias) {
    const std::size_t outputs = bias.size, features = weight.size / outputs, samples = x.size / features;
    SecretBuffer<double> y(samples * outputs);
    parallel_for(samples, [&](std::size_t s) {
        for (std::size_t o = 0; o < outputs; ++o) {
            y[s * outputs + o] = bias[o] + inner(x.data + s * features, weight.data + o * features, features);
        }
    });
    return y;
}

// G W, row-major [samples, features].
SecretBuffer<double> backward(View<const double> gradient, View<const double> weight, std::size_t outputs) {
    const std::size_t features = weight.size / outputs, samples = gradient.size / outputs;
    SecretBuffer<double> dx(samples * features, 0.0);
    parallel_for(samples, [&](std::size_t s) {
        double* row = dx.data() + s * features;
        for (std::size_t o = 0; o < outputs; ++o) {
            const double g = gradient[s * outputs + o];
            const double* w = weight.data + o * features;
            for (std::size_t i = 0; i < features; ++i) {
                row[i] += g * w[i];
            }
        }
    });
    return dx;
}

View<const double> view(const SecretBuffer<double>& values) {
    return {values.data(), values.size()};
}

SecretBuffer<double> difference(View<const double> a, const SecretBuffer<double>& b) {
    SecretBuffer<double> result(a.begin(), a.end());
    for (std::size_t i = 0; i < b.size(); ++i) {
        result[i] -= b[i];
    }
    return result;
}

}  // namespace

SealedLayerClient::SealedLayerClient(std::shared_ptr<const SecretKey> key, std::size_t features, std::size_t outputs,
                                     double weight_norm)
    : parameters_(key->parameters()),
      ring_(parameters_.ring_degree(), parameters_.primes()),
      codec_(ring_, dropped_bits(ring_)),
      layout_(plan(parameters_, codec_, features, outputs)),
      bias_codec_(ring_, dropped_bits(ring_), bias_coefficients(layout_)),
      widest_(widest_sealed(parameters_.choice(), ring_, layout_, weight_norm)),
      held_(std::make_shared<const Held>(
          Held{scale_sealed(parameters_.choice(), ring_, layout_, weight_norm), nullptr, {}, {}, 0})),
      session_(std::move(key), ring_, false, ZeroForm::residues_and_masks) {}

std::shared_ptr<const SealedLayerClient::Held> SealedLayerClient::held() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return held_;
}

void SealedLayerClient::replace_held(Held next) {
    auto fresh = std::make_shared<const Held>(std::move(next));
    const std::lock_guard<std::mutex> lock(mutex_);
    held_ = std::move(fresh);
}

void SealedLayerClient::require_sent(const Held& held) const {
    if (!held.sent) {
        session_.key();  // throws where it was destroyed
        throw ParameterError("seal() comes first");
    }
}

void SealedLayerClient::destroy() {
    session_.destroy();
    replace_held({scaling(), nullptr, {}, {}, 0});  // masks say as much as the key
}

BatchShape SealedLayerClient::shape_of(std::size_t samples) const {
    check_samples(samples);
    return {static_cast<std::uint32_t>(samples), static_cast<std::uint32_t>(layout_.group_size),
            static_cast<std::uint32_t>(layout_.width)};
}

std::size_t SealedLayerClient::weight_bytes() const {
    return weight_count() * codec_.bytes() + bias_polynomials(layout_) * bias_codec_.bytes();
}

// `first`: the encryption of zero for the first of them.
void SealedLayerClient::write_ciphertexts(WireWriter& writer, const PolynomialCodec& codec, const Messages& messages,
                                          const ZeroEncryptions& zeros, std::size_t first) const {
    std::uint8_t* out = writer.reserve(messages.size() * codec.bytes());
    parallel_for(messages.size(), [&](std::size_t index) {
        SecretBuffer<std::uint64_t> c0(ring_.size());
        Buffer<std::uint64_t> scratch;
        const SecretBuffer<std::int64_t>& coefficients = messages[index].coefficients;
        ring_.lift(View<const std::int64_t>{coefficients.data(), coefficients.size()}, c0.data());
        if (messages[index].shift > 0) {
            ring_.multiply_power_of_two(c0.data(), messages[index].shift);
        }
        ring_.add(c0.data(), zeros.c0[first + index].data());
        codec.pack(c0.data(), out + index * codec.bytes(), scratch);
    });
}

SealedLayerClient::Messages SealedLayerClient::place_weights(View<const double> weight, double scale) const {
    Messages messages;
    for (std::size_t p = 0; p < layout_.products(); ++p) {
        for (std::size_t j = 0; j < layout_.inputs(); ++j) {
            messages.push_back({SecretBuffer<std::int64_t>(ring_.degree()), 0});
            place_weight(layout_, weight.data, p, j, scale, {messages.back().coefficients.data(), ring_.degree()});
        }
    }
    return messages;
}

// The scaling of weights that are sent now: the present one, or once they outgrow it the widest there is. So a change
// that W is the reason for comes once at most.
SealedScaling SealedLayerClient::scaling_for(const SealedScaling& present, View<const double> weight,
                                             View<const double> bias) const {
    const double reach = weight_norms(parameters_.choice(), weight, bias, features(), 1).reach;
    if (reach <= present.reach) {
        return present;
    }
    if (reach > widest_.reach) {
        const double activation_norm = parameters_.choice().activation_norm;
        const double norm = std::sqrt(activation_norm * activation_norm + 1);
        throw RangeError("sealed weights with a row of l2 norm " + std::to_string(reach / norm) +
                         " (bias included): within their error bound these parameters hold up to " +
                         std::to_string(widest_.reach / norm) +
                         ". Choose parameters with a larger weight_norm or error_bound");
    }
    return widest_;
}

// What is encrypted with the first of these encryptions of zero, whose masks it takes.
std::shared_ptr<const SealedLayerClient::Sent> SealedLayerClient::sent_of(const Id& name, const SealedScaling& scaling,
                                                                          View<const double> weight,
                                                                          View<const double> bias,
                                                                          ZeroEncryptions& zeros) const {
    auto sent = std::make_shared<Sent>();
    sent->name = name;
    sent->scaling = scaling;
    const auto rounded = [](View<const double> values, double scale) {
        SecretBuffer<double> result(values.size);
        std::transform(values.begin(), values.end(), result.begin(),
                       [scale](double value) { return std::nearbyint(value * scale) / scale; });
        return result;
    };
    sent->weight = rounded(weight, scaling.weight_scale);
    sent->bias = rounded(bias, scaling.weight_scale * parameters_.choice().scale);
    for (std::size_t i = 0; i < weight_count(); ++i) {
        sent->masks.emplace_back(zeros.masks[i].begin(), zeros.masks[i].end());
    }
    sent->bias_mask.resize(ring_.prime_count() * outputs());
    for (std::size_t row = 0; row < ring_.prime_count(); ++row) {
        for (std::size_t o = 0; o < outputs(); ++o) {
            const SecretBuffer<std::uint64_t>& zero = zeros.c0[weight_count() + o / ring_.degree()];
            sent->bias_mask[row * outputs() + o] = zero[row * ring_.degree() + o % ring_.degree()];
        }
    }
    return sent;
}

// W, then of b one coefficient an output, in the scale of products.
void SealedLayerClient::write_weights(WireWriter& writer, const Sent& sent, View<const double> weight,
                                      const ZeroEncryptions& zeros) const {
    write_ciphertexts(writer, codec_, place_weights(weight, sent.scaling.weight_scale), zeros, 0);
    const double scale = sent.scaling.weight_scale * parameters_.choice().scale;
    SecretBuffer<std::uint64_t> c0(ring_.size());
    Buffer<std::uint64_t> scratch;
    for (std::size_t poly = 0; poly < bias_polynomials(layout_); ++poly) {
        const SecretBuffer<std::uint64_t>& zero = zeros.c0[weight_count() + poly];
        std::fill(c0.begin(), c0.end(), 0);
        for (std::size_t row = 0; row < ring_.prime_count(); ++row) {
            for (std::size_t i = 0; i < ring_.degree() && poly * ring_.degree() + i < outputs(); ++i) {
                c0[row * ring_.degree() + i] =
                    ring_.residue(std::nearbyint(sent.bias[poly * ring_.degree() + i] * scale), row);
            }
        }
        ring_.add(c0.data(), zero.data());
        bias_codec_.pack(c0.data(), writer.reserve(bias_codec_.bytes()), scratch);
    }
}

std::string SealedLayerClient::seal(View<const double> weight, View<const double> bias) {
    const std::lock_guard<std::mutex> order(order_mutex_);
    check_finite(weight, "weights contain");
    check_finite(bias, "weights contain");
    Held next{scaling_for(scaling(), weight, bias), nullptr, {}, {}, 0};
    Encryptions encryptions = session_.encryptions(weight_count() + bias_polynomials(layout_));
    const Id name = random_id();
    next.sent = sent_of(name, next.scaling, weight, bias, encryptions.zeros);
    next.weight = difference(weight, next.sent->weight);
    next.bias = difference(bias, next.sent->bias);
    WireWriter writer({MessageType::sealed_weight, parameters_.hash(), encryptions.key->key->id(), name},
                      sealed_layer_bytes(parameters_) + kSealedRequestPrefix + weight_bytes());
    write_sealed_layer(writer, parameters_, {features(), outputs(), next.scaling.bits});
    write_shape(writer, shape_of(layout_.group_size));
    writer.seed(encryptions.zeros.randomness.seed);
    write_weights(writer, *next.sent, weight, encryptions.zeros);
    replace_held(std::move(next));
    return writer.finish();
}

SealedLayerClient::Messages SealedLayerClient::place_activations(View<const double> x, const BatchShape& shape) const {
    Messages messages;
    for (std::size_t group = 0; group < shape.groups(); ++group) {
        for (std::size_t j = 0; j < layout_.inputs(); ++j) {
            messages.push_back({SecretBuffer<std::int64_t>(ring_.degree()), 0});
            place_input(layout_, x.data + group * layout_.group_size * layout_.features, shape.samples_of(group), j,
                        parameters_.choice().scale, {messages.back().coefficients.data(), ring_.degree()});
        }
    }
    return messages;
}

// The coefficients of a reply's ciphertexts that hold values.
std::vector<std::vector<std::uint32_t>> SealedLayerClient::positions(Awaited awaited, const BatchShape& shape) const {
    const bool logits = awaited == Awaited::logits;
    const std::size_t per_group = logits ? layout_.products() : layout_.inputs();
    std::vector<std::vector<std::uint32_t>> all;
    for (std::size_t index = 0; index < shape.groups() * per_group; ++index) {
        const std::size_t samples = shape.samples_of(index / per_group), run = index % per_group;
        all.push_back(logits ? output_positions(layout_, run, samples)
                             : input_gradient_positions(layout_, run, samples));
    }
    return all;
}

// c2 * s^2 of every product, less c1 * s of the bias that is added to logits: in the reply's modulus. `first`: the mask
// of the first ciphertext of the request.
SecretBuffer<std::uint64_t> SealedLayerClient::added_phase(const Outstanding& request, const Sent& sent,
                                                           const ZeroEncryptions& zeros, std::size_t first) const {
    const bool logits = request.awaited == Awaited::logits;
    const std::size_t inputs = layout_.inputs(), products = layout_.products(), n = ring_.degree();
    const std::vector<std::vector<std::uint32_t>> at = positions(request.awaited, request.shape);
    std::vector<std::size_t> offsets{0};
    for (const std::vector<std::uint32_t>& list : at) {
        offsets.push_back(offsets.back() + list.size());
    }
    SecretBuffer<std::uint64_t> phase(offsets.back());
    parallel_for(at.size(), [&](std::size_t index) {
        std::vector<const std::uint64_t*> a, b;
        const std::size_t per_group = logits ? products : inputs, group = index / per_group, run = index % per_group;
        for (std::size_t i = 0; i < (logits ? inputs : products); ++i) {
            a.push_back(zeros.masks[first + group * (logits ? inputs : products) + i].data());
            b.push_back(sent.masks[logits ? run * inputs + i : i * inputs + run].data());
        }
        SecretBuffer<std::uint64_t> product(ring_.size()), switched(n);
        ring_.dot({a.data(), a.size()}, {b.data(), b.size()}, product.data());
        ring_.to_coefficients(product.data());
        const std::size_t samples = request.shape.samples_of(group);
        for (std::size_t row = 0; logits && row < ring_.prime_count(); ++row) {
            const std::uint64_t* mask = sent.bias_mask.data() + row * outputs() + run * layout_.per_product();
            for (std::size_t i = 0; i < at[index].size(); ++i) {
                std::uint64_t& value = product[row * n + at[index][i]];
                value += ring_.prime(row) - mask[i / samples];
                value = std::min(value, value - ring_.prime(row));  // modulo the prime
            }
        }
        ring_.switch_to_bits(product.data(), {at[index].data(), at[index].size()}, request.bits, switched.data());
        std::copy_n(switched.begin(), at[index].size(), phase.begin() + static_cast<std::ptrdiff_t>(offsets[index]));
    });
    return phase;
}

Outstanding SealedLayerClient::request(Awaited awaited, const BatchShape& shape, const Encryptions& encryptions,
                                       const Sent& sent, double product_scale) const {
    const int bits = awaited == Awaited::logits ? sent.scaling.bits.logits : sent.scaling.bits.input_gradient;
    const double scale = product_scale / ring_.modulus_value() * std::ldexp(1.0, bits);
    return {awaited, shape, encryptions.key, bits, scale, nullptr};
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
    const std::shared_ptr<const Held> now = held();
    require_sent(*now);
    const Id id = random_id();
    WireWriter writer({MessageType::sealed_request, parameters_.hash(), encryptions.key->key->id(), id},
                      kSealedRequestPrefix + messages.size() * codec_.bytes());
    write_shape(writer, shape);
    writer.seed(encryptions.zeros.randomness.seed);
    write_ciphertexts(writer, codec_, messages, encryptions.zeros, 0);
    Outstanding made =
        request(Awaited::logits, shape, encryptions, *now->sent, choice.scale * now->sent->scaling.weight_scale);
    made.share = std::make_shared<const SealedShare>(SealedShare{now->sent->name,
                                                                 added_phase(made, *now->sent, encryptions.zeros, 0),
                                                                 linear(x, view(now->weight), view(now->bias))});
    session_.remember(id, std::move(made));
    return writer.finish();
}

// The scale of dJ/dY: as large as the range of dJ/da by the weights that the server has allows, which only this client
// can know.
double SealedLayerClient::gradient_scale(View<const double> gradient, const Sent& sent) const {
    const double weight_scale = sent.scaling.weight_scale;
    double reach = 0, square = 0;
    for (const double value : backward(gradient, view(sent.weight), outputs())) {
        reach = std::max(reach, std::abs(value));
    }
    for (const double value : gradient) {
        square += value * value;
    }
    // The noise of the weights comes on top.
    reach += kTail * std::sqrt(square * request_noise_variance(ring_)) / weight_scale;
    return ring_.modulus_value() / (2 * kGradientRoom * std::max(reach, 1e-12) * weight_scale);
}

SealedLayerClient::Messages SealedLayerClient::place_gradients(View<const double> gradient, const BatchShape& shape,
                                                               double scale) const {
    const int shift = gradient_shift(gradient, scale);
    Messages messages;
    for (std::size_t group = 0; group < shape.groups(); ++group) {
        for (std::size_t p = 0; p < layout_.products(); ++p) {
            messages.push_back({SecretBuffer<std::int64_t>(ring_.degree()), shift});
            place_gradient_for_input(layout_, gradient.data + group * layout_.group_size * outputs(),
                                     shape.samples_of(group), p, std::ldexp(scale, -shift),
                                     {messages.back().coefficients.data(), ring_.degree()});
        }
    }
    return messages;
}

std::size_t SealedLayerClient::update_ciphertexts(const Held& held, const BatchShape& shape) const {
    const bool due = held.behind + 1 >= parameters_.choice().updates;
    return (due ? weight_count() + bias_polynomials(layout_) : 0) + shape.groups() * layout_.products();
}

std::string SealedLayerClient::update(View<const double> gradient, View<const double> weight, View<const double> bias) {
    const std::lock_guard<std::mutex> order(order_mutex_);
    const std::shared_ptr<const Held> now = held();
    const BatchShape shape = shape_of(gradient.size / outputs());
    require_sent(*now);
    check_finite(gradient, "gradient contains");
    check_finite(weight, "weights contain");
    check_finite(bias, "weights contain");
    const bool due = now->behind + 1 >= parameters_.choice().updates;
    Held next{due ? scaling_for(now->scaling, weight, bias) : now->scaling, now->sent, {}, {}, now->behind + 1};
    const double scale = gradient_scale(gradient, *now->sent);
    const Messages gradients = place_gradients(gradient, shape, scale);
    const PolynomialCodec codec(ring_, now->sent->scaling.bits.gradient_dropped);

    Encryptions encryptions = session_.encryptions(update_ciphertexts(*now, shape));
    const Id id = random_id();
    WireWriter writer(
        {MessageType::sealed_update, parameters_.hash(), encryptions.key->key->id(), id},
        kSealedRequestPrefix + 1 + (due ? kSealedBitsBytes + weight_bytes() : 0) + gradients.size() * codec.bytes());
    write_shape(writer, shape);
    writer.u8(due ? 1 : 0);
    std::size_t first = 0;
    if (due) {
        next.sent = sent_of(id, next.scaling, weight, bias, encryptions.zeros);
        next.behind = 0;
        first = weight_count() + bias_polynomials(layout_);
        write_sealed_bits(writer, next.scaling.bits);
    }
    writer.seed(encryptions.zeros.randomness.seed);
    if (due) {
        write_weights(writer, *next.sent, weight, encryptions.zeros);
    }
    write_ciphertexts(writer, codec, gradients, encryptions.zeros, first);
    next.weight = difference(weight, next.sent->weight);
    next.bias = difference(bias, next.sent->bias);

    Outstanding made =
        request(Awaited::input_gradient, shape, encryptions, *now->sent, scale * now->sent->scaling.weight_scale);
    made.share = std::make_shared<const SealedShare>(
        SealedShare{now->sent->name, added_phase(made, *now->sent, encryptions.zeros, first),
                    backward(gradient, view(now->weight), outputs())});
    session_.remember(id, std::move(made));
    const std::size_t following = update_ciphertexts(next, shape);
    replace_held(std::move(next));
    session_.prepare({shape.groups() * layout_.inputs(), following});
    return writer.finish();
}

std::size_t SealedLayerClient::samples_of(const WireReader& reply) const {
    reply.require(parameters_.hash(), reply.header().key);
    return session_.samples_of(reply.header());
}

void SealedLayerClient::decrypt(WireReader reply, double* y) {
    open(reply, Awaited::logits, y);
}

void SealedLayerClient::decrypt_input_gradient(WireReader reply, double* gradient) {
    open(reply, Awaited::input_gradient, gradient);
}

void SealedLayerClient::open(WireReader reader, Awaited awaited, double* out) {
    reader.require(MessageType::sealed_reply);
    reader.require(parameters_.hash(), reader.header().key);
    ClientSession::Answer answer = session_.answer(reader.header(), awaited);
    const Outstanding& request = answer.request();
    const BatchShape& shape = request.shape;
    if (!(read_shape(reader) == shape)) {
        throw WireError("a reply for a batch of another shape");
    }
    const View<const std::uint8_t> name = reader.raw(sizeof(Id));
    if (!std::equal(name.begin(), name.end(), request.share->weights.begin())) {
        throw KeyMismatchError("a reply made with other weights than the request was made for");
    }
    const std::vector<std::vector<std::uint32_t>> at = positions(awaited, shape);
    const std::size_t per_group = awaited == Awaited::logits ? layout_.products() : layout_.inputs();
    CiphertextRuns runs(ring_.degree(), request.bits);
    std::vector<std::size_t> offsets{0};
    for (const std::vector<std::uint32_t>& list : at) {
        runs.add(list.size());
        offsets.push_back(offsets.back() + list.size());
    }
    reader.require_remaining(runs.bytes());
    const View<const std::uint8_t> payload = reader.raw(runs.bytes());
    parallel_for(at.size(), [&](std::size_t index) {
        const SecretBuffer<std::int64_t> values =
            request.key->open(payload.data + runs.offset(index), at[index], request.bits,
                              {request.share->phase.data() + offsets[index], at[index].size()});
        scatter(request, index / per_group, index % per_group, values, out);
    });
    answer.done();
}

// One ciphertext's values to their places in the logits, [samples, outputs], or in dJ/da, [samples, features], with
// what the client adds to them.
void SealedLayerClient::scatter(const Outstanding& request, std::size_t group, std::size_t run,
                                const SecretBuffer<std::int64_t>& values, double* out) const {
    const std::size_t first = group * layout_.group_size, samples = request.shape.samples_of(group);
    const double scale = request.scale;
    const SecretBuffer<double>& added = request.share->values;
    check_edge({values.data(), values.size()}, request.bits);
    if (request.awaited == Awaited::logits) {
        for (std::size_t i = 0; i < values.size(); ++i) {
            const std::size_t output = run * layout_.per_product() + i / samples;
            const std::size_t at = (first + i % samples) * outputs() + output;
            out[at] = static_cast<double>(values[i]) / scale + added[at];
        }
        return;
    }
    const std::size_t width = layout_.features_of(run);
    for (std::size_t s = 0; s < samples; ++s) {
        for (std::size_t i = 0; i < width; ++i) {
            const std::size_t at = (first + s) * features() + run * layout_.width + i;
            out[at] = static_cast<double>(values[s * width + i]) / scale + added[at];
        }
    }
}

}  // namespace hesplit
