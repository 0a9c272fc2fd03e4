// Conversions between integers, residues and bits.
#include "kernels/avx512ifma/lanes.h"
#include "kernels/tables.h"

namespace hesplit {

namespace {

namespace avx512ifma {

// Magnitudes in two limbs, high * 2^52 + low.
void lift(const Prime& prime, const std::int64_t* values, std::uint64_t* out, std::size_t n) {
    const Modulus modulus(prime);
    for (std::size_t i = 0; i < n; i += Lanes::kLanes) {
        const Vector value = _mm512_loadu_si512(values + i);
        const Vector magnitude = _mm512_abs_epi64(value);
        const Vector rest = modulus.reduce(_mm512_srli_epi64(magnitude, 52), _mm512_and_si512(magnitude, mask52()));
        const __mmask8 negative = _mm512_movepi64_mask(value);
        const Vector opposite = _mm512_maskz_sub_epi64(_mm512_test_epi64_mask(rest, rest), modulus.q, rest);
        Lanes::store(out + i, _mm512_mask_mov_epi64(rest, negative, opposite));
    }
}

void add_fraction(const Prime& prime, std::uint64_t factor, const std::uint64_t* a, const std::uint64_t* before,
                  std::uint64_t added, int shift, std::uint64_t* out, std::size_t n) {
    __extension__ typedef unsigned __int128 Wide;
    const Modulus modulus(prime);
    const Root root{Lanes::all(factor), Lanes::all(static_cast<std::uint64_t>((Wide{factor} << 52) / prime.value))};
    const Vector ratio_low = Lanes::all(prime.fraction_low), ratio_high = Lanes::all(prime.fraction_high);
    const Vector start = Lanes::all(added);
    const __m128i places = _mm_cvtsi32_si128(shift);
    for (std::size_t i = 0; i < n; i += Lanes::kLanes) {
        const Vector t = Lanes::subtract_once(modulus.multiply_lazy(Lanes::load(a + i), root), modulus.q);
        const Vector first = before == nullptr ? start : _mm512_add_epi64(Lanes::load(before + i), start);
        const Vector low = _mm512_madd52hi_epu64(_mm512_madd52lo_epu64(first, t, ratio_high), t, ratio_low);
        const Vector sum = _mm512_add_epi64(low, _mm512_slli_epi64(high52(t, ratio_high), 52));
        Lanes::store(out + i, _mm512_srl_epi64(sum, places));
    }
}

// For eight values of `bits` bits: which byte of the packed run each byte of a value begins in, and its bit there.
struct Places {
    alignas(kAlignment) std::uint8_t bytes[64];
    alignas(kAlignment) std::uint64_t shifts[Lanes::kLanes];
};

void pack(const std::uint64_t* values, int bits, std::uint8_t* out, std::size_t n) {
    if (bits > 56) {
        return kScalarBitPacking.pack(values, bits, out, n);
    }
    // Byte b of the run takes from the even and from the odd lanes at most one byte each: neighbours overlap in one.
    const auto size = static_cast<std::size_t>(bits);
    Places places;
    std::uint64_t used[2] = {0, 0};
    alignas(kAlignment) std::uint8_t from[2][64] = {};
    for (std::size_t lane = 0; lane < Lanes::kLanes; ++lane) {
        const std::size_t start = lane * size;
        places.shifts[lane] = start % 8;
        for (std::size_t byte = start / 8; 8 * byte < start + size; ++byte) {
            from[lane % 2][byte] = static_cast<std::uint8_t>(8 * lane + byte - start / 8);
            used[lane % 2] |= std::uint64_t{1} << byte;
        }
    }
    const Vector shifts = _mm512_load_si512(places.shifts);
    const Vector even = _mm512_load_si512(from[0]), odd = _mm512_load_si512(from[1]);
    const __mmask64 whole = ~std::uint64_t{0} >> (64 - size);
    for (std::size_t i = 0; i < n; i += Lanes::kLanes, out += size) {
        const Vector shifted = _mm512_sllv_epi64(Lanes::load(values + i), shifts);
        const Vector packed = _mm512_or_si512(_mm512_maskz_permutexvar_epi8(used[0], even, shifted),
                                              _mm512_maskz_permutexvar_epi8(used[1], odd, shifted));
        _mm512_mask_storeu_epi8(out, whole, packed);
    }
}

std::uint64_t unpack(const std::uint8_t* in, int bits, std::uint64_t* values, std::size_t n) {
    if (bits > 56) {
        return kScalarBitPacking.unpack(in, bits, values, n);
    }
    const auto size = static_cast<std::size_t>(bits);
    Places places;
    for (std::size_t lane = 0; lane < Lanes::kLanes; ++lane) {
        const std::size_t start = lane * size;
        places.shifts[lane] = start % 8;
        for (std::size_t byte = 0; byte < 8; ++byte) {
            places.bytes[8 * lane + byte] = static_cast<std::uint8_t>((start / 8 + byte) % 64);
        }
    }
    const Vector bytes = _mm512_load_si512(places.bytes), shifts = _mm512_load_si512(places.shifts);
    const Vector mask = Lanes::all((std::uint64_t{1} << bits) - 1);
    const __mmask64 whole = ~std::uint64_t{0} >> (64 - size);
    Vector largest = _mm512_setzero_si512();
    for (std::size_t i = 0; i < n; i += Lanes::kLanes, in += size) {
        const Vector packed = _mm512_maskz_loadu_epi8(whole, in);
        const Vector value = _mm512_and_si512(_mm512_srlv_epi64(_mm512_permutexvar_epi8(bytes, packed), shifts), mask);
        Lanes::store(values + i, value);
        largest = _mm512_max_epu64(largest, value);
    }
    return _mm512_reduce_max_epu64(largest);
}

}  // namespace avx512ifma

}  // namespace

const Conversions kAvx512IfmaConversions = {avx512ifma::lift, avx512ifma::add_fraction};
const BitPacking kAvx512IfmaBitPacking = {avx512ifma::pack, avx512ifma::unpack};

}  // namespace hesplit
