// Four 64-bit words or doubles side by side, in two registers each: two hide the latency of one another, and the
// skeletons that four lanes need serve AVX2 as well. Every 64-bit ARM processor has NEON, so nothing here is compiled
// for an instruction set of its own; the order of bytes must be little-endian (cpp/CMakeLists.txt).
#pragma once

#include <arm_neon.h>

#include "kernels/kernels.h"

namespace hesplit {

namespace {

namespace neon {

// One register from any memory, whatever its type and alignment. Two at once, as a struct, would take a way over the
// stack.
template <class Vector>
Vector load_as(const void* in) {
    Vector x;
    __builtin_memcpy(&x, in, sizeof(x));
    return x;
}
template <class Vector>
void store_as(void* out, Vector x) {
    __builtin_memcpy(out, &x, sizeof(x));
}

struct Words {
    uint64x2_t low, high;
};

// The lower halves of four words.
inline uint32x4_t narrow(Words x) {
    return vuzp1q_u32(vreinterpretq_u32_u64(x.low), vreinterpretq_u32_u64(x.high));
}
inline Words widen(uint32x4_t x) {
    return {vmovl_u32(vget_low_u32(x)), vmovl_high_u32(x)};
}

struct Lanes {
    using Vector = Words;
    static constexpr std::size_t kLanes = 4;

    static Words load(const void* in) {
        const auto* bytes = static_cast<const std::uint8_t*>(in);
        return {load_as<uint64x2_t>(bytes), load_as<uint64x2_t>(bytes + sizeof(uint64x2_t))};
    }
    static void store(std::uint64_t* out, Words x) {
        store_as(out, x.low);
        store_as(out + 2, x.high);
    }
    static Words all(std::uint64_t value) { return {vdupq_n_u64(value), vdupq_n_u64(value)}; }
    static Words zero() { return all(0); }
    static Words add(Words a, Words b) { return {vaddq_u64(a.low, b.low), vaddq_u64(a.high, b.high)}; }
    static Words both(Words a, Words b) { return {vandq_u64(a.low, b.low), vandq_u64(a.high, b.high)}; }
    template <int Bits>
    static Words shift_right(Words x) {
        return {vshrq_n_u64(x.low, Bits), vshrq_n_u64(x.high, Bits)};
    }

    // Four words below 2^32 in one register: what add_product reads.
    static uint32x4_t load_halves(const std::uint32_t* in) { return load_as<uint32x4_t>(in); }
    static Words add_product(Words total, uint32x4_t x, Words y) {
        const uint32x4_t halves = narrow(y);
        return {vmlal_u32(total.low, vget_low_u32(x), vget_low_u32(halves)), vmlal_high_u32(total.high, x, halves)};
    }
    static Words add_product(Words total, Words x, Words y) { return add_product(total, narrow(x), y); }
    static std::uint64_t sum(Words x) { return vaddvq_u64(vaddq_u64(x.low, x.high)); }

    // Ternary factors.
    struct Signs {
        Words negative, nonzero;
    };
    static Signs signs(const std::uint64_t* sign, const std::uint64_t* nonzero) { return {load(sign), load(nonzero)}; }
    static Words add_ternary(Words total, Signs s, Words x) {
        return {add_ternary(total.low, s.negative.low, s.nonzero.low, x.low),
                add_ternary(total.high, s.negative.high, s.nonzero.high, x.high)};
    }
    static uint64x2_t add_ternary(uint64x2_t total, uint64x2_t negative, uint64x2_t nonzero, uint64x2_t x) {
        return vaddq_u64(total, vandq_u64(vsubq_u64(veorq_u64(x, negative), negative), nonzero));
    }
};

struct Doubles {
    using Lanes = neon::Lanes;
    struct Vector {
        float64x2_t low, high;
    };
    static constexpr std::size_t kLanes = Lanes::kLanes;

    static Vector load(const void* in) {
        const Words words = Lanes::load(in);
        return {vreinterpretq_f64_u64(words.low), vreinterpretq_f64_u64(words.high)};
    }
    static void store(void* out, Vector x) {
        store_as(out, x.low);
        store_as(static_cast<double*>(out) + 2, x.high);
    }
    static Vector all(double value) { return {vdupq_n_f64(value), vdupq_n_f64(value)}; }
    static Vector add(Vector a, Vector b) { return {vaddq_f64(a.low, b.low), vaddq_f64(a.high, b.high)}; }
    static Vector subtract(Vector a, Vector b) { return {vsubq_f64(a.low, b.low), vsubq_f64(a.high, b.high)}; }
    static Vector multiply(Vector a, Vector b) { return {vmulq_f64(a.low, b.low), vmulq_f64(a.high, b.high)}; }
    static Vector multiply_add(Vector a, Vector b, Vector c) {
        return {vfmaq_f64(c.low, a.low, b.low), vfmaq_f64(c.high, a.high, b.high)};
    }
    static Vector subtract_product(Vector c, Vector a, Vector b) {
        return {vfmsq_f64(c.low, a.low, b.low), vfmsq_f64(c.high, a.high, b.high)};
    }
    static Vector round(Vector x) { return {vrndnq_f64(x.low), vrndnq_f64(x.high)}; }
    static Vector add_if_negative(Vector x, Vector q) {
        return {add_if_negative(x.low, q.low), add_if_negative(x.high, q.high)};
    }
    static float64x2_t add_if_negative(float64x2_t x, float64x2_t q) {
        return vaddq_f64(x, vreinterpretq_f64_u64(vandq_u64(vcltzq_f64(x), vreinterpretq_u64_f64(q))));
    }
    static Vector to_double(Words x) { return {vcvtq_f64_u64(x.low), vcvtq_f64_u64(x.high)}; }
    static Words to_integer(Vector x) { return {vcvtq_u64_f64(x.low), vcvtq_u64_f64(x.high)}; }

    static Vector twice(const std::uint64_t* in) {
        const auto pair = load_as<float64x2_t>(in);
        return {vdupq_laneq_f64(pair, 0), vdupq_laneq_f64(pair, 1)};
    }
    static void sort2(Vector& x, Vector& y) {
        const float64x2_t upper = x.high;
        x.high = y.low;
        y.low = upper;
    }
    static void sort1(Vector& x, Vector& y) {
        const Vector even{vtrn1q_f64(x.low, y.low), vtrn1q_f64(x.high, y.high)};
        y = {vtrn2q_f64(x.low, y.low), vtrn2q_f64(x.high, y.high)};
        x = even;
    }
};

}  // namespace neon

}  // namespace

}  // namespace hesplit
