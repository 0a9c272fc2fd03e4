#include "tensor/polynomials.h"

#include <cmath>
#include <utility>

#include "base/error.h"
#include "base/parallel.h"
#include "rlwe/decryption.h"
#include "rlwe/encryption.h"
#include "wire/codec.h"

namespace hesplit {

namespace {

// How polynomials were encrypted: with the secret key, c1 from a seed; or with a public one, c1 sent.
enum class Encryption : std::uint8_t { seeded = 1, whole = 2 };

std::size_t count_of(const TensorRing& ring, View<const std::int64_t> coefficients) {
    const std::size_t count = coefficients.size / ring.ring().degree();
    if (count < 1 || count > kMostPolynomials || coefficients.size % ring.ring().degree() != 0) {
        throw ParameterError("expected 1 to " + std::to_string(kMostPolynomials) + " polynomials of " +
                             std::to_string(ring.ring().degree()) + " coefficients");
    }
    return count;
}

// c0 += the coefficients, in coefficient form.
void add_message(const Ring& ring, const std::int64_t* coefficients, std::uint64_t* c0) {
    SecretBuffer<std::uint64_t> message(ring.size());
    ring.lift(View<const std::int64_t>{coefficients, ring.degree()}, message.data());
    ring.add(c0, message.data());
}

WireWriter polynomial_writer(const TensorRing& ring, const Id& key, Encryption encryption, std::size_t count,
                             std::size_t polynomial_bytes) {
    const bool seeded = encryption == Encryption::seeded;
    WireWriter writer(
        {MessageType::polynomials, ring.parameters().hash(), key, random_id()},
        1 + sizeof(std::uint32_t) + (seeded ? sizeof(Seed) : 0) + count * (seeded ? 1 : 2) * polynomial_bytes);
    writer.u8(static_cast<std::uint8_t>(encryption));
    writer.u32(static_cast<std::uint32_t>(count));
    return writer;
}

}  // namespace

TensorRing::TensorRing(Parameters parameters)
    : parameters_(std::move(parameters)),
      ring_(parameters_.ring_degree(), parameters_.data_primes()),
      auxiliary_(auxiliary_ring(parameters_.ring_degree())) {
    if (parameters_.packing() != Packing::blocks || parameters_.total_bits() < kLeastTensorBits) {
        throw ParameterError("encrypted polynomials need packing=\"blocks\" and a modulus of at least " +
                             std::to_string(kLeastTensorBits) + " bits");
    }
}

void TensorRing::require(const ParameterHash& parameters) const {
    if (parameters != parameters_.hash()) {
        throw KeyMismatchError("this key is for other parameters than what it should encrypt or decrypt");
    }
}

void TensorRing::require(const SecretKey& key, const Id& id) const {
    require(key.parameters().hash());
    if (key.id() != id) {
        throw KeyMismatchError("what is to be decrypted was encrypted under another key");
    }
}

void check_coefficients(View<const std::int64_t> coefficients) {
    for (const std::int64_t value : coefficients) {
        if (value > kMostCoefficient || value < -kMostCoefficient) {
            throw RangeError("a coefficient is beyond 2^60");
        }
    }
}

std::string encrypt_polynomials(const TensorRing& tensor_ring, const SecretKey& key,
                                View<const std::int64_t> coefficients) {
    tensor_ring.require(key.parameters().hash());
    const Ring& ring = tensor_ring.ring();
    const std::size_t count = count_of(tensor_ring, coefficients);
    const PolynomialCodec codec(ring, 0);
    const KeyBuffer<std::uint64_t> secret = secret_in_ring(key, ring);
    const EncryptionRandomness randomness = EncryptionRandomness::fresh();
    WireWriter writer = polynomial_writer(tensor_ring, key.id(), Encryption::seeded, count, codec.bytes());
    writer.seed(randomness.seed);
    std::uint8_t* out = writer.reserve(count * codec.bytes());
    parallel_for(count, [&](std::size_t j) {
        SecretBuffer<std::uint64_t> c0(ring.size());
        Buffer<std::uint64_t> scratch;
        encrypt_zero(ring, secret, randomness, static_cast<std::uint32_t>(j), c0.data());
        add_message(ring, coefficients.data + j * ring.degree(), c0.data());
        codec.pack(c0.data(), out + j * codec.bytes(), scratch);
    });
    return writer.finish();
}

std::string encrypt_polynomials(const TensorRing& tensor_ring, const PublicKey& key,
                                View<const std::int64_t> coefficients) {
    tensor_ring.require(key.parameters().hash());
    const Ring& ring = tensor_ring.ring();
    const std::size_t count = count_of(tensor_ring, coefficients);
    const PolynomialCodec codec(ring, 0);
    WireWriter writer = polynomial_writer(tensor_ring, key.id(), Encryption::whole, count, codec.bytes());
    std::uint8_t* out = writer.reserve(count * 2 * codec.bytes());
    parallel_for(count, [&](std::size_t j) {
        SecretBuffer<std::uint64_t> c0(ring.size());
        Buffer<std::uint64_t> c1(ring.size()), scratch;
        key.encrypt_zero(c0.data(), c1.data());
        add_message(ring, coefficients.data + j * ring.degree(), c0.data());
        codec.pack(c0.data(), out + 2 * j * codec.bytes(), scratch);
        codec.pack(c1.data(), out + (2 * j + 1) * codec.bytes(), scratch);
    });
    return writer.finish();
}

namespace {

// The frame of a message of polynomials: everything but the numbers themselves.
struct PolynomialMessage {
    Id key{};
    bool seeded = false;
    std::size_t count = 0;
    Seed seed{};
    const std::uint8_t* in = nullptr;  // [count, 1 or 2, codec.bytes()]

