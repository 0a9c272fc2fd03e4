// Key streams, noise and rejection, sixteen 32-bit or eight 64-bit words at a time.
#include "kernels/shared/streams.h"

#include "kernels/avx512ifma/lanes.h"
#include "kernels/tables.h"

namespace hesplit {

namespace {

namespace avx512ifma {

// Transposes 16 x 16 words, so that each register holds one block.
void transpose(Vector x[16]) {
    Vector t[16];
    for (std::size_t i = 0; i < 16; i += 4) {
        const Vector a = _mm512_unpacklo_epi32(x[i], x[i + 1]), b = _mm512_unpackhi_epi32(x[i], x[i + 1]);
        const Vector c = _mm512_unpacklo_epi32(x[i + 2], x[i + 3]), d = _mm512_unpackhi_epi32(x[i + 2], x[i + 3]);
        t[i] = _mm512_unpacklo_epi64(a, c), t[i + 1] = _mm512_unpackhi_epi64(a, c);
        t[i + 2] = _mm512_unpacklo_epi64(b, d), t[i + 3] = _mm512_unpackhi_epi64(b, d);
    }
    // Now t[4 r + c] holds words 4 r .. 4 r + 3 of blocks c, c + 4, c + 8, c + 12.
    for (std::size_t c = 0; c < 4; ++c) {
        const Vector a = _mm512_shuffle_i32x4(t[c], t[c + 4], 0x44), b = _mm512_shuffle_i32x4(t[c], t[c + 4], 0xee);
        const Vector d = _mm512_shuffle_i32x4(t[c + 8], t[c + 12], 0x44);
        const Vector e = _mm512_shuffle_i32x4(t[c + 8], t[c + 12], 0xee);
        x[c] = _mm512_shuffle_i32x4(a, d, 0x88), x[c + 4] = _mm512_shuffle_i32x4(a, d, 0xdd);
        x[c + 8] = _mm512_shuffle_i32x4(b, e, 0x88), x[c + 12] = _mm512_shuffle_i32x4(b, e, 0xdd);
    }
}

struct Blocks {
    using Vector = __m512i;
    static constexpr std::size_t kCount = 16;

    static Vector all(std::uint32_t word) { return _mm512_set1_epi32(static_cast<int>(word)); }
    static Vector numbers() { return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }
    static Vector add(Vector a, Vector b) { return _mm512_add_epi32(a, b); }
    static Vector exclusive_or(Vector a, Vector b) { return _mm512_xor_si512(a, b); }
    template <int Bits>
    static Vector rotate(Vector x) {
        return _mm512_rol_epi32(x, Bits);
    }
    static void write(Vector words[16], std::size_t count, std::uint8_t* out) {
        transpose(words);
        for (std::size_t block = 0; block < count; ++block) {
            _mm512_storeu_si512(out + 64 * block, words[block]);
        }
    }
};

struct Coins {
    static constexpr std::size_t kLanes = Lanes::kLanes;

    static Vector load(const std::uint8_t* in) {
        const Vector places = _mm512_setr_epi64(0x050403020100, 0x0b0a09080706, 0x11100f0e0d0c, 0x171615141312,  //
                                                0x1d1c1b1a1918, 0x232221201f1e, 0x292827262524, 0x2f2e2d2c2b2a);
        return _mm512_permutexvar_epi8(places, _mm512_maskz_loadu_epi8((std::uint64_t{1} << 48) - 1, in));
    }
    static Vector split(Vector word) {
        constexpr std::uint64_t kCoins = (1 << 21) - 1;
        return _mm512_or_si512(Lanes::both(word, Lanes::all(kCoins)),
                               Lanes::both(_mm512_slli_epi64(word, 11), Lanes::all(kCoins << 32)));
    }
    // By halves of bytes.
    static Vector count_ones(Vector x) {
        const Vector table = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
        const Vector nibble = _mm512_set1_epi8(15);
        const Vector low = _mm512_shuffle_epi8(table, Lanes::both(x, nibble));
        const Vector high = _mm512_shuffle_epi8(table, Lanes::both(_mm512_srli_epi16(x, 4), nibble));
        return _mm512_madd_epi16(_mm512_maddubs_epi16(_mm512_add_epi8(low, high), _mm512_set1_epi8(1)),
                                 _mm512_set1_epi16(1));
    }
    static void store(Vector ones, std::int8_t* out) {
        const Vector value = _mm512_sub_epi32(ones, _mm512_srli_epi64(ones, 32));
        _mm_storel_epi64(reinterpret_cast<__m128i*>(out), _mm512_cvtepi64_epi8(value));
    }
};

struct Candidates : Lanes {
    static Vector load32(const std::uint8_t* in) {
        return _mm512_cvtepu32_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(in)));
    }
    static std::size_t keep_below(Vector x, std::uint64_t q, std::uint64_t* out) {
        const __mmask8 below = _mm512_cmplt_epu64_mask(x, all(q));
        // Counted first: GCC 12 spills a mask as one byte and counts four, which happens where the store is a call
        // (sanitizers).
        const auto kept = static_cast<std::size_t>(__builtin_popcount(_cvtmask8_u32(below)));
        store(out, _mm512_maskz_compress_epi64(below, x));
        return kept;
    }
};

}  // namespace avx512ifma

}  // namespace

const Streams kAvx512IfmaStreams = {vectorised::chacha20<avx512ifma::Blocks>, vectorised::noise<avx512ifma::Coins>,
                                    vectorised::accept<avx512ifma::Candidates>};

}  // namespace hesplit
