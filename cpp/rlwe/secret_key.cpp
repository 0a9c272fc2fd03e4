#include "rlwe/secret_key.h"

#include <algorithm>
#include <map>
#include <string>
#include <utility>

#include "base/error.h"
#include "wire/format.h"

namespace hesplit {

namespace {

// Decryptions released in this process, by key.
struct Releases {
    std::mutex mutex;
    std::map<Id, std::uint32_t> counts;
};

Releases& releases() {
    static Releases* all = new Releases;  // outlives every key
    return *all;
}

}  // namespace

SecretKey::SecretKey(Parameters parameters, const Id& id, KeyBuffer<std::int8_t> coefficients, bool filed)
    : parameters_(std::move(parameters)), id_(id), filed_(filed), coefficients_(std::move(coefficients)) {}

SecretKey::~SecretKey() {
    if (!filed_) {
        const std::lock_guard<std::mutex> lock(releases().mutex);
        releases().counts.erase(id_);
    }
}

std::shared_ptr<const SecretKey> SecretKey::generate(const Parameters& parameters) {
    SecretBuffer<std::uint8_t> seed(32);
    os_random(seed.data(), seed.size());
    ChaCha20 stream(seed.data(), Domain::secret, 0, 0);
    KeyBuffer<std::int8_t> coefficients(parameters.ring_degree());
    sample_ternary(stream, coefficients.data(), coefficients.size());
    return std::shared_ptr<const SecretKey>(new SecretKey(parameters, random_id(), std::move(coefficients), false));
}

void SecretKey::require_alive() const {
    if (destroyed_) {
        throw KeyMismatchError("this secret key was destroyed and cannot be used again");
    }
}

void SecretKey::destroy() const {
    const std::unique_lock<std::shared_mutex> lock(mutex_);
    destroyed_ = true;
    secure_zero(coefficients_.data(), coefficients_.size());
}

void SecretKey::count_release() const {
    const std::uint32_t allowed = parameters_.choice().releases;
    const std::lock_guard<std::mutex> lock(releases().mutex);
    std::uint32_t& count = releases().counts[id_];
    if (count >= allowed) {
        throw ParameterError("the parameters allow " + std::to_string(allowed) +
                             " flooded releases under one key, and that many were made; generate a new key");
    }
    ++count;
}

void SecretKey::released_before(std::uint32_t count) const {
    const std::lock_guard<std::mutex> lock(releases().mutex);
    std::uint32_t& known = releases().counts[id_];
    known = std::max(known, count);
}

std::uint32_t SecretKey::released() const {
    const std::lock_guard<std::mutex> lock(releases().mutex);
    const auto found = releases().counts.find(id_);
    return found == releases().counts.end() ? 0 : found->second;
}

SecretBuffer<std::uint8_t> SecretKey::bytes() const {
    filed_ = true;
    SecretBuffer<std::uint64_t> digits(parameters_.ring_degree());
    use_coefficients([&](View<const std::int8_t> coefficients) {
        std::transform(coefficients.begin(), coefficients.end(), digits.begin(),
                       [](std::int8_t s) { return static_cast<std::uint64_t>(s + 1); });
    });
    WireWriter writer({MessageType::secret_key, parameters_.hash(), id_, Id{}},
                      parameter_bytes(parameters_) + packed_bytes(digits.size(), 2));
    write_parameters(writer, parameters_);
    writer.packed({digits.data(), digits.size()}, 2);
    std::string text = writer.finish();
    SecretBuffer<std::uint8_t> bytes(text.begin(), text.end());
    secure_zero(text.data(), text.size());
    return bytes;
}

std::shared_ptr<const SecretKey> SecretKey::parse(View<const std::uint8_t> bytes) {
    WireReader reader(bytes, MessageType::secret_key);
    const Parameters parameters = read_parameters(reader);
    reader.require_remaining(packed_bytes(parameters.ring_degree(), 2));
    SecretBuffer<std::uint64_t> digits(parameters.ring_degree());
    reader.packed({digits.data(), digits.size()}, 2, 3);
    KeyBuffer<std::int8_t> coefficients(digits.size());
    std::transform(digits.begin(), digits.end(), coefficients.begin(),
                   [](std::uint64_t digit) { return static_cast<std::int8_t>(static_cast<int>(digit) - 1); });
    return std::shared_ptr<const SecretKey>(
        new SecretKey(parameters, reader.header().key, std::move(coefficients), true));
}

KeyBuffer<std::uint64_t> secret_in_ring(View<const std::int8_t> coefficients, const Ring& ring) {
    KeyBuffer<std::uint64_t> secret(ring.size());
    ring.lift(coefficients, secret.data());
    ring.to_ntt(secret.data());
    return secret;
}

KeyBuffer<std::uint64_t> secret_in_ring(const SecretKey& key, const Ring& ring) {
    KeyBuffer<std::uint64_t> secret;
    key.use_coefficients([&](View<const std::int8_t> coefficients) { secret = secret_in_ring(coefficients, ring); });
    return secret;
}

KeyBuffer<std::uint64_t> secret_for_composition(const SecretKey& key, const Ring& ring) {
    KeyBuffer<std::uint64_t> secret(ring.size());
    key.use_coefficients(
        [&](View<const std::int8_t> coefficients) { ring.lift_for_composition(coefficients, secret.data()); });
    ring.to_ntt(secret.data());
    return secret;
}

}  // namespace hesplit
