// The inner loops on residues, once per instruction set: portable C++, AVX2 with FMA, AVX-512 with IFMA, NEON.
//
// All variants compute the same integers, bit for bit. Which one runs is chosen once per process: the best that the
// processor has, or what the environment variable HESPLIT_CPU names (scalar, avx2, avx512ifma, neon). What the loops
// modulo a prime can do depends on the prime's size as well; that choice is made once per prime, by Kernels::modulo.
//
// Residues are 64-bit words below their prime on entry and on return; what a function allows in between ("lazy"
// values) is stated at its implementation. No function branches on, or addresses memory by, the values it works on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/buffer.h"

namespace hesplit {

// Largest primes of vectorised transforms; larger ones (published sets have 60 bits) take the portable code.
inline constexpr int kVectorPrimeBits = 50;
inline constexpr int kMaxPrimeBits = 60;
// Largest primes whose residues are kept in halves of words, and how many of their products a word holds the sum of
// (ShortProducts).
inline constexpr int kShortPrimeBits = 30;
inline constexpr std::size_t kShortTerms = std::size_t{1} << (64 - 2 * kShortPrimeBits);

// Sums of products are reduced at the latest after 2^kLazyBits of them, earlier where they have less room.
inline constexpr int kLazyBits = 10;

// A prime with the constants of its reductions.
struct Prime {
    std::uint64_t value = 0;
    int bits = 0;
    std::uint64_t ratio_low = 0, ratio_high = 0;  // floor(2^128 / value)
    // Below 2^50 only: floor(2^52 / value), 2^52 mod value with its Shoup quotient, and floor(2^116 / value) as
    // fraction_high * 2^52 + fraction_low.
    std::uint64_t ratio52 = 0;
    std::uint64_t power52 = 0, power52_quotient = 0;
    std::uint64_t fraction_low = 0, fraction_high = 0;

    static Prime make(std::uint64_t value);  // 14 to 60 bits
};

// Roots of unity for one prime and degree: views of memory that Ring owns, `degree` words each.
struct NttTable {
    Prime prime;
    std::size_t degree = 0;
    // Powers of psi, a 2N-th root of unity, in bit-reversed order, and their quotients in the variant's format (Shoup's
    // at 2^64 or 2^52; doubles; both in 32 bits). inverse_* belong to powers of psi^-1; index 0 holds 1/N and index 1
    // is scaled by 1/N.
    std::uint64_t *roots = nullptr, *quotients = nullptr, *inverse_roots = nullptr, *inverse_quotients = nullptr;
};

// Pointers to runs of residues: run j starts at polys[j] + offset.
struct Rows {
    const std::uint64_t* const* polys = nullptr;
    std::size_t offset = 0;

