// Transforms of residues below 2^50 in double precision with fused multiply-add.
#include "kernels/shared/transform.h"

#include "kernels/avx2/lanes.h"
#include "kernels/tables.h"

namespace hesplit {

namespace {

namespace avx2 {

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
    void finish(const std::uint64_t* roots, const std::uint64_t* quotients, std::size_t n, std::size_t k,
                std::uint64_t* a) const {
        Pair v{load(a), load(a + kLanes)};
        if (!Lazy) {
            v = {reduce(v.x), reduce(v.y)};
        }
        v = sort2(v);
        (*this)(v.x, v.y, Root::two(roots, quotients, n / 4 + 2 * k));
        v = sort1(v);
        (*this)(v.x, v.y, Root::four(roots, quotients, n / 2 + 4 * k));
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
    void start(const std::uint64_t* roots, const std::uint64_t* quotients, std::size_t n, std::size_t k,
               std::uint64_t* a) const {
        Pair v = sort1(sort2({to_double(Lanes::load(a)), to_double(Lanes::load(a + kLanes))}));
        first(v.x, v.y, Root::four(roots, quotients, n / 2 + 4 * k));
        v = sort1(v);
        second(v.x, v.y, Root::two(roots, quotients, n / 4 + 2 * k));
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
