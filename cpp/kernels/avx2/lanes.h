// Four 64-bit words side by side, and four doubles with fused multiply-add. Only for files that are compiled for AVX2;
// see shared/products.h for the rules.
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
    template <int Bits>
    static Vector shift_right(Vector x) {
        return _mm256_srli_epi64(x, Bits);
    }
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
    static Vector add_product(Vector total, Vector x, Vector y) { return add(total, _mm256_mul_epu32(x, y)); }
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

struct Doubles {
    using Lanes = avx2::Lanes;
    using Vector = __m256d;
    static constexpr std::size_t kLanes = Lanes::kLanes;

    static Vector load(const void* in) { return _mm256_castsi256_pd(Lanes::load(in)); }
    static void store(std::uint64_t* out, Vector x) { Lanes::store(out, _mm256_castpd_si256(x)); }
    static void store(double* out, Vector x) { _mm256_storeu_pd(out, x); }
    static Vector all(double value) { return _mm256_set1_pd(value); }
    static Vector add(Vector a, Vector b) { return _mm256_add_pd(a, b); }
    static Vector subtract(Vector a, Vector b) { return _mm256_sub_pd(a, b); }
    static Vector multiply(Vector a, Vector b) { return _mm256_mul_pd(a, b); }
    static Vector multiply_add(Vector a, Vector b, Vector c) { return _mm256_fmadd_pd(a, b, c); }
    static Vector subtract_product(Vector c, Vector a, Vector b) { return _mm256_fnmadd_pd(a, b, c); }
    static Vector round(Vector x) { return _mm256_round_pd(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    static Vector add_if_negative(Vector x, Vector q) {
        return add(x, _mm256_and_pd(_mm256_cmp_pd(x, _mm256_setzero_pd(), _CMP_LT_OQ), q));
    }

    // Integers in [0, 2^52) to doubles and back: the mantissa of 2^52 + x is x.
    static Vector magic() { return _mm256_set1_pd(4503599627370496.0); }
    static Vector to_double(__m256i x) {
        return subtract(_mm256_castsi256_pd(_mm256_or_si256(x, _mm256_castpd_si256(magic()))), magic());
    }
    static __m256i to_integer(Vector x) {
        return _mm256_xor_si256(_mm256_castpd_si256(add(x, magic())), _mm256_castpd_si256(magic()));
    }

    static Vector twice(const std::uint64_t* in) {
        const __m128d pair = _mm_loadu_pd(reinterpret_cast<const double*>(in));
        return _mm256_permute4x64_pd(_mm256_castpd128_pd256(pair), 0x50);
    }
    static void sort2(Vector& x, Vector& y) {
        const Vector lower = _mm256_permute2f128_pd(x, y, 0x20);
        y = _mm256_permute2f128_pd(x, y, 0x31);
        x = lower;
    }
    static void sort1(Vector& x, Vector& y) {
        const Vector even = _mm256_unpacklo_pd(x, y);
        y = _mm256_unpackhi_pd(x, y);
        x = even;
    }
};

}  // namespace avx2

}  // namespace

}  // namespace hesplit
