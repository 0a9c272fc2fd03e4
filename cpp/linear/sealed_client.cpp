#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/parallel.h"
#include "linear/precision.h"
#include "linear/ranges.h"
#include "linear/sealed.h"

namespace hesplit {

namespace {

constexpr std::size_t kMaxOutstanding = 4096;

// The scale of y and of dJ/da leave this much between the largest value and a wrap-around.
constexpr double kRoom = 1.05;

WeightNorms norms_of(const ParameterChoice& choice, View<const double> weight, View<const double> bias,
                     std::size_t features) {
    for (const View<const double>& values : {weight, bias}) {
        for (const double value : values) {
            if (!std::isfinite(value)) {
                throw RangeError("the weights contain NaN or infinity");
            }
        }
    }
    return weight_norms(choice, weight, bias, features, 1);
}

}  // namespace

SealedClient::SealedClient(std::shared_ptr<const SecretKey> key, std::size_t features, std::size_t outputs,
                           double weight_norm)
    : key_(std::move(key)),
      parameters_(key_->parameters()),
      ring_(parameters_.ring_degree(), parameters_.primes()),
      auxiliary_(auxiliary_ring(parameters_.ring_degree())),
      codec_(ring_, dropped_bits(ring_)),
      secret_(std::make_shared<const SecretBuffer<std::uint64_t>>(secret_in_ring(*key_, ring_))),
      phase_(std::make_unique<PhaseDecryptor>(*key_, auxiliary_)) {
    if (features < 1 || outputs < 1 || features >= kMaxFeatures || outputs > kMaxFeatures) {
        throw ParameterError("in_features and out_features must be between 1 and 65535");
    }
    if (parameters_.packing() != Packing::blocks || parameters_.choice().updates == 0) {
        throw ParameterError("sealed weights need packing=\"blocks\" and updates >= 1");
    }
    layout_ =
        plan_sealed(parameters_.choice(), features + 1, outputs, codec_.bits_per_coefficient(), kTypicalReplyBits);
    scaling_ = scale_sealed(parameters_.choice(), ring_, layout_, weight_norm);
}

void SealedClient::destroy() const {
    {
        const std::lock_guard<std::mutex> lock(ahead_mutex_);
        ahead_.wait();
        next_request_ = next_update_ = ZeroEncryptions();
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    outstanding_.clear();
    secret_.reset();
    phase_.reset();
    key_->destroy();
}

std::shared_ptr<const SecretBuffer<std::uint64_t>> SealedClient::secret() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!secret_) {
        throw KeyMismatchError("this client's key was destroyed; begin a new session with a new key");
    }
    return secret_;
}

Id SealedClient::remember(const Outstanding& entry) const {
    const Id id = random_id();
    const std::lock_guard<std::mutex> lock(mutex_);
    if (outstanding_.size() >= kMaxOutstanding) {
        outstanding_.clear();
    }
    outstanding_.emplace(id, entry);
    return id;
}

SealedClient::Outstanding SealedClient::take(const Header& header, bool input_gradient) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = outstanding_.find(header.message);
    if (found == outstanding_.end() || found->second.input_gradient != input_gradient) {
        throw KeyMismatchError("a reply to a request that this client did not make, or that was answered already");
    }
    return found->second;
}

BatchShape SealedClient::shape_of(std::size_t samples) const {
    if (samples < 1 || samples > kMaxSamples) {
        throw ParameterError("a request holds 1 to " + std::to_string(kMaxSamples) + " samples, got " +
                             std::to_string(samples));
    }
    return {static_cast<std::uint32_t>(samples), static_cast<std::uint32_t>(layout_.group_size),
            static_cast<std::uint32_t>(layout_.width)};
}

// What was made ahead if it fits, else made now. It is never used twice.
ZeroEncryptions SealedClient::take_zeros(ZeroEncryptions& ahead, std::size_t count) const {
    ZeroEncryptions zeros;
    {
        const std::lock_guard<std::mutex> lock(ahead_mutex_);
        ahead_.wait();
        std::swap(zeros, ahead);
    }
    const auto secret = this->secret();
    if (!zeros.usable(count)) {
        zeros = ZeroEncryptions::begin();
        zeros.fill(ring_, *secret, count);
    }
    return zeros;
}

