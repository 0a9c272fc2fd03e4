// Key streams, noise and rejection, eight 32-bit or four 64-bit words at a time.
#include "kernels/shared/streams.h"

#include "kernels/avx2/lanes.h"
#include "kernels/tables.h"

namespace hesplit {

namespace {

namespace avx2 {

// Transposes 8 x 8 words: register i then holds the words of block i.
void transpose(__m256i x[8]) {
    __m256i t[8];
    for (std::size_t i = 0; i < 8; i += 4) {
        const __m256i a = _mm256_unpacklo_epi32(x[i], x[i + 1]), b = _mm256_unpackhi_epi32(x[i], x[i + 1]);
        const __m256i c = _mm256_unpacklo_epi32(x[i + 2], x[i + 3]), d = _mm256_unpackhi_epi32(x[i + 2], x[i + 3]);
        t[i] = _mm256_unpacklo_epi64(a, c), t[i + 1] = _mm256_unpackhi_epi64(a, c);
        t[i + 2] = _mm256_unpacklo_epi64(b, d), t[i + 3] = _mm256_unpackhi_epi64(b, d);
    }
    for (std::size_t i = 0; i < 4; ++i) {
        x[i] = _mm256_permute2x128_si256(t[i], t[i + 4], 0x20);
        x[i + 4] = _mm256_permute2x128_si256(t[i], t[i + 4], 0x31);
    }
}

struct Blocks {
    using Vector = __m256i;
    static constexpr std::size_t kCount = 8;

    static __m256i all(std::uint32_t word) { return _mm256_set1_epi32(static_cast<int>(word)); }
    static __m256i numbers() { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }
    static __m256i add(__m256i a, __m256i b) { return _mm256_add_epi32(a, b); }
    static __m256i exclusive_or(__m256i a, __m256i b) { return _mm256_xor_si256(a, b); }
    template <int Bits>
    static __m256i rotate(__m256i x) {
        if constexpr (Bits == 16) {
            return _mm256_shuffle_epi8(x, _mm256_setr_epi8(2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13,  //
                                                           2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
        } else if constexpr (Bits == 8) {
            return _mm256_shuffle_epi8(x, _mm256_setr_epi8(3, 0, 1, 2, 7, 4, 5, 6, 11, 8, 9, 10, 15, 12, 13, 14,  //
                                                           3, 0, 1, 2, 7, 4, 5, 6, 11, 8, 9, 10, 15, 12, 13, 14));
        } else {
            return _mm256_or_si256(_mm256_slli_epi32(x, Bits), _mm256_srli_epi32(x, 32 - Bits));
        }
    }
    static void write(__m256i words[16], std::size_t count, std::uint8_t* out) {
        transpose(words);
        transpose(words + 8);
        for (std::size_t block = 0; block < count; ++block) {
            auto* to = reinterpret_cast<__m256i*>(out + 64 * block);
            _mm256_storeu_si256(to, words[block]);
            _mm256_storeu_si256(to + 1, words[block + 8]);
        }
    }
};

struct Coins {
    static constexpr std::size_t kLanes = 4;

    static __m256i load(const std::uint8_t* in) { return _mm256_set_m128i(load_two(in + 12), load_two(in)); }
    static __m128i load_two(const std::uint8_t* in) {
        std::uint64_t low;
        std::uint32_t high;
        __builtin_memcpy(&low, in, sizeof(low));
        __builtin_memcpy(&high, in + 8, sizeof(high));
        const __m128i bytes =
            _mm_insert_epi32(_mm_cvtsi64_si128(static_cast<long long>(low)), static_cast<int>(high), 2);
        return _mm_shuffle_epi8(bytes, _mm_setr_epi8(0, 1, 2, 3, 4, 5, -1, -1, 6, 7, 8, 9, 10, 11, -1, -1));
    }
    static __m256i split(__m256i word) {
        constexpr std::uint64_t kCoins = (1 << 21) - 1;
        return _mm256_or_si256(Lanes::both(word, Lanes::all(kCoins)),
                               Lanes::both(_mm256_slli_epi64(word, 11), Lanes::all(kCoins << 32)));
    }
    // By halves of bytes.
    static __m256i count_ones(__m256i x) {
        const __m256i table =
            _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
        const __m256i nibble = _mm256_set1_epi8(15);
        const __m256i low = _mm256_shuffle_epi8(table, Lanes::both(x, nibble));
        const __m256i high = _mm256_shuffle_epi8(table, Lanes::both(_mm256_srli_epi16(x, 4), nibble));
        return _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_add_epi8(low, high), _mm256_set1_epi8(1)),
                                 _mm256_set1_epi16(1));
    }
    static void store(__m256i ones, std::int8_t* out) {
        const __m256i lowest = _mm256_setr_epi8(0, 8, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,  //
                                                0, 8, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
        const __m256i value = _mm256_shuffle_epi8(_mm256_sub_epi32(ones, _mm256_srli_epi64(ones, 32)), lowest);
        const auto low = static_cast<std::uint16_t>(_mm256_extract_epi16(value, 0));
        const auto high = static_cast<std::uint16_t>(_mm256_extract_epi16(value, 8));
        __builtin_memcpy(out, &low, sizeof(low));
        __builtin_memcpy(out + 2, &high, sizeof(high));
    }
};

struct Candidates : Lanes {
    static __m256i load32(const std::uint8_t* in) {
        return _mm256_cvtepu32_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in)));
    }
    static std::size_t keep_below(__m256i x, std::uint64_t q, std::uint64_t* out) {
        const int below = _mm256_movemask_pd(_mm256_castsi256_pd(_mm256_cmpgt_epi64(all(q), x)));
        if (below == 15) {
            store(out, x);
            return kLanes;
        }
        std::uint64_t lanes[kLanes];
        store(lanes, x);
        std::size_t kept = 0;
        for (std::size_t lane = 0; lane < kLanes; ++lane) {
            out[kept] = lanes[lane];
            kept += static_cast<std::size_t>(below >> lane & 1);
        }
        return kept;
    }
};

}  // namespace avx2

}  // namespace

const Streams kAvx2Streams = {vectorised::chacha20<avx2::Blocks>, vectorised::noise<avx2::Coins>,
                              vectorised::accept<avx2::Candidates>};

}  // namespace hesplit
