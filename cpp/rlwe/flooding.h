// Noise flooding of released decryptions (Li, Micciancio, Schultz, Sorrell 2022; docs/security.md).
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/buffer.h"
#include "rlwe/parameters.h"

namespace hesplit {

// Noise of a larger deviation does not fit.
inline constexpr double kMostFloodDeviation = 0x1p54;

// The deviation of that noise: sqrt(12 tau) * 2^(s/2) * B with tau = releases and s = statistical_bits of the choice,
// and the l2 bound B = noise * sqrt(released), where `noise` bounds the noise of every released coefficient in the
// worst case.
double flood_deviation(const ParameterChoice& choice, std::size_t released, double noise);

// Normally distributed noise of that deviation, fresh from the operating system. Throws WireError for one that does not
// fit, to which no honest reply leads under parameters that were planned for releases.
SecretBuffer<std::int64_t> flooding_noise(double deviation, std::size_t count);

}  // namespace hesplit
