#include "linear/frozen/matrix.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "base/parallel.h"
#include "kernels/kernels.h"

namespace hesplit {

namespace {

// Terms of a block: tiles of rows and of columns then about fit the first-level cache.
constexpr std::size_t kMostTerms = 128, kTermStep = 8;
constexpr std::size_t kSumBytes = std::size_t{1} << 18;

// An integer below 2^52 as a double: the mantissa of 2^52 + x is x. There is no such instruction before AVX-512.
double to_double(std::uint64_t x) {
    constexpr std::uint64_t kBits = 0x4330000000000000;
    const std::uint64_t bits = kBits | x;
    double shifted;
    std::memcpy(&shifted, &bits, sizeof(shifted));
    return shifted - 0x1p52;
}

// x modulo q, between -q/2 and q/2 but for rounding, for integers x below 2^51. The product is one below 2^53.
double centred(double x, double q, double inverse) {
    constexpr double kMagic = 0x1.8p52;  // leaves no bits for a fraction
    return x - ((x * inverse + kMagic) - kMagic) * q;
}

// Rows of centred residues by blocks of terms and tiles of rows: [block, tile, term, row]. The rows of all primes stand
// below one another.
struct CentredRows {
    CentredRows(const Ring& ring, const std::uint64_t* numbers, std::size_t rows, std::size_t terms,
                std::size_t block_terms, std::size_t tile_rows);

    std::size_t count() const { return tiles * tile_rows; }
    const double* at(std::size_t first_term, std::size_t block, std::size_t tile) const {
        return values.data() + first_term * count() + tile * block * tile_rows;
    }

    std::size_t tile_rows, tiles;
    Buffer<double> values;
    Buffer<double> moduli, inverses;  // by row
};

CentredRows::CentredRows(const Ring& ring, const std::uint64_t* numbers, std::size_t rows, std::size_t terms,
                         std::size_t block_terms, std::size_t rows_of_tile)
    : tile_rows(rows_of_tile),
      tiles((ring.prime_count() * rows + tile_rows - 1) / tile_rows),
      values(count() * terms),
      moduli(count(), 1.0),
      inverses(count(), 1.0) {
    const std::size_t all = ring.prime_count() * rows;
    for (std::size_t m = 0; m < all; ++m) {
        moduli[m] = static_cast<double>(ring.prime(m / rows));
        inverses[m] = 1 / moduli[m];
    }
    parallel_for(tiles, [&](std::size_t tile) {
        Buffer<double> row(block_terms);
        for (std::size_t first = 0; first < terms; first += block_terms) {
            const std::size_t block = std::min(block_terms, terms - first);
            double* out = values.data() + first * count() + tile * block * tile_rows;
            for (std::size_t r = 0; r < tile_rows; ++r) {
                const std::size_t m = tile * tile_rows + r;
                // Rows beyond the last repeat it; nobody reads their sums.
                const std::uint64_t* in = numbers + std::min(m, all - 1) % rows * terms + first;
                const double q = moduli[m], inverse = inverses[m];
                for (std::size_t i = 0; i < block; ++i) {
                    row[i] = centred(to_double(in[i]), q, inverse);
                }
                for (std::size_t i = 0; i < block; ++i) {
                    out[i * tile_rows + r] = row[i];
                }
            }
        }
    });
}

}  // namespace

double largest_exact_norm(const Ring& ring, std::size_t terms) {
    double prime = 0;
    for (std::size_t t = 0; t < ring.prime_count(); ++t) {
        prime = std::max(prime, static_cast<double>(ring.prime(t)));
    }
    // (q / 2) (1 + sqrt(terms) |W_p|) < 2^53, with a little to spare for rounding.
    return (0x1.ffp53 / prime - 2) / std::sqrt(static_cast<double>(terms));
}

IntegerMatrix::IntegerMatrix(View<const float> values, std::size_t outputs, std::size_t features,
                             const Kernels& kernels)
    : outputs_(outputs), features_(features), kernels_(&kernels) {
    const std::size_t width = kernels.tile_columns, tiles = (outputs + width - 1) / width;
    columns_.resize(tiles * features * width, 0.0F);
    for (std::size_t p = 0; p < outputs; ++p) {
        float* column = columns_.data() + p / width * features * width + p % width;
        double sum = 0;
        for (std::size_t f = 0; f < features; ++f) {
            const float value = values[p * features + f];
            column[f * width] = value;
            sum += static_cast<double>(value) * static_cast<double>(value);
        }
        largest_norm_ = std::max(largest_norm_, std::sqrt(sum));
    }
}

void IntegerMatrix::multiply(const Ring& ring, const std::uint64_t* numbers, std::size_t rows,
                             std::uint64_t* out) const {
    const double root = largest_exact_norm(ring, 1) / std::max(largest_norm_, 1.0);
    const std::size_t block_terms = std::min(kMostTerms, static_cast<std::size_t>(root * root) / kTermStep * kTermStep);
    if (block_terms < kLeastTerms) {
        throw ParameterError("these weights are too large for exact products modulo these primes");
    }
    const Kernels& kernel = *kernels_;
    const std::size_t width = kernel.tile_columns;
    const CentredRows a(ring, numbers, rows, features_, block_terms, kernel.tile_rows);
    const std::size_t tile_size = kernel.tile_rows * width;
    const std::size_t column_tiles = (outputs_ + width - 1) / width;
    const std::size_t all = ring.prime_count() * rows;
    // As many tiles of columns at a time as their sums fit a part of the second-level cache.
    const std::size_t together = std::max<std::size_t>(1, kSumBytes / (a.tiles * tile_size * sizeof(double)));
    const std::size_t jobs = (column_tiles + together - 1) / together;
    parallel_for(jobs, [&](std::size_t job) {
        const std::size_t begin = column_tiles * job / jobs, end = column_tiles * (job + 1) / jobs;
        Buffer<double> sums((end - begin) * a.tiles * tile_size, 0.0), block_columns(block_terms * width);
        for (std::size_t first = 0; first < features_; first += block_terms) {
            const std::size_t block = std::min(block_terms, features_ - first);
            for (std::size_t column = begin; column < end; ++column) {
                const float* source = columns_.data() + (column * features_ + first) * width;
                std::copy_n(source, block * width, block_columns.data());
                double* to = sums.data() + (column - begin) * a.tiles * tile_size;
                for (std::size_t tile = 0; tile < a.tiles; ++tile) {
                    const std::size_t m = tile * a.tile_rows, used = (std::min(all - m, a.tile_rows) + 1) / 2 * 2;
                    kernel.multiply_tile(a.at(first, block, tile), block_columns.data(), block, used,
                                         a.moduli.data() + m, a.inverses.data() + m, to + tile * tile_size);
                }
            }
        }
        for (std::size_t m = 0; m < all; ++m) {
            const auto q = static_cast<std::int64_t>(ring.prime(m / rows));
            const double* row = sums.data() + m / a.tile_rows * tile_size + m % a.tile_rows * width;
            for (std::size_t column = begin; column < end; ++column, row += a.tiles * tile_size) {
                std::uint64_t* to = out + m * outputs_ + column * width;
                const std::size_t count = std::min(width, outputs_ - column * width);
                for (std::size_t c = 0; c < count; ++c) {
                    const auto value = static_cast<std::int64_t>(row[c]);
                    to[c] = static_cast<std::uint64_t>(value + (value < 0 ? q : 0));
                }
            }
        }
    });
}

}  // namespace hesplit
