// Noise of differential privacy: integers, drawn exactly, on a grid that is the same for every value.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/buffer.h"
#include "ring/prng.h"

namespace hesplit {

inline constexpr std::uint64_t kMaxNoiseScale = std::uint64_t{1} << 18;
inline constexpr std::uint64_t kMaxBoundSteps = std::uint64_t{1} << 23;
inline constexpr std::size_t kMaxNoiseColumns = std::size_t{1} << 20;

// `count` integers z, independent, with probabilities proportional to exp(-|z| / scale), or to exp(-z^2 / (2
// deviation^2)): no approximation besides ChaCha20 (Canonne, Kamath, Steinke 2020, algorithms 1 to 3). Both scales are
// 1 to kMaxNoiseScale. Time depends on what is drawn.
void sample_discrete_laplace(ChaCha20& stream, std::uint64_t scale, std::int64_t* out, std::size_t count);
void sample_discrete_gaussian(ChaCha20& stream, std::uint64_t deviation, std::int64_t* out, std::size_t count);

// How rows are bounded, and noised: by their l2 norm, Gaussian; by their l1 norm, Laplace; every value on its own,
// Laplace.
enum class Mechanism { gaussian, laplace, values };

struct GridNoise {
    Mechanism mechanism = Mechanism::gaussian;
    double grid = 1;          // the step, a power of two
    std::uint64_t bound = 1;  // in steps, at most kMaxBoundSteps
    std::uint64_t scale = 1;  // of the noise, in steps
};

// One row in whole steps, rounded towards zero, so that it is within the bound exactly; a row beyond it is scaled down
// to it (`values`: each value clamped). Throws RangeError for NaN and infinities.
void to_steps(View<const float> row, const GridNoise& noise, std::int64_t* steps);

// Rows [n, columns] in steps (`to_steps`), plus noise under fresh randomness of the operating system: multiples of the
// grid of at most 2^24 steps, which float32 has all of. So what is released is one of the same floats whatever the
// values were, and its last bits say no more of them than the rest (Mironov 2012).
void add_noise(View<const float> values, std::size_t columns, const GridNoise& noise, float* out);

}  // namespace hesplit
