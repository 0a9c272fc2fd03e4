// Where pairs of packed values lie, for instruction sets that look bytes up within sixteen; see shared/products.h for
// the rules. Values of up to 56 bits are packed two at a time: such a pair lies in sixteen bytes wherever it begins.
#pragma once

#include "kernels/kernels.h"

namespace hesplit {

namespace {

namespace vectorised {

constexpr int kPairBits = 56;
constexpr std::size_t kPairs = 4, kPairBytes = 16;  // eight values fill whole bytes
constexpr std::uint8_t kNone = 255;                 // look-ups give 0 for it

// Where a pair lies in the bytes of eight packed values.
struct PairPlace {
    PairPlace(std::size_t pair, std::size_t bits)
        : byte(2 * pair * bits / 8),
          bit(2 * pair * bits % 8),
          second_byte((bit + bits) / 8),
          second_bit((bit + bits) % 8) {}

    std::size_t byte, bit;                // in which the first value begins
    std::size_t second_byte, second_bit;  // in which the second one begins; the byte from there
};

// What look-ups take each of sixteen bytes from.
struct PairSources {
    std::uint8_t bytes[kPairBytes];
};

// When unpacking: the bytes that each value begins in, side by side.
inline PairSources values_of(const PairPlace& place) {
    PairSources sources;
    for (std::size_t i = 0; i < kPairBytes; ++i) {
        sources.bytes[i] = static_cast<std::uint8_t>(i < 8 ? i : i - 8 + place.second_byte);
    }
    return sources;
}

// When packing: the bytes of the second value, which has the upper half of the pair.
inline PairSources second_of(const PairPlace& place) {
    PairSources sources;
    for (std::size_t i = 0; i < kPairBytes; ++i) {
        const bool within = i >= place.second_byte && i < place.second_byte + 8;
        sources.bytes[i] = within ? static_cast<std::uint8_t>(8 + i - place.second_byte) : kNone;
    }
    return sources;
}

// When packing: of the pair before, the byte that this one begins in.
inline PairSources joint_of(const PairPlace& place, const PairPlace& before) {
    PairSources sources;
    for (std::size_t i = 0; i < kPairBytes; ++i) {
        sources.bytes[i] = i == 0 && place.bit > 0 ? static_cast<std::uint8_t>(place.byte - before.byte) : kNone;
    }
    return sources;
}

// Whole registers are read and written, beyond a group's end: the last groups are left to the portable code.
inline bool pairs_fit(const PairPlace& last, std::size_t values, int bits) {
    return bits <= kPairBits && values / 8 * static_cast<std::size_t>(bits) >= last.byte + kPairBytes;
}

}  // namespace vectorised

}  // namespace

}  // namespace hesplit
