// Portable conversions between integers, residues and bits.
#include <algorithm>

#include "kernels/scalar/arithmetic.h"
#include "kernels/tables.h"

namespace hesplit {

namespace scalar {

namespace {

void lift(const Prime& q, const std::int64_t* values, std::uint64_t* out, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) {
        const auto negative = static_cast<std::uint64_t>(values[i] >> 63);  // all ones when negative
        const std::uint64_t magnitude = (static_cast<std::uint64_t>(values[i]) ^ negative) - negative;
        const std::uint64_t rest = subtract_once(magnitude - high(magnitude, q.ratio_high) * q.value, q.value);
        const std::uint64_t nonzero = std::uint64_t{0} - static_cast<std::uint64_t>(rest != 0);
        out[i] = (rest & ~negative) | ((q.value - rest) & negative & nonzero);
    }
}

void add_fraction(const Prime& q, std::uint64_t factor, const std::uint64_t* a, const std::uint64_t* before,
                  std::uint64_t added, int shift, std::uint64_t* out, std::size_t n) {
    const std::uint64_t quotient = shoup(factor, q.value);
    for (std::size_t i = 0; i < n; ++i) {
        const std::uint64_t t = subtract_once(multiply_lazy(a[i], factor, quotient, q.value), q.value);
        std::uint64_t sum = before == nullptr ? added : before[i] + added;
        if (q.bits <= kVectorPrimeBits) {
            sum += t * q.fraction_high + static_cast<std::uint64_t>((Wide{t} * q.fraction_low) >> 52);
        } else {
            sum += t * q.ratio_high + high(t, q.ratio_low);
        }
        out[i] = sum >> shift;
    }
}

void pack(const std::uint64_t* values, int bits, std::uint8_t* out, std::size_t n) {
    std::uint64_t pending = 0;
    int filled = 0;
    for (std::size_t i = 0; i < n; ++i) {
        pending |= values[i] << filled;
        filled += bits;
        if (filled >= 64) {
            store_le(out, pending, 8);
            out += 8;
            filled -= 64;
            pending = filled == 0 ? 0 : values[i] >> (bits - filled);
        }
    }
    store_le(out, pending, static_cast<std::size_t>(filled + 7) / 8);
}

std::uint64_t unpack(const std::uint8_t* in, int bits, std::uint64_t* values, std::size_t n) {
    const std::uint8_t* end = in + (n * static_cast<std::size_t>(bits) + 7) / 8;
    const std::uint64_t mask = (std::uint64_t{1} << bits) - 1;
    std::uint64_t pending = 0, largest = 0;
    int filled = 0;
    for (std::size_t i = 0; i < n; ++i) {
        std::uint64_t value = pending;
        if (filled < bits) {
            const std::size_t step = std::min<std::size_t>(8, static_cast<std::size_t>(end - in));
            const std::uint64_t word = load_le(in, step);
            in += step;
            value |= word << filled;
            const int used = bits - filled;
            pending = word >> used;
            filled = static_cast<int>(8 * step) - used;
        } else {
            pending >>= bits;
            filled -= bits;
        }
        values[i] = value & mask;
        largest = std::max(largest, values[i]);
    }
    return largest;
}

}  // namespace

}  // namespace scalar

const Conversions kScalarConversions = {scalar::lift, scalar::add_fraction};
const BitPacking kScalarBitPacking = {scalar::pack, scalar::unpack};

}  // namespace hesplit
