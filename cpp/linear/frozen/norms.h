// Norms of rows, whatever their size.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <string>

#include "base/buffer.h"
#include "base/error.h"

namespace hesplit {

// Rows of smaller norms are taken as zeros: scales divided by them would be infinite.
inline constexpr double kLeastNorm = 0x1p-990;

// The l2 norm of a row, and of `largest` beside it, and a little more, so that the row divided by it has a norm of at
// most 1; 0 for zeros. By parts of the largest number, so that no square overflows or vanishes. Throws RangeError for
// NaN and infinities.
template <class T>
double row_norm(View<const T> row, const char* name, double largest = 0) {
    const double given = largest;
    constexpr double kLargest = std::numeric_limits<double>::max();
    // Side by side, so that no addition waits for the one before it.
    constexpr std::size_t kLanes = 8;
    double sizes[kLanes] = {largest}, sums[kLanes] = {}, strange[kLanes] = {};
    const auto each = [&](auto&& work) {
        std::size_t at = 0;
        for (; at + kLanes <= row.size; at += kLanes) {
            for (std::size_t lane = 0; lane < kLanes; ++lane) {
                work(static_cast<double>(row[at + lane]), lane);
            }
        }
        for (std::size_t lane = 0; at + lane < row.size; ++lane) {
            work(static_cast<double>(row[at + lane]), lane);
        }
    };
    each([&](double value, std::size_t lane) {
        const double size = std::abs(value);
        strange[lane] += size <= kLargest ? 0 : 1;
        sizes[lane] = size > sizes[lane] ? size : sizes[lane];
    });
    largest = *std::max_element(sizes, sizes + kLanes);
    if (*std::max_element(strange, strange + kLanes) > 0) {
        throw RangeError(std::string(name) + " contains NaN or Inf");
    }
    if (largest < kLeastNorm / 1024) {
        return 0;
    }
    const int exponent = std::ilogb(largest);
    const double scale = std::ldexp(1.0, -exponent);
    each([&](double value, std::size_t lane) {
        const double part = value * scale;
        sums[lane] += part * part;
    });
    double sum = given * scale * (given * scale);
    for (const double part : sums) {
        sum += part;
    }
    const double norm = std::ldexp(std::sqrt(sum) * (1 + 1e-9), exponent);
    if (norm > kLargest) {
        throw RangeError(std::string(name) + " has a row whose norm is beyond float64");
    }
    return norm < kLeastNorm ? 0 : norm;
}

}  // namespace hesplit
