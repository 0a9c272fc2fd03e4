// Transforms of residues below 2^50 with products of 52-bit integers.
#include "kernels/shared/transform.h"

#include "kernels/avx512ifma/lanes.h"
#include "kernels/tables.h"

namespace hesplit {

namespace {

namespace avx512ifma {

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
    return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 1, 4, 5, 2, 3, 6, 7), Lanes::load(in));
}

template <Vector (*Spread)(const std::uint64_t*)>
Root spread(const std::uint64_t* roots, const std::uint64_t* quotients, std::size_t i) {
    return {Spread(roots + i), Spread(quotients + i)};
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

struct Butterfly : Modulus {
    using Vector = avx512ifma::Vector;
    using Root = avx512ifma::Root;
    using Modulus::Modulus;

    static Vector load(const std::uint64_t* in) { return Lanes::load(in); }
    static void store(std::uint64_t* out, Vector x) { Lanes::store(out, x); }
};

// With Lazy, x is never reduced: it grows by 2q a level, and (2 * 16 + 2) q < 2^52 holds for q < 2^46. Otherwise values
// stay below 4q.
template <bool Lazy>
struct Forward : Butterfly {
    using Butterfly::Butterfly;

    static void enter(std::uint64_t*, std::size_t, std::size_t, std::size_t) {}
    static void begin(Vector&, Vector&, Vector&, Vector&) {}
    static void next() {}
    void operator()(Vector& x, Vector& y, Root root) const {
        const Vector u = Lazy ? x : Lanes::subtract_once(x, twice);
        const Vector v = multiply_lazy(y, root);
        x = Lanes::add(u, v);
        y = Lanes::add(u, Lanes::subtract(twice, v));
    }
    void finish(const std::uint64_t* roots, const std::uint64_t* quotients, std::size_t n, std::size_t k,
                std::uint64_t* a) const {
        Pair v = sort4({load(a), load(a + kLanes)});
        (*this)(v.x, v.y, spread<spread2>(roots, quotients, n / 8 + 2 * k));
        v = sort2(v);
        (*this)(v.x, v.y, spread<spread4>(roots, quotients, n / 4 + 4 * k));
        v = sort1(v);
        (*this)(v.x, v.y, spread<spread8>(roots, quotients, n / 2 + 8 * k));
        v = unsort(v);
        store(a, canonical(v.x));
        store(a + kLanes, canonical(v.y));
    }
    Vector canonical(Vector x) const {
        return Lanes::subtract_once(Lazy ? reduce_lazy(x) : Lanes::subtract_once(x, twice), q);
    }
};

// With Lazy, x is never reduced: it doubles with each level, and N * 2q < 2^52 must hold. Otherwise values stay below
// 2q.
template <bool Lazy>
struct Inverse : Butterfly {
    static constexpr int kStartLevels = 3;

    explicit Inverse(const Prime& prime) : Butterfly(prime), bound(Lazy ? q : twice) {}

    void first(Vector& x, Vector& y, Root root) const { level(x, y, root, 0); }
    void second(Vector& x, Vector& y, Root root) const { level(x, y, root, 1); }
    void alone(Vector& x, Vector& y, Root root) const { level(x, y, root, 0); }
    void next(int levels) { bound = bound_after(levels); }
    void start(const std::uint64_t* roots, const std::uint64_t* quotients, std::size_t n, std::size_t k,
               std::uint64_t* a) const {
        Pair v = sort_all({load(a), load(a + kLanes)});
        level(v.x, v.y, spread<spread8>(roots, quotients, n / 2 + 8 * k), 0);
        v = sort1(v);
        level(v.x, v.y, spread<spread4>(roots, quotients, n / 4 + 4 * k), 1);
        v = unsort2(v);
        level(v.x, v.y, spread<spread2>(roots, quotients, n / 8 + 2 * k), 2);
        v = sort4(v);
        store(a, v.x);
        store(a + kLanes, v.y);
    }
    void last(std::uint64_t* x, std::uint64_t* y, Root sum_root, Root difference_root) const {
        const Vector u = load(x), v = load(y);
        const Vector sum = multiply_lazy(Lanes::add(u, v), sum_root);
        const Vector difference = multiply_lazy(Lanes::add(u, Lanes::subtract(bound, v)), difference_root);
        store(x, Lanes::subtract_once(sum, q));
        store(y, Lanes::subtract_once(difference, q));
    }
    // The level that comes after so many more than `bound` is for.
    void level(Vector& x, Vector& y, Root root, int more) const {
        const Vector sum = Lanes::add(x, y);
        const Vector difference = Lanes::add(x, Lanes::subtract(bound_after(more), y));
        x = Lazy ? sum : Lanes::subtract_once(sum, twice);
        y = multiply_lazy(difference, root);
    }
    Vector bound_after(int levels) const {
        return Lazy ? _mm512_slli_epi64(bound, static_cast<unsigned>(levels)) : bound;
    }

    Vector bound;  // a multiple of q that no value of the next level exceeds
};

void prepare(NttTable& table) {
    __extension__ typedef unsigned __int128 Wide;
    for (std::size_t i = 0; i < table.degree; ++i) {
        table.quotients[i] = static_cast<std::uint64_t>((Wide{table.roots[i]} << 52) / table.prime.value);
        table.inverse_quotients[i] =
            static_cast<std::uint64_t>((Wide{table.inverse_roots[i]} << 52) / table.prime.value);
    }
}

void forward(const NttTable& table, std::uint64_t* residues, Support support) {
    return table.prime.bits <= 46 ? vectorised::forward<Forward<true>>(table, residues, support)
                                  : vectorised::forward<Forward<false>>(table, residues, support);
}

void inverse(const NttTable& table, std::uint64_t* residues) {
    return table.prime.bits + vectorised::log2_of(table.degree) <= 51
               ? vectorised::inverse<Inverse<true>>(table, residues)
               : vectorised::inverse<Inverse<false>>(table, residues);
}

}  // namespace avx512ifma

}  // namespace

const Transforms kAvx512IfmaTransforms = {avx512ifma::prepare, avx512ifma::forward, avx512ifma::inverse,
                                          vectorised::multiply<avx512ifma::Modulus>};

}  // namespace hesplit
