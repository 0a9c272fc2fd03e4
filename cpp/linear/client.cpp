#include "linear/client.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "base/parallel.h"
#include "linear/precision.h"
#include "linear/ranges.h"

namespace hesplit {

namespace {

// Requests whose replies have not come; beyond this many the oldest is forgotten.
constexpr std::size_t kMaxOutstanding = 4096;

}  // namespace

BlockLayout block_layout(const Ring& ring, std::size_t features, std::size_t outputs, const BatchShape& shape) {
    return BlockLayout{ring.degree(), features, outputs, shape.group_size, shape.width};
}

ClientKey::ClientKey(std::shared_ptr<const SecretKey> secret_key, const Ring& ring, const Ring& auxiliary)
    : key(std::move(secret_key)), secret(secret_in_ring(*key, ring)), phase(*key, auxiliary) {}

LinearClient::LinearClient(std::shared_ptr<const SecretKey> key, std::size_t features, std::size_t outputs,
                           bool fresh_keys, std::uint32_t released, bool weight_gradients, double byte_ns)
    : parameters_(key->parameters()),
      features_(features),
      outputs_(outputs),
      fresh_keys_(fresh_keys),
      weight_gradients_(weight_gradients),
      byte_ns_(byte_ns),
      slot_ring_(parameters_.packing() == Packing::slots ? std::make_unique<SlotRing>(parameters_) : nullptr),
      own_ring_(slot_ring_ ? nullptr : std::make_unique<Ring>(parameters_.ring_degree(), parameters_.primes())),
      ring_(slot_ring_ ? slot_ring_->data() : *own_ring_),
      auxiliary_(auxiliary_ring(parameters_.ring_degree())),
      codec_(ring_, dropped_bits(ring_)),
      key_(std::make_shared<ClientKey>(std::move(key), ring_, auxiliary_)) {
    key_->released = released;
    if (features < 1 || outputs < 1 || features > kMaxFeatures || outputs > kMaxFeatures) {
        throw ParameterError("in_features and out_features must be between 1 and 65536, got " +
                             std::to_string(features) + " and " + std::to_string(outputs));
    }
    if (slot_ring_) {
        if (fresh_keys_) {
            throw ParameterError("a fresh key for every request needs packing=\"blocks\": slots need rotation keys");
        }
        slots_ = plan_slots(slot_ring_->slots(), features, outputs, parameters_.choice().batch_size,
                            allow_babies(*slot_ring_), weight_gradients);
    }
}

std::shared_ptr<ClientKey> LinearClient::current_key() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!key_) {
        throw KeyMismatchError("this client's key was destroyed; begin a new session with a new key");
    }
    return key_;
}

void LinearClient::destroy() const {
    {
        const std::lock_guard<std::mutex> lock(ahead_mutex_);
        ahead_.wait();
        if (next_ && next_->key) {
            next_->key->key->destroy();
        }
        next_.reset();
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& [message, entry] : outstanding_) {
        entry.key->key->destroy();
    }
    outstanding_.clear();
    order_.clear();
    if (key_) {
        key_->key->destroy();
        key_.reset();
    }
}

std::string LinearClient::public_material() const {
    const std::shared_ptr<ClientKey> key = current_key();
    const std::vector<std::uint8_t> parameters = parameters_.bytes();
    std::vector<int> steps;
    if (slot_ring_) {
        steps = server_rotations(slots_, parameters_.choice().batch_size, weight_gradients_);
    }
    std::size_t key_bytes = 0;
    if (slot_ring_) {
        key_bytes = ring_.prime_count() * PolynomialCodec(slot_ring_->key(), 0).bytes();
    }
    const std::size_t body = 2 + parameters.size() + 9 + (steps.empty() ? 0 : 32 + steps.size() * key_bytes);
    // Without a key id of its own the server takes requests under any key.
    const Id key_id = fresh_keys_ ? Id{} : key->key->id();
    WireWriter writer({MessageType::public_material, parameters_.hash(), key_id, random_id()}, body);
    writer.u16(static_cast<std::uint16_t>(parameters.size()));
    writer.raw({parameters.data(), parameters.size()});
    writer.u32(static_cast<std::uint32_t>(features_));
    writer.u32(static_cast<std::uint32_t>(outputs_));
    writer.u8(weight_gradients_ ? 1 : 0);
    if (!steps.empty()) {
        const EncryptionRandomness randomness = EncryptionRandomness::fresh();
        writer.raw({randomness.seed.data(), randomness.seed.size()});
        std::uint8_t* out = writer.reserve(steps.size() * key_bytes);
        const PolynomialCodec codec(slot_ring_->key(), 0);
        parallel_for(steps.size(), [&](std::size_t k) {
            Buffer<std::uint64_t> c0(slot_ring_->rotation_key_size());
            Buffer<std::uint64_t> scratch;
            slot_ring_->make_rotation_key(*key->key, steps[k], randomness,
                                          static_cast<std::uint32_t>(k * ring_.prime_count()), c0.data());
            for (std::size_t digit = 0; digit < ring_.prime_count(); ++digit) {
                codec.pack(c0.data() + digit * slot_ring_->key().size(), out + k * key_bytes + digit * codec.bytes(),
                           scratch);
            }
        });
    }
    return writer.finish();
}

