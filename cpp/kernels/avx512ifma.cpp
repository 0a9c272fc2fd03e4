// AVX-512 kernels for primes below 2^50: products of 52-bit integers (IFMA), eight to a register.
//
// This file alone is compiled for AVX-512, so it must not instantiate anything that other files share: only intrinsics
// and functions of its own.
#include <immintrin.h>

#include "kernels/kernels.h"

namespace hesplit {

namespace {

using Vector = __m512i;
constexpr std::size_t kLanes = 8;

Vector load(const std::uint64_t* in) {
    return _mm512_loadu_si512(in);
}
void store(std::uint64_t* out, Vector value) {
    _mm512_storeu_si512(out, value);
}
Vector all(std::uint64_t value) {
    return _mm512_set1_epi64(static_cast<long long>(value));
}
Vector mask52() {
    return all((std::uint64_t{1} << 52) - 1);
}
Vector low52(Vector a, Vector b) {
    return _mm512_madd52lo_epu64(_mm512_setzero_si512(), a, b);
}
Vector high52(Vector a, Vector b) {
    return _mm512_madd52hi_epu64(_mm512_setzero_si512(), a, b);
}
// The sum of the lanes modulo 2^64. (The intrinsic adds signed numbers, which must not overflow.)
std::uint64_t sum_lanes(Vector x) {
    alignas(kAlignment) std::uint64_t lanes[kLanes];
    _mm512_store_si512(lanes, x);
    std::uint64_t sum = 0;
    for (const std::uint64_t lane : lanes) {
        sum += lane;
    }
    return sum;
}
// x - q when x >= q, for x < 2q.
Vector subtract_once(Vector x, Vector q) {
    return _mm512_min_epu64(x, _mm512_sub_epi64(x, q));
}

struct Root {
    Vector value, quotient;  // quotient = floor(value * 2^52 / q)
};

// y * root mod q in [0, 2q), for y < 2^52; `minus` is 2^52 - q.
Vector multiply_lazy(Vector y, Root root, Vector minus) {
    const Vector quotient = high52(y, root.quotient);
    return _mm512_and_si512(_mm512_madd52lo_epu64(low52(y, root.value), quotient, minus), mask52());
}

// x mod q in [0, 2q), for x < 2^52; ratio = floor(2^52 / q).
Vector reduce_lazy(Vector x, Vector ratio, Vector q) {
    return _mm512_sub_epi64(x, low52(high52(x, ratio), q));
}

struct Modulus {
    explicit Modulus(const Prime& prime)
        : q(all(prime.value)),
          minus(all((std::uint64_t{1} << 52) - prime.value)),
          twice(all(2 * prime.value)),
          ratio(all(prime.ratio52)),
          power{all(prime.power52), all(prime.power52_quotient)} {}

    // high * 2^52 + low mod q, for high < 2^52 - 2^12 and any low.
    Vector reduce(Vector high, Vector low) const {
        high = _mm512_add_epi64(high, _mm512_srli_epi64(low, 52));
        low = _mm512_and_si512(low, mask52());
        const Vector sum = _mm512_add_epi64(multiply_lazy(high, power, minus), reduce_lazy(low, ratio, q));  // < 4q
        return subtract_once(subtract_once(sum, twice), q);
    }

    Vector q, minus, twice, ratio;
    Root power;  // 2^52
};

void prepare(NttTable& table) {
    if (table.prime.bits > kVectorPrimeBits) {
        return kScalarKernels.prepare(table);
    }
    __extension__ typedef unsigned __int128 Wide;
    for (std::size_t i = 0; i < table.degree; ++i) {
        table.quotients[i] = static_cast<std::uint64_t>((Wide{table.roots[i]} << 52) / table.prime.value);
        table.inverse_quotients[i] =
            static_cast<std::uint64_t>((Wide{table.inverse_roots[i]} << 52) / table.prime.value);
    }
}

Root broadcast(const std::uint64_t* roots, const std::uint64_t* quotients, std::size_t i) {
    return {all(roots[i]), all(quotients[i])};
}

// The roots of the last three levels, whose butterflies lie within 16 neighbouring residues, lane by lane.
Vector spread2(const std::uint64_t* in) {
    const __m128i two = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in));
    return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 0, 0, 0, 1, 1, 1, 1), _mm512_castsi128_si512(two));
}
Vector spread4(const std::uint64_t* in) {
    const __m256i four = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in));
    return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 0, 2, 2, 1, 1, 3, 3), _mm512_castsi256_si512(four));
}
Vector spread8(const std::uint64_t* in) {
    return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 1, 4, 5, 2, 3, 6, 7), load(in));
}

struct Pair {
    Vector x, y;
};

