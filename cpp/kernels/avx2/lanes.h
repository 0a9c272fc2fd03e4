// Four 64-bit words side by side. Only for files that are compiled for AVX2; see shared/products.h for the rules.
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
    static Vector small(const std::int8_t* in) {
        int four;
        __builtin_memcpy(&four, in, sizeof(four));
        return _mm256_cvtepi8_epi64(_mm_cvtsi32_si128(four));
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

}  // namespace avx2

}  // namespace

}  // namespace hesplit
