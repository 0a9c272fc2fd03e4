// Integers and doubles as little-endian bytes, whatever the machine's own order is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace hesplit {

// The lowest `bytes` bytes of a value, at most 8.
inline void store_little_endian(std::uint8_t* out, std::uint64_t value, std::size_t bytes) {
    for (std::size_t i = 0; i < bytes; ++i) {
        out[i] = static_cast<std::uint8_t>(value >> (8 * i));
    }
}

inline std::uint64_t load_little_endian(const std::uint8_t* in, std::size_t bytes) {
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < bytes; ++i) {
        value |= std::uint64_t{in[i]} << (8 * i);
    }
    return value;
}

// Eight of them. Compilers do not make one load of the loop above.
inline std::uint64_t load_little_endian(const std::uint8_t* in) {
    std::uint64_t value;
    std::memcpy(&value, in, sizeof(value));
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    value = __builtin_bswap64(value);
#endif
    return value;
}

// The 64 bits of a double, and back.
inline std::uint64_t bits_of(double value) {
    std::uint64_t word;
    std::memcpy(&word, &value, sizeof(word));
    return word;
}

inline double double_of(std::uint64_t bits) {
    double value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}

}  // namespace hesplit
