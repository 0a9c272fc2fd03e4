#include "linear/client.h"

#include <cmath>
#include <string>
#include <utility>

#include "base/error.h"
#include "base/parallel.h"
#include "linear/blocks/client.h"
#include "linear/merged/client.h"
#include "linear/precision.h"
#include "linear/ranges.h"
#include "linear/slots/client.h"
#include "linear/traces/client.h"
#include "linear/traces/refusal.h"
#include "rlwe/flooding.h"
#include "rlwe/public_key.h"

namespace hesplit {

namespace {

std::unique_ptr<const ClientPacking> make_packing(const Parameters& parameters, std::size_t features,
                                                  std::size_t outputs, bool fresh_keys, bool weight_gradients,
                                                  double byte_ns) {
    if (!possible_layer(features, outputs)) {
        throw ParameterError("in_features must be between 1 and " + std::to_string(kMaxFeatures) +
                             " and out_features between 1 and " + std::to_string(kMaxOutputs) + ", got " +
                             std::to_string(features) + " and " + std::to_string(outputs));
    }
    if (fresh_keys && parameters.choice().private_bits != 0) {
        throw ParameterError(
            "private weights need one key for all requests: the server re-randomises replies under the client's public "
            "key, which it gets once");
    }
    if (parameters.packing() == Packing::blocks) {
        return std::make_unique<BlockClientPacking>(parameters, features, outputs, byte_ns);
    }
    if (parameters.traced()) {
        if (weight_gradients) {
            refuse_on_traces("weight gradients");
        }
        return std::make_unique<TraceClientPacking>(parameters, features, outputs);
    }
    if (fresh_keys) {
        throw ParameterError("a fresh key for every request needs packing=\"blocks\": the others need evaluation keys");
    }
    if (parameters.packing() == Packing::merged) {
        return std::make_unique<MergedClientPacking>(parameters, features, outputs, byte_ns);
    }
    return std::make_unique<SlotClientPacking>(parameters, features, outputs, weight_gradients);
}

}  // namespace

LinearClient::LinearClient(std::shared_ptr<const SecretKey> key, std::size_t features, std::size_t outputs,
                           bool fresh_keys, bool weight_gradients, double byte_ns)
    : parameters_(key->parameters()),
      features_(features),
      outputs_(outputs),
      fresh_keys_(fresh_keys),
      weight_gradients_(weight_gradients),
      packing_(make_packing(parameters_, features, outputs, fresh_keys, weight_gradients, byte_ns)),
      ring_(packing_->ring()),
      codec_(ring_, dropped_bits(ring_)),
      session_(std::move(key), ring_, fresh_keys, ring_.composable() ? ZeroForm::integers : ZeroForm::residues) {}

std::string LinearClient::public_material() const {
    const std::shared_ptr<ClientKey> key = session_.key();
    // Without a key id of its own the server takes requests under any key.
    const Id key_id = fresh_keys_ ? Id{} : key->key->id();
    const bool hidden = parameters_.choice().private_bits != 0;
    WireWriter writer({MessageType::public_material, parameters_.hash(), key_id, random_id()},
                      parameter_bytes(parameters_) + 9 + packing_->evaluation_key_bytes() +
                          (hidden ? PublicKey::body_bytes(ring_) : 0));
    write_parameters(writer, parameters_);
    writer.u32(static_cast<std::uint32_t>(features_));
    writer.u32(static_cast<std::uint32_t>(outputs_));
    writer.u8(weight_gradients_ ? 1 : 0);
    packing_->write_evaluation_keys(*key->key, writer);
    if (hidden) {
        PublicKey::of(*key->key)->write(writer);
    }
    return writer.finish();
}

template <class T>
LinearClient::Request LinearClient::encrypt(const T* x, std::size_t samples, bool clip) {
    const ParameterChoice& choice = parameters_.choice();
    const BatchShape shape = packing_->shape_of(samples);
    const std::vector<std::size_t> beyond = samples_beyond(x, samples, features_, choice);
    SecretBuffer<T> clipped;
    if (!beyond.empty()) {
        if (!clip) {
            throw RangeError(
                std::to_string(beyond.size()) + " of " + std::to_string(samples) +
                " samples are beyond the agreed ranges (|activation| <= " + std::to_string(choice.activation_bound) +
                ", l2 norm <= " + std::to_string(choice.activation_norm) +
                "); raise activation_bound and activation_norm, or pass on_overflow=\"clip\"");
        }
        clipped = clip_samples(x, samples, features_, beyond, choice);
        x = clipped.data();
    }
    // The seed of the next request is announced in this one, and its encryptions of zero are made ahead.
    const std::size_t ciphertexts = shape.groups() * packing_->inputs(shape);
    const Encryptions encryptions = session_.encryptions(ciphertexts);
    const Seed announced = session_.prepare({ciphertexts});
    const Id message = random_id();
    Request request{write_request(shape, x, encryptions, announced, message), beyond.size()};
    session_.remember(message, {Awaited::logits, shape, encryptions.key});
    return request;
}

template LinearClient::Request LinearClient::encrypt<float>(const float*, std::size_t, bool);
template LinearClient::Request LinearClient::encrypt<double>(const double*, std::size_t, bool);

template <class T>
std::string LinearClient::write_request(const BatchShape& shape, const T* x, const Encryptions& encryptions,
                                        const Seed& announced, const Id& message) const {
    const ZeroEncryptions& zeros = encryptions.zeros;
    const std::size_t ciphertexts = zeros.c0.size(), per_group = packing_->inputs(shape);
    WireWriter writer({MessageType::request, parameters_.hash(), encryptions.key->key->id(), message},
                      kRequestPrefix + ciphertexts * codec_.bytes());
    write_request_head(writer, {shape, zeros.randomness.seed, announced});
    std::uint8_t* out = writer.reserve(ciphertexts * codec_.bytes());
    parallel_for(ciphertexts, [&](std::size_t index) {
        const std::size_t group = index / per_group;
        const T* rows = x + group * shape.group_size * features_;
        const std::size_t samples = shape.samples_of(group), input = index % per_group;
        std::uint8_t* to = out + index * codec_.bytes();
        // The message, before anything hides it.
        if (ring_.composable()) {
            SecretBuffer<std::uint64_t> integers(ring_.degree());
            packing_->encode_integers(shape, rows, samples, input, integers.data());
            ring_.add_integers(integers.data(), zeros.c0[index].data());
            codec_.pack_integers(integers.data(), to);
        } else {
            SecretBuffer<std::uint64_t> c0(ring_.size());
            Buffer<std::uint64_t> scratch;
            packing_->encode(shape, rows, samples, input, c0.data());
            ring_.add(c0.data(), zeros.c0[index].data());
            codec_.pack(c0.data(), to, scratch);
        }
    });
    return writer.finish();
}

std::size_t LinearClient::samples_of(const WireReader& reply) const {
    reply.require(parameters_.hash(), reply.header().key);
    return session_.samples_of(reply.header());
}

ReplyHead LinearClient::read_reply(WireReader& reader, const Outstanding& request) const {
    const ReplyHead reply = read_reply_head(reader, ring_);
    if (!(reply.shape == request.shape)) {
        throw WireError("a reply for a batch of another shape");
    }
    return reply;
}

void LinearClient::check_precise(const ReplyHead& reply) const {
    // A server's bits and scale leave room for twice the bound beside the largest logit: with fewer bits than that,
    // a scale that looks precise is none of the values'.
    const double bound = parameters_.choice().error_bound * reply.scale;
    if (packing_->rounding_error() > bound || 2 * bound > packing_->largest(reply.bits) * kRangeSlack) {
        throw WireError("a reply that is too coarse for the agreed error bound");
    }
}

double LinearClient::decrypt(WireReader reader, Purpose purpose, bool weight_gradient_follows, double* y) {
    reader.require(MessageType::reply);
    reader.require(parameters_.hash(), reader.header().key);
    ClientSession::Answer answer = session_.answer(reader.header(), Awaited::logits);
    ClientKey& key = *answer.request().key;
    const ReplyHead reply = read_reply(reader, answer.request());
    check_precise(reply);
    const bool released = purpose == Purpose::release;
    const double deviation = released ? release_deviation(reply) : 0;
    const SecretBuffer<std::int64_t> noise =
        released ? flooding_noise(deviation, reply.shape.samples * outputs_) : SecretBuffer<std::int64_t>();
    decrypt_groups(reply, key, reader, noise, y);
    if (released) {
        key.key->count_release();
    }
    if (weight_gradient_follows) {
        answer.done(Awaited::weight_gradient);
    } else {
        answer.done();
    }
    return deviation / reply.scale;
}

void LinearClient::decrypt_groups(const ReplyHead& reply, const ClientKey& key, WireReader& reader,
                                  const SecretBuffer<std::int64_t>& noise, double* y) const {
    const BatchShape& shape = reply.shape;
    const std::size_t products = packing_->products(shape);
    CiphertextRuns runs(ring_.degree(), reply.bits);
    std::vector<std::size_t> noise_offset;
    std::size_t coefficients = 0;
    for (std::size_t group = 0; group < shape.groups(); ++group) {
        for (std::size_t p = 0; p < products; ++p) {
            const std::size_t count = packing_->position_count(shape, p, shape.samples_of(group));
            runs.add(count);
            noise_offset.push_back(coefficients);
            coefficients += count;
        }
    }
    reader.require_remaining(runs.bytes());
    const View<const std::uint8_t> payload = reader.raw(runs.bytes());
    parallel_for(shape.groups(), [&](std::size_t group) {
        const std::size_t samples = shape.samples_of(group);
        for (std::size_t p = 0; p < products; ++p) {
            SecretBuffer<std::int64_t> values = key.open(payload.data + runs.offset(group * products + p),
                                                         packing_->positions(shape, p, samples), reply.bits);
            const View<const std::int64_t> view{values.data(), values.size()};
            check_edge(view, reply.bits);
            // To the integers: how a double of the sum is rounded would tell of the terms.
            for (std::size_t i = 0; !noise.empty() && i < values.size(); ++i) {
                values[i] += noise[noise_offset[group * products + p] + i];
            }
            packing_->decode(shape, p, samples, view, reply.scale, y + group * shape.group_size * outputs_);
        }
    });
}

double LinearClient::release_deviation(const ReplyHead& reply) const {
    if (parameters_.choice().releases == 0) {
        return 0;
    }
    const double product_scale = reply.scale * std::ldexp(ring_.modulus_value(), -reply.bits);
    const double l1 = packing_->weight_l1(reply.shape, product_scale);
    const std::size_t released = reply.shape.samples * outputs_;
    return flood_deviation(parameters_.choice(), released, released_noise(parameters_.choice(), ring_, l1, reply.bits));
}

}  // namespace hesplit
