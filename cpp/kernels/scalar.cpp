// Portable kernels: the reference that every other variant is tested against.
#include <algorithm>
#include <cstring>

#include "kernels/kernels.h"

namespace hesplit {

namespace {

// GCC and Clang on every 64-bit target we build for.
__extension__ typedef unsigned __int128 Wide;

std::uint64_t high(std::uint64_t a, std::uint64_t b) {
    return static_cast<std::uint64_t>((Wide{a} * b) >> 64);
}

// x - q when x >= q, for x < 2q: the difference wraps around to a huge value exactly when x < q.
std::uint64_t subtract_once(std::uint64_t x, std::uint64_t q) {
    return std::min(x, x - q);
}

// Barrett: value mod q for value < 2^127. The quotient is at most 2 too small.
std::uint64_t reduce(Wide value, const Prime& q) {
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
std::uint64_t shoup(std::uint64_t root, std::uint64_t q) {
    return static_cast<std::uint64_t>((Wide{root} << 64) / q);
}

// x * root mod q in [0, 2q), for any 64-bit x (Harvey 2014).
std::uint64_t multiply_lazy(std::uint64_t x, std::uint64_t root, std::uint64_t quotient, std::uint64_t q) {
    return x * root - high(x, quotient) * q;
}

void prepare(NttTable& table) {
    for (std::size_t i = 0; i < table.degree; ++i) {
        table.quotients[i] = shoup(table.roots[i], table.prime.value);
        table.inverse_quotients[i] = shoup(table.inverse_roots[i], table.prime.value);
    }
}

// Cooley-Tukey butterflies on values below 4q (Harvey 2014, algorithm 4); q < 2^62.
void forward(const NttTable& table, std::uint64_t* a) {
    const std::uint64_t q = table.prime.value, twice = 2 * q;
    for (std::size_t groups = 1, gap = table.degree / 2; gap > 0; groups *= 2, gap /= 2) {
        for (std::size_t g = 0; g < groups; ++g) {
            const std::uint64_t root = table.roots[groups + g], quotient = table.quotients[groups + g];
            std::uint64_t* x = a + 2 * g * gap;
            std::uint64_t* y = x + gap;
            for (std::size_t i = 0; i < gap; ++i) {
                const std::uint64_t u = subtract_once(x[i], twice);
                const std::uint64_t v = multiply_lazy(y[i], root, quotient, q);
                x[i] = u + v;
                y[i] = u + twice - v;
            }
        }
    }
    for (std::size_t i = 0; i < table.degree; ++i) {
        a[i] = subtract_once(subtract_once(a[i], twice), q);
    }
}

// Gentleman-Sande butterflies on values below 2q; the last ones also divide by N.
void inverse(const NttTable& table, std::uint64_t* a) {
    const std::uint64_t q = table.prime.value, twice = 2 * q;
    for (std::size_t groups = table.degree / 2, gap = 1; groups > 1; groups /= 2, gap *= 2) {
        for (std::size_t g = 0; g < groups; ++g) {
            const std::uint64_t root = table.inverse_roots[groups + g], quotient = table.inverse_quotients[groups + g];
            std::uint64_t* x = a + 2 * g * gap;
            std::uint64_t* y = x + gap;
            for (std::size_t i = 0; i < gap; ++i) {
                const std::uint64_t u = x[i], v = y[i];
                x[i] = subtract_once(u + v, twice);
                y[i] = multiply_lazy(u + twice - v, root, quotient, q);
            }
        }
    }
    const std::size_t half = table.degree / 2;
    for (std::size_t i = 0; i < half; ++i) {
        const std::uint64_t u = a[i], v = a[i + half];
        a[i] = subtract_once(multiply_lazy(u + v, table.inverse_roots[0], table.inverse_quotients[0], q), q);
        a[i + half] =
            subtract_once(multiply_lazy(u + twice - v, table.inverse_roots[1], table.inverse_quotients[1], q), q);
    }
}

void multiply(const Prime& q, const std::uint64_t* a, const std::uint64_t* b, std::uint64_t* out, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) {
        out[i] = reduce(Wide{a[i]} * b[i], q);
    }
}

// Products that fit a 127-bit sum on top of a residue.
std::size_t lazy_terms(const Prime& q) {
    return std::size_t{1} << std::min(126 - 2 * q.bits, kLazyTerms);
}

void dot(const Prime& q, Rows a, Rows b, std::size_t terms, std::uint64_t* out, std::size_t n) {
    const std::size_t lazy = lazy_terms(q);
    for (std::size_t i = 0; i < n; ++i) {
        Wide sum = 0;
        for (std::size_t j = 0; j < terms;) {
            const std::size_t stop = std::min(terms, j + lazy);
            for (; j < stop; ++j) {
                sum += Wide{a[j][i]} * b[j][i];
            }
            sum = reduce(sum, q);
        }
        out[i] = static_cast<std::uint64_t>(sum);
    }
}

std::uint64_t inner(const Prime& q, const std::uint64_t* const* a, const std::uint64_t* const* b, std::size_t segments,
                    std::size_t n) {
    const std::size_t lazy = lazy_terms(q);
    Wide sum = 0;
    for (std::size_t j = 0; j < segments; ++j) {
        for (std::size_t i = 0; i < n;) {
            const std::size_t stop = std::min(n, i + lazy);
            for (; i < stop; ++i) {
                sum += Wide{a[j][i]} * b[j][i];
            }
            sum = reduce(sum, q);
        }
    }
    return static_cast<std::uint64_t>(sum);
}

void combine(const Prime& q, Rows a, std::size_t terms, const std::uint64_t* scalars, std::size_t outputs,
             std::uint64_t* const* out, std::size_t n) {
    // Tiles of coefficients keep the sums in the first-level cache while the inputs stream by.
    constexpr std::size_t kTile = 256;
    Wide sums[kTile];
    const std::size_t lazy = lazy_terms(q);
    for (std::size_t start = 0; start < n; start += kTile) {
        const std::size_t tile = std::min(kTile, n - start);
        for (std::size_t o = 0; o < outputs; ++o) {
            std::fill_n(sums, tile, Wide{0});
            for (std::size_t j = 0; j < terms; ++j) {
                if (j % lazy == 0 && j != 0) {
                    for (std::size_t i = 0; i < tile; ++i) {
                        sums[i] = reduce(sums[i], q);
                    }
                }
                const std::uint64_t scalar = scalars[o * terms + j];
                const std::uint64_t* row = a[j] + start;
                for (std::size_t i = 0; i < tile; ++i) {
                    sums[i] += Wide{row[i]} * scalar;
                }
            }
            for (std::size_t i = 0; i < tile; ++i) {
                out[o][start + i] = reduce(sums[i], q);
            }
        }
    }
}

void add(std::uint64_t q, std::uint64_t* a, const std::uint64_t* b, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) {
        a[i] = subtract_once(a[i] + b[i], q);
    }
}

void subtract_from(std::uint64_t q, std::uint64_t* a, const std::uint64_t* b, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) {
        const std::uint64_t difference = b[i] - a[i];
        a[i] = std::min(difference, difference + q);
    }
}

