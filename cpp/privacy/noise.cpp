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

// True with probability exactly n / d; n <= d < 2^63.
bool happens(std::uint64_t n, std::uint64_t d, RandomWords& words) {
    for (;;) {
        // A uniform fraction that begins with these 64 bits is below n / d, or above, or shares them: then what is left
        // of both is compared in the same way.
        const Wide product = Wide{words.next()} * d, target = Wide{n} << 64;
        if (product + d <= target) {
            return true;
        }
        if (product >= target) {
            return false;
        }
        n = static_cast<std::uint64_t>(target - product);
    }
}

// True with probability exactly exp(-n / d); n <= d < 2^54, so that d k has room.
bool happens_exp(std::uint64_t n, std::uint64_t d, RandomWords& words) {
    std::uint64_t k = 1;
    while (happens(n, d * k, words)) {
        ++k;
    }
    return k % 2 == 1;
}

// Signed values of a symmetric distribution from its half on 0, 1, ...: of the two zeros one is drawn anew.
template <class Half>
std::int64_t with_sign(RandomWords& words, const Half& half) {
    for (;;) {
        const std::int64_t size = half();
        const bool negative = words.next() >> 63 != 0;
        if (size != 0 || !negative) {
            return negative ? -size : size;
        }
    }
}

}  // namespace

RandomWords::RandomWords(const Seed& key, std::uint32_t index) : stream_(key.data(), {index, 0, 0}, 0) {}

RandomWords::~RandomWords() {
    secure_zero(words_, sizeof(words_));
}

void RandomWords::refill() {
    stream_.blocks(reinterpret_cast<std::uint8_t*>(words_), sizeof(words_));
    at_ = 0;
}

Table::Table(View<const std::uint64_t> high, View<const std::uint64_t> low)
    : high_(high.begin(), high.end()), low_(low.begin(), low.end()), guide_(std::size_t{1} << kGuideBits) {
    if (high_.empty() || high_.size() != low_.size() || high_.size() > kGridSteps) {
        throw ParameterError("a table has two halves for each of its outcomes, and at least one outcome");
    }
    high_.back() = low_.back() = ~std::uint64_t{0};
    for (std::size_t i = 1; i < high_.size(); ++i) {
        if (high_[i] < high_[i - 1] || (high_[i] == high_[i - 1] && low_[i] < low_[i - 1])) {
            throw ParameterError("cumulative probabilities must ascend");
        }
    }
    std::uint32_t i = 0;
    for (std::size_t first = 0; first < guide_.size(); ++first) {
        while (high_[i] < std::uint64_t{first} << (64 - kGuideBits)) {
            ++i;
        }
        guide_[first] = i;
    }
}

std::size_t Table::settle(std::uint64_t word, std::size_t i, RandomWords& words) const {
    const std::uint64_t next = words.next();
    while (i + 1 < high_.size() && high_[i] == word && low_[i] <= next) {
        ++i;
    }
    return i;
}

void Table::draw(RandomWords& words, std::int64_t* out, std::size_t count) const {
    for (std::size_t i = 0; i < count; ++i) {
        out[i] = static_cast<std::int64_t>(draw(words));
    }
}

DiscreteGaussian::DiscreteGaussian(Table multiples, int step_bits, double variance)
    : multiples_(std::move(multiples)), step_bits_(step_bits) {
    if (!(variance > 0) || !std::isfinite(variance) || step_bits < 0 || step_bits > 24) {
        throw ParameterError("a discrete Gaussian needs a positive variance and a step of at most 2^24");
    }
    if (step_bits == 0) {
        return;  // every multiple is kept
    }
    int exponent = 0;
    const double mantissa = std::frexp(variance, &exponent);  // 53 bits in [1/2, 1)
    denominator_ = static_cast<std::uint64_t>(std::ldexp(mantissa, 54));
    shift_ = 53 - exponent;
    const double largest = std::ldexp(1, step_bits) * (1 + 2 * static_cast<double>(multiples_.size()));
    if (shift_ < 0 || largest * std::ldexp(1, step_bits) > 2 * variance) {
        throw ParameterError("the step of a discrete Gaussian is too large for its variance");
    }
}

std::int64_t DiscreteGaussian::draw(RandomWords& words) const {
    return with_sign(words, [&] {
        for (;;) {
            const std::uint64_t multiple = static_cast<std::uint64_t>(multiples_.draw(words)) << step_bits_;
            if (step_bits_ == 0) {
                return static_cast<std::int64_t>(multiple);
            }
            const std::uint64_t rest = words.next() >> (64 - step_bits_);
            if (happens_exp(rest * (rest + 2 * multiple) << shift_, denominator_, words)) {
                return static_cast<std::int64_t>(multiple + rest);
            }
        }
    });
}

void DiscreteGaussian::draw(RandomWords& words, std::int64_t* out, std::size_t count) const {
    for (std::size_t i = 0; i < count; ++i) {
        out[i] = draw(words);
    }
}

