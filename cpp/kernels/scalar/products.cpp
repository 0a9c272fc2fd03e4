// Portable sums and sums of products.
#include <algorithm>

#include "kernels/scalar/arithmetic.h"
#include "kernels/tables.h"

namespace hesplit {

namespace scalar {

namespace {

// Products that fit a 127-bit sum on top of a residue.
std::size_t lazy_terms(const Prime& q) {
    return std::size_t{1} << std::min(126 - 2 * q.bits, kLazyBits);
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

void dot_short(const Prime& q, const std::uint32_t* a, const std::uint64_t* b, std::size_t terms, std::uint64_t* out,
               std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) {
        const std::size_t at = i / 8 * terms * 8 + i % 8;
        std::uint64_t sum = 0;
        for (std::size_t j = 0; j < terms; ++j) {
            sum += a[at + 8 * j] * b[at + 8 * j];
        }
        out[i] = static_cast<std::uint64_t>(reduce(sum, q));
    }
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

}  // namespace

}  // namespace scalar

const Products kScalarProducts = {scalar::dot, scalar::inner, scalar::combine};
const Sums kScalarSums = {scalar::add, scalar::subtract_from, scalar::negate, scalar::add_small};
const ShortProducts kScalarShortProducts = {scalar::dot_short};
const WordProducts kScalarWordProducts = {scalar::ternary_dot};

}  // namespace hesplit