// Sixteen residues in two registers, sorted into the two sides of the butterflies with gap 4, then 2, then 1; and back.
// Each of the first three undoes itself.
Pair sort4(Pair v) {
    return {_mm512_shuffle_i64x2(v.x, v.y, 0x44), _mm512_shuffle_i64x2(v.x, v.y, 0xee)};
}
Pair sort2(Pair v) {
    return {_mm512_shuffle_i64x2(v.x, v.y, 0x88), _mm512_shuffle_i64x2(v.x, v.y, 0xdd)};
}
Pair sort1(Pair v) {
    return {_mm512_unpacklo_epi64(v.x, v.y), _mm512_unpackhi_epi64(v.x, v.y)};
}
Pair unsort(Pair v) {
    return {_mm512_permutex2var_epi64(v.x, _mm512_setr_epi64(0, 8, 1, 9, 4, 12, 5, 13), v.y),
            _mm512_permutex2var_epi64(v.x, _mm512_setr_epi64(2, 10, 3, 11, 6, 14, 7, 15), v.y)};
}
// The inverse of `unsort`.
Pair sort_all(Pair v) {
    return {_mm512_permutex2var_epi64(v.x, _mm512_setr_epi64(0, 2, 8, 10, 4, 6, 12, 14), v.y),
            _mm512_permutex2var_epi64(v.x, _mm512_setr_epi64(1, 3, 9, 11, 5, 7, 13, 15), v.y)};
}
// The inverse of `sort2`.
Pair unsort2(Pair v) {
    return {_mm512_permutex2var_epi64(v.x, _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), v.y),
            _mm512_permutex2var_epi64(v.x, _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15), v.y)};
}

// Cooley-Tukey. With Lazy, x is never reduced: it grows by 2q a level, and (2 * 16 + 2) q < 2^52 holds for q < 2^46.
template <bool Lazy>
struct Forward {
    Vector minus, twice;

    void operator()(Vector& x, Vector& y, Root root) const {
        const Vector u = Lazy ? x : subtract_once(x, twice);
        const Vector v = multiply_lazy(y, root, minus);
        x = _mm512_add_epi64(u, v);
        y = _mm512_add_epi64(u, _mm512_sub_epi64(twice, v));
    }
};

template <bool Lazy>
void forward_levels(const NttTable& table, std::uint64_t* a) {
    const Modulus modulus(table.prime);
    const Forward<Lazy> butterfly{modulus.minus, modulus.twice};
    const std::uint64_t* roots = table.roots;
    const std::uint64_t* quotients = table.quotients;
    const std::size_t n = table.degree;
    std::size_t groups = 1, gap = n / 2;
    // The levels with gaps of 8 and more, two at a time; one alone first if their number is odd.
    std::size_t levels = 0;
    for (std::size_t g = gap; g >= kLanes; g /= 2) {
        ++levels;
    }
    if (levels % 2 == 1) {
        const Root root = broadcast(roots, quotients, 1);
        for (std::size_t i = 0; i < gap; i += kLanes) {
            Vector x = load(a + i), y = load(a + gap + i);
            butterfly(x, y, root);
            store(a + i, x);
            store(a + gap + i, y);
        }
        groups *= 2, gap /= 2;
    }
    for (; gap >= 2 * kLanes; groups *= 4, gap /= 4) {
        const std::size_t quarter = gap / 2;
        for (std::size_t g = 0; g < groups; ++g) {
            const Root first = broadcast(roots, quotients, groups + g);
            const Root left = broadcast(roots, quotients, 2 * (groups + g));
            const Root right = broadcast(roots, quotients, 2 * (groups + g) + 1);
            std::uint64_t* p = a + 2 * g * gap;
            for (std::size_t i = 0; i < quarter; i += kLanes) {
                Vector v0 = load(p + i), v1 = load(p + quarter + i);
                Vector v2 = load(p + gap + i), v3 = load(p + gap + quarter + i);
                butterfly(v0, v2, first);
                butterfly(v1, v3, first);
                butterfly(v0, v1, left);
                butterfly(v2, v3, right);
                store(p + i, v0);
                store(p + quarter + i, v1);
                store(p + gap + i, v2);
                store(p + gap + quarter + i, v3);
            }
        }
    }
    for (std::size_t k = 0; k < n / 16; ++k) {
        Pair v = sort4({load(a + 16 * k), load(a + 16 * k + 8)});
        const std::size_t fourth = n / 8 + 2 * k, second = n / 4 + 4 * k, last = n / 2 + 8 * k;
        butterfly(v.x, v.y, {spread2(roots + fourth), spread2(quotients + fourth)});
        v = sort2(v);
        butterfly(v.x, v.y, {spread4(roots + second), spread4(quotients + second)});
        v = sort1(v);
        butterfly(v.x, v.y, {spread8(roots + last), spread8(quotients + last)});
        v = unsort(v);
        for (Vector* half : {&v.x, &v.y}) {
            const Vector small =
                Lazy ? reduce_lazy(*half, modulus.ratio, modulus.q) : subtract_once(*half, modulus.twice);
            store(a + 16 * k + (half == &v.y ? 8 : 0), subtract_once(small, modulus.q));
        }
    }
}

