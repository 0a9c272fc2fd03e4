// Conversions between integers, residues and bits.
#include "kernels/neon/lanes.h"
#include "kernels/shared/doubles.h"
#include "kernels/shared/pairs.h"
#include "kernels/tables.h"

namespace hesplit {

namespace {

namespace neon {

// Halves of words as doubles, high * 2^31 + low, as of sums of products.
void lift(const Prime& prime, const std::int64_t* values, std::uint64_t* out, std::size_t n) {
    const vectorised::HalfSum<Doubles, 1>::Modulus modulus(prime);
    const Words half = Lanes::all((std::uint64_t{1} << 31) - 1);
    for (std::size_t i = 0; i < n; i += Lanes::kLanes) {
        const Words value = Lanes::load(values + i);
        const Doubles::Vector low = Doubles::to_double(Lanes::both(value, half));
        const Doubles::Vector high{vcvtq_f64_s64(vshrq_n_s64(vreinterpretq_s64_u64(value.low), 31)),
                                   vcvtq_f64_s64(vshrq_n_s64(vreinterpretq_s64_u64(value.high), 31))};
        Lanes::store(out + i, modulus.residue(high, low));
    }
}

using vectorised::kPairs, vectorised::PairPlace;

uint8x16_t look_up_table(const vectorised::PairSources& sources) {
    return load_as<uint8x16_t>(sources.bytes);
}

int64x2_t shifts_of(const PairPlace& place) {
    const int64x2_t shifts = {static_cast<std::int64_t>(place.bit), static_cast<std::int64_t>(place.second_bit)};
    return shifts;
}

void pack(const std::uint64_t* values, int bits, std::uint8_t* out, std::size_t n) {
    const auto size = static_cast<std::size_t>(bits);
    const PairPlace places[kPairs] = {{0, size}, {1, size}, {2, size}, {3, size}};
    uint8x16_t seconds[kPairs], joints[kPairs];
    int64x2_t shifts[kPairs];
    for (std::size_t pair = 0; pair < kPairs; ++pair) {
        seconds[pair] = look_up_table(vectorised::second_of(places[pair]));
        joints[pair] = look_up_table(vectorised::joint_of(places[pair], places[pair > 0 ? pair - 1 : 0]));
        shifts[pair] = shifts_of(places[pair]);
    }
    for (; vectorised::pairs_fit(places[kPairs - 1], n, bits); n -= 8, values += 8, out += size) {
        uint8x16_t packed = vdupq_n_u8(0);
        for (std::size_t pair = 0; pair < kPairs; ++pair) {
            const auto both = vshlq_u64(load_as<uint64x2_t>(values + 2 * pair), shifts[pair]);
            const auto bytes = vreinterpretq_u8_u64(both);
            const auto first = vreinterpretq_u8_u64(vcombine_u64(vget_low_u64(both), vdup_n_u64(0)));
            packed = vorrq_u8(vorrq_u8(first, vqtbl1q_u8(bytes, seconds[pair])), vqtbl1q_u8(packed, joints[pair]));
            store_as(out + places[pair].byte, packed);
        }
    }
    kScalarBitPacking.pack(values, bits, out, n);
}

std::uint64_t unpack(const std::uint8_t* in, int bits, std::uint64_t* values, std::size_t n) {
    const auto size = static_cast<std::size_t>(bits);
    const PairPlace places[kPairs] = {{0, size}, {1, size}, {2, size}, {3, size}};
    uint8x16_t sources[kPairs];
    int64x2_t shifts[kPairs];
    for (std::size_t pair = 0; pair < kPairs; ++pair) {
        sources[pair] = look_up_table(vectorised::values_of(places[pair]));
        shifts[pair] = vnegq_s64(shifts_of(places[pair]));
    }
    const uint64x2_t mask = vdupq_n_u64((std::uint64_t{1} << bits) - 1);
    uint64x2_t largest = vdupq_n_u64(0);
    for (; vectorised::pairs_fit(places[kPairs - 1], n, bits); n -= 8, values += 8, in += size) {
        for (std::size_t pair = 0; pair < kPairs; ++pair) {
            const auto bytes = vqtbl1q_u8(load_as<uint8x16_t>(in + places[pair].byte), sources[pair]);
            const auto both = vandq_u64(vshlq_u64(vreinterpretq_u64_u8(bytes), shifts[pair]), mask);
            store_as(values + 2 * pair, both);
            largest = vbslq_u64(vcgtq_u64(both, largest), both, largest);
        }
    }
    const std::uint64_t rest = kScalarBitPacking.unpack(in, bits, values, n);
    const std::uint64_t low = vgetq_lane_u64(largest, 0), high = vgetq_lane_u64(largest, 1);
    const std::uint64_t larger = low < high ? high : low;
    return rest < larger ? larger : rest;
}

}  // namespace neon

}  // namespace

decltype(Conversions::lift) const kNeonLift = neon::lift;
const BitPacking kNeonBitPacking = {neon::pack, neon::unpack};

}  // namespace hesplit