BatchShape LinearClient::plan(std::size_t samples) const {
    if (samples < 1 || samples > kMaxSamples) {
        throw ParameterError("a request holds 1 to " + std::to_string(kMaxSamples) + " samples, got " +
                             std::to_string(samples));
    }
    BatchShape shape;
    shape.samples = static_cast<std::uint32_t>(samples);
    if (slot_ring_) {
        shape.group_size = static_cast<std::uint32_t>(slots_.group_size());
        return shape;
    }
    const BlockLayout layout =
        plan_blocks(ring_.degree(), features_, outputs_, samples,
                    {ring_.prime_count(), codec_.bits_per_coefficient(), kTypicalReplyBits, byte_ns_});
    shape.group_size = static_cast<std::uint32_t>(layout.group_size);
    shape.width = static_cast<std::uint32_t>(layout.width);
    return shape;
}

std::size_t LinearClient::inputs(const BatchShape& shape) const {
    return slot_ring_ ? slots_.inputs() : block_layout(ring_, features_, outputs_, shape).inputs();
}

void LinearClient::encode(const BatchShape& shape, const void* x, bool is_float, std::size_t group, std::size_t input,
                          std::uint64_t* message) const {
    const double scale = parameters_.choice().scale;
    const std::size_t first = group * shape.group_size * features_;
    const std::size_t count = shape.samples_of(group);
    const auto* x32 = static_cast<const float*>(x) + first;
    const auto* x64 = static_cast<const double*>(x) + first;
    if (slot_ring_) {
        const std::vector<double> values =
            is_float ? place_slot_input(slots_, x32, count, input) : place_slot_input(slots_, x64, count, input);
        slot_ring_->encode(values, scale, message);
        return;
    }
    const BlockLayout layout = block_layout(ring_, features_, outputs_, shape);
    Buffer<std::int64_t> coefficients(ring_.degree());
    const View<std::int64_t> out{coefficients.data(), coefficients.size()};
    if (is_float) {
        place_input(layout, x32, count, input, scale, out);
    } else {
        place_input(layout, x64, count, input, scale, out);
    }
    ring_.lift(View<const std::int64_t>{coefficients.data(), coefficients.size()}, message);
}

std::shared_ptr<LinearClient::Prepared> LinearClient::begin(const BatchShape& shape) const {
    return std::make_shared<Prepared>(Prepared{shape, fresh_keys_ ? nullptr : current_key(), ZeroEncryptions::begin()});
}

void LinearClient::complete(Prepared& prepared) const {
    if (fresh_keys_) {
        prepared.key = std::make_shared<ClientKey>(SecretKey::generate(parameters_), ring_, auxiliary_);
    }
    prepared.zeros.fill(ring_, prepared.key->secret, prepared.shape.groups() * inputs(prepared.shape));
}

// What was made ahead if it fits, else made now. It is never used twice.
std::shared_ptr<LinearClient::Prepared> LinearClient::take_prepared(const BatchShape& shape) const {
    std::shared_ptr<Prepared> prepared;
    {
        const std::lock_guard<std::mutex> lock(ahead_mutex_);
        ahead_.wait();
        prepared = std::move(next_);
    }
    current_key();  // throws when it was destroyed
    if (prepared && prepared->shape == shape && prepared->zeros.usable(shape.groups() * inputs(shape))) {
        return prepared;
    }
    prepared = begin(shape);
    complete(*prepared);
    return prepared;
}

