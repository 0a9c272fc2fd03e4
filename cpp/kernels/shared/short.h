// Transforms modulo primes of up to kX86ShortBits bits in unsigned 32-bit lanes, as templates over what an
// instruction set brings:
//
//   Words   32-bit words side by side: Vector, kLanes, load, store, all, add, subtract, multiply (the lower halves of
//           products), least,
//           odd(x)                 the odd lanes in the places of the even ones
//           high(even, odd)        the upper halves of two vectors of 64-bit words, the first in the even lanes
//           wide(x, y)             products of the even lanes, 64-bit words
//           sort<gap>(x, y)        from 2 kLanes words in two registers the two sides of butterflies with that gap;
//                                  called for gaps kLanes / 2, ..., 2, 1
//           spread<gap>(in)        what the lanes multiply by then, of kLanes / gap numbers in the order of butterflies
//           unsort<gap>(x, y)      undoes it
//           narrow(in)             kLanes 64-bit words, as load
//           widen(out, x)          as store
//
// While it is transformed, a polynomial takes half of its memory. See products.h for what files compiled for an
// instruction set may define.
#pragma once

#include "kernels/shared/transform.h"

namespace hesplit {

namespace {

namespace vectorised {

inline const std::uint32_t* as_halves(const std::uint64_t* words) {
    return reinterpret_cast<const std::uint32_t*>(words);
}

template <class Words>
struct ShortModulus {
    using Vector = typename Words::Vector;
    static constexpr std::size_t kLanes = Words::kLanes;

    // A residue with its Shoup quotient, floor(value * 2^32 / q).
    struct Root {
        Vector value, quotient, odd_quotient;

        static Root broadcast(const std::uint64_t* roots, const std::uint64_t* quotients, std::size_t i) {
            const Vector quotient = Words::all(as_halves(quotients)[i]);
            return {Words::all(as_halves(roots)[i]), quotient, quotient};
        }
        // For butterflies with a gap within kLanes.
        template <std::size_t Gap>
        static Root spread(const std::uint64_t* roots, const std::uint64_t* quotients, std::size_t i) {
            const Vector quotient = Words::template spread<Gap>(as_halves(quotients) + i);
            return {Words::template spread<Gap>(as_halves(roots) + i), quotient, Words::odd(quotient)};
        }
    };

    explicit ShortModulus(const Prime& prime)
        : q(Words::all(static_cast<std::uint32_t>(prime.value))),
          twice(Words::all(static_cast<std::uint32_t>(2 * prime.value))),
          ratio(Words::all(static_cast<std::uint32_t>((std::uint64_t{1} << 32) / prime.value))) {}

    static Vector load(const std::uint32_t* in) { return Words::load(in); }
    static void store(std::uint32_t* out, Vector x) { Words::store(out, x); }

    // y * root mod q in [0, 2q), for any y.
    Vector multiply(Vector y, Root root) const {
        return rest(Words::multiply(y, root.value), y, root.quotient, root.odd_quotient);
    }
    // x mod q in [0, 2q), for any x.
    Vector reduce(Vector x) const { return rest(x, x, ratio, ratio); }
    static Vector subtract_once(Vector x, Vector less) { return Words::least(x, Words::subtract(x, less)); }

    Vector q, twice, ratio;  // ratio = floor(2^32 / q)

  private:
    Vector rest(Vector product, Vector y, Vector quotient, Vector odd_quotient) const {
        const Vector whole = Words::high(Words::wide(y, quotient), Words::wide(Words::odd(y), odd_quotient));
        return Words::subtract(product, Words::multiply(whole, q));
    }
};

// Values are below 2^32 up to degree 2^15 though nothing is reduced on the way: they grow by 2q a level.
// The polynomial is in the upper half of its memory, so that the last levels leave residues in place.
template <class Words>
struct ShortForward : ShortModulus<Words> {
    using Modulus = ShortModulus<Words>;
    using Modulus::kLanes, Modulus::load, Modulus::multiply, Modulus::reduce, Modulus::subtract_once, Modulus::twice;
    using typename Modulus::Root;
    using typename Modulus::Vector;

    using Modulus::Modulus;

