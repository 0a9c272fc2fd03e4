#include "rlwe/encryption.h"

#include <algorithm>
#include <utility>

#include "base/ahead.h"
#include "base/parallel.h"

namespace hesplit {

void expand_uniform(const Ring& ring, const Seed& seed, std::uint32_t index, std::uint64_t* c1) {
    for (std::size_t prime = 0; prime < ring.prime_count(); ++prime) {
        ChaCha20 stream(seed.data(), Domain::uniform, index, static_cast<std::uint32_t>(prime));
        sample_uniform(stream, ring.prime(prime), c1 + prime * ring.degree(), ring.degree());
    }
}

EncryptionRandomness EncryptionRandomness::fresh() {
    EncryptionRandomness randomness{random_seed(), SecretBuffer<std::uint8_t>(32)};
    os_random(randomness.noise_key.data(), randomness.noise_key.size());
    return randomness;
}

namespace {

SecretBuffer<std::int8_t> fresh_noise(const Ring& ring, const EncryptionRandomness& randomness, std::uint32_t index) {
    SecretBuffer<std::int8_t> noise(ring.degree());
    ChaCha20 stream(randomness.noise_key.data(), Domain::noise, index, 0);
    sample_noise(stream, noise.data(), noise.size());
    return noise;
}

}  // namespace

void encrypt_zero(const Ring& ring, const KeyBuffer<std::uint64_t>& secret, const EncryptionRandomness& randomness,
                  std::uint32_t index, std::uint64_t* c0, std::uint64_t* mask) {
    expand_uniform(ring, randomness.seed, index, c0);
    ring.multiply(c0, secret.data(), c0);
    if (mask != nullptr) {
        std::copy_n(c0, ring.size(), mask);
    }
    ring.to_coefficients(c0);
    ring.negate(c0);
    const SecretBuffer<std::int8_t> noise = fresh_noise(ring, randomness, index);
    ring.add_small({noise.data(), noise.size()}, c0);
}

void encrypt_zero_integers(const Ring& ring, const KeyBuffer<std::uint64_t>& secret,
                           const EncryptionRandomness& randomness, std::uint32_t index, std::uint64_t* c0) {
    expand_uniform(ring, randomness.seed, index, c0);
    ring.multiply(c0, secret.data(), c0);
    ring.to_coefficients(c0);
    ring.compose_lifted(c0, c0);
    const SecretBuffer<std::int8_t> noise = fresh_noise(ring, randomness, index);
    ring.subtract_integers_from({noise.data(), noise.size()}, c0);
}

ZeroEncryptions ZeroEncryptions::begin() {
    return {EncryptionRandomness::fresh(), {}, {}, process_id()};
}

void ZeroEncryptions::fill(const Ring& ring, const KeyBuffer<std::uint64_t>& secret, std::size_t count, ZeroForm form) {
    const bool masked = form == ZeroForm::residues_and_masks;
    std::vector<SecretBuffer<std::uint64_t>> made(count), kept(masked ? count : 0);
    parallel_for(count, [&](std::size_t index) {
        made[index].resize(ring.size());
        if (masked) {
            kept[index].resize(ring.size());
        }
        const auto number = static_cast<std::uint32_t>(index);
        if (form == ZeroForm::integers) {
            encrypt_zero_integers(ring, secret, randomness, number, made[index].data());
        } else {
            encrypt_zero(ring, secret, randomness, number, made[index].data(), masked ? kept[index].data() : nullptr);
        }
    });
    c0 = std::move(made);
    masks = std::move(kept);
}

bool ZeroEncryptions::usable(std::size_t count) const {
    return count != 0 && c0.size() == count && process == process_id();
}

}  // namespace hesplit
