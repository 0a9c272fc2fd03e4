#include "rlwe/public_key.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "rlwe/encryption.h"
#include "wire/codec.h"

namespace hesplit {

PublicKey::PublicKey(Parameters parameters, const Id& id, const Seed& seed)
    : parameters_(std::move(parameters)),
      id_(id),
      seed_(seed),
      ring_(parameters_.ring_degree(), parameters_.data_primes()),
      a_(ring_.size()),
      b_(ring_.size()) {
    expand_uniform(ring_, seed_, 0, a_.data());
}

std::shared_ptr<const PublicKey> PublicKey::of(const SecretKey& key) {
    const EncryptionRandomness randomness = EncryptionRandomness::fresh();
    std::shared_ptr<PublicKey> made(new PublicKey(key.parameters(), key.id(), randomness.seed));
    hesplit::encrypt_zero(made->ring_, secret_in_ring(key, made->ring_), randomness, 0, made->b_.data());
    made->ring_.to_ntt(made->b_.data());
    return made;
}

void PublicKey::encrypt_zero(std::uint64_t* c0, std::uint64_t* c1, int spread_bits) const {
    const std::size_t n = ring_.degree();
    SecretBuffer<std::uint8_t> stream_key(32);
    os_random(stream_key.data(), stream_key.size());
    SecretBuffer<std::int8_t> small(n);
    SecretBuffer<std::uint64_t> u(ring_.size());
    ChaCha20 ephemeral(stream_key.data(), Domain::ephemeral, 0, 0);
    if (spread_bits > 0) {
        SecretBuffer<std::uint64_t> drawn(n);
        SecretBuffer<std::int64_t> wide(n);
        sample_bits(ephemeral, spread_bits + 1, drawn.data(), n);
        for (std::size_t i = 0; i < n; ++i) {
            wide[i] = static_cast<std::int64_t>(drawn[i]) - (std::int64_t{1} << spread_bits);
        }
        ring_.lift(View<const std::int64_t>{wide.data(), n}, u.data());
    } else {
        sample_ternary(ephemeral, small.data(), n);
        ring_.lift(View<const std::int8_t>{small.data(), n}, u.data());
    }
    ring_.to_ntt(u.data());
    std::uint32_t row = 0;
    for (const auto& [key, out] : {std::pair{&b_, c0}, std::pair{&a_, c1}}) {
        ring_.multiply(key->data(), u.data(), out);
        ring_.to_coefficients(out);
        ChaCha20 noise(stream_key.data(), Domain::noise, 0, row++);
        sample_noise(noise, small.data(), n);
        ring_.add_small({small.data(), n}, out);
    }
}

std::size_t PublicKey::body_bytes(const Ring& ring) {
    return sizeof(Seed) + PolynomialCodec(ring, 0).bytes();
}

void PublicKey::write(WireWriter& writer) const {
    const PolynomialCodec codec(ring_, 0);
    Buffer<std::uint64_t> b = b_, scratch;
    ring_.to_coefficients(b.data());
    writer.seed(seed_);
    codec.pack(b.data(), writer.reserve(codec.bytes()), scratch);
}

std::shared_ptr<const PublicKey> PublicKey::read(WireReader& reader, const Parameters& parameters) {
    const Seed seed = reader.seed();
    std::shared_ptr<PublicKey> read(new PublicKey(parameters, reader.header().key, seed));
    const PolynomialCodec codec(read->ring_, 0);
    codec.unpack(reader.raw(codec.bytes()).data, read->b_.data());
    read->ring_.to_ntt(read->b_.data());
    return read;
}

std::string PublicKey::bytes() const {
    WireWriter writer({MessageType::public_key, parameters_.hash(), id_, Id{}},
                      parameter_bytes(parameters_) + body_bytes(ring_));
    write_parameters(writer, parameters_);
    write(writer);
    return writer.finish();
}

std::shared_ptr<const PublicKey> PublicKey::parse(View<const std::uint8_t> bytes) {
    WireReader reader(bytes, MessageType::public_key);
    const Parameters parameters = read_parameters(reader);
    std::shared_ptr<const PublicKey> key = read(reader, parameters);
    reader.require_remaining(0);
    return key;
}

double public_noise_bound(std::size_t ring_degree, int spread_bits) {
    // e times u, e0, and e1 times s.
    return kNoiseBound * (1 + static_cast<double>(ring_degree) * (1 + std::ldexp(1.0, spread_bits)));
}

double public_noise_deviation(std::size_t ring_degree) {
    const auto n = static_cast<double>(ring_degree);
    // e and u, and e1 and s: at most so many coefficients of a ternary polynomial are not zero.
    const double nonzero = 2 * n / 3 + 6 * std::sqrt(2 * n / 9);
    return std::sqrt(kNoiseVariance * (1 + 2 * nonzero));
}

}  // namespace hesplit