    std::size_t each(const PolynomialCodec& codec) const { return (seeded ? 1 : 2) * codec.bytes(); }
};

PolynomialMessage read_polynomials(const TensorRing& ring, const PolynomialCodec& codec,
                                   View<const std::uint8_t> bytes) {
    WireReader reader(bytes, MessageType::polynomials);
    PolynomialMessage message;
    message.key = reader.header().key;
    reader.require(ring.parameters().hash(), message.key);
    const std::uint8_t encryption = reader.u8();
    message.seeded = encryption == static_cast<std::uint8_t>(Encryption::seeded);
    if (!message.seeded && encryption != static_cast<std::uint8_t>(Encryption::whole)) {
        throw WireError("encrypted polynomials of an unknown kind");
    }
    message.count = reader.u32();
    if (message.count < 1 || message.count > kMostPolynomials) {
        throw WireError("a message holds 1 to " + std::to_string(kMostPolynomials) + " polynomials, this one " +
                        std::to_string(message.count));
    }
    if (message.seeded) {
        message.seed = reader.seed();
    }
    reader.require_remaining(message.count * message.each(codec));
    message.in = reader.raw(reader.remaining()).data;
    return message;
}

}  // namespace

EncryptedPolynomials::EncryptedPolynomials(std::shared_ptr<const TensorRing> tensor_ring,
                                           View<const std::uint8_t> bytes)
    : ring_(std::move(tensor_ring)) {
    const Ring& ring = ring_->ring();
    const PolynomialCodec codec(ring, 0);
    const PolynomialMessage message = read_polynomials(*ring_, codec, bytes);
    key_ = message.key;
    c0_.resize(message.count * ring.size());
    c1_.resize(message.count * ring.size());
    parallel_for(message.count, [&](std::size_t j) {
        const std::uint8_t* in = message.in + j * message.each(codec);
        std::uint64_t* c0 = c0_.data() + j * ring.size();
        std::uint64_t* c1 = c1_.data() + j * ring.size();
        codec.unpack(in, c0);
        ring.to_ntt(c0);
        if (message.seeded) {
            expand_uniform(ring, message.seed, static_cast<std::uint32_t>(j), c1);
        } else {
            codec.unpack(in + codec.bytes(), c1);
            ring.to_ntt(c1);
        }
    });
}

void EncryptedPolynomials::require_under(const TensorRing& tensor_ring, const Id& key) const {
    if (ring_->parameters().hash() != tensor_ring.parameters().hash() || key_ != key) {
        throw KeyMismatchError("what was encrypted under different keys cannot be added");
    }
}

std::string add_to_polynomials(const TensorRing& tensor_ring, View<const std::uint8_t> bytes,
                               View<const std::int64_t> coefficients) {
    const Ring& ring = tensor_ring.ring();
    const PolynomialCodec codec(ring, 0);
    const PolynomialMessage message = read_polynomials(tensor_ring, codec, bytes);
    if (count_of(tensor_ring, coefficients) != message.count) {
        throw ParameterError("expected coefficients for each of " + std::to_string(message.count) + " polynomials");
    }
    std::string sum(bytes.begin(), bytes.end());
    auto* out = reinterpret_cast<std::uint8_t*>(sum.data()) + (message.in - bytes.data);
    Buffer<std::uint64_t> c0(ring.size()), scratch;
    for (std::size_t j = 0; j < message.count; ++j) {
        codec.unpack(message.in + j * message.each(codec), c0.data());
        add_message(ring, coefficients.data + j * ring.degree(), c0.data());
        codec.pack(c0.data(), out + j * message.each(codec), scratch);
    }
    seal_message({reinterpret_cast<std::uint8_t*>(sum.data()), sum.size()});
    return sum;
}

std::string sum_polynomials(const std::vector<const EncryptedPolynomials*>& terms) {
    if (terms.empty()) {
        throw ParameterError("expected polynomials to add up");
    }
    const EncryptedPolynomials& first = *terms.front();
    const TensorRing& tensor_ring = first.ring();
    for (const EncryptedPolynomials* term : terms) {
        term->require_under(tensor_ring, first.key());
        if (term->count() != first.count()) {
            throw ParameterError("expected as many polynomials of each tensor");
        }
    }
    const Ring& ring = tensor_ring.ring();
    const PolynomialCodec codec(ring, 0);
    WireWriter writer = polynomial_writer(tensor_ring, first.key(), Encryption::whole, first.count(), codec.bytes());
    std::uint8_t* out = writer.reserve(first.count() * 2 * codec.bytes());
    parallel_for(2 * first.count(), [&](std::size_t i) {
        const auto part = [i](const EncryptedPolynomials& term) {
            return i % 2 == 0 ? term.c0(i / 2) : term.c1(i / 2);
        };
        Buffer<std::uint64_t> sum(part(first), part(first) + ring.size()), scratch;
        for (std::size_t t = 1; t < terms.size(); ++t) {
            ring.add(sum.data(), part(*terms[t]));
        }
        ring.to_coefficients(sum.data());
        codec.pack(sum.data(), out + i * codec.bytes(), scratch);
    });
    return writer.finish();
}

void EncryptedPolynomials::decrypt(const SecretKey& key, double* out) const {
    ring_->require(key, key_);
    const Ring& ring = ring_->ring();
    const KeyBuffer<std::uint64_t> secret = secret_in_ring(key, ring);
    // Coefficients are below kMostSummands * kMostCoefficient = 2^65, and then there is noise. So that they fill the
    // modulus, they are multiplied by a power of two; then 62 bits say them to within 2^5.
    const int shift = static_cast<int>(std::floor(std::log2(ring.modulus_value()))) - 67, bits = 62;
    const double unit = ring.modulus_value() / std::ldexp(1.0, bits + shift);
    parallel_for(count(), [&](std::size_t j) {
        SecretBuffer<std::uint64_t> phase(ring.size()), switched(ring.degree());
        ring.multiply(c1(j), secret.data(), phase.data());
        ring.add(phase.data(), c0(j));
        ring.to_coefficients(phase.data());
        ring.multiply_power_of_two(phase.data(), shift);
        ring.switch_to_bits(phase.data(), bits, switched.data());
        for (std::size_t i = 0; i < ring.degree(); ++i) {
            const std::int64_t centred = static_cast<std::int64_t>(switched[i] << (64 - bits)) >> (64 - bits);
            out[j * ring.degree() + i] = static_cast<double>(centred) * unit;
        }
    });
}

}  // namespace hesplit
