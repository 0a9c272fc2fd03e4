// The ring R_q = Z_q[x]/(x^N + 1) with q a product of primes (residue number system).
//
// A polynomial is `rows() * degree()` residues, one row per prime, each row below its prime. "coefficients" and "NTT
// form" say which representation a function takes; nothing is tracked at run time. This room is where faster kernels
// go.
#pragma once

#include <seal/util/ntt.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/buffer.h"

namespace hesplit {

class Ring {
  public:
    // Throws ParameterError when a prime has no 2N-th root of unity.
    Ring(std::size_t degree, const std::vector<std::uint64_t>& primes);

    std::size_t degree() const { return degree_; }
    std::size_t rows() const { return tables_.size(); }
    std::size_t size() const { return degree_ * tables_.size(); }  // residues of a polynomial
    std::uint64_t prime(std::size_t row) const { return tables_[row].modulus().value(); }
    const seal::Modulus& modulus(std::size_t row) const { return tables_[row].modulus(); }
    double modulus_value() const { return modulus_value_; }  // q, rounded to a double

    void to_ntt(std::uint64_t* poly) const;
    void to_coefficients(std::uint64_t* poly) const;
    // One row alone.
    void to_ntt_row(std::uint64_t* residues, std::size_t row) const;

    // out = a * b in NTT form; out may be a or b.
    void multiply(const std::uint64_t* a, const std::uint64_t* b, std::uint64_t* out) const;
    // out = sum_j a[j] * b[j] in NTT form (or a[j] coefficients times constants in every position).
    void dot(View<const std::uint64_t* const> a, View<const std::uint64_t* const> b, std::uint64_t* out) const;
    // out = sum_j scalars[j] * a[j]; `scalars` holds rows() residues per j. Any form.
    void combine(View<const std::uint64_t* const> a, const std::uint64_t* scalars, std::uint64_t* out) const;
    // a *= 2^shift, in any form.
    void multiply_power_of_two(std::uint64_t* a, int shift) const;
    // a += b.
    void add(std::uint64_t* a, const std::uint64_t* b) const;
    void subtract_from(std::uint64_t* a, const std::uint64_t* b) const;  // a = b - a

    // The residues of small signed coefficients.
    void lift(View<const std::int8_t> coefficients, std::uint64_t* poly) const;
    void lift(View<const std::int64_t> coefficients, std::uint64_t* poly) const;
    // Adds small signed coefficients, in coefficient form.
    void add_small(View<const std::int8_t> coefficients, std::uint64_t* poly) const;
    // The residue of an integer in one row; of a double, which must hold an integer (of any magnitude).
    std::uint64_t residue(std::int64_t value, std::size_t row) const;
    std::uint64_t residue(double integer, std::size_t row) const;

    // out[i] = round(2^bits * v / q) mod 2^bits for the coefficient v at positions[i]; 1 <= bits <= 62.
    // Off by at most 1/2 + rows() * 2^(bits-63) from the exact quotient.
    void switch_to_bits(const std::uint64_t* coefficients, View<const std::uint32_t> positions, int bits,
                        std::uint64_t* out) const;
    // The same for all coefficients.
    void switch_to_bits(const std::uint64_t* coefficients, int bits, std::uint64_t* out) const;

  private:
    std::uint64_t switch_one(const std::uint64_t* coefficients, std::size_t position, int bits) const;

    std::size_t degree_;
    std::vector<seal::util::NTTTables> tables_;
    std::vector<seal::util::MultiplyUIntModOperand> inverse_cofactor_;  // (q / q_row)^-1 mod q_row
    double modulus_value_ = 1;
};

}  // namespace hesplit
