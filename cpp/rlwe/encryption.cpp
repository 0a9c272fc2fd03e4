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

void encrypt_zero(const Ring& ring, const KeyBuffer<std::uint64_t>& secret, const EncryptionRandomness& randomness,
                  std::uint32_t index, std::uint64_t* c0, std::uint64_t* mask) {
    expand_uniform(ring, randomness.seed, index, c0);
    ring.multiply(c0, secret.data(), c0);
    if (mask != nullptr) {
        std::copy_n(c0, ring.size(), mask);
    }
    ring.to_coefficients(c0);
    ring.negate(c0);

    SecretBuffer<std::int8_t> noise(ring.degree());
    ChaCha20 stream(randomness.noise_key.data(), Domain::noise, index, 0);
    sample_noise(stream, noise.data(), noise.size());
    ring.add_small({noise.data(), noise.size()}, c0);
}

ZeroEncryptions ZeroEncryptions::begin() {
    return {EncryptionRandomness::fresh(), {}, {}, process_id()};
}

void ZeroEncryptions::fill(const Ring& ring, const KeyBuffer<std::uint64_t>& secret, std::size_t count,
                           bool keep_masks) {
    std::vector<SecretBuffer<std::uint64_t>> made(count), kept(keep_masks ? count : 0);
    parallel_for(count, [&](std::size_t index) {
        made[index].resize(ring.size());
        if (keep_masks) {
            kept[index].resize(ring.size());
        }
        encrypt_zero(ring, secret, randomness, static_cast<std::uint32_t>(index), made[index].data(),
                     keep_masks ? kept[index].data() : nullptr);
    });
    c0 = std::move(made);
    masks = std::move(kept);
}

bool ZeroEncryptions::usable(std::size_t count) const {
    return count != 0 && c0.size() == count && process == process_id();
}

}  // namespace hesplit