void SealedClient::prepare_next_step() const {
    const std::lock_guard<std::mutex> lock(ahead_mutex_);
    if (request_count_ != 0 && ahead_.pays()) {
        ahead_.start([this, secret = secret()] {
            next_request_ = ZeroEncryptions::begin();
            next_request_.fill(ring_, *secret, request_count_);
            next_update_ = ZeroEncryptions::begin();
            next_update_.fill(ring_, *secret, update_count_);
        });
    }
}

// [header, shape, seed, ciphertexts]: `prefix_bytes` are left at the front for the caller to fill.
std::string SealedClient::encrypt_all(MessageType type, const BatchShape& shape, std::size_t prefix_bytes,
                                      const std::vector<Buffer<std::int64_t>>& messages, const Id& id,
                                      const ZeroEncryptions& zeros) const {
    WireWriter writer({type, parameters_.hash(), key_->id(), id},
                      prefix_bytes + kSealedRequestPrefix + messages.size() * codec_.bytes());
    if (prefix_bytes != 0) {
        const std::vector<std::uint8_t> parameters = parameters_.bytes();
        writer.u16(static_cast<std::uint16_t>(parameters.size()));
        writer.raw({parameters.data(), parameters.size()});
        writer.u32(static_cast<std::uint32_t>(features()));
        writer.u32(static_cast<std::uint32_t>(outputs()));
        writer.u8(static_cast<std::uint8_t>(scaling_.logit_bits));
        writer.u8(static_cast<std::uint8_t>(kInputGradientBits));
    }
    write_shape(writer, shape);
    writer.raw({zeros.randomness.seed.data(), zeros.randomness.seed.size()});
    std::uint8_t* out = writer.reserve(messages.size() * codec_.bytes());
    parallel_for(messages.size(), [&](std::size_t index) {
        Buffer<std::uint64_t> c0(ring_.size()), scratch;
        ring_.lift(View<const std::int64_t>{messages[index].data(), messages[index].size()}, c0.data());
        ring_.add(c0.data(), zeros.c0[index].data());
        codec_.pack(c0.data(), out + index * codec_.bytes(), scratch);
    });
    return writer.finish();
}

std::vector<std::int64_t> SealedClient::with_bias(View<const double> weight, View<const double> bias) const {
    std::vector<std::int64_t> integers(layout_.outputs * layout_.features);
    for (std::size_t o = 0; o < layout_.outputs; ++o) {
        std::int64_t* row = integers.data() + o * layout_.features;
        for (std::size_t i = 0; i < features(); ++i) {
            row[i] = std::llrint(weight[o * features() + i] * scaling_.weight_scale);
        }
        row[features()] = std::llrint(bias[o] * scaling_.weight_scale);
    }
    return integers;
}

std::vector<Buffer<std::int64_t>> SealedClient::weight_messages(const std::vector<std::int64_t>& integers) const {
    // Integers below 2^53 survive the way through double, and scale 1 leaves them as they are.
    const std::vector<double> values(integers.begin(), integers.end());
    std::vector<Buffer<std::int64_t>> messages;
    for (std::size_t p = 0; p < layout_.products(); ++p) {
        for (std::size_t j = 0; j < layout_.inputs(); ++j) {
            messages.emplace_back(ring_.degree());
            place_weight(layout_, values.data(), p, j, 1.0, {messages.back().data(), ring_.degree()});
        }
    }
    return messages;
}

bool SealedClient::refresh_due(View<const double> weight, View<const double> bias) const {
    const WeightNorms norms = norms_of(parameters_.choice(), weight, bias, features());
    return norms.reach > scaling_.reach || updates_ >= parameters_.choice().updates;
}

std::string SealedClient::seal(View<const double> weight, View<const double> bias) {
    const WeightNorms norms = norms_of(parameters_.choice(), weight, bias, features());
    if (norms.reach > scaling_.reach) {
        // Twice as much as needed, so that the next refresh is far off.
        const double norm = std::sqrt(parameters_.choice().activation_norm * parameters_.choice().activation_norm + 1);
        scaling_ = scale_sealed(parameters_.choice(), ring_, layout_, 2 * norms.reach / norm);
    }
    sealed_ = with_bias(weight, bias);
    updates_ = 0;
    const std::size_t prefix = 2 + parameters_.bytes().size() + 8 + 2;
    const std::vector<Buffer<std::int64_t>> messages = weight_messages(sealed_);
    ZeroEncryptions zeros = ZeroEncryptions::begin();
    zeros.fill(ring_, *secret(), messages.size());
    return encrypt_all(MessageType::sealed_weight, shape_of(layout_.group_size), prefix, messages, random_id(), zeros);
}

