#include "linear/slots/layout.h"

#include <algorithm>
#include <numeric>

#include "base/parallel.h"
#include "rlwe/encryption.h"
#include "wire/codec.h"

namespace hesplit {

std::vector<std::uint32_t> all_positions(std::size_t ring_degree) {
    std::vector<std::uint32_t> positions(ring_degree);
    std::iota(positions.begin(), positions.end(), 0U);
    return positions;
}

std::vector<GradientRun> weight_gradient_runs(const SlotLayout& layout, std::size_t ring_degree) {
    std::vector<GradientRun> runs;
    for (std::size_t p = 0; p < gradient_products(layout); ++p) {
        for (std::size_t j = 0; j < layout.inputs(); ++j) {
            runs.push_back({p, j, ring_degree, p * gradient_outputs(layout), j * layout.width, layout.features_of(j)});
        }
    }
    return runs;
}

std::size_t rotation_key_bytes(const SlotRing& ring, const std::vector<int>& steps) {
    const std::size_t digits = ring.data().prime_count();
    return steps.empty() ? 0 : sizeof(Seed) + steps.size() * digits * PolynomialCodec(ring.key(), 0).bytes();
}

void write_rotation_keys(const SlotRing& ring, const std::vector<int>& steps, const SecretKey& key,
                         WireWriter& writer) {
    if (steps.empty()) {
        return;
    }
    const PolynomialCodec codec(ring.key(), 0);
    const std::size_t digits = ring.data().prime_count(), key_bytes = digits * codec.bytes();
    const EncryptionRandomness randomness = EncryptionRandomness::fresh();
    writer.seed(randomness.seed);
    std::uint8_t* out = writer.reserve(steps.size() * key_bytes);
    parallel_for(steps.size(), [&](std::size_t k) {
        Buffer<std::uint64_t> c0(ring.rotation_key_size()), scratch;
        ring.make_rotation_key(key, steps[k], randomness, static_cast<std::uint32_t>(k * digits), c0.data());
        for (std::size_t digit = 0; digit < digits; ++digit) {
            codec.pack(c0.data() + digit * ring.key().size(), out + k * key_bytes + digit * codec.bytes(), scratch);
        }
    });
}

RotationKeys read_rotation_keys(const SlotRing& ring, const std::vector<int>& steps, WireReader& reader) {
    RotationKeys keys;
    if (steps.empty()) {
        return keys;
    }
    const PolynomialCodec codec(ring.key(), 0);
    const std::size_t digits = ring.data().prime_count();
    reader.require_remaining(rotation_key_bytes(ring, steps));
    const Seed seed = reader.seed();
    Buffer<std::uint64_t> c0(ring.rotation_key_size());
    for (std::size_t k = 0; k < steps.size(); ++k) {
        for (std::size_t digit = 0; digit < digits; ++digit) {
            codec.unpack(reader.raw(codec.bytes()).data, c0.data() + digit * ring.key().size());
        }
        keys.emplace(steps[k],
                     ring.load_rotation_key(steps[k], seed, static_cast<std::uint32_t>(k * digits), c0.data()));
    }
    return keys;
}

}  // namespace hesplit
