// Arithmetic on single words, for the portable kernels.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/kernels.h"

namespace hesplit::scalar {

// GCC and Clang on every 64-bit target we build for.
__extension__ typedef unsigned __int128 Wide;

inline std::uint64_t high(std::uint64_t a, std::uint64_t b) {
    return static_cast<std::uint64_t>((Wide{a} * b) >> 64);
}

// x - q when x >= q, for x < 2q: the difference wraps around to a huge value exactly when x < q.
inline std::uint64_t subtract_once(std::uint64_t x, std::uint64_t q) {
    return std::min(x, x - q);
}

// Barrett: value mod q for value < 2^127. The quotient is at most 2 too small.
inline std::uint64_t reduce(Wide value, const Prime& q) {
    const auto low = static_cast<std::uint64_t>(value);
    const auto top = static_cast<std::uint64_t>(value >> 64);
    const Wide middle = Wide{low} * q.ratio_high + high(low, q.ratio_low);
    const Wide other = Wide{top} * q.ratio_low;
    const std::uint64_t carry = static_cast<std::uint64_t>(
        (Wide{static_cast<std::uint64_t>(middle)} + static_cast<std::uint64_t>(other)) >> 64);
    const std::uint64_t quotient =
        top * q.ratio_high + static_cast<std::uint64_t>(middle >> 64) + static_cast<std::uint64_t>(other >> 64) + carry;
    const std::uint64_t rest = low - quotient * q.value;  // < 3q
    return subtract_once(subtract_once(rest, 2 * q.value), q.value);
}

// floor(root * 2^64 / q), Shoup's quotient.
inline std::uint64_t shoup(std::uint64_t root, std::uint64_t q) {
    return static_cast<std::uint64_t>((Wide{root} << 64) / q);
}

// x * root mod q in [0, 2q), for any 64-bit x (Harvey 2014).
inline std::uint64_t multiply_lazy(std::uint64_t x, std::uint64_t root, std::uint64_t quotient, std::uint64_t q) {
    return x * root - high(x, quotient) * q;
}

// Little-endian words of up to 8 bytes.
inline std::uint64_t load_le(const std::uint8_t* in, std::size_t size) {
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < size; ++i) {
        value |= std::uint64_t{in[i]} << (8 * i);
    }
    return value;
}

inline void store_le(std::uint8_t* out, std::uint64_t value, std::size_t size) {
    for (std::size_t i = 0; i < size; ++i) {
        out[i] = static_cast<std::uint8_t>(value >> (8 * i));
    }
}

}  // namespace hesplit::scalar
