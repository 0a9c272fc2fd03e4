// Portable key streams, noise and rejection.
#include "kernels/shared/streams.h"

#include "kernels/scalar/arithmetic.h"
#include "kernels/tables.h"

namespace hesplit {

namespace scalar {

namespace {

// Blocks that are computed side by side: four 32-bit words in a vector of the compiler's own.
struct Blocks {
    typedef std::uint32_t Vector __attribute__((vector_size(16)));
    static constexpr std::size_t kCount = 4;

    static Vector all(std::uint32_t word) { return Vector{} + word; }
    static Vector numbers() { return Vector{0, 1, 2, 3}; }
    static Vector add(Vector a, Vector b) { return a + b; }
    static Vector exclusive_or(Vector a, Vector b) { return a ^ b; }
    template <int Bits>
    static Vector rotate(Vector x) {
        return (x << Bits) | (x >> (32 - Bits));
    }
    static void write(const Vector words[16], std::size_t count, std::uint8_t* out) {
        for (std::size_t block = 0; block < count; ++block) {
            for (std::size_t w = 0; w < 16; ++w) {
                store_le(out + 64 * block + 4 * w, words[w][block], 4);
            }
        }
    }
};

// The number of ones among the low 21 bits, without a table and without a branch.
std::uint64_t count_ones_21(std::uint64_t x) {
    x &= 0x1fffff;
    x = (x & 0x155555) + ((x >> 1) & 0x155555);
    x = (x & 0x133333) + ((x >> 2) & 0x133333);
    x = (x & 0x0f0f0f) + ((x >> 4) & 0x0f0f0f);
    return (x + (x >> 8) + (x >> 16)) & 0x1f;
}

void noise(const std::uint8_t* coins, std::int8_t* out, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) {
        const std::uint64_t word = load_le(coins + 6 * i, 6);
        out[i] = static_cast<std::int8_t>(static_cast<int>(count_ones_21(word)) -
                                          static_cast<int>(count_ones_21(word >> 21)));
    }
}

std::size_t accept(const std::uint8_t* words, bool narrow, std::uint64_t mask, std::uint64_t q, std::uint64_t* out,
                   std::size_t n) {
    const std::size_t size = narrow ? 4 : 8;
    std::size_t kept = 0;
    for (std::size_t i = 0; i < n; ++i) {
        const std::uint64_t word = load_le(words + size * i, size) & mask;
        out[kept] = word;
        kept += word < q;
    }
    return kept;
}

}  // namespace

}  // namespace scalar

const Streams kScalarStreams = {vectorised::chacha20<scalar::Blocks>, scalar::noise, scalar::accept};

}  // namespace hesplit
