// Conversions between integers, residues and bits.
#include "kernels/avx2/lanes.h"
#include "kernels/shared/doubles.h"
#include "kernels/shared/pairs.h"
#include "kernels/tables.h"

namespace hesplit {

namespace {

namespace avx2 {

// Halves of words as doubles, high * 2^31 + low, as of sums of products. There is no shift of signed words: 2^63 is
// added before it and 2^32 taken off the double, together with what makes it one.
void lift(const Prime& prime, const std::int64_t* values, std::uint64_t* out, std::size_t n) {
    const vectorised::HalfSum<Doubles, 1>::Modulus modulus(prime);
    const __m256i half = Lanes::all((std::uint64_t{1} << 31) - 1), offset = Lanes::all(std::uint64_t{1} << 63);
    const __m256i magic = _mm256_castpd_si256(Doubles::magic());
    const __m256d magic_offset = Doubles::all(0x1p52 + 0x1p32);
    for (std::size_t i = 0; i < n; i += Lanes::kLanes) {
        const __m256i value = Lanes::load(values + i);
        const __m256i high = Lanes::shift_right<31>(Lanes::add(value, offset));
        const __m256d signed_high = Doubles::subtract(_mm256_castsi256_pd(_mm256_or_si256(high, magic)), magic_offset);
        Lanes::store(out + i, modulus.residue(signed_high, Doubles::to_double(Lanes::both(value, half))));
    }
}

// For primes of up to kAvx2ProductBits bits: a remainder and its factors fit halves of words.
void add_fraction(const Prime& prime, std::uint64_t factor, const std::uint64_t* a, const std::uint64_t* before,
                  std::uint64_t added, int shift, std::uint64_t* out, std::size_t n) {
    const __m256i by = Lanes::all(factor), quotient = Lanes::all((factor << 32) / prime.value);
    const __m256i q = Lanes::all(prime.value), start = Lanes::all(added);
    const __m128i places = _mm_cvtsi32_si128(shift);
    const __m256i high_low = Lanes::all(prime.fraction_high), high_high = Lanes::all(prime.fraction_high >> 32);
    const __m256i low_low = Lanes::all(prime.fraction_low), low_high = Lanes::all(prime.fraction_low >> 32);
    for (std::size_t i = 0; i < n; i += Lanes::kLanes) {
        const __m256i x = Lanes::load(a + i);
        const __m256i rest =
            Lanes::subtract(_mm256_mul_epu32(x, by),
                            _mm256_mul_epu32(Lanes::shift_right<32>(_mm256_mul_epu32(x, quotient)), q));  // < 2q
        const __m256i t = _mm256_min_epu32(rest, _mm256_sub_epi32(rest, q));
        const __m256i high =
            Lanes::add(_mm256_mul_epu32(t, high_low), _mm256_slli_epi64(_mm256_mul_epu32(t, high_high), 32));
        const __m256i low =
            Lanes::add(_mm256_mul_epu32(t, low_high), Lanes::shift_right<32>(_mm256_mul_epu32(t, low_low)));
        const __m256i first = before == nullptr ? start : Lanes::add(Lanes::load(before + i), start);
        const __m256i sum = Lanes::add(Lanes::add(first, high), Lanes::shift_right<20>(low));
        Lanes::store(out + i, _mm256_srl_epi64(sum, places));
    }
}

using vectorised::kPairs, vectorised::PairPlace, vectorised::PairSources;

// Two pairs in a register.
struct Places {
    explicit Places(int bits)
        : size(static_cast<std::size_t>(bits)), pairs{{0, size}, {1, size}, {2, size}, {3, size}} {
        for (std::size_t half = 0; half < 2; ++half) {
            const PairPlace &first = pairs[2 * half], &second = pairs[2 * half + 1];
            shifts[half] = _mm256_setr_epi64x(as_signed(first.bit), as_signed(first.second_bit), as_signed(second.bit),
                                              as_signed(second.second_bit));
        }
    }
    static long long as_signed(std::size_t x) { return static_cast<long long>(x); }
    static __m256i look_up_table(const PairSources& first, const PairSources& second) {
        return load_two(first.bytes, second.bytes);
    }
    static __m256i load_two(const std::uint8_t* first, const std::uint8_t* second) {
        return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(first))),
                                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(second)), 1);
    }

    std::size_t size;
    PairPlace pairs[kPairs];
    __m256i shifts[2];
};