void forward(const NttTable& table, std::uint64_t* residues) {
    if (table.prime.bits > kVectorPrimeBits) {
        return kScalarKernels.forward(table, residues);
    }
    return table.prime.bits <= 46 ? forward_levels<true>(table, residues) : forward_levels<false>(table, residues);
}

// Gentleman-Sande. With Lazy, x is never reduced: below 2q at first, it doubles with each level; `bound` is a multiple
// of q that no y exceeds. N * 2q < 2^52 must hold.
template <bool Lazy>
struct Inverse {
    Vector minus, twice;
    Vector bound;

    void operator()(Vector& x, Vector& y, Root root) const {
        const Vector sum = _mm512_add_epi64(x, y);
        const Vector difference = _mm512_add_epi64(x, _mm512_sub_epi64(Lazy ? bound : twice, y));
        x = Lazy ? sum : subtract_once(sum, twice);
        y = multiply_lazy(difference, root, minus);
    }
    void next_level() {
        if (Lazy) {
            bound = _mm512_add_epi64(bound, bound);
        }
    }
};

template <bool Lazy>
void inverse_levels(const NttTable& table, std::uint64_t* a) {
    const Modulus modulus(table.prime);
    Inverse<Lazy> level{modulus.minus, modulus.twice, modulus.q};
    const std::uint64_t* roots = table.inverse_roots;
    const std::uint64_t* quotients = table.inverse_quotients;
    const std::size_t n = table.degree;
    {
        Inverse<Lazy> level2 = level;
        level2.next_level();
        Inverse<Lazy> level4 = level2;
        level4.next_level();
        for (std::size_t k = 0; k < n / 16; ++k) {
            Pair v = sort_all({load(a + 16 * k), load(a + 16 * k + 8)});
            const std::size_t fourth = n / 8 + 2 * k, second = n / 4 + 4 * k, last = n / 2 + 8 * k;
            level(v.x, v.y, {spread8(roots + last), spread8(quotients + last)});
            v = sort1(v);
            level2(v.x, v.y, {spread4(roots + second), spread4(quotients + second)});
            v = unsort2(v);
            level4(v.x, v.y, {spread2(roots + fourth), spread2(quotients + fourth)});
            v = sort4(v);
            store(a + 16 * k, v.x);
            store(a + 16 * k + 8, v.y);
        }
        level = level4;
        level.next_level();
    }
    std::size_t groups = n / 16, gap = kLanes;
    // Two levels at a time, while more than the last one is left after them.
    for (; groups > 2; groups /= 4, gap *= 4) {
        Inverse<Lazy> outer = level;
        outer.next_level();
        for (std::size_t g = 0; g < groups / 2; ++g) {
            const Root left = broadcast(roots, quotients, groups + 2 * g);
            const Root right = broadcast(roots, quotients, groups + 2 * g + 1);
            const Root last = broadcast(roots, quotients, groups / 2 + g);
            std::uint64_t* p = a + 4 * g * gap;
            for (std::size_t i = 0; i < gap; i += kLanes) {
                Vector v0 = load(p + i), v1 = load(p + gap + i);
                Vector v2 = load(p + 2 * gap + i), v3 = load(p + 3 * gap + i);
                level(v0, v1, left);
                level(v2, v3, right);
                outer(v0, v2, last);
                outer(v1, v3, last);
                store(p + i, v0);
                store(p + gap + i, v1);
                store(p + 2 * gap + i, v2);
                store(p + 3 * gap + i, v3);
            }
        }
        level = outer;
        level.next_level();
    }
    if (groups == 2) {
        for (std::size_t g = 0; g < 2; ++g) {
            const Root root = broadcast(roots, quotients, 2 + g);
            std::uint64_t* p = a + 2 * g * gap;
            for (std::size_t i = 0; i < gap; i += kLanes) {
                Vector x = load(p + i), y = load(p + gap + i);
                level(x, y, root);
                store(p + i, x);
                store(p + gap + i, y);
            }
        }
        gap *= 2;
        level.next_level();
    }
    const Root sum_root = broadcast(roots, quotients, 0), difference_root = broadcast(roots, quotients, 1);
    const Vector bound = Lazy ? level.bound : modulus.twice;
    for (std::size_t i = 0; i < gap; i += kLanes) {
        const Vector x = load(a + i), y = load(a + gap + i);
        const Vector sum = multiply_lazy(_mm512_add_epi64(x, y), sum_root, modulus.minus);
        const Vector difference =
            multiply_lazy(_mm512_add_epi64(x, _mm512_sub_epi64(bound, y)), difference_root, modulus.minus);
        store(a + i, subtract_once(sum, modulus.q));
        store(a + gap + i, subtract_once(difference, modulus.q));
    }
}

