#include "core/ring.h"

#include <seal/util/common.h>
#include <seal/util/uintarithsmallmod.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "core/error.h"

namespace hesplit {

namespace {

// GCC and Clang on every 64-bit target we build for.
__extension__ typedef unsigned __int128 Wide;

std::uint64_t reduce(Wide value, const seal::Modulus& modulus) {
    const std::uint64_t words[2] = {static_cast<std::uint64_t>(value), static_cast<std::uint64_t>(value >> 64)};
    return seal::util::barrett_reduce_128(words, modulus);
}

// How many products of two residues fit a 128-bit sum on top of one reduced residue.
std::size_t lazy_products(const seal::Modulus& modulus) {
    const int spare = 127 - 2 * modulus.bit_count();
    return std::size_t{1} << std::min(spare, 20);
}

}  // namespace

Ring::Ring(std::size_t degree, const std::vector<std::uint64_t>& primes) : degree_(degree) {
    const int power = seal::util::get_power_of_two(degree);
    tables_.reserve(primes.size());
    for (const std::uint64_t prime : primes) {
        try {
            // The global pool: tables are shared by threads, thread-local pools must not be.
            tables_.emplace_back(power, seal::Modulus(prime), seal::MemoryPoolHandle::Global());
        } catch (const std::exception&) {
            throw ParameterError("prime " + std::to_string(prime) + " does not fit ring degree " +
                                 std::to_string(degree));
        }
        modulus_value_ *= static_cast<double>(prime);
    }
    for (std::size_t row = 0; row < rows(); ++row) {
        std::uint64_t cofactor = 1;
        for (std::size_t other = 0; other < rows(); ++other) {
            if (other != row) {
                cofactor = seal::util::multiply_uint_mod(cofactor, prime(other) % prime(row), modulus(row));
            }
        }
        std::uint64_t inverse = 1;
        if (!seal::util::try_invert_uint_mod(cofactor, modulus(row), inverse)) {
            throw ParameterError("the primes of the modulus must differ");
        }
        seal::util::MultiplyUIntModOperand operand;
        operand.set(inverse, modulus(row));
        inverse_cofactor_.push_back(operand);
    }
}

void Ring::to_ntt_row(std::uint64_t* residues, std::size_t row) const {
    seal::util::ntt_negacyclic_harvey(seal::util::CoeffIter(residues), tables_[row]);
}

void Ring::to_ntt(std::uint64_t* poly) const {
    for (std::size_t row = 0; row < rows(); ++row) {
        to_ntt_row(poly + row * degree_, row);
    }
}

void Ring::to_coefficients(std::uint64_t* poly) const {
    for (std::size_t row = 0; row < rows(); ++row) {
        seal::util::inverse_ntt_negacyclic_harvey(seal::util::CoeffIter(poly + row * degree_), tables_[row]);
    }
}

void Ring::multiply(const std::uint64_t* a, const std::uint64_t* b, std::uint64_t* out) const {
    for (std::size_t row = 0; row < rows(); ++row) {
        const seal::Modulus& q = modulus(row);
        for (std::size_t i = row * degree_; i < (row + 1) * degree_; ++i) {
            out[i] = reduce(Wide{a[i]} * b[i], q);
        }
    }
}

void Ring::dot(View<const std::uint64_t* const> a, View<const std::uint64_t* const> b, std::uint64_t* out) const {
    for (std::size_t row = 0; row < rows(); ++row) {
        const seal::Modulus& q = modulus(row);
        const std::size_t lazy = lazy_products(q);
        for (std::size_t i = row * degree_; i < (row + 1) * degree_; ++i) {
            Wide sum = 0;
            for (std::size_t j = 0; j < a.size;) {
                const std::size_t stop = std::min(a.size, j + lazy);
                for (; j < stop; ++j) {
                    sum += Wide{a[j][i]} * b[j][i];
                }
                sum = reduce(sum, q);
            }
            out[i] = static_cast<std::uint64_t>(sum);
        }
    }
}

void Ring::combine(View<const std::uint64_t* const> a, const std::uint64_t* scalars, std::uint64_t* out) const {
    // Tiles of coefficients keep the sums in the first-level cache while the inputs stream by.
    constexpr std::size_t kTile = 256;
    Wide sums[kTile];
    for (std::size_t row = 0; row < rows(); ++row) {
        const seal::Modulus& q = modulus(row);
        const std::size_t lazy = lazy_products(q);
        for (std::size_t start = row * degree_; start < (row + 1) * degree_; start += kTile) {
            std::fill_n(sums, kTile, Wide{0});
            for (std::size_t j = 0; j < a.size; ++j) {
                if (j % lazy == 0 && j != 0) {
                    for (Wide& sum : sums) {
                        sum = reduce(sum, q);
                    }
                }
                const std::uint64_t scalar = scalars[j * rows() + row];
                for (std::size_t i = 0; i < kTile; ++i) {
                    sums[i] += Wide{a[j][start + i]} * scalar;
                }
            }
            for (std::size_t i = 0; i < kTile; ++i) {
                out[start + i] = reduce(sums[i], q);
            }
        }
    }
}

void Ring::multiply_power_of_two(std::uint64_t* a, int shift) const {
    for (std::size_t row = 0; row < rows(); ++row) {
        const std::uint64_t factor = residue(std::ldexp(1.0, shift), row);
        for (std::size_t i = row * degree_; i < (row + 1) * degree_; ++i) {
            a[i] = reduce(Wide{a[i]} * factor, modulus(row));
        }
    }
}

void Ring::add(std::uint64_t* a, const std::uint64_t* b) const {
    for (std::size_t row = 0; row < rows(); ++row) {
        const std::uint64_t q = prime(row);
        for (std::size_t i = row * degree_; i < (row + 1) * degree_; ++i) {
            const std::uint64_t sum = a[i] + b[i];
            a[i] = std::min(sum, sum - q);  // sum - q wraps around to a huge value exactly when sum < q
        }
    }
}

void Ring::subtract_from(std::uint64_t* a, const std::uint64_t* b) const {
    for (std::size_t row = 0; row < rows(); ++row) {
        const std::uint64_t q = prime(row);
        for (std::size_t i = row * degree_; i < (row + 1) * degree_; ++i) {
            const std::uint64_t difference = b[i] - a[i];
            a[i] = std::min(difference, difference + q);
        }
    }
}

std::uint64_t Ring::residue(std::int64_t value, std::size_t row) const {
    const std::uint64_t negative = static_cast<std::uint64_t>(value >> 63);  // all ones when value < 0
    const std::uint64_t magnitude = (static_cast<std::uint64_t>(value) ^ negative) - negative;
    const std::uint64_t reduced = seal::util::barrett_reduce_64(magnitude, modulus(row));
    const std::uint64_t nonzero = std::uint64_t{0} - static_cast<std::uint64_t>(reduced != 0);
    return (reduced & ~negative) | ((prime(row) - reduced) & negative & nonzero);
}

std::uint64_t Ring::residue(double integer, std::size_t row) const {
    int exponent = 0;
    const auto mantissa = static_cast<std::int64_t>(std::ldexp(std::frexp(integer, &exponent), 53));
    exponent -= 53;
    if (exponent <= 0) {
        return residue(static_cast<std::int64_t>(integer), row);
    }
    std::uint64_t value = residue(mantissa, row);
    for (; exponent > 0; --exponent) {
        value = seal::util::add_uint_mod(value, value, modulus(row));
    }
    return value;
}

void Ring::lift(View<const std::int8_t> coefficients, std::uint64_t* poly) const {
    std::fill_n(poly, size(), 0);
    add_small(coefficients, poly);
}

void Ring::lift(View<const std::int64_t> coefficients, std::uint64_t* poly) const {
    for (std::size_t row = 0; row < rows(); ++row) {
        for (std::size_t i = 0; i < degree_; ++i) {
            poly[row * degree_ + i] = residue(coefficients[i], row);
        }
    }
}

void Ring::add_small(View<const std::int8_t> coefficients, std::uint64_t* poly) const {
    for (std::size_t row = 0; row < rows(); ++row) {
        const std::uint64_t q = prime(row);
        std::uint64_t* out = poly + row * degree_;
        for (std::size_t i = 0; i < degree_; ++i) {
            const auto value = static_cast<std::int64_t>(coefficients[i]);
            // In [0, q): value, or value + q when negative. Then one conditional subtraction, both without a branch.
            const std::uint64_t small =
                static_cast<std::uint64_t>(value) + (static_cast<std::uint64_t>(value >> 63) & q);
            const std::uint64_t sum = out[i] + small;
            out[i] = std::min(sum, sum - q);
        }
    }
}

std::uint64_t Ring::switch_one(const std::uint64_t* coefficients, std::size_t position, int bits) const {
    // v / q modulo 1 is the sum over rows of t / q_row with t = v * (q / q_row)^-1 mod q_row: 64 bits after the binary
    // point of each, cut off, added with wrap-around. floor(2^128 / q_row) is SEAL's Barrett constant.
    std::uint64_t fraction = 0;
    for (std::size_t row = 0; row < rows(); ++row) {
        std::uint64_t t = coefficients[row * degree_ + position];
        if (rows() > 1) {
            t = seal::util::multiply_uint_mod(t, inverse_cofactor_[row], modulus(row));
        }
        const auto& ratio = modulus(row).const_ratio();
        fraction += t * ratio[1] + static_cast<std::uint64_t>((Wide{t} * ratio[0]) >> 64);
    }
    const std::uint64_t rounded = fraction + (std::uint64_t{1} << (63 - bits));
    return rounded >> (64 - bits);
}

void Ring::switch_to_bits(const std::uint64_t* coefficients, View<const std::uint32_t> positions, int bits,
                          std::uint64_t* out) const {
    for (std::size_t i = 0; i < positions.size; ++i) {
        out[i] = switch_one(coefficients, positions[i], bits);
    }
}

void Ring::switch_to_bits(const std::uint64_t* coefficients, int bits, std::uint64_t* out) const {
    for (std::size_t i = 0; i < degree_; ++i) {
        out[i] = switch_one(coefficients, i, bits);
    }
}

}  // namespace hesplit