DiscreteLaplace::DiscreteLaplace(std::vector<Table> digits, int digit_bits)
    : digits_(std::move(digits)), digit_bits_(digit_bits) {
    const std::size_t whole = std::size_t{1} << std::min(std::max(digit_bits, 0), 24);
    const bool complete = !digits_.empty() && std::all_of(digits_.begin(), digits_.end() - 1, [&](const Table& digit) {
        return digit.size() == whole;
    });
    if (!complete || static_cast<int>(digits_.size()) * digit_bits > 48) {
        throw ParameterError("a discrete Laplace distribution needs a table for each of its digits");
    }
}

void DiscreteLaplace::draw(RandomWords& words, std::int64_t* out, std::size_t count) const {
    for (std::size_t i = 0; i < count; ++i) {
        out[i] = with_sign(words, [&] {
            std::uint64_t size = 0;
            for (std::size_t digit = 0; digit < digits_.size(); ++digit) {
                size += static_cast<std::uint64_t>(digits_[digit].draw(words))
                        << (static_cast<int>(digit) * digit_bits_);
            }
            return static_cast<std::int64_t>(size);
        });
    }
}

std::vector<std::int64_t> draw(const Distribution& distribution, std::size_t count) {
    const Seed key = random_seed();
    std::vector<std::int64_t> out(count);
    parallel_for((count + kChunk - 1) / kChunk, [&](std::size_t chunk) {
        RandomWords words(key, static_cast<std::uint32_t>(chunk));
        const std::size_t first = chunk * kChunk;
        distribution.draw(words, out.data() + first, std::min(kChunk, count - first));
    });
    return out;
}

namespace {

bool within(const SecretBuffer<std::int64_t>& steps, std::uint64_t bound, Norm norm) {
    const std::uint64_t limit = norm == Norm::l2 ? bound * bound : bound;
    std::uint64_t sum = 0;
    for (const std::int64_t step : steps) {
        const auto size = static_cast<std::uint64_t>(std::abs(step));
        const std::uint64_t part = norm == Norm::l2 ? size * size : size;
        sum = norm == Norm::each ? std::max(sum, part) : sum + part;
        if (sum > limit) {
            return false;
        }
    }
    return true;
}

double size_of(View<const float> row, Norm norm) {
    double sum = 0;
    for (const float value : row) {
        const double size = std::abs(static_cast<double>(value));
        sum = norm == Norm::each ? std::max(sum, size) : sum + (norm == Norm::l2 ? size * size : size);
    }
    return norm == Norm::l2 ? std::sqrt(sum) : sum;
}

// A row in steps, within the bound.
void to_steps(View<const float> row, double grid, std::uint64_t bound, Norm norm, SecretBuffer<std::int64_t>& steps) {
    const double most = static_cast<double>(bound), limit = most * grid;
    for (std::size_t i = 0; i < row.size; ++i) {
        const double value = static_cast<double>(row[i]);
        if (!std::isfinite(value)) {
            throw RangeError("NaN or infinity among the values to be noised: training has diverged; lower the learning rate");
        }
        steps[i] = static_cast<std::int64_t>(std::nearbyint(std::clamp(value / grid, -most, most)));
    }
    // The first attempt only rounds towards zero; further ones take a little more off than doubles round.
    double factor = std::min(1.0, limit / std::max(size_of(row, norm), limit));
    while (!within(steps, bound, norm)) {
        for (std::size_t i = 0; i < row.size; ++i) {
            steps[i] = static_cast<std::int64_t>(std::clamp(static_cast<double>(row[i]) / grid * factor, -most, most));
        }
        factor *= 1 - 0x1p-40;
    }
}

}  // namespace

void add_noise(View<const float> values, std::size_t columns, const Distribution& noise, double grid,
               std::uint64_t bound, Norm norm, float* out) {
    int exponent = 0;
    if (std::frexp(grid, &exponent) != 0.5 || exponent < -100 || exponent > 100 || bound > kGridSteps) {
        throw ParameterError("the grid must be a power of two that float32 can hold, and bounds 2^24 steps at most");
    }
    if (columns == 0) {
        return;
    }
    const Seed key = random_seed();
    const std::size_t rows = values.size / columns, together = std::max<std::size_t>(1, kChunk / columns);
    parallel_for((rows + together - 1) / together, [&](std::size_t chunk) {
        RandomWords words(key, static_cast<std::uint32_t>(chunk));
        SecretBuffer<std::int64_t> steps(columns), noises(columns);
        for (std::size_t row = chunk * together; row < std::min(rows, (chunk + 1) * together); ++row) {
            to_steps({values.data + row * columns, columns}, grid, bound, norm, steps);
            noise.draw(words, noises.data(), columns);
            for (std::size_t i = 0; i < columns; ++i) {
                const std::int64_t sum = std::clamp(steps[i] + noises[i], -kGridSteps, kGridSteps);
                out[row * columns + i] = static_cast<float>(static_cast<double>(sum) * grid);
            }
        }
    });
}

}  // namespace hesplit
