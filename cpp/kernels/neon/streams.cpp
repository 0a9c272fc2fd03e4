// Key streams, noise and rejection, four 32-bit or 64-bit words at a time.
#include "kernels/shared/streams.h"

#include "kernels/neon/lanes.h"
#include "kernels/tables.h"

namespace hesplit {

namespace {

namespace neon {

struct Blocks {
    using Vector = uint32x4_t;
    static constexpr std::size_t kCount = 4;

    static Vector all(std::uint32_t word) { return vdupq_n_u32(word); }
    static Vector numbers() { return Vector{0, 1, 2, 3}; }
    static Vector add(Vector a, Vector b) { return vaddq_u32(a, b); }
    static Vector exclusive_or(Vector a, Vector b) { return veorq_u32(a, b); }
    template <int Bits>
    static Vector rotate(Vector x) {
        if constexpr (Bits == 16) {
            return vreinterpretq_u32_u16(vrev32q_u16(vreinterpretq_u16_u32(x)));
        } else if constexpr (Bits == 8) {
            const uint8x16_t places = {3, 0, 1, 2, 7, 4, 5, 6, 11, 8, 9, 10, 15, 12, 13, 14};
            return vreinterpretq_u32_u8(vqtbl1q_u8(vreinterpretq_u8_u32(x), places));
        } else {
            return vsriq_n_u32(vshlq_n_u32(x, Bits), x, 32 - Bits);
        }
    }
    // Four words of each of four blocks at a time.
    static void write(const Vector words[16], std::size_t count, std::uint8_t* out) {
        for (std::size_t w = 0; w < 16; w += 4, out += 16) {
            const Vector a = vtrn1q_u32(words[w], words[w + 1]), b = vtrn2q_u32(words[w], words[w + 1]);
            const Vector c = vtrn1q_u32(words[w + 2], words[w + 3]), d = vtrn2q_u32(words[w + 2], words[w + 3]);
            const uint64x2_t blocks[kCount] = {
                vtrn1q_u64(vreinterpretq_u64_u32(a), vreinterpretq_u64_u32(c)),
                vtrn1q_u64(vreinterpretq_u64_u32(b), vreinterpretq_u64_u32(d)),
                vtrn2q_u64(vreinterpretq_u64_u32(a), vreinterpretq_u64_u32(c)),
                vtrn2q_u64(vreinterpretq_u64_u32(b), vreinterpretq_u64_u32(d)),
            };
            for (std::size_t block = 0; block < count; ++block) {
                store_as(out + 64 * block, blocks[block]);
            }
        }
    }
};

struct Coins {
    static constexpr std::size_t kLanes = Lanes::kLanes;

    static Words load(const std::uint8_t* in) {
        const uint8x16_t first = {0, 1, 2, 3, 4, 5, 255, 255, 6, 7, 8, 9, 10, 11, 255, 255};
        const uint8x16_t last = {4, 5, 6, 7, 8, 9, 255, 255, 10, 11, 12, 13, 14, 15, 255, 255};
        return {vreinterpretq_u64_u8(vqtbl1q_u8(load_as<uint8x16_t>(in), first)),
                vreinterpretq_u64_u8(vqtbl1q_u8(load_as<uint8x16_t>(in + 8), last))};
    }
    static Words split(Words word) { return {split(word.low), split(word.high)}; }
    static uint64x2_t split(uint64x2_t word) {
        const auto halves = vreinterpretq_u32_u64(vsliq_n_u64(word, vshrq_n_u64(word, 21), 32));
        return vreinterpretq_u64_u32(vandq_u32(halves, vdupq_n_u32((1 << 21) - 1)));
    }
    static Words count_ones(Words x) { return {count_ones(x.low), count_ones(x.high)}; }
    static uint64x2_t count_ones(uint64x2_t x) {
        return vreinterpretq_u64_u32(vpaddlq_u16(vpaddlq_u8(vcntq_u8(vreinterpretq_u8_u64(x)))));
    }
    static void store(Words ones, std::int8_t* out) {
        const uint32x4_t upper = vuzp2q_u32(vreinterpretq_u32_u64(ones.low), vreinterpretq_u32_u64(ones.high));
        const uint16x4_t difference = vmovn_u32(vsubq_u32(narrow(ones), upper));
        const uint8x8_t bytes = vmovn_u16(vcombine_u16(difference, difference));
        store_as(out, vget_lane_u32(vreinterpret_u32_u8(bytes), 0));
    }
};

struct Candidates : Lanes {
    static Words load32(const std::uint8_t* in) { return widen(load_as<uint32x4_t>(in)); }
    static std::size_t keep_below(Words x, std::uint64_t q, std::uint64_t* out) {
        const Words below{vcltq_u64(x.low, vdupq_n_u64(q)), vcltq_u64(x.high, vdupq_n_u64(q))};
        // Most primes are close to a power of two.
        if (__builtin_expect(vminvq_u32(narrow(below)) != 0, true)) {
            store(out, x);
            return kLanes;
        }
        std::uint64_t lanes[kLanes];
        store(lanes, x);
        std::size_t kept = 0;
        for (const std::uint64_t lane : lanes) {
            out[kept] = lane;
            kept += static_cast<std::size_t>(lane < q);
        }
        return kept;
    }
};

}  // namespace neon

}  // namespace

const Streams kNeonStreams = {vectorised::chacha20<neon::Blocks>, vectorised::noise<neon::Coins>,
                              vectorised::accept<neon::Candidates>};

}  // namespace hesplit
