// AVX2 kernels: transforms of residues below 2^50 in double precision with fused multiply-add, sums of products of
// residues below 2^31 in 64-bit integers. What has neither takes the portable code.
//
// This file alone is compiled for AVX2, so it must not instantiate anything that other files share: only intrinsics and
// functions of its own.
#include <immintrin.h>

#include "kernels/kernels.h"

namespace hesplit {

namespace {

constexpr std::size_t kLanes = 4;
constexpr int kIntegerBits = 31;

__m256i load(const std::uint64_t* in) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in));
}
void store(std::uint64_t* out, __m256i value) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), value);
}
__m256i all(std::uint64_t value) {
    return _mm256_set1_epi64x(static_cast<long long>(value));
}

// Between transforms' levels residues are doubles in the same memory.
__m256d load_double(const std::uint64_t* in) {
    return _mm256_castsi256_pd(load(in));
}
void store_double(std::uint64_t* out, __m256d value) {
    store(out, _mm256_castpd_si256(value));
}

// Integers in [0, 2^52) to doubles and back: the mantissa of 2^52 + x is x.
__m256d magic() {
    return _mm256_set1_pd(4503599627370496.0);
}
__m256d to_double(__m256i x) {
    return _mm256_sub_pd(_mm256_castsi256_pd(_mm256_or_si256(x, _mm256_castpd_si256(magic()))), magic());
}
__m256i to_integer(__m256d x) {
    return _mm256_xor_si256(_mm256_castpd_si256(_mm256_add_pd(x, magic())), _mm256_castpd_si256(magic()));
}
__m256d round(__m256d x) {
    return _mm256_round_pd(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

struct Root {
    __m256d value, quotient;  // |value| <= q / 2, quotient = value / q
};

struct Modulus {
    explicit Modulus(const Prime& prime)
        : q(_mm256_set1_pd(static_cast<double>(prime.value))),
          inverse(_mm256_set1_pd(1 / static_cast<double>(prime.value))) {}

    // y * root mod q. All integers: the product is high + low exactly. For |y| <= c q the quotient is off by at most
    // 1/2 + c 2^-53 q, so that |result| <= (1/2 + c/8) q when q < 2^50; everything is exact while c q < 2^53.
    __m256d multiply(__m256d y, Root root) const {
        const __m256d quotient = round(_mm256_mul_pd(y, root.quotient));
        const __m256d high = _mm256_mul_pd(y, root.value);
        const __m256d low = _mm256_fmsub_pd(y, root.value, high);
        return _mm256_add_pd(_mm256_fnmadd_pd(quotient, q, high), low);
    }
    // x mod q, between -q/2 and q/2 but for rounding.
    __m256d reduce(__m256d x) const { return _mm256_fnmadd_pd(round(_mm256_mul_pd(x, inverse)), q, x); }
    // x in (-q, q) to [0, q).
    __m256i canonical(__m256d x) const {
        const __m256d negative = _mm256_cmp_pd(x, _mm256_setzero_pd(), _CMP_LT_OQ);
        return to_integer(_mm256_add_pd(x, _mm256_and_pd(negative, q)));
    }

    __m256d q, inverse;
};

std::uint64_t as_word(double value) {
    std::uint64_t word;
    __builtin_memcpy(&word, &value, sizeof(word));
    return word;
}

void prepare_one(std::uint64_t* roots, std::uint64_t* quotients, std::size_t n, std::uint64_t q) {
    for (std::size_t i = 0; i < n; ++i) {
        const double root = roots[i] > q / 2 ? -static_cast<double>(q - roots[i]) : static_cast<double>(roots[i]);
        roots[i] = as_word(root);
        quotients[i] = as_word(root / static_cast<double>(q));
    }
}

void prepare(NttTable& table) {
    if (table.prime.bits > kVectorPrimeBits) {
        return kScalarKernels.prepare(table);
    }
    prepare_one(table.roots, table.quotients, table.degree, table.prime.value);
    prepare_one(table.inverse_roots, table.inverse_quotients, table.degree, table.prime.value);
}

Root broadcast(const std::uint64_t* roots, const std::uint64_t* quotients, std::size_t i) {
    return {_mm256_castsi256_pd(all(roots[i])), _mm256_castsi256_pd(all(quotients[i]))};
}

// The roots of the last level but one, lane by lane.
__m256d spread2(const std::uint64_t* in) {
    return _mm256_permute4x64_pd(_mm256_castpd128_pd256(_mm_loadu_pd(reinterpret_cast<const double*>(in))), 0x50);
}

struct Pair {
    __m256d x, y;
};
// Eight residues in two registers, sorted into the two sides of butterflies with gap 2, then 1. Each undoes itself.
Pair sort2(Pair v) {
    return {_mm256_permute2f128_pd(v.x, v.y, 0x20), _mm256_permute2f128_pd(v.x, v.y, 0x31)};
}
Pair sort1(Pair v) {
    return {_mm256_unpacklo_pd(v.x, v.y), _mm256_unpackhi_pd(v.x, v.y)};
}

void butterfly(const Modulus& modulus, __m256d& x, __m256d& y, Root root) {
    const __m256d v = modulus.multiply(y, root);
    y = _mm256_sub_pd(x, v);
    x = _mm256_add_pd(x, v);
}

// Cooley-Tukey. Values grow by at most (1/2 + c/8) q a level from c = 1: 4.1 q after four levels, when they are
// reduced; and with Lazy, for q < 2^46, by at most 0.6 q: below 2^50 after 16 levels without any reduction.
template <bool Lazy>
void forward_levels(const NttTable& table, std::uint64_t* a) {
    const Modulus modulus(table.prime);
    const std::size_t n = table.degree;
    std::size_t groups = 1, gap = n / 2;
    for (std::size_t i = 0; i < n; i += kLanes) {
        store_double(a + i, to_double(load(a + i)));
    }
    std::size_t levels = 0;
    for (std::size_t g = gap; g >= kLanes; g /= 2) {
        ++levels;
    }
    if (levels % 2 == 1) {
        const Root root = broadcast(table.roots, table.quotients, 1);
        for (std::size_t i = 0; i < gap; i += kLanes) {
            __m256d x = load_double(a + i), y = load_double(a + gap + i);
            butterfly(modulus, x, y, root);
            store_double(a + i, x);
            store_double(a + gap + i, y);
        }
        groups *= 2, gap /= 2;
    }
    bool reduce = false;
    for (; gap >= 2 * kLanes; groups *= 4, gap /= 4) {
        const std::size_t half = gap / 2;
        for (std::size_t g = 0; g < groups; ++g) {
            const Root first = broadcast(table.roots, table.quotients, groups + g);
            const Root left = broadcast(table.roots, table.quotients, 2 * (groups + g));
            const Root right = broadcast(table.roots, table.quotients, 2 * (groups + g) + 1);
            std::uint64_t* p = a + 2 * g * gap;
            for (std::size_t i = 0; i < half; i += kLanes) {
                __m256d v0 = load_double(p + i), v1 = load_double(p + half + i);
                __m256d v2 = load_double(p + gap + i), v3 = load_double(p + gap + half + i);
                if (!Lazy && reduce) {
                    v0 = modulus.reduce(v0), v1 = modulus.reduce(v1), v2 = modulus.reduce(v2), v3 = modulus.reduce(v3);
                }
                butterfly(modulus, v0, v2, first);
                butterfly(modulus, v1, v3, first);
                butterfly(modulus, v0, v1, left);
                butterfly(modulus, v2, v3, right);
                store_double(p + i, v0);
                store_double(p + half + i, v1);
                store_double(p + gap + i, v2);
                store_double(p + gap + half + i, v3);
            }
        }
        reduce = !reduce;
    }
    for (std::size_t k = 0; k < n / 8; ++k) {
        Pair v{load_double(a + 8 * k), load_double(a + 8 * k + 4)};
        if (!Lazy) {
            v = {modulus.reduce(v.x), modulus.reduce(v.y)};
        }
        const std::size_t second = n / 4 + 2 * k, last = n / 2 + 4 * k;
        v = sort2(v);
        butterfly(modulus, v.x, v.y, {spread2(table.roots + second), spread2(table.quotients + second)});
        v = sort1(v);
        butterfly(modulus, v.x, v.y, {load_double(table.roots + last), load_double(table.quotients + last)});
        v = sort2(sort1(v));
        store(a + 8 * k, modulus.canonical(modulus.reduce(v.x)));
        store(a + 8 * k + 4, modulus.canonical(modulus.reduce(v.y)));
    }
}

void forward(const NttTable& table, std::uint64_t* residues) {
    if (table.prime.bits > kVectorPrimeBits) {
        return kScalarKernels.forward(table, residues);
    }
    return table.prime.bits <= 46 ? forward_levels<true>(table, residues) : forward_levels<false>(table, residues);
}

// Gentleman-Sande. Sums double with each level: they are reduced after every second one, when |x|, |y| <= q have become
// 4 q and products q again; with Lazy never, and N q < 2^52 must hold.
template <bool Reduce>
void inverse_butterfly(const Modulus& modulus, __m256d& x, __m256d& y, Root root) {
    const __m256d sum = _mm256_add_pd(x, y);
    y = modulus.multiply(_mm256_sub_pd(x, y), root);
    x = Reduce ? modulus.reduce(sum) : sum;
}

template <bool Lazy>
void inverse_levels(const NttTable& table, std::uint64_t* a) {
    const Modulus modulus(table.prime);
    const std::uint64_t* roots = table.inverse_roots;
    const std::uint64_t* quotients = table.inverse_quotients;
    const std::size_t n = table.degree;
    for (std::size_t k = 0; k < n / 8; ++k) {
        Pair v{to_double(load(a + 8 * k)), to_double(load(a + 8 * k + 4))};
        const std::size_t second = n / 4 + 2 * k, last = n / 2 + 4 * k;
        v = sort1(sort2(v));
        inverse_butterfly<false>(modulus, v.x, v.y, {load_double(roots + last), load_double(quotients + last)});
        v = sort1(v);
        inverse_butterfly<!Lazy>(modulus, v.x, v.y, {spread2(roots + second), spread2(quotients + second)});
        v = sort2(v);
        store_double(a + 8 * k, v.x);
        store_double(a + 8 * k + 4, v.y);
    }
    std::size_t groups = n / 8, gap = kLanes;
    for (; groups > 2; groups /= 4, gap *= 4) {
        for (std::size_t g = 0; g < groups / 2; ++g) {
            const Root left = broadcast(roots, quotients, groups + 2 * g);
            const Root right = broadcast(roots, quotients, groups + 2 * g + 1);
            const Root last = broadcast(roots, quotients, groups / 2 + g);
            std::uint64_t* p = a + 4 * g * gap;
            for (std::size_t i = 0; i < gap; i += kLanes) {
                __m256d v0 = load_double(p + i), v1 = load_double(p + gap + i);
                __m256d v2 = load_double(p + 2 * gap + i), v3 = load_double(p + 3 * gap + i);
                inverse_butterfly<false>(modulus, v0, v1, left);
                inverse_butterfly<false>(modulus, v2, v3, right);
                inverse_butterfly<!Lazy>(modulus, v0, v2, last);
                inverse_butterfly<!Lazy>(modulus, v1, v3, last);
                store_double(p + i, v0);
                store_double(p + gap + i, v1);
                store_double(p + 2 * gap + i, v2);
                store_double(p + 3 * gap + i, v3);
            }
        }
    }
    if (groups == 2) {
        for (std::size_t g = 0; g < 2; ++g) {
            const Root root = broadcast(roots, quotients, 2 + g);
            std::uint64_t* p = a + 2 * g * gap;
            for (std::size_t i = 0; i < gap; i += kLanes) {
                __m256d x = load_double(p + i), y = load_double(p + gap + i);
                inverse_butterfly<!Lazy>(modulus, x, y, root);
                store_double(p + i, x);
                store_double(p + gap + i, y);
            }
        }
        gap *= 2;
    }
    const Root sum_root = broadcast(roots, quotients, 0), difference_root = broadcast(roots, quotients, 1);
    for (std::size_t i = 0; i < gap; i += kLanes) {
        const __m256d x = load_double(a + i), y = load_double(a + gap + i);
        const __m256d sum = modulus.multiply(_mm256_add_pd(x, y), sum_root);
        const __m256d difference = modulus.multiply(_mm256_sub_pd(x, y), difference_root);
        store(a + i, modulus.canonical(sum));
        store(a + gap + i, modulus.canonical(difference));
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
    // Sums below 2^levels q make the quotient of a product be off by less than 1/2 + 1/4.
    return table.prime.bits + levels <= 51 ? inverse_levels<true>(table, residues)
                                           : inverse_levels<false>(table, residues);
}

void multiply(const Prime& prime, const std::uint64_t* a, const std::uint64_t* b, std::uint64_t* out, std::size_t n) {
    if (prime.bits > kVectorPrimeBits) {
        return kScalarKernels.multiply(prime, a, b, out, n);
    }
    const Modulus modulus(prime);
    for (std::size_t i = 0; i < n; i += kLanes) {
        const __m256d x = to_double(load(a + i)), y = to_double(load(b + i));
        const __m256d high = _mm256_mul_pd(x, y);
        const __m256d low = _mm256_fmsub_pd(x, y, high);
        const __m256d quotient = round(_mm256_mul_pd(high, modulus.inverse));
        store(out + i, modulus.canonical(_mm256_add_pd(_mm256_fnmadd_pd(quotient, modulus.q, high), low)));
    }
}

// Products of 31-bit residues that a 64-bit sum holds on top of a residue.
std::size_t lazy_terms(const Prime& prime) {
    const int spare = 63 - 2 * prime.bits;
    return std::size_t{1} << (spare < kLazyTerms ? spare : kLazyTerms);
}

// Any 64-bit word mod q.
std::uint64_t reduce_word(std::uint64_t x, const Prime& prime) {
    __extension__ typedef unsigned __int128 Wide;
    const std::uint64_t rest = x - static_cast<std::uint64_t>((Wide{x} * prime.ratio_high) >> 64) * prime.value;
    const std::uint64_t less = rest - prime.value;
    return rest < less ? rest : less;
}

void reduce_words(std::uint64_t* words, std::size_t n, const Prime& prime) {
    for (std::size_t i = 0; i < n; ++i) {
        words[i] = reduce_word(words[i], prime);
    }
}

void dot(const Prime& prime, Rows a, Rows b, std::size_t terms, std::uint64_t* out, std::size_t n) {
    if (terms == 1) {
        return multiply(prime, a[0], b[0], out, n);
    }
    if (prime.bits > kIntegerBits) {
        return kScalarKernels.dot(prime, a, b, terms, out, n);
    }
    const std::size_t lazy = lazy_terms(prime);
    for (std::size_t i = 0; i < n; i += 2 * kLanes) {
        __m256i first = _mm256_setzero_si256(), second = first;
        for (std::size_t j = 0; j < terms;) {
            const std::size_t stop = j + lazy < terms ? j + lazy : terms;
            for (; j < stop; ++j) {
                const std::uint64_t* x = a[j] + i;
                const std::uint64_t* y = b[j] + i;
                first = _mm256_add_epi64(first, _mm256_mul_epu32(load(x), load(y)));
                second = _mm256_add_epi64(second, _mm256_mul_epu32(load(x + kLanes), load(y + kLanes)));
            }
            store(out + i, first);
            store(out + i + kLanes, second);
            reduce_words(out + i, 2 * kLanes, prime);
            first = load(out + i);
            second = load(out + i + kLanes);
        }
        store(out + i, first);
        store(out + i + kLanes, second);
    }
}

std::uint64_t inner(const Prime& prime, const std::uint64_t* const* a, const std::uint64_t* const* b,
                    std::size_t segments, std::size_t n) {
    if (prime.bits > kIntegerBits) {
        return kScalarKernels.inner(prime, a, b, segments, n);
    }
    const std::size_t lazy = lazy_terms(prime) * kLanes;
    __m256i sum = _mm256_setzero_si256();
    std::uint64_t total = 0;
    alignas(32) std::uint64_t lanes[kLanes];
    for (std::size_t j = 0; j < segments; ++j) {
        for (std::size_t i = 0; i < n;) {
            const std::size_t stop = i + lazy < n ? i + lazy : n;
            for (; i < stop; i += kLanes) {
                sum = _mm256_add_epi64(sum, _mm256_mul_epu32(load(a[j] + i), load(b[j] + i)));
            }
            store(lanes, sum);
            reduce_words(lanes, kLanes, prime);
            sum = load(lanes);
        }
    }
    store(lanes, sum);
    for (const std::uint64_t lane : lanes) {
        total += lane;
    }
    return reduce_word(total, prime);
}

constexpr std::size_t kOutputs = 4;

template <std::size_t Outputs>
void combine_tile(const Prime& prime, Rows a, std::size_t at, std::size_t terms, const std::uint64_t* scalars,
                  std::uint64_t* const* out) {
    const std::size_t lazy = lazy_terms(prime);
    __m256i sums[Outputs][2];
    for (std::size_t o = 0; o < Outputs; ++o) {
        sums[o][0] = sums[o][1] = _mm256_setzero_si256();
    }
    std::size_t j = 0;
    do {
        const std::size_t stop = j + lazy < terms ? j + lazy : terms;
        for (; j < stop; ++j) {
            const std::uint64_t* row = a[j] + at;
            const __m256i x0 = load(row), x1 = load(row + kLanes);
            for (std::size_t o = 0; o < Outputs; ++o) {
                const __m256i scalar = all(scalars[o * terms + j]);
                sums[o][0] = _mm256_add_epi64(sums[o][0], _mm256_mul_epu32(x0, scalar));
                sums[o][1] = _mm256_add_epi64(sums[o][1], _mm256_mul_epu32(x1, scalar));
            }
        }
        for (std::size_t o = 0; o < Outputs; ++o) {
            store(out[o] + at, sums[o][0]);
            store(out[o] + at + kLanes, sums[o][1]);
            reduce_words(out[o] + at, 2 * kLanes, prime);
            sums[o][0] = load(out[o] + at);
            sums[o][1] = load(out[o] + at + kLanes);
        }
    } while (j < terms);
}

void combine(const Prime& prime, Rows a, std::size_t terms, const std::uint64_t* scalars, std::size_t outputs,
             std::uint64_t* const* out, std::size_t n) {
    if (prime.bits > kIntegerBits) {
        return kScalarKernels.combine(prime, a, terms, scalars, outputs, out, n);
    }
    for (std::size_t at = 0; at < n; at += 2 * kLanes) {
        std::size_t o = 0;
        for (; o + kOutputs <= outputs; o += kOutputs) {
            combine_tile<kOutputs>(prime, a, at, terms, scalars + o * terms, out + o);
        }
        for (; o < outputs; ++o) {
            combine_tile<1>(prime, a, at, terms, scalars + o * terms, out + o);
        }
    }
}

// x + q where x < 0, as signed numbers.
__m256i add_if_negative(__m256i x, __m256i q) {
    return _mm256_add_epi64(x, _mm256_and_si256(_mm256_cmpgt_epi64(_mm256_setzero_si256(), x), q));
}

void add(std::uint64_t q, std::uint64_t* a, const std::uint64_t* b, std::size_t n) {
    const __m256i modulus = all(q);
    for (std::size_t i = 0; i < n; i += kLanes) {
        const __m256i sum = _mm256_add_epi64(load(a + i), load(b + i));
        store(a + i, add_if_negative(_mm256_sub_epi64(sum, modulus), modulus));
    }
}

void subtract_from(std::uint64_t q, std::uint64_t* a, const std::uint64_t* b, std::size_t n) {
    const __m256i modulus = all(q);
    for (std::size_t i = 0; i < n; i += kLanes) {
        store(a + i, add_if_negative(_mm256_sub_epi64(load(b + i), load(a + i)), modulus));
    }
}

void negate(std::uint64_t q, const std::uint64_t* a, std::uint64_t* out, std::size_t n) {
    const __m256i modulus = all(q);
    for (std::size_t i = 0; i < n; i += kLanes) {
        const __m256i x = load(a + i);
        const __m256i zero = _mm256_cmpeq_epi64(x, _mm256_setzero_si256());
        store(out + i, _mm256_andnot_si256(zero, _mm256_sub_epi64(modulus, x)));
    }
}

void add_small(std::uint64_t q, std::uint64_t* a, const std::int8_t* small, std::size_t n) {
    const __m256i modulus = all(q);
    for (std::size_t i = 0; i < n; i += kLanes) {
        int four;
        __builtin_memcpy(&four, small + i, sizeof(four));
        const __m256i value = add_if_negative(_mm256_cvtepi8_epi64(_mm_cvtsi32_si128(four)), modulus);
        store(a + i, add_if_negative(_mm256_sub_epi64(_mm256_add_epi64(load(a + i), value), modulus), modulus));
    }
}

void ternary_dot(const std::uint64_t* sign, const std::uint64_t* nonzero, const std::uint64_t* const* windows,
                 std::size_t count, std::uint64_t* out, std::size_t n) {
    for (std::size_t p = 0; p < count; ++p) {
        __m256i sum = _mm256_setzero_si256();
        for (std::size_t i = 0; i < n; i += kLanes) {
            const __m256i negative = load(sign + i);
            const __m256i value = _mm256_sub_epi64(_mm256_xor_si256(load(windows[p] + i), negative), negative);
            sum = _mm256_add_epi64(sum, _mm256_and_si256(value, load(nonzero + i)));
        }
        alignas(32) std::uint64_t lanes[kLanes];
        store(lanes, sum);
        out[p] = lanes[0] + lanes[1] + lanes[2] + lanes[3];
    }
}

void word_dot(const std::uint64_t* a, const std::uint64_t* const* windows, std::size_t count, std::uint64_t* out,
              std::size_t n) {
    kScalarKernels.word_dot(a, windows, count, out, n);
}

// Eight blocks side by side, one in each 32-bit lane.
template <int Bits>
__m256i rotate(__m256i x) {
    return _mm256_or_si256(_mm256_slli_epi32(x, Bits), _mm256_srli_epi32(x, 32 - Bits));
}

void quarter_round(__m256i& a, __m256i& b, __m256i& c, __m256i& d) {
    const __m256i by16 = _mm256_setr_epi8(2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13,  //
                                          2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    const __m256i by8 = _mm256_setr_epi8(3, 0, 1, 2, 7, 4, 5, 6, 11, 8, 9, 10, 15, 12, 13, 14,  //
                                         3, 0, 1, 2, 7, 4, 5, 6, 11, 8, 9, 10, 15, 12, 13, 14);
    a = _mm256_add_epi32(a, b), d = _mm256_shuffle_epi8(_mm256_xor_si256(d, a), by16);
    c = _mm256_add_epi32(c, d), b = rotate<12>(_mm256_xor_si256(b, c));
    a = _mm256_add_epi32(a, b), d = _mm256_shuffle_epi8(_mm256_xor_si256(d, a), by8);
    c = _mm256_add_epi32(c, d), b = rotate<7>(_mm256_xor_si256(b, c));
}

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

void chacha20(const std::uint32_t state[16], std::uint8_t* out, std::size_t blocks) {
    __m256i start[16], x[16];
    for (std::size_t w = 0; w < 16; ++w) {
        start[w] = _mm256_set1_epi32(static_cast<int>(state[w]));
    }
    start[12] = _mm256_add_epi32(start[12], _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    for (std::size_t first = 0; first < blocks; first += 8) {
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
            x[w] = _mm256_add_epi32(x[w], start[w]);
        }
        transpose(x);
        transpose(x + 8);
        const std::size_t count = blocks - first < 8 ? blocks - first : 8;
        for (std::size_t block = 0; block < count; ++block) {
            auto* to = reinterpret_cast<__m256i*>(out + 64 * (first + block));
            _mm256_storeu_si256(to, x[block]);
            _mm256_storeu_si256(to + 1, x[block + 8]);
        }
        start[12] = _mm256_add_epi32(start[12], _mm256_set1_epi32(8));
    }
    secure_zero(x, sizeof(x));
    secure_zero(start, sizeof(start));
}

// The number of ones in each 32-bit lane, by halves of bytes.
__m256i count_ones(__m256i x) {
    const __m256i table = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    const __m256i nibble = _mm256_set1_epi8(15);
    const __m256i low = _mm256_shuffle_epi8(table, _mm256_and_si256(x, nibble));
    const __m256i high = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(x, 4), nibble));
    return _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_add_epi8(low, high), _mm256_set1_epi8(1)),
                             _mm256_set1_epi16(1));
}

