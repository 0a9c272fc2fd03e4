// Transforms of residues below 2^50 in double precision with fused multiply-add.
#include "kernels/shared/transform.h"

#include "kernels/avx2/lanes.h"
#include "kernels/tables.h"

namespace hesplit {

namespace {

namespace avx2 {

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

struct Modulus {
    static constexpr std::size_t kLanes = Lanes::kLanes;
    using Vector = __m256d;

    struct Root {
        __m256d value, quotient;  // |value| <= q / 2, quotient = value / q

        static Root broadcast(const std::uint64_t* roots, const std::uint64_t* quotients, std::size_t i) {
            return {_mm256_castsi256_pd(Lanes::all(roots[i])), _mm256_castsi256_pd(Lanes::all(quotients[i]))};
        }
        // For butterflies with gap 2 within four lanes, and with gap 1.
        static Root two(const std::uint64_t* roots, const std::uint64_t* quotients, std::size_t i) {
            return {spread(roots + i), spread(quotients + i)};
        }
        static Root four(const std::uint64_t* roots, const std::uint64_t* quotients, std::size_t i) {
            return {load(roots + i), load(quotients + i)};
        }
        static __m256d spread(const std::uint64_t* in) {
            const __m128d pair = _mm_loadu_pd(reinterpret_cast<const double*>(in));
            return _mm256_permute4x64_pd(_mm256_castpd128_pd256(pair), 0x50);
        }
    };

    explicit Modulus(const Prime& prime)
        : q(_mm256_set1_pd(static_cast<double>(prime.value))),
          inverse(_mm256_set1_pd(1 / static_cast<double>(prime.value))) {}

    // Between levels residues are doubles in the same memory.
    static __m256d load(const std::uint64_t* in) { return _mm256_castsi256_pd(Lanes::load(in)); }
    static void store(std::uint64_t* out, __m256d x) { Lanes::store(out, _mm256_castpd_si256(x)); }

