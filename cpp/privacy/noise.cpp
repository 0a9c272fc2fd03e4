#include "privacy/noise.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/parallel.h"

namespace hesplit {

namespace {

__extension__ typedef unsigned __int128 Wide;

// Values that a thread takes at once.
constexpr std::size_t kChunk = 1024;
constexpr std::int64_t kMaxSteps = 1 << 24;  // float32 has all integers up to this

// Events whose probabilities are fractions, by the 64-bit words of a stream.
class Coins {
  public:
    explicit Coins(ChaCha20& stream) : stream_(stream) {}
    ~Coins() { secure_zero(words_, sizeof(words_)); }
    Coins(const Coins&) = delete;
    Coins& operator=(const Coins&) = delete;

    std::uint64_t word() {
        if (at_ == kWords) {
            stream_.blocks(reinterpret_cast<std::uint8_t*>(words_), sizeof(words_));
            at_ = 0;
        }
        return words_[at_++];
    }

    // Uniform in [0, n), n > 0 (Lemire 2019).
    std::uint64_t below(std::uint64_t n) {
        Wide product = Wide{word()} * n;
        if (static_cast<std::uint64_t>(product) < n) {
            const std::uint64_t excess = (0 - n) % n;  // 2^64 mod n
            while (static_cast<std::uint64_t>(product) < excess) {
                product = Wide{word()} * n;
            }
        }
        return static_cast<std::uint64_t>(product >> 64);
    }

    // True with probability exp(-n / d), n <= d: with k tries the series of exp(-n / d) is summed up to its k-th term.
    // d is below 2^38, and k ends by itself long before d k has no room: it is above 30 with probability 2^-107.
    bool exp_of_fraction(std::uint64_t n, std::uint64_t d) {
        std::uint64_t k = 1;
        while (below(d * k) < n) {
            ++k;
        }
        return k % 2 == 1;
    }

    // True with probability exp(-n / d) for every n.
    bool exp_minus(std::uint64_t n, std::uint64_t d) {
        for (; n > d; n -= d) {
            if (!exp_of_fraction(1, 1)) {
                return false;
            }
        }
        return exp_of_fraction(n, d);
    }

    // P(z) proportional to exp(-|z| / scale).
    std::int64_t laplace(std::uint64_t scale) {
        for (;;) {
            const std::uint64_t rest = below(scale);
            if (!exp_of_fraction(rest, scale)) {
                continue;
            }
            std::uint64_t whole = 0;
            while (exp_of_fraction(1, 1)) {
                ++whole;
            }
            const auto size = static_cast<std::int64_t>(rest + whole * scale);
            const bool negative = word() >> 63 != 0;
            if (size != 0 || !negative) {  // zero has no sign: of its two draws one counts
                return negative ? -size : size;
            }
        }
    }

    // P(z) proportional to exp(-z^2 / (2 deviation^2)), which is exp(-|z| / deviation) exp(-(|z| - deviation)^2 / (2
    // deviation^2)) but for a factor. The square has room for |z| up to 2^31, beyond which are exp(-8192) of all.
    std::int64_t gaussian(std::uint64_t deviation) {
        for (;;) {
            const std::int64_t z = laplace(deviation);
            const std::int64_t off = std::abs(z) - static_cast<std::int64_t>(deviation);
            if (exp_minus(static_cast<std::uint64_t>(off * off), 2 * deviation * deviation)) {
                return z;
            }
        }
    }

  private:
    static constexpr std::size_t kWords = 512;

    ChaCha20& stream_;
    alignas(kAlignment) std::uint64_t words_[kWords];
    std::size_t at_ = kWords;
};

void require_scale(std::uint64_t scale) {
    if (scale == 0 || scale > kMaxNoiseScale) {
        throw ParameterError("the scale of discrete noise is 1 to 2^18 steps");
    }
}

}  // namespace

void sample_discrete_laplace(ChaCha20& stream, std::uint64_t scale, std::int64_t* out, std::size_t count) {
    require_scale(scale);
    Coins coins(stream);
    std::generate_n(out, count, [&] { return coins.laplace(scale); });
}

void sample_discrete_gaussian(ChaCha20& stream, std::uint64_t deviation, std::int64_t* out, std::size_t count) {
    require_scale(deviation);
    Coins coins(stream);
    std::generate_n(out, count, [&] { return coins.gaussian(deviation); });
}

void to_steps(View<const float> row, const GridNoise& noise, std::int64_t* steps) {
    const auto bound = static_cast<double>(noise.bound);
    double norm = 0;
    for (const float value : row) {
        const double size = std::abs(static_cast<double>(value)) / noise.grid;
        if (!std::isfinite(size)) {
            throw RangeError(
                "NaN or infinity among the values to be noised: training has diverged; lower the learning rate");
        }
        norm += noise.mechanism == Mechanism::gaussian ? size * size : size;
    }
    norm = noise.mechanism == Mechanism::gaussian ? std::sqrt(norm) : norm;
    // What doubles round, of up to kMaxNoiseColumns columns, is less than the 2^-30 that is left here.
    const double most = bound * (1 - 0x1p-30);
    const double factor = norm > most ? most / norm : 1;
    std::transform(row.begin(), row.end(), steps, [&](float value) {
        const double size = static_cast<double>(value) / noise.grid;
        return static_cast<std::int64_t>(noise.mechanism == Mechanism::values ? std::clamp(size, -bound, bound)
                                                                              : size * factor);
    });
}

void add_noise(View<const float> values, std::size_t columns, const GridNoise& noise, float* out) {
    int exponent = 0;
    if (std::frexp(noise.grid, &exponent) != 0.5 || exponent < -99 || exponent > 100) {
        throw ParameterError("the grid of noise is a power of two between 2^-100 and 2^99");
    }
    if (noise.bound == 0 || noise.bound > kMaxBoundSteps || columns == 0 || columns > kMaxNoiseColumns) {
        throw ParameterError("rows to be noised have 1 to 2^20 columns and a bound of 1 to 2^23 steps");
    }
    require_scale(noise.scale);
    const Seed seed = random_seed();
    const std::size_t rows = values.size / columns, together = std::max<std::size_t>(1, kChunk / columns);
    parallel_for((rows + together - 1) / together, [&](std::size_t chunk) {
        ChaCha20 stream(seed.data(), Domain::privacy, static_cast<std::uint32_t>(chunk), 0);
        const std::size_t first = chunk * together, count = std::min(rows - first, together) * columns;
        SecretBuffer<std::int64_t> steps(count), noises(count);
        for (std::size_t at = 0; at < count; at += columns) {
            to_steps({values.data + first * columns + at, columns}, noise, steps.data() + at);
        }
        if (noise.mechanism == Mechanism::gaussian) {
            sample_discrete_gaussian(stream, noise.scale, noises.data(), count);
        } else {
            sample_discrete_laplace(stream, noise.scale, noises.data(), count);
        }
        for (std::size_t i = 0; i < count; ++i) {
            const std::int64_t sum = std::clamp(steps[i] + noises[i], -kMaxSteps, kMaxSteps);
            out[first * columns + i] = static_cast<float>(static_cast<double>(sum) * noise.grid);
        }
    });
}

}  // namespace hesplit