// Two words of 6 bytes, each in a lane of 8.
__m128i two_words(const std::uint8_t* in) {
    std::uint64_t low;
    std::uint32_t high;
    __builtin_memcpy(&low, in, sizeof(low));
    __builtin_memcpy(&high, in + 8, sizeof(high));
    const __m128i bytes = _mm_insert_epi32(_mm_cvtsi64_si128(static_cast<long long>(low)), static_cast<int>(high), 2);
    return _mm_shuffle_epi8(bytes, _mm_setr_epi8(0, 1, 2, 3, 4, 5, -1, -1, 6, 7, 8, 9, 10, 11, -1, -1));
}

void noise(const std::uint8_t* coins, std::int8_t* out, std::size_t n) {
    constexpr std::uint64_t kCoins = (1 << 21) - 1;
    const __m256i first = all(kCoins), second = all(kCoins << 32);
    // The lowest byte of each 64-bit lane.
    const __m256i lowest = _mm256_setr_epi8(0, 8, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,  //
                                            0, 8, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    for (std::size_t i = 0; i < n; i += kLanes) {
        const __m256i word = _mm256_set_m128i(two_words(coins + 6 * i + 12), two_words(coins + 6 * i));
        const __m256i halves =
            _mm256_or_si256(_mm256_and_si256(word, first), _mm256_and_si256(_mm256_slli_epi64(word, 11), second));
        const __m256i ones = count_ones(halves);
        const __m256i value = _mm256_shuffle_epi8(_mm256_sub_epi32(ones, _mm256_srli_epi64(ones, 32)), lowest);
        const auto low = static_cast<std::uint16_t>(_mm256_extract_epi16(value, 0));
        const auto high = static_cast<std::uint16_t>(_mm256_extract_epi16(value, 8));
        __builtin_memcpy(out + i, &low, sizeof(low));
        __builtin_memcpy(out + i + 2, &high, sizeof(high));
    }
}

std::size_t accept(const std::uint8_t* words, bool narrow, std::uint64_t mask, std::uint64_t q, std::uint64_t* out,
                   std::size_t n) {
    const std::size_t size = narrow ? 4 : 8;
    std::size_t kept = 0, i = 0;
    for (; i + kLanes <= n; i += kLanes) {
        const __m256i word =
            narrow ? _mm256_cvtepu32_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i*>(words + 4 * i)))
                   : _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words + 8 * i));
        const __m256i value = _mm256_and_si256(word, all(mask));
        const __m256i below = _mm256_cmpgt_epi64(all(q), value);
        if (_mm256_movemask_pd(_mm256_castsi256_pd(below)) == 15) {  // of public values
            store(out + kept, value);
            kept += kLanes;
        } else {
            kept += kScalarKernels.accept(words + size * i, narrow, mask, q, out + kept, kLanes);
        }
    }
    return kept + kScalarKernels.accept(words + size * i, narrow, mask, q, out + kept, n - i);
}

void lift(const Prime& prime, const std::int64_t* values, std::uint64_t* out, std::size_t n) {
    kScalarKernels.lift(prime, values, out, n);
}
void add_fraction(const Prime& prime, std::uint64_t factor, const std::uint64_t* a, std::uint64_t* fractions,
                  std::size_t n) {
    kScalarKernels.add_fraction(prime, factor, a, fractions, n);
}
void pack(const std::uint64_t* values, int bits, std::uint8_t* out, std::size_t n) {
    kScalarKernels.pack(values, bits, out, n);
}
std::uint64_t unpack(const std::uint8_t* in, int bits, std::uint64_t* values, std::size_t n) {
    return kScalarKernels.unpack(in, bits, values, n);
}

}  // namespace

const Kernels kAvx2Kernels = {"avx2",      prepare,  forward,       inverse, multiply,  dot,  inner,
                              combine,     add,      subtract_from, negate,  add_small, lift, add_fraction,
                              ternary_dot, word_dot, chacha20,      noise,   accept,    pack, unpack};

}  // namespace hesplit