    static void enter(std::uint32_t* a, std::size_t n, std::size_t at, std::size_t count) {
        const auto* residues = reinterpret_cast<const std::uint64_t*>(a - n);
        for (std::size_t i = at + count; i > at;) {
            i -= kLanes;
            Words::store(a + i, Words::narrow(residues + i));
        }
    }
    static void begin(Vector&, Vector&, Vector&, Vector&) {}
    static void next() {}
    void operator()(Vector& x, Vector& y, Root root) const {
        const Vector v = multiply(y, root);
        y = Words::add(x, Words::subtract(twice, v));
        x = Words::add(x, v);
    }
    template <std::size_t Gap>
    void within(Vector& x, Vector& y, const std::uint64_t* roots, const std::uint64_t* quotients, std::size_t n,
                std::size_t k) const {
        Words::template sort<Gap>(x, y);
        (*this)(x, y, Root::template spread<Gap>(roots, quotients, n / (2 * Gap) + kLanes / Gap * k));
        if constexpr (Gap > 1) {
            within<Gap / 2>(x, y, roots, quotients, n, k);
        }
    }
    template <std::size_t Gap>
    static void unsort_from(Vector& x, Vector& y) {
        Words::template unsort<Gap>(x, y);
        if constexpr (2 * Gap < kLanes) {
            unsort_from<2 * Gap>(x, y);
        }
    }
    void finish(const std::uint64_t* roots, const std::uint64_t* quotients, std::size_t n, std::size_t k,
                std::uint32_t* a) const {
        Vector x = load(a), y = load(a + kLanes);
        within<kLanes / 2>(x, y, roots, quotients, n, k);
        unsort_from<1>(x, y);
        auto* out = reinterpret_cast<std::uint64_t*>(a - 2 * kLanes * k - n) + 2 * kLanes * k;
        Words::widen(out, subtract_once(reduce(x), Modulus::q));
        Words::widen(out + kLanes, subtract_once(reduce(y), Modulus::q));
    }
};

// Values stay below 2q.
template <class Words>
struct ShortInverse : ShortModulus<Words> {
    using Modulus = ShortModulus<Words>;
    using Modulus::kLanes, Modulus::load, Modulus::multiply, Modulus::store, Modulus::subtract_once, Modulus::twice;
    using typename Modulus::Root;
    using typename Modulus::Vector;
    static constexpr int kStartLevels = 0;  // which is of no importance here

    using Modulus::Modulus;

    void first(Vector& x, Vector& y, Root root) const {
        const Vector sum = Words::add(x, y);
        y = multiply(Words::add(x, Words::subtract(twice, y)), root);
        x = subtract_once(sum, twice);
    }
    void second(Vector& x, Vector& y, Root root) const { first(x, y, root); }
    void alone(Vector& x, Vector& y, Root root) const { first(x, y, root); }
    static void next(int) {}
    template <std::size_t Gap>
    void within(Vector& x, Vector& y, const std::uint64_t* roots, const std::uint64_t* quotients, std::size_t n,
                std::size_t k) const {
        first(x, y, Root::template spread<Gap>(roots, quotients, n / (2 * Gap) + kLanes / Gap * k));
        Words::template unsort<Gap>(x, y);
        if constexpr (2 * Gap < kLanes) {
            within<2 * Gap>(x, y, roots, quotients, n, k);
        }
    }
    template <std::size_t Gap>
    static void sort_from(Vector& x, Vector& y) {
        Words::template sort<Gap>(x, y);
        if constexpr (Gap > 1) {
            sort_from<Gap / 2>(x, y);
        }
    }
    // The polynomial is in the lower half of its memory from here on.
    void start(const std::uint64_t* roots, const std::uint64_t* quotients, std::size_t n, std::size_t k,
               std::uint32_t* a) const {
        const std::uint64_t* in = reinterpret_cast<const std::uint64_t*>(a - 2 * kLanes * k) + 2 * kLanes * k;
        Vector x = Words::narrow(in), y = Words::narrow(in + kLanes);
        sort_from<kLanes / 2>(x, y);
        within<1>(x, y, roots, quotients, n, k);
        store(a, x);
        store(a + kLanes, y);
    }
    void last(std::uint32_t* x, std::uint32_t* y, Root sum_root, Root difference_root) const {
        const Vector u = load(x), v = load(y);
        store(x, subtract_once(multiply(Words::add(u, v), sum_root), Modulus::q));
        store(y, subtract_once(multiply(Words::add(u, Words::subtract(twice, v)), difference_root), Modulus::q));
    }
};

// Roots and quotients lie in the first halves of their memory.
inline void prepare_short(std::uint64_t* roots, std::uint64_t* quotients, std::size_t n, std::uint64_t q) {
    auto* values = reinterpret_cast<unsigned char*>(roots);
    auto* ratios = reinterpret_cast<unsigned char*>(quotients);
    for (std::size_t i = 0; i < n; ++i) {
        const std::uint64_t root = roots[i];
        const std::uint32_t value = static_cast<std::uint32_t>(root),
                            ratio = static_cast<std::uint32_t>((root << 32) / q);
        __builtin_memcpy(values + sizeof(value) * i, &value, sizeof(value));
        __builtin_memcpy(ratios + sizeof(ratio) * i, &ratio, sizeof(ratio));
    }
}

inline void prepare_short(NttTable& table) {
    prepare_short(table.roots, table.quotients, table.degree, table.prime.value);
    prepare_short(table.inverse_roots, table.inverse_quotients, table.degree, table.prime.value);
}

template <class Words>
void forward_short(const NttTable& table, std::uint64_t* residues, Support support) {
    forward<ShortForward<Words>>(table, reinterpret_cast<std::uint32_t*>(residues) + table.degree, support);
}

template <class Words>
void inverse_short(const NttTable& table, std::uint64_t* residues) {
    auto* halves = reinterpret_cast<std::uint32_t*>(residues);
    inverse<ShortInverse<Words>>(table, halves);
    for (std::size_t i = table.degree; i > 0;) {
        i -= Words::kLanes;
        Words::widen(residues + i, Words::load(halves + i));
    }
}

}  // namespace vectorised

}  // namespace

}  // namespace hesplit