template <class T>
LinearClient::Request LinearClient::encrypt(const T* x, std::size_t samples, bool clip) const {
    const ParameterChoice& choice = parameters_.choice();
    const BatchShape shape = plan(samples);
    Request request;

    const Inspection inspection = inspect(x, samples, features_, choice);
    if (!inspection.finite) {
        throw RangeError("the activations contain NaN or infinity");
    }
    std::vector<T> clipped;
    if (!inspection.beyond.empty()) {
        if (!clip) {
            throw RangeError(
                std::to_string(inspection.beyond.size()) + " of " + std::to_string(samples) +
                " samples are beyond the agreed ranges (|activation| <= " + std::to_string(choice.activation_bound) +
                ", l2 norm <= " + std::to_string(choice.activation_norm) +
                "); raise activation_bound and activation_norm, or pass on_overflow=\"clip\"");
        }
        clipped.assign(x, x + samples * features_);
        for (const std::size_t s : inspection.beyond) {
            clip_row(clipped.data() + s * features_, features_, choice);
        }
        x = clipped.data();
        request.clipped = inspection.beyond.size();
    }

    const std::shared_ptr<Prepared> prepared = take_prepared(shape);
    const ZeroEncryptions& zeros = prepared->zeros;
    Seed announced{};
    {
        // The seed of the next request is announced in this one, and its zeros are made ahead.
        const std::lock_guard<std::mutex> lock(ahead_mutex_);
        next_.reset();
        if (ahead_.pays()) {
            next_ = begin(shape);
            announced = next_->zeros.randomness.seed;
            ahead_.start([this, next = next_] { complete(*next); });
        }
    }
    const std::size_t per_group = inputs(shape);
    const std::size_t ciphertexts = zeros.c0.size();
    const std::shared_ptr<ClientKey>& key = prepared->key;
    const Id message = random_id();
    WireWriter writer({MessageType::request, parameters_.hash(), key->key->id(), message},
                      kRequestPrefix + ciphertexts * codec_.bytes());
    write_shape(writer, shape);
    writer.raw({zeros.randomness.seed.data(), zeros.randomness.seed.size()});
    writer.raw({announced.data(), announced.size()});
    std::uint8_t* out = writer.reserve(ciphertexts * codec_.bytes());
    parallel_for(ciphertexts, [&](std::size_t index) {
        Buffer<std::uint64_t> c0(ring_.size());
        Buffer<std::uint64_t> scratch;
        encode(shape, x, std::is_same_v<T, float>, index / per_group, index % per_group, c0.data());
        ring_.add(c0.data(), zeros.c0[index].data());
        codec_.pack(c0.data(), out + index * codec_.bytes(), scratch);
    });
    request.bytes = writer.finish();

    const std::lock_guard<std::mutex> lock(mutex_);
    if (order_.size() >= kMaxOutstanding) {
        outstanding_.erase(order_.front());
        order_.erase(order_.begin());
    }
    outstanding_.emplace(message, Outstanding{shape, key});
    order_.push_back(message);
    return request;
}

template LinearClient::Request LinearClient::encrypt<float>(const float*, std::size_t, bool) const;
template LinearClient::Request LinearClient::encrypt<double>(const double*, std::size_t, bool) const;

// A reply whose every length and number has been checked.
struct LinearClient::Reply {
    BatchShape shape;
    std::shared_ptr<ClientKey> key;
    int bits = 0;
    double scale = 1;
    std::size_t products = 0;
    std::vector<std::size_t> group_offset;
    View<const std::uint8_t> payload;
};

LinearClient::Outstanding LinearClient::outstanding(const Header& header) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = outstanding_.find(header.message);
    if (found == outstanding_.end()) {
        throw KeyMismatchError("a reply to a request that this client did not make, or that was answered already");
    }
    if (found->second.key->key->id() != header.key) {
        throw KeyMismatchError("a reply made under another key");
    }
    return found->second;
}

void LinearClient::forget(const Id& message) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    outstanding_.erase(message);
    order_.erase(std::remove(order_.begin(), order_.end(), message), order_.end());
}

void LinearClient::count_release(ClientKey& key) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (key.released >= parameters_.choice().releases) {
        throw ParameterError("the parameters allow " + std::to_string(parameters_.choice().releases) +
                             " flooded releases under one key, and that many were made; generate a new key");
    }
    ++key.released;
}

std::size_t LinearClient::samples_of(View<const std::uint8_t> reply) const {
    WireReader reader(reply, MessageType::reply);
    reader.require(parameters_.hash(), reader.header().key);
    return outstanding(reader.header()).shape.samples;
}