    // Never a function of its own: the copies that files make for other instruction sets would bear one name (see
    // shared/products.h).
    [[gnu::always_inline]] const std::uint64_t* operator[](std::size_t j) const { return polys[j] + offset; }
};

// Which coefficients of a polynomial may differ from 0: those at i with i % period < used. Both are powers of two,
// 32 <= used <= period <= degree and degree <= 16 * period.
struct Support {
    std::size_t period, used;
};

struct Transforms {
    // Turns roots (plain residues) into what this variant's transforms read.
    void (*prepare)(NttTable& table);
    // Negacyclic number-theoretic transform, in place; output in bit-reversed order. The degree is at least 32. Of a
    // polynomial's residues only those on its support are read; levels that have nothing to add there are copies.
    void (*forward)(const NttTable& table, std::uint64_t* residues, Support support);
    void (*inverse)(const NttTable& table, std::uint64_t* residues);
    // out[i] = a[i] * b[i]; out may be a or b. n is a multiple of 16 here and, where nothing else is said, below.
    void (*multiply)(const Prime& q, const std::uint64_t* a, const std::uint64_t* b, std::uint64_t* out, std::size_t n);
};

struct Products {
    // out[i] = sum_j a[j][i] * b[j][i].
    void (*dot)(const Prime& q, Rows a, Rows b, std::size_t terms, std::uint64_t* out, std::size_t n);
    // sum_{j, i} a[j][i] * b[j][i] over `segments` runs of n residues each; n is a multiple of 8.
    std::uint64_t (*inner)(const Prime& q, const std::uint64_t* const* a, const std::uint64_t* const* b,
                           std::size_t segments, std::size_t n);
    // A matrix product: out[o][i] = sum_j scalars[o * terms + j] * a[j][i] for `outputs` runs of n residues.
    void (*combine)(const Prime& q, Rows a, std::size_t terms, const std::uint64_t* scalars, std::size_t outputs,
                    std::uint64_t* const* out, std::size_t n);
};

// For primes of any size.
struct Sums {
    void (*add)(std::uint64_t q, std::uint64_t* a, const std::uint64_t* b, std::size_t n);            // a += b
    void (*subtract_from)(std::uint64_t q, std::uint64_t* a, const std::uint64_t* b, std::size_t n);  // a = b - a
    void (*negate)(std::uint64_t q, const std::uint64_t* a, std::uint64_t* out, std::size_t n);       // out may be a
    // a += small, for |small| <= 127.
    void (*add_small)(std::uint64_t q, std::uint64_t* a, const std::int8_t* small, std::size_t n);
};

struct Conversions {
    // The residues of signed integers.
    void (*lift)(const Prime& q, const std::int64_t* values, std::uint64_t* out, std::size_t n);
    // out[i] = (before[i] + added + t / q) >> shift, modulo 1 and in fractions of 2^64, for t = a[i] * factor mod q; t
    // / q is cut off, by less than 2^-63. Without `before` (null) nothing was before; out may be it. 0 <= shift <= 63.
    void (*add_fraction)(const Prime& q, std::uint64_t factor, const std::uint64_t* a, const std::uint64_t* before,
                         std::uint64_t added, int shift, std::uint64_t* out, std::size_t n);
};

// What works modulo a prime.
struct ModularKernels : Transforms, Products, Sums, Conversions {};

// Products modulo 2^64. Constant time. n is a multiple of 8.
struct WordProducts {
    // out[p] = sum_i s[i] * windows[p][i] for a ternary s in two masks: sign is all ones where s is negative, nonzero
    // where it is not 0.
    void (*ternary_dot)(const std::uint64_t* sign, const std::uint64_t* nonzero, const std::uint64_t* const* windows,
                        std::size_t count, std::uint64_t* out, std::size_t n);
};

struct Streams {
    // Key stream of RFC 8439 from the block counter in state[12] on; `blocks` of 64 bytes.
    void (*chacha20)(const std::uint32_t state[16], std::uint8_t* out, std::size_t blocks);
    // Centred binomial noise from 6 bytes of coins each: out[i] = popcount of the low 21 of 48 bits minus that of the
    // next 21. Reads 6 n bytes; n is a multiple of 8.
    void (*noise)(const std::uint8_t* coins, std::int8_t* out, std::size_t n);
    // Keeps those of n masked words (32-bit if `narrow`, else 64-bit) that are below q; returns how many. May write n,
    // which may be any number. What is kept is public.
    std::size_t (*accept)(const std::uint8_t* words, bool narrow, std::uint64_t mask, std::uint64_t q,
                          std::uint64_t* out, std::size_t n);
};

struct BitPacking {
    // n values below 2^bits to n * bits / 8 bytes, lowest bits first, and back. 8 <= bits <= 62; n is a multiple of 8.
    // The portable code takes any n and 1 <= bits <= 62, and fills the last byte up with zeros.
    void (*pack)(const std::uint64_t* values, int bits, std::uint8_t* out, std::size_t n);
    // Returns the largest value.
    std::uint64_t (*unpack)(const std::uint8_t* in, int bits, std::uint64_t* values, std::size_t n);
};

// Residues in half the memory, modulo primes of up to kShortPrimeBits.
struct ShortProducts {
    // out[i] = sum_j a_j[i] * b_j[i], of up to kShortTerms terms whose coefficients take turns by eight: a_j[i] is
    // a[(i / 8 * terms + j) * 8 + i % 8]. n is a multiple of 8.
    void (*dot_short)(const Prime& prime, const std::uint32_t* a, const std::uint64_t* b, std::size_t terms,
                      std::uint64_t* out, std::size_t n);
};

// Products of matrices of integers in double precision, exact while no sum reaches 2^53.
struct Matrices {
    // Of a tile; row counts up to tile_rows are computed in steps of 2.
    std::size_t tile_rows = 0, tile_columns = 0;
    // sums[r * tile_columns + c] += sum_i a[i * tile_rows + r] * b[i * tile_columns + c] for r < rows, then each sum
    // modulo q[r], between -q/2 and q/2 but for rounding; inverse[r] is 1 / q[r].
    void (*multiply_tile)(const double* a, const double* b, std::size_t terms, std::size_t rows, const double* q,
                          const double* inverse, double* sums);
};

struct Kernels : WordProducts, ShortProducts, Streams, BitPacking, Matrices {
    const char* name;
    // The fastest functions for primes of so many bits.
    ModularKernels (*modulo)(int prime_bits);
};

// What this process uses. Throws ParameterError when HESPLIT_CPU names what there is not.
const Kernels& kernels();
// By name; throws ParameterError for unknown names and for what this processor cannot run.
const Kernels& kernels(const char* name);
// The names of what this processor can run, best first.
std::vector<std::string> usable_kernels();

}  // namespace hesplit