void negate(std::uint64_t q, const std::uint64_t* a, std::uint64_t* out, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) {
        out[i] = std::min(std::uint64_t{0} - a[i], q - a[i]);  // 0 for 0
    }
}

void add_small(std::uint64_t q, std::uint64_t* a, const std::int8_t* small, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) {
        const auto value = static_cast<std::int64_t>(small[i]);
        // In [0, q): value, or value + q when negative.
        const std::uint64_t residue = static_cast<std::uint64_t>(value) + (static_cast<std::uint64_t>(value >> 63) & q);
        a[i] = subtract_once(a[i] + residue, q);
    }
}

void lift(const Prime& q, const std::int64_t* values, std::uint64_t* out, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) {
        const auto negative = static_cast<std::uint64_t>(values[i] >> 63);  // all ones when negative
        const std::uint64_t magnitude = (static_cast<std::uint64_t>(values[i]) ^ negative) - negative;
        const std::uint64_t rest = subtract_once(magnitude - high(magnitude, q.ratio_high) * q.value, q.value);
        const std::uint64_t nonzero = std::uint64_t{0} - static_cast<std::uint64_t>(rest != 0);
        out[i] = (rest & ~negative) | ((q.value - rest) & negative & nonzero);
    }
}

void add_fraction(const Prime& q, std::uint64_t factor, const std::uint64_t* a, std::uint64_t* fractions,
                  std::size_t n) {
    const std::uint64_t quotient = shoup(factor, q.value);
    for (std::size_t i = 0; i < n; ++i) {
        const std::uint64_t t = subtract_once(multiply_lazy(a[i], factor, quotient, q.value), q.value);
        if (q.bits <= kVectorPrimeBits) {
            fractions[i] += t * q.fraction_high + static_cast<std::uint64_t>((Wide{t} * q.fraction_low) >> 52);
        } else {
            fractions[i] += t * q.ratio_high + high(t, q.ratio_low);
        }
    }
}

void ternary_dot(const std::uint64_t* sign, const std::uint64_t* nonzero, const std::uint64_t* const* windows,
                 std::size_t count, std::uint64_t* out, std::size_t n) {
    for (std::size_t p = 0; p < count; ++p) {
        std::uint64_t sum = 0;
        for (std::size_t i = 0; i < n; ++i) {
            sum += ((windows[p][i] ^ sign[i]) - sign[i]) & nonzero[i];
        }
        out[p] = sum;
    }
}

void word_dot(const std::uint64_t* a, const std::uint64_t* const* windows, std::size_t count, std::uint64_t* out,
              std::size_t n) {
    for (std::size_t p = 0; p < count; ++p) {
        std::uint64_t sum = 0;
        for (std::size_t i = 0; i < n; ++i) {
            sum += a[i] * windows[p][i];
        }
        out[p] = sum;
    }
}

