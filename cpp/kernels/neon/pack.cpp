// Conversions between integers, residues and bits.
#include "kernels/neon/lanes.h"
#include "kernels/shared/doubles.h"
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

// Values are packed two at a time: up to 56 bits each, they lie in sixteen bytes wherever they begin.
constexpr int kPairBits = 56;
constexpr std::size_t kPairs = 4, kBytes = sizeof(uint8x16_t);  // eight values fill whole bytes
constexpr std::uint8_t kNone = 255;                             // table look-ups give 0 for it

// Where a pair lies in the bytes of eight packed values.
struct Place {
    Place(std::size_t pair, std::size_t bits)
        : byte(2 * pair * bits / 8),
          bit(2 * pair * bits % 8),
          second_byte((bit + bits) / 8),
          shifts{static_cast<std::int64_t>(bit), static_cast<std::int64_t>((bit + bits) % 8)} {}

    std::size_t byte, bit;    // in which the first value begins
    std::size_t second_byte;  // in which the second one begins, from there
    int64x2_t shifts;         // the bits at which they begin
};

template <class Source>
uint8x16_t look_up_table(Source source) {
    std::uint8_t places[kBytes];
    for (std::size_t i = 0; i < kBytes; ++i) {
        places[i] = static_cast<std::uint8_t>(source(i));
    }
    return load_as<uint8x16_t>(places);
}

// Whole registers are read and written, beyond a group's end: the last groups are left to the portable code.
bool fits(const Place& last, std::size_t values, int bits) {
    return values / 8 * static_cast<std::size_t>(bits) >= last.byte + kBytes;
}

void pack(const std::uint64_t* values, int bits, std::uint8_t* out, std::size_t n) {
    const auto size = static_cast<std::size_t>(bits);
    const Place places[kPairs] = {{0, size}, {1, size}, {2, size}, {3, size}};
    // Bytes of the second value; and of the pair before, of which the last byte may be this one's first.
    uint8x16_t seconds[kPairs], joints[kPairs];
    for (std::size_t pair = 0; pair < kPairs; ++pair) {
        const Place& place = places[pair];
        seconds[pair] = look_up_table([&](std::size_t i) {
            return i >= place.second_byte && i < place.second_byte + 8 ? 8 + i - place.second_byte : kNone;
        });
        joints[pair] = look_up_table(
            [&](std::size_t i) { return i == 0 && place.bit > 0 ? place.byte - places[pair - 1].byte : kNone; });
    }
    for (; bits <= kPairBits && fits(places[kPairs - 1], n, bits); n -= 8, values += 8, out += size) {
        uint8x16_t packed = vdupq_n_u8(0);
        for (std::size_t pair = 0; pair < kPairs; ++pair) {
            const auto both = vshlq_u64(load_as<uint64x2_t>(values + 2 * pair), places[pair].shifts);
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
    const Place places[kPairs] = {{0, size}, {1, size}, {2, size}, {3, size}};
    uint8x16_t sources[kPairs];
    for (std::size_t pair = 0; pair < kPairs; ++pair) {
        sources[pair] = look_up_table([&](std::size_t i) { return i < 8 ? i : i - 8 + places[pair].second_byte; });
    }
    const uint64x2_t mask = vdupq_n_u64((std::uint64_t{1} << bits) - 1);
    uint64x2_t largest = vdupq_n_u64(0);
    for (; bits <= kPairBits && fits(places[kPairs - 1], n, bits); n -= 8, values += 8, in += size) {
        for (std::size_t pair = 0; pair < kPairs; ++pair) {
            const auto bytes = vqtbl1q_u8(load_as<uint8x16_t>(in + places[pair].byte), sources[pair]);
            const auto both = vandq_u64(vshlq_u64(vreinterpretq_u64_u8(bytes), vnegq_s64(places[pair].shifts)), mask);
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
