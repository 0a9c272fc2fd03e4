// Four 64-bit words side by side, and residues modulo a prime below 2^50 in double precision with fused multiply-add.
// Only for files that are compiled for AVX2; see shared/products.h for the rules.
#pragma once

#include <immintrin.h>

#include "kernels/kernels.h"

namespace hesplit {

namespace {

namespace avx2 {

struct Lanes {
    using Vector = __m256i;
    static constexpr std::size_t kLanes = 4;

    static Vector load(const void* in) { return _mm256_loadu_si256(static_cast<const __m256i*>(in)); }
    static void store(std::uint64_t* out, Vector x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), x); }
    static Vector all(std::uint64_t value) { return _mm256_set1_epi64x(static_cast<long long>(value)); }
    static Vector zero() { return _mm256_setzero_si256(); }
    static Vector add(Vector a, Vector b) { return _mm256_add_epi64(a, b); }
    static Vector subtract(Vector a, Vector b) { return _mm256_sub_epi64(a, b); }
    static Vector both(Vector a, Vector b) { return _mm256_and_si256(a, b); }

    // x + q where x < 0, as signed numbers.
    static Vector add_if_negative(Vector x, Vector q) { return add(x, both(_mm256_cmpgt_epi64(zero(), x), q)); }
    // x - q where x >= q, for x < 2q.
    static Vector subtract_once(Vector x, Vector q) { return add_if_negative(subtract(x, q), q); }
    // q - x, but 0 for 0.
    static Vector negate(Vector x, Vector q) {
        return _mm256_andnot_si256(_mm256_cmpeq_epi64(x, zero()), subtract(q, x));
    }
    static Vector small(const std::int8_t* in) {
        int four;
        __builtin_memcpy(&four, in, sizeof(four));
        return _mm256_cvtepi8_epi64(_mm_cvtsi32_si128(four));
    }
    static Vector load_halves(const std::uint32_t* in) {
        return _mm256_cvtepu32_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in)));
    }
    // There are products of halves only.
    static Vector multiply_low(Vector x, Vector y) {
        const Vector cross = add(_mm256_mul_epu32(_mm256_srli_epi64(x, 32), y),  //
                                 _mm256_mul_epu32(x, _mm256_srli_epi64(y, 32)));
        return add(_mm256_mul_epu32(x, y), _mm256_slli_epi64(cross, 32));
    }
    static std::uint64_t sum(Vector x) {
        alignas(32) std::uint64_t lanes[kLanes];
        store(lanes, x);
        return lanes[0] + lanes[1] + lanes[2] + lanes[3];
    }

    // Ternary factors.
    struct Signs {
        Vector negative, nonzero;
    };
    static Signs signs(const std::uint64_t* sign, const std::uint64_t* nonzero) { return {load(sign), load(nonzero)}; }
    static Vector add_ternary(Vector total, Signs s, Vector x) {
        return add(total, both(subtract(_mm256_xor_si256(x, s.negative), s.negative), s.nonzero));
    }
};

// Integers in [0, 2^52) to doubles and back: the mantissa of 2^52 + x is x.
inline __m256d magic() {
    return _mm256_set1_pd(4503599627370496.0);
}
inline __m256d to_double(__m256i x) {
    return _mm256_sub_pd(_mm256_castsi256_pd(_mm256_or_si256(x, _mm256_castpd_si256(magic()))), magic());
}
inline __m256i to_integer(__m256d x) {
    return _mm256_xor_si256(_mm256_castpd_si256(_mm256_add_pd(x, magic())), _mm256_castpd_si256(magic()));
}
inline __m256d round(__m256d x) {
    return _mm256_round_pd(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

struct Modulus {
    static constexpr std::size_t kLanes = Lanes::kLanes;
    using Vector = __m256d;

    struct Root {
        __m256d value, quotient;  // |value| <= q / 2, quotient = value / q

        static Root broadcast(const std::uint64_t* roots, const std::uint64_t* quotients, std::size_t i) {
            return {_mm256_castsi256_pd(Lanes::all(roots[i])), _mm256_castsi256_pd(Lanes::all(quotients[i]))};
        }
        // For butterflies with gap 2 within four lanes, and with gap 1.
        static Root two(const std::uint64_t* roots, const std::uint64_t* quotients, std::size_t i) {
            return {spread(roots + i), spread(quotients + i)};
        }
        static Root four(const std::uint64_t* roots, const std::uint64_t* quotients, std::size_t i) {
            return {load(roots + i), load(quotients + i)};
        }
        static __m256d spread(const std::uint64_t* in) {
            const __m128d pair = _mm_loadu_pd(reinterpret_cast<const double*>(in));
            return _mm256_permute4x64_pd(_mm256_castpd128_pd256(pair), 0x50);
        }
    };

    explicit Modulus(const Prime& prime)
        : q(_mm256_set1_pd(static_cast<double>(prime.value))),
          inverse(_mm256_set1_pd(1 / static_cast<double>(prime.value))) {}

    // Between levels residues are doubles in the same memory.
    static __m256d load(const std::uint64_t* in) { return _mm256_castsi256_pd(Lanes::load(in)); }
    static void store(std::uint64_t* out, __m256d x) { Lanes::store(out, _mm256_castpd_si256(x)); }

    // y * root mod q. All integers: the product is high + low exactly. For |y| <= c q the quotient is off by at most
    // 1/2 + c 2^-53 q, so that |result| <= (1/2 + c/8) q when q < 2^50; everything is exact while c q < 2^53.
    __m256d multiply(__m256d y, Root root) const {
        const __m256d quotient = round(_mm256_mul_pd(y, root.quotient));
        const __m256d high = _mm256_mul_pd(y, root.value);
        const __m256d low = _mm256_fmsub_pd(y, root.value, high);
        return _mm256_add_pd(_mm256_fnmadd_pd(quotient, q, high), low);
    }
    // a[i] * b[i] for four residues.
    void multiply(const std::uint64_t* a, const std::uint64_t* b, std::uint64_t* out) const {
        const __m256d x = to_double(Lanes::load(a)), y = to_double(Lanes::load(b));
        const __m256d high = _mm256_mul_pd(x, y);
        const __m256d low = _mm256_fmsub_pd(x, y, high);
        const __m256d quotient = round(_mm256_mul_pd(high, inverse));
        Lanes::store(out, canonical(_mm256_add_pd(_mm256_fnmadd_pd(quotient, q, high), low)));
    }
    // x mod q, between -q/2 and q/2 but for rounding.
    __m256d reduce(__m256d x) const { return _mm256_fnmadd_pd(round(_mm256_mul_pd(x, inverse)), q, x); }
    // x in (-q, q) to [0, q).
    __m256i canonical(__m256d x) const {
        const __m256d negative = _mm256_cmp_pd(x, _mm256_setzero_pd(), _CMP_LT_OQ);
        return to_integer(_mm256_add_pd(x, _mm256_and_pd(negative, q)));
    }

    __m256d q, inverse;
};

}  // namespace avx2

}  // namespace

}  // namespace hesplit