// Blocks computed side by side: the inner loops over lanes are what the compiler turns into vector code.
constexpr std::size_t kLanes = 4;
using Lanes = std::uint32_t[kLanes];

template <int Bits>
void rotate(Lanes& x) {
    for (std::uint32_t& word : x) {
        word = (word << Bits) | (word >> (32 - Bits));
    }
}

void add(Lanes& x, const Lanes& y) {
    for (std::size_t l = 0; l < kLanes; ++l) {
        x[l] += y[l];
    }
}

void exclusive_or(Lanes& x, const Lanes& y) {
    for (std::size_t l = 0; l < kLanes; ++l) {
        x[l] ^= y[l];
    }
}

void quarter_round(Lanes& a, Lanes& b, Lanes& c, Lanes& d) {
    add(a, b), exclusive_or(d, a), rotate<16>(d);
    add(c, d), exclusive_or(b, c), rotate<12>(b);
    add(a, b), exclusive_or(d, a), rotate<8>(d);
    add(c, d), exclusive_or(b, c), rotate<7>(b);
}

void chacha20(const std::uint32_t state[16], std::uint8_t* out, std::size_t blocks) {
    alignas(kAlignment) Lanes start[16];
    alignas(kAlignment) Lanes x[16];
    for (std::size_t first = 0; first < blocks; first += kLanes) {
        for (std::size_t w = 0; w < 16; ++w) {
            for (std::size_t l = 0; l < kLanes; ++l) {
                start[w][l] = state[w] + (w == 12 ? static_cast<std::uint32_t>(first + l) : 0U);
            }
        }
        std::memcpy(x, start, sizeof(x));
        for (int round = 0; round < 10; ++round) {
            quarter_round(x[0], x[4], x[8], x[12]);
            quarter_round(x[1], x[5], x[9], x[13]);
            quarter_round(x[2], x[6], x[10], x[14]);
            quarter_round(x[3], x[7], x[11], x[15]);
            quarter_round(x[0], x[5], x[10], x[15]);
            quarter_round(x[1], x[6], x[11], x[12]);
            quarter_round(x[2], x[7], x[8], x[13]);
            quarter_round(x[3], x[4], x[9], x[14]);
        }
        for (std::size_t l = 0; l < std::min(kLanes, blocks - first); ++l) {
            for (std::size_t w = 0; w < 16; ++w) {
                const std::uint32_t word = x[w][l] + start[w][l];
                std::uint8_t* to = out + 64 * (first + l) + 4 * w;
                to[0] = static_cast<std::uint8_t>(word);
                to[1] = static_cast<std::uint8_t>(word >> 8);
                to[2] = static_cast<std::uint8_t>(word >> 16);
                to[3] = static_cast<std::uint8_t>(word >> 24);
            }
        }
    }
    secure_zero(x, sizeof(x));
    secure_zero(start, sizeof(start));
}

std::uint64_t load_le(const std::uint8_t* in, std::size_t size) {
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < size; ++i) {
        value |= std::uint64_t{in[i]} << (8 * i);
    }
    return value;
}

void store_le(std::uint8_t* out, std::uint64_t value, std::size_t size) {
    for (std::size_t i = 0; i < size; ++i) {
        out[i] = static_cast<std::uint8_t>(value >> (8 * i));
    }
}

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

void pack(const std::uint64_t* values, int bits, std::uint8_t* out, std::size_t n) {
    std::uint64_t pending = 0;
    int filled = 0;
    for (std::size_t i = 0; i < n; ++i) {
        pending |= values[i] << filled;
        filled += bits;
        if (filled >= 64) {
            store_le(out, pending, 8);
            out += 8;
            filled -= 64;
            pending = filled == 0 ? 0 : values[i] >> (bits - filled);
        }
    }
    store_le(out, pending, static_cast<std::size_t>(filled + 7) / 8);
}

std::uint64_t unpack(const std::uint8_t* in, int bits, std::uint64_t* values, std::size_t n) {
    const std::uint8_t* end = in + (n * static_cast<std::size_t>(bits) + 7) / 8;
    const std::uint64_t mask = (std::uint64_t{1} << bits) - 1;
    std::uint64_t pending = 0, largest = 0;
    int filled = 0;
    for (std::size_t i = 0; i < n; ++i) {
        std::uint64_t value = pending;
        if (filled < bits) {
            const std::size_t step = std::min<std::size_t>(8, static_cast<std::size_t>(end - in));
            const std::uint64_t word = load_le(in, step);
            in += step;
            value |= word << filled;
            const int used = bits - filled;
            pending = word >> used;
            filled = static_cast<int>(8 * step) - used;
        } else {
            pending >>= bits;
            filled -= bits;
        }
        values[i] = value & mask;
        largest = std::max(largest, values[i]);
    }
    return largest;
}

}  // namespace

const Kernels kScalarKernels = {"scalar",    prepare,  forward,       inverse, multiply,  dot,  inner,
                                combine,     add,      subtract_from, negate,  add_small, lift, add_fraction,
                                ternary_dot, word_dot, chacha20,      noise,   accept,    pack, unpack};

}  // namespace hesplit
