#include "ring/ring.h"

#include <seal/util/common.h>
#include <seal/util/ntt.h>
#include <seal/util/uintarithsmallmod.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <utility>

#include "base/error.h"
#include "kernels/tables.h"

namespace hesplit {

namespace {

// SEAL finds the smallest primitive root; its tables hold the powers in the order that transforms read them.
NttTable make_table(std::size_t degree, const seal::Modulus& modulus, const Kernels& kernels,
                    Buffer<std::uint64_t>& memory, std::uint64_t& root) {
    namespace util = seal::util;
    NttTable table;
    table.prime = Prime::make(modulus.value());
    table.degree = degree;
    memory.resize(4 * degree);
    table.roots = memory.data();
    table.quotients = table.roots + degree;
    table.inverse_roots = table.quotients + degree;
    table.inverse_quotients = table.inverse_roots + degree;
    try {
        const int power = util::get_power_of_two(degree);
        const util::NTTTables source(power, modulus, seal::MemoryPoolHandle::Global());
        std::uint64_t inverse = 0, scale = 0;
        root = source.get_root();
        if (!util::try_invert_uint_mod(source.get_root(), modulus, inverse) ||
            !util::try_invert_uint_mod(degree, modulus, scale)) {
            throw std::invalid_argument("not a prime");
        }
        std::uint64_t inverse_power = 1;
        for (std::size_t i = 0; i < degree; ++i) {
            const std::size_t reversed = util::reverse_bits(i, power);
            table.roots[i] = source.get_from_root_powers(i).operand;
            table.inverse_roots[reversed] = inverse_power;
            inverse_power = util::multiply_uint_mod(inverse_power, inverse, modulus);
        }
        table.inverse_roots[0] = scale;
        table.inverse_roots[1] = util::multiply_uint_mod(table.inverse_roots[1], scale, modulus);
    } catch (const std::exception&) {
        throw ParameterError("prime " + std::to_string(modulus.value()) + " does not fit ring degree " +
                             std::to_string(degree));
    }
    kernels.modulo(table.prime.bits).prepare(table);
    return table;
}

}  // namespace

Ring::Ring(std::size_t degree, const std::vector<std::uint64_t>& primes, const Kernels& kernels)
    : degree_(degree), kernels_(&kernels), roots_(primes.size()) {
    for (std::size_t row = 0; row < primes.size(); ++row) {
        moduli_.emplace_back(primes[row]);
        tables_.push_back(make_table(degree, moduli_.back(), kernels, roots_[row], unity_.emplace_back()));
        modular_.push_back(kernels.modulo(tables_.back().prime.bits));
        modulus_value_ *= static_cast<double>(primes[row]);
        modulus_ *= primes[row];
    }
    for (std::size_t row = 0; row < prime_count(); ++row) {
        std::uint64_t cofactor = 1;
        for (std::size_t other = 0; other < prime_count(); ++other) {
            if (other != row) {
                cofactor = seal::util::multiply_uint_mod(cofactor, prime(other) % prime(row), moduli_[row]);
            }
        }
        std::uint64_t inverse = 1;
        if (!seal::util::try_invert_uint_mod(cofactor, moduli_[row], inverse)) {
            throw ParameterError("the primes of the modulus must differ");
        }
        inverse_cofactors_.push_back(inverse);
    }
}

void Ring::to_ntt_row(std::uint64_t* residues, std::size_t row, Support support) const {
    modular_[row].forward(tables_[row], residues, support);
}

void Ring::to_coefficients_row(std::uint64_t* residues, std::size_t row) const {
    modular_[row].inverse(tables_[row], residues);
}

void Ring::to_ntt(std::uint64_t* poly) const {
    for (std::size_t row = 0; row < prime_count(); ++row) {
        to_ntt_row(poly + row * degree_, row);
    }
}

void Ring::to_coefficients(std::uint64_t* poly) const {
    for (std::size_t row = 0; row < prime_count(); ++row) {
        to_coefficients_row(poly + row * degree_, row);
    }
}

void Ring::multiply(const std::uint64_t* a, const std::uint64_t* b, std::uint64_t* out) const {
    for (std::size_t row = 0; row < prime_count(); ++row) {
        const std::size_t at = row * degree_;
        modular_[row].multiply(tables_[row].prime, a + at, b + at, out + at, degree_);
    }
}

void Ring::dot(View<const std::uint64_t* const> a, View<const std::uint64_t* const> b, std::uint64_t* out) const {
    for (std::size_t row = 0; row < prime_count(); ++row) {
        dot_row(a, b, row, row * degree_, degree_, out + row * degree_);
    }
}

void Ring::dot_both(View<const std::uint64_t* const> a0, View<const std::uint64_t* const> a1,
                    View<const std::uint64_t* const> b, std::uint64_t* out0, std::uint64_t* out1) const {
    // By runs of coefficients, so that the second half finds the factors in the second-level cache.
    constexpr std::size_t kCached = std::size_t{1} << 14, kLeast = 64;
    std::size_t run = degree_;
    while (run > kLeast && run * b.size > kCached) {
        run /= 2;
    }
    for (std::size_t at = 0; at < size(); at += run) {
        dot_row(a0, b, at / degree_, at, run, out0 + at);
        dot_row(a1, b, at / degree_, at, run, out1 + at);
    }
}

void Ring::dot_row(View<const std::uint64_t* const> a, View<const std::uint64_t* const> b, std::size_t row,
                   std::uint64_t* out) const {
    dot_row(a, b, row, 0, degree_, out);
}

void Ring::dot_row(View<const std::uint64_t* const> a, View<const std::uint64_t* const> b, std::size_t row,
                   std::size_t offset, std::size_t n, std::uint64_t* out) const {
    if (a.size == 1) {
        modular_[row].multiply(tables_[row].prime, a[0] + offset, b[0] + offset, out, n);
    } else {
        modular_[row].dot(tables_[row].prime, {a.data, offset}, {b.data, offset}, a.size, out, n);
    }
}

std::uint64_t Ring::inner(View<const std::uint64_t* const> a, View<const std::uint64_t* const> b, std::size_t n,
                          std::size_t row) const {
    return modular_[row].inner(tables_[row].prime, a.data, b.data, a.size, n);
}

void Ring::dot_short(const std::uint32_t* a, const std::uint64_t* b, std::size_t terms, std::uint64_t* out) const {
    kernels_->dot_short(tables_[0].prime, a, b, terms, out, degree_);
}

void Ring::combine(View<const std::uint64_t* const> a, const std::uint64_t* scalars, View<std::uint64_t* const> out,
                   std::size_t n, std::size_t row) const {
    modular_[row].combine(tables_[row].prime, {a.data, 0}, a.size, scalars, out.size, out.data, n);
}

void Ring::scale_row(View<std::uint64_t> a, std::uint64_t factor, std::size_t row) const {
    const std::uint64_t* in = a.data;
    modular_[row].combine(tables_[row].prime, {&in, 0}, 1, &factor, 1, &a.data, a.size);
}

void Ring::multiply_power_of_two(std::uint64_t* a, int shift) const {
    for (std::size_t row = 0; row < prime_count(); ++row) {
        scale_row({a + row * degree_, degree_}, residue(std::ldexp(1.0, shift), row), row);
    }
}

void Ring::add_row(View<std::uint64_t> a, const std::uint64_t* b, std::size_t row) const {
    modular_[row].add(prime(row), a.data, b, a.size);
}

void Ring::add(std::uint64_t* a, const std::uint64_t* b) const {
    for (std::size_t row = 0; row < prime_count(); ++row) {
        add_row(a + row * degree_, b + row * degree_, row);
    }
}

void Ring::subtract_from_row(std::uint64_t* a, const std::uint64_t* b, std::size_t row) const {
    modular_[row].subtract_from(prime(row), a, b, degree_);
}

void Ring::subtract_from(std::uint64_t* a, const std::uint64_t* b) const {
    for (std::size_t row = 0; row < prime_count(); ++row) {
        subtract_from_row(a + row * degree_, b + row * degree_, row);
    }
}

void Ring::negate(std::uint64_t* a) const {
    for (std::size_t row = 0; row < prime_count(); ++row) {
        negate_row(a + row * degree_, row, a + row * degree_);
    }
}

void Ring::negate_row(const std::uint64_t* a, std::size_t row, std::uint64_t* out) const {
    modular_[row].negate(prime(row), a, out, degree_);
}

std::uint64_t Ring::product(std::uint64_t a, std::uint64_t b, std::size_t row) const {
    return seal::util::multiply_uint_mod(a, b, moduli_[row]);
}

std::uint64_t Ring::power(std::uint64_t base, std::uint64_t exponent, std::size_t row) const {
    return seal::util::exponentiate_uint_mod(base, exponent, moduli_[row]);
}

std::uint64_t Ring::residue(std::int64_t value, std::size_t row) const {
    std::uint64_t out = 0;
    kScalarConversions.lift(tables_[row].prime, &value, &out, 1);
    return out;
}

std::uint64_t Ring::residue(double integer, std::size_t row) const {
    // By digits of 60 bits from the top, as many as the modulus has whatever the number: a server's bias is a secret.
    constexpr int kDigitBits = 60;
    const std::uint64_t base = residue(std::int64_t{1} << kDigitBits, row);
    std::uint64_t value = 0;
    for (int shift = std::ilogb(modulus_value_) / kDigitBits * kDigitBits; shift >= 0; shift -= kDigitBits) {
        const auto digit = static_cast<std::int64_t>(integer * std::ldexp(1.0, -shift));
        integer -= static_cast<double>(digit) * std::ldexp(1.0, shift);  // exact
        value = seal::util::add_uint_mod(product(value, base, row), residue(digit, row), moduli_[row]);
    }
    return value;
}

void Ring::lift(View<const std::int8_t> coefficients, std::uint64_t* poly) const {
    std::fill_n(poly, size(), 0);
    add_small(coefficients, poly);
}

void Ring::lift_row(View<const std::int64_t> coefficients, std::size_t row, std::uint64_t* residues) const {
    modular_[row].lift(tables_[row].prime, coefficients.data, residues, coefficients.size);
}

void Ring::lift(View<const std::int64_t> coefficients, std::uint64_t* poly) const {
    for (std::size_t row = 0; row < prime_count(); ++row) {
        lift_row(coefficients, row, poly + row * degree_);
    }
}

void Ring::add_small(View<const std::int8_t> coefficients, std::uint64_t* poly) const {
    for (std::size_t row = 0; row < prime_count(); ++row) {
        modular_[row].add_small(prime(row), poly + row * degree_, coefficients.data, degree_);
    }
}

void Ring::compose(const std::uint64_t* coefficients, std::size_t count, std::uint64_t* integers) const {
    if (prime_count() == 1) {
        std::copy_n(coefficients, count, integers);
        return;
    }
    // v = r0 + q0 * ((r1 - r0) / q0 mod q1).
    Buffer<std::uint64_t> first(count), quotient(count);
    const std::uint64_t q0 = prime(0);
    std::copy_n(coefficients, count, first.data());
    modular_[1].lift(tables_[1].prime, reinterpret_cast<const std::int64_t*>(first.data()), quotient.data(), count);
    modular_[1].subtract_from(prime(1), quotient.data(), coefficients + count, count);
    scale_row({quotient.data(), count}, inverse_cofactors_[1], 1);
    for (std::size_t i = 0; i < count; ++i) {
        integers[i] = first[i] + q0 * quotient[i];
    }
}

void Ring::lift_for_composition(View<const std::int8_t> ternary, std::uint64_t* poly) const {
    constexpr std::size_t kRun = 16;
    for (std::size_t at = 0; at < degree_; at += kRun) {
        std::uint64_t signs[kRun], nonzeros[kRun];  // all ones where s is -1, and where it is not 0
        for (std::size_t i = 0; i < kRun; ++i) {
            signs[i] = static_cast<std::uint64_t>(std::int64_t{ternary[at + i]} >> 1);
            nonzeros[i] = std::uint64_t{0} - static_cast<std::uint64_t>(ternary[at + i] & 1);
        }
        for (std::size_t row = 0; row < prime_count(); ++row) {
            const std::uint64_t one = inverse_cofactors_[row], minus_one = prime(row) - one;
            for (std::size_t i = 0; i < kRun; ++i) {
                poly[row * degree_ + at + i] = (one ^ (signs[i] & (one ^ minus_one))) & nonzeros[i];
            }
        }
    }
}

void Ring::compose_lifted(const std::uint64_t* poly, std::uint64_t* integers) const {
    if (prime_count() == 1) {
        std::copy_n(poly, degree_, integers);
        return;
    }
    const std::uint64_t q0 = prime(0), q1 = prime(1), q = modulus_;
    for (std::size_t i = 0; i < degree_; ++i) {
        const std::uint64_t sum = poly[i] * q1 + poly[degree_ + i] * q0;  // < 2q
        integers[i] = std::min(sum, sum - q);
    }
}

void Ring::subtract_integers_from(View<const std::int8_t> noise, std::uint64_t* a) const {
    modular_[0].negate(modulus_, a, a, degree_);
    modular_[0].add_small(modulus_, a, noise.data, degree_);
}

void Ring::add_integers(std::uint64_t* a, const std::uint64_t* b) const {
    modular_[0].add(modulus_, a, b, degree_);
}

void Ring::decompose(const std::uint64_t* integers, std::uint64_t* poly) const {
    if (prime_count() == 1) {
        std::copy_n(integers, degree_, poly);
        return;
    }
    const auto* values = reinterpret_cast<const std::int64_t*>(integers);  // below 2^61
    modular_[1].lift(tables_[1].prime, values, poly + degree_, degree_);
    modular_[0].lift(tables_[0].prime, values, poly, degree_);
}

void Ring::switch_to_bits(const std::uint64_t* coefficients, std::size_t count, int bits, std::uint64_t* out) const {
    // v / q modulo 1 is the sum over rows of t / q_row with t = v * (q / q_row)^-1 mod q_row; fractions come in 64
    // bits, and the last of them are rounded.
    for (std::size_t row = 0; row < prime_count(); ++row) {
        const bool last = row + 1 == prime_count();
        modular_[row].add_fraction(tables_[row].prime, inverse_cofactors_[row], coefficients + row * count,
                                   row == 0 ? nullptr : out, last ? std::uint64_t{1} << (63 - bits) : 0,
                                   last ? 64 - bits : 0, out, count);
    }
}

void Ring::switch_to_bits(const std::uint64_t* coefficients, View<const std::uint32_t> positions, int bits,
                          std::uint64_t* out) const {
    const std::size_t count = (positions.size + 15) / 16 * 16;
    Buffer<std::uint64_t> gathered(prime_count() * count, 0), switched(count);
    for (std::size_t row = 0; row < prime_count(); ++row) {
        for (std::size_t i = 0; i < positions.size; ++i) {
            gathered[row * count + i] = coefficients[row * degree_ + positions[i]];
        }
    }
    switch_to_bits(gathered.data(), count, bits, switched.data());
    std::copy_n(switched.data(), positions.size, out);
}

}  // namespace hesplit