void inverse(const NttTable& table, std::uint64_t* residues) {
    if (table.prime.bits > kVectorPrimeBits) {
        return kScalarKernels.inverse(table, residues);
    }
    int levels = 0;
    for (std::size_t n = table.degree; n > 1; n /= 2) {
        ++levels;
    }
    return table.prime.bits + levels + 1 <= 52 ? inverse_levels<true>(table, residues)
                                               : inverse_levels<false>(table, residues);
}

void multiply(const Prime& prime, const std::uint64_t* a, const std::uint64_t* b, std::uint64_t* out, std::size_t n) {
    if (prime.bits > kVectorPrimeBits) {
        return kScalarKernels.multiply(prime, a, b, out, n);
    }
    const Modulus modulus(prime);
    for (std::size_t i = 0; i < n; i += kLanes) {
        const Vector x = load(a + i), y = load(b + i);
        store(out + i, modulus.reduce(high52(x, y), low52(x, y)));
    }
}

// Sums of products in two limbs: each product adds less than 2^52 to the low and less than 2^48 to the high one, so
// 2^kLazyTerms of them leave high below 2^58; between such runs the sum is reduced.
struct Sum {
    Vector high = _mm512_setzero_si512(), low = _mm512_setzero_si512();

    void add(Vector a, Vector b) {
        high = _mm512_madd52hi_epu64(high, a, b);
        low = _mm512_madd52lo_epu64(low, a, b);
    }
};

// Products that keep the high limb below 2^52 - 2^12 for Modulus::reduce: high < terms * 2^(2 bits - 52).
std::size_t lazy_terms(const Prime& prime) {
    const int spare = 103 - 2 * prime.bits;
    return std::size_t{1} << (spare < kLazyTerms ? spare : kLazyTerms);
}

void dot(const Prime& prime, Rows a, Rows b, std::size_t terms, std::uint64_t* out, std::size_t n) {
    if (prime.bits > kVectorPrimeBits) {
        return kScalarKernels.dot(prime, a, b, terms, out, n);
    }
    const Modulus modulus(prime);
    const std::size_t lazy = lazy_terms(prime);
    for (std::size_t i = 0; i < n; i += 2 * kLanes) {
        Sum first, second;
        for (std::size_t j = 0; j < terms;) {
            const std::size_t stop = j + lazy < terms ? j + lazy : terms;
            for (; j < stop; ++j) {
                const std::uint64_t* x = a[j] + i;
                const std::uint64_t* y = b[j] + i;
                // Rotation keys come from beyond the second cache, and the hardware stops at the end of each page.
                _mm_prefetch(reinterpret_cast<const char*>(y + 192), _MM_HINT_T0);
                _mm_prefetch(reinterpret_cast<const char*>(y + 200), _MM_HINT_T0);
                first.add(load(x), load(y));
                second.add(load(x + kLanes), load(y + kLanes));
            }
            if (j < terms) {
                first.low = modulus.reduce(first.high, first.low);
                second.low = modulus.reduce(second.high, second.low);
                first.high = second.high = _mm512_setzero_si512();
            }
        }
        store(out + i, modulus.reduce(first.high, first.low));
        store(out + i + kLanes, modulus.reduce(second.high, second.low));
    }
}

std::uint64_t inner(const Prime& prime, const std::uint64_t* const* a, const std::uint64_t* const* b,
                    std::size_t segments, std::size_t n) {
    if (prime.bits > kVectorPrimeBits) {
        return kScalarKernels.inner(prime, a, b, segments, n);
    }
    const Modulus modulus(prime);
    const std::size_t lazy = lazy_terms(prime);
    std::size_t pending = 0;
    Sum sum;
    for (std::size_t j = 0; j < segments; ++j) {
        for (std::size_t i = 0; i < n; i += kLanes) {
            if (pending == lazy) {
                sum.low = modulus.reduce(sum.high, sum.low);
                sum.high = _mm512_setzero_si512();
                pending = 0;
            }
            sum.add(load(a[j] + i), load(b[j] + i));
            ++pending;
        }
    }
    // Eight residues below 2^50 add up to less than 2^53.
    const auto total = sum_lanes(modulus.reduce(sum.high, sum.low));
    return total % prime.value;
}

