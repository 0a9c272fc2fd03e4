// Norms of rows, whatever their size.
#pragma once

#include <cmath>
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
    bool finite = true;
    for (const T value : row) {
        const double size = std::abs(static_cast<double>(value));
        finite = finite && size <= kLargest;
        largest = size > largest ? size : largest;
    }
    if (!finite) {
        throw RangeError(std::string(name) + " contains NaN or Inf");
    }
    if (largest == 0) {
        return 0;
    }
    double sum = given / largest * (given / largest);
    for (const T value : row) {
        const double part = static_cast<double>(value) / largest;
        sum += part * part;
    }
    const double norm = largest * (std::sqrt(sum) * (1 + 1e-9));
    if (norm > kLargest) {
        throw RangeError(std::string(name) + " has a row whose norm is beyond float64");
    }
    return norm < kLeastNorm ? 0 : norm;
}

}  // namespace hesplit
