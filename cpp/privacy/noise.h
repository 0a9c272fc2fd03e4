// Noise of differential privacy: distributions on the integers, drawn from ChaCha20, and values noised on a grid.
//
// Every call draws a fresh key from the operating system, so that neither a fork nor another thread repeats noise. Time
// depends on what is drawn.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/buffer.h"
#include "ring/prng.h"

namespace hesplit {

// The 64-bit words of one stream.
class RandomWords {
  public:
    RandomWords(const Seed& key, std::uint32_t index);
    ~RandomWords();
    RandomWords(const RandomWords&) = delete;
    RandomWords& operator=(const RandomWords&) = delete;

    std::uint64_t next() {
        if (at_ == kWords) {
            refill();
        }
        return words_[at_++];
    }

  private:
    static constexpr std::size_t kWords = 384;
    void refill();

    ChaCha20 stream_;
    alignas(kAlignment) std::uint64_t words_[kWords];
    std::size_t at_ = kWords;
};

// A distribution on the integers. Constant once made: safe to draw from in several threads.
class Distribution {
  public:
    virtual ~Distribution() = default;
    virtual void draw(RandomWords& words, std::int64_t* out, std::size_t count) const = 0;
};

// A distribution on 0, 1, ..., size - 1 by its cumulative probabilities as fractions of 2^128, the last of which is taken
// for 1. They are all that is inexact: 2^-128 each.
class Table : public Distribution {
  public:
    // Halves of the probabilities, in ascending order. Throws ParameterError for anything else.
    Table(View<const std::uint64_t> high, View<const std::uint64_t> low);

    std::size_t draw(RandomWords& words) const {
        const std::uint64_t word = words.next();
        std::size_t i = guide_[word >> (64 - kGuideBits)];
        while (high_[i] < word) {
            ++i;
        }
        return high_[i] == word ? settle(word, i, words) : i;
    }
    void draw(RandomWords& words, std::int64_t* out, std::size_t count) const override;
    std::size_t size() const { return high_.size(); }

  private:
    static constexpr int kGuideBits = 10;
    // 64 bits do not tell outcomes i and above apart: another 64 do.
    std::size_t settle(std::uint64_t word, std::size_t i, RandomWords& words) const;

    std::vector<std::uint64_t> high_, low_;
    std::vector<std::uint32_t> guide_;  // by a word's first bits, the first outcome that it can be
};

// P(z) proportional to exp(-z^2 / (2 variance)). As in Ducas, Durmus, Lepoint, Lyubashevsky (2013), section 6: |z| = step
// m + y with m from a table of weights exp(-(step m)^2 / (2 variance)) and y uniform in [0, step), kept with probability
// exp(-y (y + 2 step m) / (2 variance)), which is decided exactly as Canonne, Kamath and Steinke (2020, algorithm 1) do.
class DiscreteGaussian : public Distribution {
  public:
    // `step` is 2^step_bits. Throws ParameterError when that probability would not be a fraction of 64-bit numbers.
    DiscreteGaussian(Table multiples, int step_bits, double variance);
    void draw(RandomWords& words, std::int64_t* out, std::size_t count) const override;

  private:
    std::int64_t draw(RandomWords& words) const;

    Table multiples_;
    int step_bits_;
    std::uint64_t denominator_ = 1;  // 2 variance as denominator_ 2^-shift_, exactly
    int shift_ = 0;
};

// P(z) proportional to exp(-|z| / scale): the digits of a geometric variable are independent, so |z| is drawn digit by
// digit from tables, the lowest first; all but the last have 2^digit_bits outcomes.
class DiscreteLaplace : public Distribution {
  public:
    DiscreteLaplace(std::vector<Table> digits, int digit_bits);
    void draw(RandomWords& words, std::int64_t* out, std::size_t count) const override;

  private:
    std::vector<Table> digits_;
    int digit_bits_;
};

// `count` values under a fresh key.
std::vector<std::int64_t> draw(const Distribution& distribution, std::size_t count);

// What the rows' norm is bounded in: every value on its own, the sum of sizes, or the root of the sum of squares.
enum class Norm { each, l1, l2 };

inline constexpr std::int64_t kGridSteps = 1 << 24;  // float32 has all integers up to this

// Rows [n, columns] plus noise, as multiples of `grid`, a power of two, of at most kGridSteps steps: whatever the values
// are, `out` is one of the same floats. They are rounded to the nearest step; a row whose norm in steps would then be
// above `bound` <= kGridSteps is rounded towards zero, and scaled down where it was above before. So no row of integers
// to which noise is added is ever beyond the bound. Throws RangeError for NaN and infinities.
void add_noise(View<const float> values, std::size_t columns, const Distribution& noise, double grid,
               std::uint64_t bound, Norm norm, float* out);

}  // namespace hesplit