std::string SealedClient::encrypt(View<const double> x) const {
    const std::size_t samples = x.size / features();
    const BatchShape shape = shape_of(samples);
    const Inspection inspection = inspect(x.data, samples, features(), parameters_.choice());
    if (!inspection.finite || !inspection.beyond.empty()) {
        throw RangeError(inspection.finite ? "activations beyond the agreed ranges; clip them first"
                                           : "the activations contain NaN or infinity");
    }
    std::vector<double> rows(samples * layout_.features, 1.0);
    for (std::size_t s = 0; s < samples; ++s) {
        std::copy_n(x.data + s * features(), features(), rows.data() + s * layout_.features);
    }
    std::vector<Buffer<std::int64_t>> messages;
    for (std::size_t group = 0; group < shape.groups(); ++group) {
        for (std::size_t j = 0; j < layout_.inputs(); ++j) {
            messages.emplace_back(ring_.degree());
            place_input(layout_, rows.data() + group * layout_.group_size * layout_.features, shape.samples_of(group),
                        j, parameters_.choice().scale, {messages.back().data(), ring_.degree()});
        }
    }
    const Outstanding entry{shape, false, parameters_.choice().scale * scaling_.weight_scale};
    const ZeroEncryptions zeros = take_zeros(next_request_, messages.size());
    return encrypt_all(MessageType::sealed_request, shape, 0, messages, remember(entry), zeros);
}

std::string SealedClient::update(View<const double> gradient, View<const double> weight, View<const double> bias) {
    const std::size_t samples = gradient.size / outputs();
    const BatchShape shape = shape_of(samples);
    if (sealed_.empty()) {
        throw ParameterError("seal() comes before update()");
    }
    if (refresh_due(weight, bias)) {
        throw ParameterError("the sealed weights must be refreshed before this update");
    }
    // The range of dJ/da by the weights before the update, which only this client can know.
    double reach = 0, largest = 0, square = 0;
    for (std::size_t s = 0; s < samples; ++s) {
        for (std::size_t i = 0; i < features(); ++i) {
            double sum = 0;
            for (std::size_t o = 0; o < outputs(); ++o) {
                sum += gradient[s * outputs() + o] *
                       (static_cast<double>(sealed_[o * layout_.features + i]) / scaling_.weight_scale);
            }
            reach = std::max(reach, std::abs(sum));
        }
    }
    for (const double value : gradient) {
        if (!std::isfinite(value)) {
            throw RangeError("the gradient contains NaN or infinity");
        }
        largest = std::max(largest, std::abs(value));
        square += value * value;
    }
    // The noise that updates left in the weights comes on top.
    const double variance = request_noise_variance(ring_) * (1.0 + parameters_.choice().updates);
    reach += kTail * std::sqrt(square * variance) / scaling_.weight_scale;
    const double widest = ring_.modulus_value() / (2 * kRoom * std::max(reach, 1e-12) * scaling_.weight_scale);
    const double gradient_scale = std::min(widest, std::ldexp(1.0, 60) / std::max(largest, 1e-12));

    std::vector<Buffer<std::int64_t>> messages;
    for (std::size_t group = 0; group < shape.groups(); ++group) {
        for (std::size_t p = 0; p < layout_.products(); ++p) {
            messages.emplace_back(ring_.degree());
            place_gradient_for_input(layout_, gradient.data + group * layout_.group_size * outputs(),
                                     shape.samples_of(group), p, gradient_scale,
                                     {messages.back().data(), ring_.degree()});
        }
    }
    const std::vector<std::int64_t> next = with_bias(weight, bias);
    std::vector<std::int64_t> step(next.size());
    std::transform(next.begin(), next.end(), sealed_.begin(), step.begin(), std::minus<>());
    for (Buffer<std::int64_t>& message : weight_messages(step)) {
        messages.push_back(std::move(message));
    }
    const Outstanding entry{shape, true, gradient_scale * scaling_.weight_scale};
    const ZeroEncryptions zeros = take_zeros(next_update_, messages.size());
    std::string bytes = encrypt_all(MessageType::sealed_update, shape, 0, messages, remember(entry), zeros);
    sealed_ = next;
    ++updates_;
    {
        const std::lock_guard<std::mutex> lock(ahead_mutex_);
        request_count_ = shape.groups() * layout_.inputs();
        update_count_ = messages.size();
    }
    prepare_next_step();
    return bytes;
}

