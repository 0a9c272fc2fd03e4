// The ring R_q = Z_q[x]/(x^N + 1) with q a product of primes (residue number system).
//
// A polynomial is `prime_count() * degree()` residues, one row per prime, each row below its prime. "coefficients" and
// "NTT form" say which representation a function takes; nothing is tracked at run time. The loops are in
// kernels/kernels.h.
#pragma once

#include <seal/modulus.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/buffer.h"
#include "kernels/kernels.h"

namespace hesplit {

class Ring {
  public:
    // Throws ParameterError when a prime has no 2N-th root of unity.
    Ring(std::size_t degree, const std::vector<std::uint64_t>& primes, const Kernels& kernels = hesplit::kernels());

    std::size_t degree() const { return degree_; }
    std::size_t prime_count() const { return tables_.size(); }
    std::size_t size() const { return degree_ * tables_.size(); }  // residues of a polynomial
    std::uint64_t prime(std::size_t row) const { return tables_[row].prime.value; }
    const Kernels& kernels() const { return *kernels_; }
    double modulus_value() const { return modulus_value_; }  // q, rounded to a double

    void to_ntt(std::uint64_t* poly) const;
    void to_coefficients(std::uint64_t* poly) const;
    // One row alone, here and below.
    void to_ntt_row(std::uint64_t* residues, std::size_t row) const { to_ntt_row(residues, row, {degree_, degree_}); }
    void to_ntt_row(std::uint64_t* residues, std::size_t row, Support support) const;
    void to_coefficients_row(std::uint64_t* residues, std::size_t row) const;

    // out = a * b in NTT form; out may be a or b.
    void multiply(const std::uint64_t* a, const std::uint64_t* b, std::uint64_t* out) const;
    // out = sum_j a[j] * b[j] in NTT form (or a[j] coefficients times constants in every position).
    void dot(View<const std::uint64_t* const> a, View<const std::uint64_t* const> b, std::uint64_t* out) const;
    void dot_row(View<const std::uint64_t* const> a, View<const std::uint64_t* const> b, std::size_t row,
                 std::uint64_t* out) const;
    // The same for both halves of ciphertexts, times the same factors.
    void dot_both(View<const std::uint64_t* const> a0, View<const std::uint64_t* const> a1,
                  View<const std::uint64_t* const> b, std::uint64_t* out0, std::uint64_t* out1) const;
    // With one prime of up to kShortPrimeBits, of up to kShortTerms polynomials whose coefficients take turns by eight
    // (ShortProducts): out = sum_j a_j * b_j in NTT form.
    void dot_short(const std::uint32_t* a, const std::uint64_t* b, std::size_t terms, std::uint64_t* out) const;
    // A matrix product in one row, out[o] = sum_j scalars[o, j] * a[j], of n residues each; `scalars` is [out.size,
    // a.size]. n is a multiple of 16.
    void combine(View<const std::uint64_t* const> a, const std::uint64_t* scalars, View<std::uint64_t* const> out,
                 std::size_t n, std::size_t row) const;
    // a *= 2^shift, in any form.
    void multiply_power_of_two(std::uint64_t* a, int shift) const;
    // a += b.
    void add(std::uint64_t* a, const std::uint64_t* b) const;
    void add_row(std::uint64_t* a, const std::uint64_t* b, std::size_t row) const { add_row({a, degree_}, b, row); }
    void add_row(View<std::uint64_t> a, const std::uint64_t* b, std::size_t row) const;
    // a = b - a.
    void subtract_from(std::uint64_t* a, const std::uint64_t* b) const;
    void subtract_from_row(std::uint64_t* a, const std::uint64_t* b, std::size_t row) const;
    void negate(std::uint64_t* a) const;
    void negate_row(const std::uint64_t* a, std::size_t row, std::uint64_t* out) const;
    // a *= factor, a residue; the size is a multiple of 16, as is that of rows to add and of coefficients to lift.
    void scale_row(View<std::uint64_t> a, std::uint64_t factor, std::size_t row) const;

    // sum_{j, i} a[j][i] * b[j][i] in one row, over a.size runs of n residues each; n is a multiple of 8.
    std::uint64_t inner(View<const std::uint64_t* const> a, View<const std::uint64_t* const> b, std::size_t n,
                        std::size_t row) const;

