#include "rlwe/flooding.h"

#include <cmath>

#include "base/error.h"
#include "ring/prng.h"

namespace hesplit {

double flood_deviation(const ParameterChoice& choice, std::size_t released, double noise) {
    return std::sqrt(12.0 * choice.releases) * std::exp2(choice.statistical_bits / 2.0) * noise *
           std::sqrt(static_cast<double>(released));
}

SecretBuffer<std::int64_t> flooding_noise(double deviation, std::size_t count) {
    if (!(deviation < kMostFloodDeviation)) {
        throw WireError("a reply with a scale that leads to absurdly large noise");
    }
    SecretBuffer<std::uint8_t> seed(32);
    os_random(seed.data(), seed.size());
    ChaCha20 stream(seed.data(), Domain::flood, 0, 0);
    SecretBuffer<std::int64_t> noise(count);
    sample_gaussian(stream, deviation, noise.data(), count);
    return noise;
}

}  // namespace hesplit
