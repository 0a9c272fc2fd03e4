// Eight 64-bit words side by side, and products of 52-bit integers modulo a prime below 2^50 (IFMA). Only for files
// that are compiled for AVX-512; see shared/products.h for the rules.
#pragma once

#include <immintrin.h>

#include "kernels/kernels.h"

namespace hesplit {

namespace {

namespace avx512ifma {

struct Lanes {
    using Vector = __m512i;
    static constexpr std::size_t kLanes = 8;

    static Vector load(const void* in) { return _mm512_loadu_si512(in); }
    static void store(std::uint64_t* out, Vector x) { _mm512_storeu_si512(out, x); }
    static Vector all(std::uint64_t value) { return _mm512_set1_epi64(static_cast<long long>(value)); }
    static Vector zero() { return _mm512_setzero_si512(); }
    static Vector add(Vector a, Vector b) { return _mm512_add_epi64(a, b); }
    static Vector subtract(Vector a, Vector b) { return _mm512_sub_epi64(a, b); }
    static Vector both(Vector a, Vector b) { return _mm512_and_si512(a, b); }

    // x + q where x < 0, for -q <= x < q: a negative number is a huge one here.
    static Vector add_if_negative(Vector x, Vector q) { return _mm512_min_epu64(x, add(x, q)); }
    // x - q where x >= q, for x < 2q.
    static Vector subtract_once(Vector x, Vector q) { return _mm512_min_epu64(x, subtract(x, q)); }
    // q - x, but 0 for 0.
    static Vector negate(Vector x, Vector q) { return _mm512_min_epu64(subtract(zero(), x), subtract(q, x)); }
    static Vector small(const std::int8_t* in) {
        return _mm512_cvtepi8_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(in)));
    }
    static Vector load_halves(const std::uint32_t* in) {
        return _mm512_cvtepu32_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(in)));
    }
    // The intrinsic for this adds signed numbers, which must not overflow.
    static std::uint64_t sum(Vector x) {
        alignas(kAlignment) std::uint64_t lanes[kLanes];
        _mm512_store_si512(lanes, x);
        std::uint64_t sum = 0;
        for (const std::uint64_t lane : lanes) {
            sum += lane;
        }
        return sum;
    }

    // Ternary factors.
    struct Signs {
        __mmask8 positive, negative;
    };
    static Signs signs(const std::uint64_t* sign, const std::uint64_t* nonzero) {
        const Vector negative = load(sign);
        return {_mm512_movepi64_mask(_mm512_andnot_si512(negative, load(nonzero))), _mm512_movepi64_mask(negative)};
    }
    static Vector add_ternary(Vector total, Signs s, Vector x) {
        total = _mm512_mask_add_epi64(total, s.positive, total, x);
        return _mm512_mask_sub_epi64(total, s.negative, total, x);
    }
};

using Vector = Lanes::Vector;

inline Vector mask52() {
    return Lanes::all((std::uint64_t{1} << 52) - 1);
}
inline Vector low52(Vector a, Vector b) {
    return _mm512_madd52lo_epu64(Lanes::zero(), a, b);
}
inline Vector high52(Vector a, Vector b) {
    return _mm512_madd52hi_epu64(Lanes::zero(), a, b);
}

// A residue with its Shoup quotient, floor(value * 2^52 / q).
struct Root {
    Vector value, quotient;

    static Root broadcast(const std::uint64_t* roots, const std::uint64_t* quotients, std::size_t i) {
        return {Lanes::all(roots[i]), Lanes::all(quotients[i])};
    }
};

struct Modulus {
    static constexpr std::size_t kLanes = Lanes::kLanes;

    explicit Modulus(const Prime& prime)
        : q(Lanes::all(prime.value)),
          minus(Lanes::all((std::uint64_t{1} << 52) - prime.value)),
          twice(Lanes::all(2 * prime.value)),
          ratio(Lanes::all(prime.ratio52)),
          power{Lanes::all(prime.power52), Lanes::all(prime.power52_quotient)} {}

    // y * root mod q in [0, 2q), for y < 2^52.
    Vector multiply_lazy(Vector y, Root root) const {
        const Vector quotient = high52(y, root.quotient);
        return Lanes::both(_mm512_madd52lo_epu64(low52(y, root.value), quotient, minus), mask52());
    }
    // x mod q in [0, 2q), for x < 2^52.
    Vector reduce_lazy(Vector x) const { return Lanes::subtract(x, low52(high52(x, ratio), q)); }
    // high * 2^52 + low mod q, for high < 2^52 - 2^12 and any low.
    Vector reduce(Vector high, Vector low) const {
        high = Lanes::add(high, _mm512_srli_epi64(low, 52));
        low = Lanes::both(low, mask52());
        const Vector sum = Lanes::add(multiply_lazy(high, power), reduce_lazy(low));  // < 4q
        return Lanes::subtract_once(Lanes::subtract_once(sum, twice), q);
    }
    // a[i] * b[i] for eight residues.
    void multiply(const std::uint64_t* a, const std::uint64_t* b, std::uint64_t* out) const {
        const Vector x = Lanes::load(a), y = Lanes::load(b);
        Lanes::store(out, reduce(high52(x, y), low52(x, y)));
    }

    Vector q, minus, twice, ratio;  // minus = 2^52 - q, ratio = floor(2^52 / q)
    Root power;                     // 2^52
};

}  // namespace avx512ifma

}  // namespace

}  // namespace hesplit
