// Transforms of residues below 2^50 in double precision with fused multiply-add, and of short ones in 32-bit lanes.
#include "kernels/avx2/lanes.h"
#include "kernels/shared/doubles.h"
#include "kernels/shared/short.h"
#include "kernels/tables.h"

namespace hesplit {

namespace {

namespace avx2 {

struct Words {
    using Vector = __m256i;
    static constexpr std::size_t kLanes = 8;

    static Vector load(const void* in) { return Lanes::load(in); }
    static void store(void* out, Vector x) { _mm256_storeu_si256(static_cast<__m256i*>(out), x); }
    static Vector all(std::uint32_t value) { return _mm256_set1_epi32(static_cast<int>(value)); }
    static Vector add(Vector a, Vector b) { return _mm256_add_epi32(a, b); }
    static Vector subtract(Vector a, Vector b) { return _mm256_sub_epi32(a, b); }
    static Vector multiply(Vector a, Vector b) { return _mm256_mullo_epi32(a, b); }
    static Vector least(Vector a, Vector b) { return _mm256_min_epu32(a, b); }
    static Vector odd(Vector x) { return _mm256_castps_si256(_mm256_movehdup_ps(_mm256_castsi256_ps(x))); }
    static Vector high(Vector even, Vector odd_lanes) { return _mm256_blend_epi32(odd(even), odd_lanes, 0xaa); }
    static Vector wide(Vector a, Vector b) { return _mm256_mul_epu32(a, b); }

    // Within lanes of 128 bits from gap 2 on: 0 1 4 5 | 8 9 12 13 and the others, then 0 4 2 6 | 8 12 10 14.
    template <std::size_t Gap>
    static void sort(Vector& x, Vector& y) {
        const Vector u = x, v = y;
        if constexpr (Gap == 4) {
            x = _mm256_permute2x128_si256(u, v, 0x20), y = _mm256_permute2x128_si256(u, v, 0x31);
        } else if constexpr (Gap == 2) {
            x = _mm256_unpacklo_epi64(u, v), y = _mm256_unpackhi_epi64(u, v);
        } else {
            x = shuffle<0x88>(u, v), y = shuffle<0xdd>(u, v);
        }
    }
    template <std::size_t Gap>
    static void unsort(Vector& x, Vector& y) {
        const Vector u = x, v = y;
        if constexpr (Gap == 1) {
            x = _mm256_unpacklo_epi32(u, v), y = _mm256_unpackhi_epi32(u, v);
        } else {
            sort<Gap>(x, y);
        }
    }
    template <std::size_t Gap>
    static Vector spread(const std::uint32_t* in) {
        if constexpr (Gap == 4) {
            std::uint64_t two;
            __builtin_memcpy(&two, in, sizeof(two));
            return _mm256_permutevar8x32_epi32(Lanes::all(two), _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1));
        } else if constexpr (Gap == 2) {
            const Vector four = _mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in)));
            return _mm256_permutevar8x32_epi32(four, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3));
        } else {
            return _mm256_shuffle_epi32(load(in), 0xd8);
        }
    }

    static Vector narrow(const std::uint64_t* in) {
        return _mm256_permute4x64_epi64(shuffle<0x88>(Lanes::load(in), Lanes::load(in + 4)), 0xd8);
    }
    static void widen(std::uint64_t* out, Vector x) {
        Lanes::store(out, _mm256_cvtepu32_epi64(_mm256_castsi256_si128(x)));
        Lanes::store(out + 4, _mm256_cvtepu32_epi64(_mm256_extracti128_si256(x, 1)));
    }

  private:
    template <int Places>
    static Vector shuffle(Vector a, Vector b) {
        return _mm256_castps_si256(_mm256_shuffle_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b), Places));
    }
};

// a[i] * b[i] by Barrett's reduction, for primes of b <= 27 bits: products P < 2^2b have quotients P / q that are
// found, by P >> (b - 1) < 2^28 and floor(2^(b+31) / q) < 2^32, at most 2 + 2^-4 too small, so that what is left is
// below 3q.
struct ShortProduct {
    static constexpr std::size_t kLanes = Lanes::kLanes;

    explicit ShortProduct(const Prime& prime)
        : q(Lanes::all(prime.value)),
          twice(Lanes::all(2 * prime.value)),
          ratio(Lanes::all((std::uint64_t{1} << (prime.bits + 31)) / prime.value)),
          shift(_mm_cvtsi32_si128(prime.bits - 1)) {}

    void multiply(const std::uint64_t* a, const std::uint64_t* b, std::uint64_t* out) const {
        const __m256i product = _mm256_mul_epu32(Lanes::load(a), Lanes::load(b));
        const __m256i top = _mm256_srl_epi64(product, shift);
        const __m256i quotient = Lanes::shift_right<32>(_mm256_mul_epu32(top, ratio));
        const __m256i rest = Lanes::subtract(product, _mm256_mul_epu32(quotient, q));
        const __m256i less = _mm256_min_epu32(rest, _mm256_sub_epi32(rest, twice));
        Lanes::store(out, _mm256_min_epu32(less, _mm256_sub_epi32(less, q)));
    }

    __m256i q, twice, ratio;
    __m128i shift;
};

}  // namespace avx2

}  // namespace

const Transforms kAvx2Transforms = {vectorised::prepare_doubles, vectorised::forward_in_doubles<avx2::Doubles>,
                                    vectorised::inverse_in_doubles<avx2::Doubles>,
                                    vectorised::multiply<vectorised::DoubleModulus<avx2::Doubles>>};
const Transforms kAvx2ShortTransforms = {vectorised::prepare_short, vectorised::forward_short<avx2::Words>,
                                         vectorised::inverse_short<avx2::Words>,
                                         vectorised::multiply<avx2::ShortProduct>};

}  // namespace hesplit