// Outputs and vectors of coefficients that are summed side by side: 2 * 4 * 2 accumulators stay in registers.
// Matrix products go by tiles of two vectors and so many outputs that their sums fill the registers. Products of
// residues below 2^26 have no high limb: half the work, and twice the outputs.
template <bool Narrow>
constexpr std::size_t kTileOutputs = Narrow ? 12 : 6;

// Adds `terms` products to out[o][at, ...], or overwrites it. `tile` holds 2 * kLanes residues for every term.
template <bool Narrow, std::size_t Outputs>
void combine_tile(const Modulus& modulus, std::size_t lazy, const std::uint64_t* tile, std::size_t terms,
                  const std::uint64_t* scalars, std::size_t stride, bool overwrite, std::uint64_t* const* out,
                  std::size_t at) {
    Vector low[Outputs][2], high[Outputs][2];
    for (std::size_t o = 0; o < Outputs; ++o) {
        for (std::size_t half = 0; half < 2; ++half) {
            low[o][half] = overwrite ? _mm512_setzero_si512() : load(out[o] + at + half * kLanes);
            high[o][half] = _mm512_setzero_si512();
        }
    }
    for (std::size_t j = 0; j < terms;) {
        const std::size_t stop = j + lazy < terms ? j + lazy : terms;
        for (; j < stop; ++j) {
            const Vector x0 = load(tile + 2 * kLanes * j), x1 = load(tile + 2 * kLanes * j + kLanes);
            for (std::size_t o = 0; o < Outputs; ++o) {
                const Vector scalar = all(scalars[o * stride + j]);
                low[o][0] = _mm512_madd52lo_epu64(low[o][0], x0, scalar);
                low[o][1] = _mm512_madd52lo_epu64(low[o][1], x1, scalar);
                if (!Narrow) {
                    high[o][0] = _mm512_madd52hi_epu64(high[o][0], x0, scalar);
                    high[o][1] = _mm512_madd52hi_epu64(high[o][1], x1, scalar);
                }
            }
        }
        if (j < terms) {
            for (std::size_t o = 0; o < Outputs; ++o) {
                for (std::size_t half = 0; half < 2; ++half) {
                    low[o][half] = modulus.reduce(high[o][half], low[o][half]);
                    high[o][half] = _mm512_setzero_si512();
                }
            }
        }
    }
    for (std::size_t o = 0; o < Outputs; ++o) {
        for (std::size_t half = 0; half < 2; ++half) {
            store(out[o] + at + half * kLanes, modulus.reduce(high[o][half], low[o][half]));
        }
    }
}

template <bool Narrow>
void combine_all(const Prime& prime, Rows a, std::size_t terms, const std::uint64_t* scalars, std::size_t outputs,
                 std::uint64_t* const* out, std::size_t n) {
    constexpr std::size_t kOutputs = kTileOutputs<Narrow>;
    constexpr std::size_t kTerms = 384;  // a tile of them fits the first-level cache
    const Modulus modulus(prime);
    const std::size_t lazy = lazy_terms(prime) - 1;  // a sum so far counts as a term
    alignas(64) std::uint64_t tile[kTerms * 2 * kLanes];
    for (std::size_t at = 0; at < n; at += 2 * kLanes) {
        for (std::size_t first = 0; first == 0 || first < terms; first += kTerms) {
            const std::size_t count = terms - first < kTerms ? terms - first : kTerms;
            for (std::size_t j = 0; j < count; ++j) {
                const std::uint64_t* row = a[first + j] + at;
                store(tile + 2 * kLanes * j, load(row));
                store(tile + 2 * kLanes * j + kLanes, load(row + kLanes));
                // The next tile, which takes a page for every term: too far apart for the processor to foresee.
                _mm_prefetch(row + 2 * kLanes, _MM_HINT_T1);
                _mm_prefetch(row + 3 * kLanes, _MM_HINT_T1);
            }
            std::size_t o = 0;
            for (; o + kOutputs <= outputs; o += kOutputs) {
                combine_tile<Narrow, kOutputs>(modulus, lazy, tile, count, scalars + o * terms + first, terms,
                                               first == 0, out + o, at);
            }
            for (; o < outputs; ++o) {
                combine_tile<Narrow, 1>(modulus, lazy, tile, count, scalars + o * terms + first, terms, first == 0,
                                        out + o, at);
            }
        }
    }
}