std::size_t SealedClient::samples_of(View<const std::uint8_t> reply) const {
    WireReader reader(reply, MessageType::sealed_reply);
    reader.require(parameters_.hash(), key_->id());
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = outstanding_.find(reader.header().message);
    if (found == outstanding_.end()) {
        throw KeyMismatchError("a reply to a request that this client did not make, or that was answered already");
    }
    return found->second.shape.samples;
}

void SealedClient::decrypt(View<const std::uint8_t> reply, double* y) const {
    open(reply, false, y);
}

void SealedClient::decrypt_input_gradient(View<const std::uint8_t> reply, double* gradient) const {
    open(reply, true, gradient);
}

void SealedClient::open(View<const std::uint8_t> bytes, bool input_gradient, double* out) const {
    const auto alive = secret();  // throws once the key is destroyed
    WireReader reader(bytes, MessageType::sealed_reply);
    reader.require(parameters_.hash(), key_->id());
    const Outstanding entry = take(reader.header(), input_gradient);
    const BatchShape& shape = entry.shape;
    if (!(read_shape(reader) == shape)) {
        throw WireError("a reply for a batch of another shape");
    }
    const int bits = input_gradient ? kInputGradientBits : scaling_.logit_bits;
    const std::size_t n = ring_.degree();
    const std::size_t poly_bytes = packed_bytes(n, bits);
    const std::size_t runs = input_gradient ? layout_.inputs() : layout_.products();
    const auto positions_of = [&](std::size_t group, std::size_t run) {
        return input_gradient ? input_gradient_positions(layout_, run, shape.samples_of(group))
                              : output_positions(layout_, run, shape.samples_of(group));
    };
    std::vector<std::size_t> offsets;
    std::size_t total = 0;
    for (std::size_t group = 0; group < shape.groups(); ++group) {
        for (std::size_t run = 0; run < runs; ++run) {
            offsets.push_back(total);
            total += packed_bytes(positions_of(group, run).size(), bits) + 2 * poly_bytes;
        }
    }
    reader.require_remaining(total);
    const View<const std::uint8_t> payload = reader.raw(total);
    const double scale = entry.scale / ring_.modulus_value() * std::ldexp(1.0, bits);
    const double largest = std::ldexp(0.999, bits - 1);
    const std::uint64_t limit = std::uint64_t{1} << bits;
    parallel_for(shape.groups() * runs, [&](std::size_t index) {
        const std::size_t group = index / runs, run = index % runs;
        const std::vector<std::uint32_t> positions = positions_of(group, run);
        const std::uint8_t* in = payload.data + offsets[index];
        Buffer<std::uint64_t> c0(positions.size()), c1(n), c2(n);
        unpack_bits(in, {c0.data(), c0.size()}, bits, limit);
        in += packed_bytes(c0.size(), bits);
        unpack_bits(in, {c1.data(), n}, bits, limit);
        unpack_bits(in + poly_bytes, {c2.data(), n}, bits, limit);
        SecretBuffer<std::int64_t> values(positions.size());
        phase_->phase({c1.data(), n}, {c2.data(), n}, {c0.data(), c0.size()}, {positions.data(), positions.size()},
                      bits, values.data());
        const std::size_t first = group * layout_.group_size, count = shape.samples_of(group);
        for (std::size_t i = 0; i < values.size(); ++i) {
            double* to = nullptr;
            if (input_gradient) {
                const std::size_t width = layout_.features_of(run);
                const std::size_t feature = run * layout_.width + i % width;
                if (feature == features()) {
                    continue;  // the gradient of the bias' constant 1, for which the scale leaves no room
                }
                to = out + (first + i / width) * features() + feature;
            } else {
                to = out + (first + i % count) * outputs() + run * layout_.per_product() + i / count;
            }
            const auto value = static_cast<double>(values[i]);
            if (std::abs(value) > largest) {
                throw RangeError(
                    "a decrypted reply is at the edge of its range: the agreed ranges were exceeded, or the reply is "
                    "not genuine");
            }
            *to = value / scale;
        }
    });
    const std::lock_guard<std::mutex> lock(mutex_);
    outstanding_.erase(reader.header().message);
}

}  // namespace hesplit