void store_two(std::uint8_t* first, std::uint8_t* second, __m256i x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(first), _mm256_castsi256_si128(x));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(second), _mm256_extracti128_si256(x, 1));
}

void pack(const std::uint64_t* values, int bits, std::uint8_t* out, std::size_t n) {
    const Places at(bits);
    const PairPlace* pairs = at.pairs;
    __m256i seconds[2], joints[2];
    for (std::size_t half = 0; half < 2; ++half) {
        const PairPlace &first = pairs[2 * half], &second = pairs[2 * half + 1];
        const PairPlace& before = pairs[half == 0 ? 0 : 1];
        seconds[half] = Places::look_up_table(vectorised::second_of(first), vectorised::second_of(second));
        joints[half] = Places::look_up_table(vectorised::joint_of(first, before), vectorised::joint_of(second, first));
    }
    const __m256i firsts = _mm256_setr_epi64x(-1, 0, -1, 0);
    // The last byte of a pair, of at least two, has nothing of the pair before.
    const auto joined = [&](__m256i values_of_two, std::size_t half) {
        return _mm256_or_si256(Lanes::both(values_of_two, firsts), _mm256_shuffle_epi8(values_of_two, seconds[half]));
    };
    for (; vectorised::pairs_fit(pairs[kPairs - 1], n, bits); n -= 8, values += 8, out += at.size) {
        const __m256i low = joined(_mm256_sllv_epi64(Lanes::load(values), at.shifts[0]), 0);
        const __m256i high = joined(_mm256_sllv_epi64(Lanes::load(values + 4), at.shifts[1]), 1);
        const __m256i before_low = _mm256_permute2x128_si256(low, low, 0x08);
        const __m256i before_high = _mm256_permute2x128_si256(low, high, 0x21);
        store_two(out, out + pairs[1].byte, _mm256_or_si256(low, _mm256_shuffle_epi8(before_low, joints[0])));
        store_two(out + pairs[2].byte, out + pairs[3].byte,
                  _mm256_or_si256(high, _mm256_shuffle_epi8(before_high, joints[1])));
    }
    kScalarBitPacking.pack(values, bits, out, n);
}

__m256i larger(__m256i a, __m256i b) {
    return _mm256_blendv_epi8(a, b, _mm256_cmpgt_epi64(b, a));
}

std::uint64_t unpack(const std::uint8_t* in, int bits, std::uint64_t* values, std::size_t n) {
    const Places at(bits);
    const PairPlace* pairs = at.pairs;
    __m256i sources[2], largest[2] = {Lanes::zero(), Lanes::zero()};
    for (std::size_t half = 0; half < 2; ++half) {
        sources[half] =
            Places::look_up_table(vectorised::values_of(pairs[2 * half]), vectorised::values_of(pairs[2 * half + 1]));
    }
    const __m256i mask = Lanes::all((std::uint64_t{1} << bits) - 1);
    for (; vectorised::pairs_fit(pairs[kPairs - 1], n, bits); n -= 8, values += 8, in += at.size) {
        for (std::size_t half = 0; half < 2; ++half) {
            const __m256i bytes = _mm256_shuffle_epi8(
                Places::load_two(in + pairs[2 * half].byte, in + pairs[2 * half + 1].byte), sources[half]);
            const __m256i four = Lanes::both(_mm256_srlv_epi64(bytes, at.shifts[half]), mask);
            Lanes::store(values + 4 * half, four);
            largest[half] = larger(largest[half], four);
        }
    }
    alignas(32) std::uint64_t lanes[Lanes::kLanes];
    Lanes::store(lanes, larger(largest[0], largest[1]));
    std::uint64_t most = kScalarBitPacking.unpack(in, bits, values, n);
    for (const std::uint64_t lane : lanes) {
        most = most < lane ? lane : most;
    }
    return most;
}

}  // namespace avx2

}  // namespace

decltype(Conversions::lift) const kAvx2Lift = avx2::lift;
decltype(Conversions::add_fraction) const kAvx2AddFraction = avx2::add_fraction;
const BitPacking kAvx2BitPacking = {avx2::pack, avx2::unpack};

}  // namespace hesplit