void combine(const Prime& prime, Rows a, std::size_t terms, const std::uint64_t* scalars, std::size_t outputs,
             std::uint64_t* const* out, std::size_t n) {
    if (prime.bits > kVectorPrimeBits) {
        return kScalarKernels.combine(prime, a, terms, scalars, outputs, out, n);
    }
    return prime.bits <= 26 ? combine_all<true>(prime, a, terms, scalars, outputs, out, n)
                            : combine_all<false>(prime, a, terms, scalars, outputs, out, n);
}

void add(std::uint64_t q, std::uint64_t* a, const std::uint64_t* b, std::size_t n) {
    for (std::size_t i = 0; i < n; i += kLanes) {
        store(a + i, subtract_once(_mm512_add_epi64(load(a + i), load(b + i)), all(q)));
    }
}

void subtract_from(std::uint64_t q, std::uint64_t* a, const std::uint64_t* b, std::size_t n) {
    for (std::size_t i = 0; i < n; i += kLanes) {
        const Vector difference = _mm512_sub_epi64(load(b + i), load(a + i));
        store(a + i, _mm512_min_epu64(difference, _mm512_add_epi64(difference, all(q))));
    }
}

void negate(std::uint64_t q, const std::uint64_t* a, std::uint64_t* out, std::size_t n) {
    for (std::size_t i = 0; i < n; i += kLanes) {
        const Vector x = load(a + i);
        store(out + i, _mm512_min_epu64(_mm512_sub_epi64(_mm512_setzero_si512(), x), _mm512_sub_epi64(all(q), x)));
    }
}

void add_small(std::uint64_t q, std::uint64_t* a, const std::int8_t* small, std::size_t n) {
    for (std::size_t i = 0; i < n; i += kLanes) {
        const Vector value = _mm512_cvtepi8_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(small + i)));
        const Vector residue = _mm512_min_epu64(value, _mm512_add_epi64(value, all(q)));
        store(a + i, subtract_once(_mm512_add_epi64(load(a + i), residue), all(q)));
    }
}

// In two limbs, |value| = high * 2^31 + low, both exact in 52 bits.
void lift(const Prime& prime, const std::int64_t* values, std::uint64_t* out, std::size_t n) {
    if (prime.bits > kVectorPrimeBits) {
        return kScalarKernels.lift(prime, values, out, n);
    }
    const Modulus modulus(prime);
    for (std::size_t i = 0; i < n; i += kLanes) {
        const Vector value = _mm512_loadu_si512(values + i);
        const Vector magnitude = _mm512_abs_epi64(value);
        const Vector rest = modulus.reduce(_mm512_srli_epi64(magnitude, 52), _mm512_and_si512(magnitude, mask52()));
        const __mmask8 negative = _mm512_movepi64_mask(value);
        const Vector opposite = _mm512_maskz_sub_epi64(_mm512_test_epi64_mask(rest, rest), modulus.q, rest);
        store(out + i, _mm512_mask_mov_epi64(rest, negative, opposite));
    }
}

void add_fraction(const Prime& prime, std::uint64_t factor, const std::uint64_t* a, std::uint64_t* fractions,
                  std::size_t n) {
    if (prime.bits > kVectorPrimeBits) {
        return kScalarKernels.add_fraction(prime, factor, a, fractions, n);
    }
    __extension__ typedef unsigned __int128 Wide;
    const Vector q = all(prime.value), minus = all((std::uint64_t{1} << 52) - prime.value);
    const Root root{all(factor), all(static_cast<std::uint64_t>((Wide{factor} << 52) / prime.value))};
    const Vector ratio_low = all(prime.fraction_low), ratio_high = all(prime.fraction_high);
    for (std::size_t i = 0; i < n; i += kLanes) {
        const Vector t = subtract_once(multiply_lazy(load(a + i), root, minus), q);
        const Vector low =
            _mm512_madd52hi_epu64(_mm512_madd52lo_epu64(load(fractions + i), t, ratio_high), t, ratio_low);
        store(fractions + i, _mm512_add_epi64(low, _mm512_slli_epi64(high52(t, ratio_high), 52)));
    }
}

// Four windows at a time share the masks.
template <std::size_t Windows>
void ternary_dot_tile(const std::uint64_t* sign, const std::uint64_t* nonzero, const std::uint64_t* const* windows,
                      std::uint64_t* out, std::size_t n) {
    Vector sums[Windows];
    for (Vector& sum : sums) {
        sum = _mm512_setzero_si512();
    }
    for (std::size_t i = 0; i < n; i += kLanes) {
        const __mmask8 negative = _mm512_movepi64_mask(load(sign + i));
        const __mmask8 positive = _mm512_movepi64_mask(_mm512_andnot_si512(load(sign + i), load(nonzero + i)));
        for (std::size_t p = 0; p < Windows; ++p) {
            const Vector value = load(windows[p] + i);
            sums[p] = _mm512_mask_add_epi64(sums[p], positive, sums[p], value);
            sums[p] = _mm512_mask_sub_epi64(sums[p], negative, sums[p], value);
        }
    }
    for (std::size_t p = 0; p < Windows; ++p) {
        out[p] = sum_lanes(sums[p]);
    }
}