    // y * root mod q. All integers: the product is high + low exactly. For |y| <= c q the quotient is off by at most
    // 1/2 + c 2^-53 q, so that |result| <= (1/2 + c/8) q when q < 2^50; everything is exact while c q < 2^53.
    __m256d multiply(__m256d y, Root root) const { return multiply(y, root.value, _mm256_mul_pd(y, root.quotient)); }
    // a[i] * b[i] for four residues.
    void multiply(const std::uint64_t* a, const std::uint64_t* b, std::uint64_t* out) const {
        const __m256d x = to_double(Lanes::load(a)), y = to_double(Lanes::load(b));
        const __m256d high = _mm256_mul_pd(x, y);
        Lanes::store(out, canonical(multiply(x, y, _mm256_mul_pd(high, inverse))));
    }
    // x * y mod q, for a quotient that has yet to be rounded.
    __m256d multiply(__m256d x, __m256d y, __m256d quotient) const {
        const __m256d high = _mm256_mul_pd(x, y);
        const __m256d low = _mm256_fmsub_pd(x, y, high);
        return _mm256_add_pd(_mm256_fnmadd_pd(round(quotient), q, high), low);
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

using Root = Modulus::Root;

// Eight residues in two registers, sorted into the two sides of butterflies with gap 2, then 1. Each undoes itself.
struct Pair {
    __m256d x, y;
};
Pair sort2(Pair v) {
    return {_mm256_permute2f128_pd(v.x, v.y, 0x20), _mm256_permute2f128_pd(v.x, v.y, 0x31)};
}
Pair sort1(Pair v) {
    return {_mm256_unpacklo_pd(v.x, v.y), _mm256_unpackhi_pd(v.x, v.y)};
}

// Values grow by at most (1/2 + c/8) q a level from c = 1: 4.1 q after four levels, when they are reduced; and with
// Lazy, for q < 2^46, by at most 0.6 q: below 2^50 after 16 levels without any reduction.
template <bool Lazy>
struct Forward : Modulus {
    using Modulus::Modulus;

    static void enter(std::uint64_t* a, std::size_t n) {
        for (std::size_t i = 0; i < n; i += kLanes) {
            store(a + i, to_double(Lanes::load(a + i)));
        }
    }
    void operator()(__m256d& x, __m256d& y, Root root) const {
        const __m256d v = multiply(y, root);
        y = _mm256_sub_pd(x, v);
        x = _mm256_add_pd(x, v);
    }
    void begin(__m256d& v0, __m256d& v1, __m256d& v2, __m256d& v3) const {
        if (!Lazy && due) {
            v0 = reduce(v0), v1 = reduce(v1), v2 = reduce(v2), v3 = reduce(v3);
        }
    }
    void next() { due = !due; }
    void finish(const NttTable& table, std::size_t k, std::uint64_t* a) const {
        const std::size_t n = table.degree;
        Pair v{load(a), load(a + kLanes)};
        if (!Lazy) {
            v = {reduce(v.x), reduce(v.y)};
        }
        v = sort2(v);
        (*this)(v.x, v.y, Root::two(table.roots, table.quotients, n / 4 + 2 * k));
        v = sort1(v);
        (*this)(v.x, v.y, Root::four(table.roots, table.quotients, n / 2 + 4 * k));
        v = sort2(sort1(v));
        Lanes::store(a, canonical(reduce(v.x)));
        Lanes::store(a + kLanes, canonical(reduce(v.y)));
    }

    bool due = false;  // values are reduced before every second pair of levels
};

// Sums double with each level: they are reduced after every second one, when |x|, |y| <= q have become 4 q and products
// q again; with Lazy never, and N q < 2^51 must hold.
template <bool Lazy>
struct Inverse : Modulus {
    using Modulus::Modulus;
    static constexpr int kStartLevels = 2;

    void first(__m256d& x, __m256d& y, Root root) const {
        const __m256d sum = _mm256_add_pd(x, y);
        y = multiply(_mm256_sub_pd(x, y), root);
        x = sum;
    }
    void second(__m256d& x, __m256d& y, Root root) const {
        first(x, y, root);
        x = Lazy ? x : reduce(x);
    }
    void alone(__m256d& x, __m256d& y, Root root) const { second(x, y, root); }
    static void next(int) {}
    void start(const NttTable& table, std::size_t k, std::uint64_t* a) const {
        const std::size_t n = table.degree;
        Pair v = sort1(sort2({to_double(Lanes::load(a)), to_double(Lanes::load(a + kLanes))}));
        first(v.x, v.y, Root::four(table.inverse_roots, table.inverse_quotients, n / 2 + 4 * k));
        v = sort1(v);
        second(v.x, v.y, Root::two(table.inverse_roots, table.inverse_quotients, n / 4 + 2 * k));
        v = sort2(v);
        store(a, v.x);
        store(a + kLanes, v.y);
    }
    void last(std::uint64_t* x, std::uint64_t* y, Root sum_root, Root difference_root) const {
        const __m256d u = load(x), v = load(y);
        const __m256d sum = multiply(_mm256_add_pd(u, v), sum_root);
        const __m256d difference = multiply(_mm256_sub_pd(u, v), difference_root);
        Lanes::store(x, canonical(sum));
        Lanes::store(y, canonical(difference));
    }
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
    prepare_one(table.roots, table.quotients, table.degree, table.prime.value);
    prepare_one(table.inverse_roots, table.inverse_quotients, table.degree, table.prime.value);
}

void forward(const NttTable& table, std::uint64_t* residues) {
    return table.prime.bits <= 46 ? vectorised::forward<Forward<true>>(table, residues)
                                  : vectorised::forward<Forward<false>>(table, residues);
}

void inverse(const NttTable& table, std::uint64_t* residues) {
    // Sums below N q make the quotient of a product be off by less than 1/2 + 1/4.
    return table.prime.bits + vectorised::log2_of(table.degree) <= 51
               ? vectorised::inverse<Inverse<true>>(table, residues)
               : vectorised::inverse<Inverse<false>>(table, residues);
}

}  // namespace avx2

}  // namespace

const Transforms kAvx2Transforms = {avx2::prepare, avx2::forward, avx2::inverse, vectorised::multiply<avx2::Modulus>};

}  // namespace hesplit
