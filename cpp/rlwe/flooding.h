// Noise flooding of released decryptions (Li, Micciancio, Schultz, Sorrell 2022; docs/security.md).
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/buffer.h"

namespace hesplit {

// The deviation of that noise: sqrt(12 tau) * 2^(s/2) * B with tau = `releases`, s = 30 and the l2 bound
// B = noise * sqrt(released), where `noise` bounds the noise of every released coefficient in the worst case.
double flood_deviation(std::uint32_t releases, std::size_t released, double noise);

// Normally distributed noise of that deviation, fresh from the operating system. Throws WireError for a deviation of
// 2^54 and more, which no honest reply leads to.
SecretBuffer<std::int64_t> flooding_noise(double deviation, std::size_t count);

}  // namespace hesplit