    // The residues of small signed coefficients.
    void lift(View<const std::int8_t> coefficients, std::uint64_t* poly) const;
    void lift(View<const std::int64_t> coefficients, std::uint64_t* poly) const;
    void lift_row(View<const std::int64_t> coefficients, std::size_t row, std::uint64_t* residues) const;
    // Adds small signed coefficients, in coefficient form.
    void add_small(View<const std::int8_t> coefficients, std::uint64_t* poly) const;
    // The residue of an integer in one row; of a double, which must hold an integer of up to the modulus.
    std::uint64_t residue(std::int64_t value, std::size_t row) const;
    std::uint64_t residue(double integer, std::size_t row) const;
    // Residues: a * b, base^exponent, and a primitive 2N-th root of unity.
    std::uint64_t product(std::uint64_t a, std::uint64_t b, std::size_t row) const;
    std::uint64_t power(std::uint64_t base, std::uint64_t exponent, std::size_t row) const;
    std::uint64_t root(std::size_t row) const { return unity_[row]; }

    // out[i] = round(2^bits * v / q) mod 2^bits for `count` coefficients v, whose residues are `count` apart; 1 <= bits
    // <= 62; count is a multiple of 16. Off by at most 1/2 + prime_count() * 2^(bits-63) from the exact quotient.
    void switch_to_bits(const std::uint64_t* coefficients, std::size_t count, int bits, std::uint64_t* out) const;
    // The same for the coefficients of a polynomial at `positions`, and for all of them.
    void switch_to_bits(const std::uint64_t* coefficients, View<const std::uint32_t> positions, int bits,
                        std::uint64_t* out) const;
    void switch_to_bits(const std::uint64_t* coefficients, int bits, std::uint64_t* out) const {
        switch_to_bits(coefficients, degree_, bits, out);
    }

    // With one or two primes and q below 2^61 a coefficient fits a word.
    bool composable() const { return prime_count() <= 2 && modulus_value_ < 0x1p61; }
    // The coefficients as integers in [0, q), by the Chinese remainder theorem; and back. Composable rings only.
    // Constant time. `integers` may be `poly`.
    void compose(const std::uint64_t* poly, std::uint64_t* integers) const { compose(poly, degree_, integers); }
    void decompose(const std::uint64_t* integers, std::uint64_t* poly) const;
    // The same for `count` coefficients whose residues are `count` apart; count is a multiple of 16.
    void compose(const std::uint64_t* coefficients, std::size_t count, std::uint64_t* integers) const;
    // The theorem's sum alone, for polynomials one of whose factors was lifted with the inverse cofactors, (q /
    // q_row)^-1 mod q_row, in it: that saves a product and a reduction of every coefficient.
    void lift_for_composition(View<const std::int8_t> ternary, std::uint64_t* poly) const;
    void compose_lifted(const std::uint64_t* poly, std::uint64_t* integers) const;
    // a = noise - a, and a += b, for integers in [0, q).
    void subtract_integers_from(View<const std::int8_t> noise, std::uint64_t* a) const;
    void add_integers(std::uint64_t* a, const std::uint64_t* b) const;
    std::uint64_t modulus() const { return modulus_; }

  private:
    // The n residues in question begin at `offset` of each a[j] and b[j].
    void dot_row(View<const std::uint64_t* const> a, View<const std::uint64_t* const> b, std::size_t row,
                 std::size_t offset, std::size_t n, std::uint64_t* out) const;

    std::size_t degree_;
    const Kernels* kernels_;
    std::vector<ModularKernels> modular_;       // what suits each prime
    std::vector<Buffer<std::uint64_t>> roots_;  // what the tables point to
    std::vector<NttTable> tables_;
    std::vector<seal::Modulus> moduli_;
    std::vector<std::uint64_t> unity_;
    std::vector<std::uint64_t> inverse_cofactors_;  // (q / q_row)^-1 mod q_row
    double modulus_value_ = 1;
    std::uint64_t modulus_ = 1;  // of composable rings
};

}  // namespace hesplit
