#include "linear/frozen/matrix.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/error.h"
#include "base/parallel.h"
#include "kernels/kernels.h"

namespace hesplit {

namespace {

// Terms of a block: a tile of columns then fits the second-level cache, one of rows the first.
constexpr std::size_t kMostTerms = 256, kLeastTerms = 8;

// Rows of residues, centred, by blocks of terms and tiles of rows: [block, tile, term, row]. The rows of all primes
// stand below one another.
struct CentredRows {
    CentredRows(const Ring& ring, const std::uint64_t* residues, std::size_t rows, std::size_t terms,
                std::size_t block_terms, std::size_t tile_rows);

    std::size_t count() const { return tiles * tile_rows; }
    const double* at(std::size_t first_term, std::size_t block, std::size_t tile) const {
        return values.data() + first_term * count() + tile * block * tile_rows;
    }

    std::size_t tile_rows, tiles;
    Buffer<double> values;
    Buffer<double> moduli, inverses;  // by row
};

CentredRows::CentredRows(const Ring& ring, const std::uint64_t* residues, std::size_t rows, std::size_t terms,
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
        for (std::size_t r = 0; r < tile_rows; ++r) {
            const std::size_t m = tile * tile_rows + r;
            const std::uint64_t* row = residues + m * terms;
            const auto q = m < all ? static_cast<std::int64_t>(ring.prime(m / rows)) : 1;
            for (std::size_t first = 0; first < terms; first += block_terms) {
                const std::size_t block = std::min(block_terms, terms - first);
                double* out = values.data() + first * count() + tile * block * tile_rows + r;
                for (std::size_t i = 0; i < block; ++i) {
                    const auto value = m < all ? static_cast<std::int64_t>(row[first + i]) : 0;
                    out[i * tile_rows] = static_cast<double>(value - (2 * value > q ? q : 0));
                }
            }
        }
    });
}

}  // namespace

IntegerMatrix::IntegerMatrix(View<const float> values, std::size_t outputs, std::size_t features)
    : outputs_(outputs), features_(features), tile_columns_(kernels().tile_columns) {
    const std::size_t tiles = (outputs + tile_columns_ - 1) / tile_columns_;
    columns_.resize(tiles * features * tile_columns_, 0.0F);
    for (std::size_t p = 0; p < outputs; ++p) {
        float* column = columns_.data() + p / tile_columns_ * features * tile_columns_ + p % tile_columns_;
        double sum = 0;
        for (std::size_t f = 0; f < features; ++f) {
            const float value = values[p * features + f];
            column[f * tile_columns_] = value;
            sum += static_cast<double>(value) * static_cast<double>(value);
        }
        largest_norm_ = std::max(largest_norm_, std::sqrt(sum));
    }
}

void IntegerMatrix::multiply(const Ring& ring, const std::uint64_t* residues, std::size_t rows,
                             std::uint64_t* out) const {
    double largest_prime = 0;
    for (std::size_t t = 0; t < ring.prime_count(); ++t) {
        largest_prime = std::max(largest_prime, static_cast<double>(ring.prime(t)));
    }
    // (q / 2) (1 + sqrt(terms) |W_p|) < 2^53, with a little to spare for rounding.
    const double root = (0x1.ffp52 * 2 / largest_prime - 2) / std::max(largest_norm_, 1.0);
    const double most = std::floor(root > 0 ? root * root : 0) / kLeastTerms;
    const std::size_t block_terms =
        kLeastTerms * static_cast<std::size_t>(std::min(most, static_cast<double>(kMostTerms / kLeastTerms)));
    if (block_terms == 0) {
        throw ParameterError("these weights are too large for exact products modulo these primes");
    }
    const Matrices& kernel = kernels();
    const CentredRows a(ring, residues, rows, features_, block_terms, kernel.tile_rows);
    const std::size_t tile_size = kernel.tile_rows * tile_columns_;
    const std::size_t column_tiles = (outputs_ + tile_columns_ - 1) / tile_columns_;
    const std::size_t all = ring.prime_count() * rows;
    // Few tiles of columns at a time, so that those of rows are read from the caches for all of them.
    const std::size_t jobs = std::min(column_tiles, 4 * num_threads());
    parallel_for(jobs, [&](std::size_t job) {
        const std::size_t begin = column_tiles * job / jobs, end = column_tiles * (job + 1) / jobs;
        Buffer<double> sums((end - begin) * a.tiles * tile_size, 0.0), block_columns(block_terms * tile_columns_);
        for (std::size_t first = 0; first < features_; first += block_terms) {
            const std::size_t block = std::min(block_terms, features_ - first);
            for (std::size_t column = begin; column < end; ++column) {
                const float* source = columns_.data() + (column * features_ + first) * tile_columns_;
                std::copy_n(source, block * tile_columns_, block_columns.data());
                double* to = sums.data() + (column - begin) * a.tiles * tile_size;
                for (std::size_t tile = 0; tile < a.tiles; ++tile) {
                    const std::size_t m = tile * a.tile_rows, used = (std::min(all - m, a.tile_rows) + 1) / 2 * 2;
                    kernel.multiply_tile(a.at(first, block, tile), block_columns.data(), block, used, a.moduli.data() + m,
                                         a.inverses.data() + m, to + tile * tile_size);
                }
            }
        }
        for (std::size_t m = 0; m < all; ++m) {
            const auto q = static_cast<std::int64_t>(ring.prime(m / rows));
            const double* row = sums.data() + m / a.tile_rows * tile_size + m % a.tile_rows * tile_columns_;
            for (std::size_t column = begin; column < end; ++column, row += a.tiles * tile_size) {
                std::uint64_t* to = out + m * outputs_ + column * tile_columns_;
                const std::size_t count = std::min(tile_columns_, outputs_ - column * tile_columns_);
                for (std::size_t c = 0; c < count; ++c) {
                    const auto value = static_cast<std::int64_t>(row[c]);
                    to[c] = static_cast<std::uint64_t>(value + (value < 0 ? q : 0));
                }
            }
        }
    });
}

}  // namespace hesplit