void ternary_dot(const std::uint64_t* sign, const std::uint64_t* nonzero, const std::uint64_t* const* windows,
                 std::size_t count, std::uint64_t* out, std::size_t n) {
    std::size_t p = 0;
    for (; p + 4 <= count; p += 4) {
        ternary_dot_tile<4>(sign, nonzero, windows + p, out + p, n);
    }
    for (; p < count; ++p) {
        ternary_dot_tile<1>(sign, nonzero, windows + p, out + p, n);
    }
}

void word_dot(const std::uint64_t* a, const std::uint64_t* const* windows, std::size_t count, std::uint64_t* out,
              std::size_t n) {
    for (std::size_t p = 0; p < count; ++p) {
        Vector sum = _mm512_setzero_si512();
        for (std::size_t i = 0; i < n; i += kLanes) {
            sum = _mm512_add_epi64(sum, _mm512_mullo_epi64(load(a + i), load(windows[p] + i)));
        }
        out[p] = sum_lanes(sum);
    }
}

// Sixteen blocks side by side, one in each 32-bit lane.
void quarter_round(Vector& a, Vector& b, Vector& c, Vector& d) {
    a = _mm512_add_epi32(a, b), d = _mm512_rol_epi32(_mm512_xor_si512(d, a), 16);
    c = _mm512_add_epi32(c, d), b = _mm512_rol_epi32(_mm512_xor_si512(b, c), 12);
    a = _mm512_add_epi32(a, b), d = _mm512_rol_epi32(_mm512_xor_si512(d, a), 8);
    c = _mm512_add_epi32(c, d), b = _mm512_rol_epi32(_mm512_xor_si512(b, c), 7);
}

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

void chacha20(const std::uint32_t state[16], std::uint8_t* out, std::size_t blocks) {
    Vector start[16], x[16];
    for (std::size_t w = 0; w < 16; ++w) {
        start[w] = _mm512_set1_epi32(static_cast<int>(state[w]));
    }
    start[12] = _mm512_add_epi32(start[12], _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    for (std::size_t first = 0; first < blocks; first += 16) {
        for (std::size_t w = 0; w < 16; ++w) {
            x[w] = start[w];
        }
        for (int round = 0; round < 10; ++round) {
            quarter_round(x[0], x[4], x[8], x[12]);
            quarter_round(x[1], x[5], x[9], x[13]);
            quarter_round(x[2], x[6], x[10], x[14]);
            quarter_round(x[3], x[7], x[11], x[15]);
            quarter_round(x[0], x[5], x[10], x[15]);
            quarter_round(x[1], x[6], x[11], x[12]);
            quarter_round(x[2], x[7], x[8], x[13]);
            quarter_round(x[3], x[4], x[9], x[14]);
        }
        for (std::size_t w = 0; w < 16; ++w) {
            x[w] = _mm512_add_epi32(x[w], start[w]);
        }
        transpose(x);
        const std::size_t count = blocks - first < 16 ? blocks - first : 16;
        for (std::size_t block = 0; block < count; ++block) {
            _mm512_storeu_si512(out + 64 * (first + block), x[block]);
        }
        start[12] = _mm512_add_epi32(start[12], _mm512_set1_epi32(16));
    }
    secure_zero(x, sizeof(x));
    secure_zero(start, sizeof(start));
}

// The number of ones in each 32-bit lane, by halves of bytes.
Vector count_ones(Vector x) {
    const Vector table = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    const Vector nibble = _mm512_set1_epi8(15);
    const Vector low = _mm512_shuffle_epi8(table, _mm512_and_si512(x, nibble));
    const Vector high = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(x, 4), nibble));
    return _mm512_madd_epi16(_mm512_maddubs_epi16(_mm512_add_epi8(low, high), _mm512_set1_epi8(1)),
                             _mm512_set1_epi16(1));
}