double LinearClient::decrypt(View<const std::uint8_t> bytes, Purpose purpose, bool weight_gradient_follows,
                             double* y) const {
    WireReader reader(bytes, MessageType::reply);
    reader.require(parameters_.hash(), reader.header().key);
    const Outstanding entry = outstanding(reader.header());
    if (entry.logits_decrypted) {
        throw KeyMismatchError("a reply to a request that was answered already");
    }
    Reply reply;
    reply.shape = entry.shape;
    reply.key = entry.key;
    const ReplyHead head = read_reply_head(reader, ring_);
    if (!(head.shape == reply.shape)) {
        throw WireError("a reply for a batch of another shape");
    }
    reply.bits = head.bits;
    reply.scale = head.scale;
    const double embedding = slot_ring_ ? std::sqrt(static_cast<double>(ring_.degree()) / 2) : 1;
    if (kTail * embedding * reply_rounding_deviation(ring_.degree()) / reply.scale > parameters_.choice().error_bound) {
        throw WireError("a reply that is too coarse for the agreed error bound");
    }

    // One contiguous run of c0 and one of c1 per product.
    const std::size_t c1_bytes = packed_bytes(ring_.degree(), reply.bits);
    std::size_t total = 0;
    for (std::size_t group = 0; group < reply.shape.groups(); ++group) {
        reply.group_offset.push_back(total);
        if (slot_ring_) {
            total += 2 * slots_.products() * c1_bytes;
        } else {
            const BlockLayout layout = block_layout(ring_, features_, outputs_, reply.shape);
            for (std::size_t p = 0; p < layout.products(); ++p) {
                total += c1_bytes + packed_bytes(layout.outputs_of(p) * reply.shape.samples_of(group), reply.bits);
            }
        }
    }
    reader.require_remaining(total);
    reply.payload = reader.raw(total);
    parallel_for(reply.shape.groups(), [&](std::size_t group) { decrypt_group(reply, group, y); });

    const double flood = purpose == Purpose::release ? release(reply, y) : 0;

    const Id message = reader.header().message;
    if (!weight_gradient_follows) {
        forget(message);
        return flood;
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = outstanding_.find(message);
    if (found != outstanding_.end()) {
        found->second.logits_decrypted = true;
    }
    return flood;
}

double LinearClient::release(const Reply& reply, double* y) const {
    count_release(*reply.key);
    const BlockLayout layout = block_layout(ring_, features_, outputs_, reply.shape);
    const double product_scale = reply.scale * std::ldexp(ring_.modulus_value(), -reply.bits);
    const double l1 = agreed_weight_l1(parameters_.choice(), ring_, features_, layout.per_product(), product_scale);
    const std::size_t released = reply.shape.samples * outputs_;
    const double deviation =
        flood_deviation(parameters_.choice().releases, released, released_noise(ring_, l1, reply.bits));
    const SecretBuffer<std::int64_t> noise = flooding_noise(deviation, released);
    for (std::size_t i = 0; i < released; ++i) {
        y[i] += static_cast<double>(noise[i]) / reply.scale;
    }
    return deviation / reply.scale;
}

void LinearClient::decrypt_group(const Reply& reply, std::size_t group, double* y) const {
    const std::size_t n = ring_.degree();
    const std::size_t count = reply.shape.samples_of(group);
    const std::uint64_t limit = std::uint64_t{1} << reply.bits;
    const double largest = std::ldexp(0.999, reply.bits - 1);
    double* rows = y + group * reply.shape.group_size * outputs_;
    const std::uint8_t* in = reply.payload.data + reply.group_offset[group];

    const BlockLayout layout = slot_ring_ ? BlockLayout{} : block_layout(ring_, features_, outputs_, reply.shape);
    const std::size_t products = slot_ring_ ? slots_.products() : layout.products();
    Buffer<std::uint64_t> c0;
    Buffer<std::uint64_t> c1(n);
    std::vector<std::uint32_t> positions(n);
    for (std::size_t p = 0; p < products; ++p) {
        if (slot_ring_) {
            std::iota(positions.begin(), positions.end(), 0U);
        } else {
            positions = output_positions(layout, p, count);
        }
        c0.resize(positions.size());
        unpack_bits(in, {c0.data(), c0.size()}, reply.bits, limit);
        in += packed_bytes(c0.size(), reply.bits);
        unpack_bits(in, {c1.data(), n}, reply.bits, limit);
        in += packed_bytes(n, reply.bits);

        SecretBuffer<std::int64_t> values(positions.size());
        reply.key->phase.phase({c1.data(), n}, {c0.data(), c0.size()}, {positions.data(), positions.size()}, reply.bits,
                               values.data());
        if (std::any_of(values.begin(), values.end(),
                        [&](std::int64_t v) { return std::abs(static_cast<double>(v)) > largest; })) {
            throw RangeError(
                "a decrypted reply is at the edge of its range: the agreed ranges were exceeded, or the reply is not "
                "genuine");
        }
        if (slot_ring_) {
            const std::vector<double> decoded = slot_ring_->decode({values.data(), n}, reply.scale);
            const std::vector<std::uint32_t> slots = output_slots(slots_, p, count);
            for (std::size_t i = 0; i < slots.size(); ++i) {
                double sum = 0;
                for (std::size_t part = 0; part < slots_.parts(); ++part) {
                    sum += decoded[slots[i] + part * slots_.period];
                }
                rows[(i % count) * outputs_ + p * slots_.outputs_per_product() + i / count] = sum;
            }
        } else {
            for (std::size_t i = 0; i < values.size(); ++i) {
                rows[(i % count) * outputs_ + p * layout.per_product() + i / count] =
                    static_cast<double>(values[i]) / reply.scale;
            }
        }
    }
}

}  // namespace hesplit
