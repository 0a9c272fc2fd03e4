// Rounding that no message can be unlucky for.
//
// To the nearest integer, equal numbers have equal errors: those of a constant row add up, and error bounds would hold
// for most messages only. Rounded up with the probability of the fraction, else down, errors are independent whatever
// the numbers are, their mean is 0, and by Hoeffding a weighted sum of them is sub-Gaussian with a quarter of the
// weights' sum of squares.
#pragma once

#include <cmath>
#include <cstdint>

namespace hesplit {

// In place of a variance: three times that of rounding to the nearest integer.
inline constexpr double kRoundingVariance = 0.25;

// For the numbers of one polynomial. Its randomness (splitmix64, begun by the operating system's in every thread) has
// to be independent of the message, not secret: encryption hides what was rounded, however it was.
class RandomRounding {
  public:
    RandomRounding();

    // |value| < 2^62. Multiples of 1 stay as they are.
    std::int64_t operator()(double value) {
        state_ += 0x9e3779b97f4a7c15ULL;
        const auto bits = static_cast<double>(mix(state_) >> 32);
        return std::llrint(value + (bits + 0.5 - 0x1p31) * 0x1p-32);
    }

  private:
    static std::uint64_t mix(std::uint64_t word) {
        word = (word ^ (word >> 30)) * 0xbf58476d1ce4e5b9ULL;
        word = (word ^ (word >> 27)) * 0x94d049bb133111ebULL;
        return word ^ (word >> 31);
    }

    std::uint64_t state_;
};

}  // namespace hesplit