void noise(const std::uint8_t* coins, std::int8_t* out, std::size_t n) {
    alignas(kAlignment) std::uint8_t index[64];
    for (std::size_t i = 0; i < 64; ++i) {
        index[i] = static_cast<std::uint8_t>(i % 8 < 6 ? i / 8 * 6 + i % 8 : 0);
    }
    const Vector places = _mm512_load_si512(index);
    constexpr std::uint64_t kCoins = (1 << 21) - 1;
    const Vector first = all(kCoins), second = all(kCoins << 32);
    for (std::size_t i = 0; i < n; i += kLanes) {
        const Vector bytes = _mm512_maskz_loadu_epi8((std::uint64_t{1} << 48) - 1, coins + 6 * i);
        const Vector word = _mm512_permutexvar_epi8(places, bytes);
        // Bits 0 to 20 in the lower half of the lane, bits 21 to 41 in the upper.
        const Vector halves =
            _mm512_or_si512(_mm512_and_si512(word, first), _mm512_and_si512(_mm512_slli_epi64(word, 11), second));
        const Vector ones = count_ones(halves);
        const Vector value = _mm512_sub_epi32(ones, _mm512_srli_epi64(ones, 32));
        _mm_storel_epi64(reinterpret_cast<__m128i*>(out + i), _mm512_cvtepi64_epi8(value));
    }
}

std::size_t accept(const std::uint8_t* words, bool narrow, std::uint64_t mask, std::uint64_t q, std::uint64_t* out,
                   std::size_t n) {
    std::size_t kept = 0, i = 0;
    for (; i + kLanes <= n; i += kLanes) {
        const Vector word =
            narrow ? _mm512_cvtepu32_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(words + 4 * i)))
                   : _mm512_loadu_si512(words + 8 * i);
        const Vector value = _mm512_and_si512(word, all(mask));
        const __mmask8 below = _mm512_cmplt_epu64_mask(value, all(q));
        store(out + kept, _mm512_maskz_compress_epi64(below, value));
        kept += static_cast<std::size_t>(__builtin_popcount(below));
    }
    return kept + kScalarKernels.accept(words + (narrow ? 4 : 8) * i, narrow, mask, q, out + kept, n - i);
}

// For eight values of `bits` bits: which byte of the packed run each byte of a value begins in, and its bit there.
struct Places {
    alignas(kAlignment) std::uint8_t bytes[64];
    alignas(kAlignment) std::uint64_t shifts[kLanes];
};

void pack(const std::uint64_t* values, int bits, std::uint8_t* out, std::size_t n) {
    if (bits > 56) {
        return kScalarKernels.pack(values, bits, out, n);
    }
    // Byte b of the run takes from the even and from the odd lanes at most one byte each: neighbours overlap in one.
    const auto size = static_cast<std::size_t>(bits);
    Places places;
    std::uint64_t used[2] = {0, 0};
    alignas(kAlignment) std::uint8_t from[2][64] = {};
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
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
    for (std::size_t i = 0; i < n; i += kLanes, out += size) {
        const Vector shifted = _mm512_sllv_epi64(load(values + i), shifts);
        const Vector packed = _mm512_or_si512(_mm512_maskz_permutexvar_epi8(used[0], even, shifted),
                                              _mm512_maskz_permutexvar_epi8(used[1], odd, shifted));
        _mm512_mask_storeu_epi8(out, whole, packed);
    }
}

std::uint64_t unpack(const std::uint8_t* in, int bits, std::uint64_t* values, std::size_t n) {
    if (bits > 56) {
        return kScalarKernels.unpack(in, bits, values, n);
    }
    const auto size = static_cast<std::size_t>(bits);
    Places places;
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
        const std::size_t start = lane * size;
        places.shifts[lane] = start % 8;
        for (std::size_t byte = 0; byte < 8; ++byte) {
            places.bytes[8 * lane + byte] = static_cast<std::uint8_t>((start / 8 + byte) % 64);
        }
    }
    const Vector bytes = _mm512_load_si512(places.bytes), shifts = _mm512_load_si512(places.shifts);
    const Vector mask = all((std::uint64_t{1} << bits) - 1);
    const __mmask64 whole = ~std::uint64_t{0} >> (64 - size);
    Vector largest = _mm512_setzero_si512();
    for (std::size_t i = 0; i < n; i += kLanes, in += size) {
        const Vector packed = _mm512_maskz_loadu_epi8(whole, in);
        const Vector value = _mm512_and_si512(_mm512_srlv_epi64(_mm512_permutexvar_epi8(bytes, packed), shifts), mask);
        store(values + i, value);
        largest = _mm512_max_epu64(largest, value);
    }
    return _mm512_reduce_max_epu64(largest);
}

}  // namespace

const Kernels kAvx512IfmaKernels = {"avx512ifma", prepare,  forward,       inverse, multiply,  dot,  inner,
                                    combine,      add,      subtract_from, negate,  add_small, lift, add_fraction,
                                    ternary_dot,  word_dot, chacha20,      noise,   accept,    pack, unpack};

}  // namespace hesplit
