// Residues modulo a prime below 2^50 in double precision with fused multiply-add, as templates over what an instruction
// set brings:
//
//   Doubles   four doubles side by side: Vector, kLanes, load, store (of doubles that lie in the memory of words), all,
//             add, subtract, multiply,
//             subtract_product(c, a, b)   c - a * b with one rounding
//             round(x)                    to the nearest integer
//             add_if_negative(x, q)       x + q where x < 0
//             to_double, to_integer       between Lanes::Vector and integers in [0, 2^52)
//             twice(in)                   in[0], in[0], in[1], in[1]
//             sort2(x, y)                 swaps the upper half of x with the lower half of y: eight doubles in two
//                                         registers are then the two sides of butterflies with gap 2
//             sort1(x, y)                 swaps the odd lanes of x with the even ones of y: then with gap 1
//   Doubles::Lanes   as in products.h, with shift_right<bits>, both and
//             add_product(sum, a, b)      sum + a * b for a and b below 2^32; a may be what load_halves gives
//
// See products.h for what files compiled for an instruction set may define.
#pragma once

#include "kernels/shared/products.h"
#include "kernels/shared/transform.h"

namespace hesplit {

namespace {

namespace vectorised {

// Between levels residues, and always roots, are doubles in the memory of words.
inline std::uint64_t as_word(double value) {
    std::uint64_t word;
    __builtin_memcpy(&word, &value, sizeof(word));
    return word;
}
inline double as_double(std::uint64_t word) {
    double value;
    __builtin_memcpy(&value, &word, sizeof(value));
    return value;
}

template <class Doubles>
struct DoubleModulus {
    using Lanes = typename Doubles::Lanes;
    using Vector = typename Doubles::Vector;
    static constexpr std::size_t kLanes = Doubles::kLanes;

    struct Root {
        Vector value, quotient;  // |value| <= q / 2, quotient = value / q

        static Root broadcast(const std::uint64_t* roots, const std::uint64_t* quotients, std::size_t i) {
            return {Doubles::all(as_double(roots[i])), Doubles::all(as_double(quotients[i]))};
        }
        // For butterflies with gap 2 within four lanes, and with gap 1.
        static Root two(const std::uint64_t* roots, const std::uint64_t* quotients, std::size_t i) {
            return {Doubles::twice(roots + i), Doubles::twice(quotients + i)};
        }
        static Root four(const std::uint64_t* roots, const std::uint64_t* quotients, std::size_t i) {
            return {load(roots + i), load(quotients + i)};
        }
    };

    explicit DoubleModulus(const Prime& prime)
        : q(Doubles::all(static_cast<double>(prime.value))),
          inverse(Doubles::all(1 / static_cast<double>(prime.value))) {}

    static Vector load(const std::uint64_t* in) { return Doubles::load(in); }
    static void store(std::uint64_t* out, Vector x) { Doubles::store(out, x); }

    // y * root mod q. All integers: the product is high - low exactly. For |y| <= c q the quotient is off by at most
    // 1/2 + c 2^-53 q, so that |result| <= (1/2 + c/8) q when q < 2^50; everything is exact while c q < 2^53.
    Vector multiply(Vector y, Root root) const {
        const Vector quotient = Doubles::round(Doubles::multiply(y, root.quotient));
        return rest(y, root.value, Doubles::multiply(y, root.value), quotient);
    }
    // a[i] * b[i] for four residues.
    void multiply(const std::uint64_t* a, const std::uint64_t* b, std::uint64_t* out) const {
        const Vector x = Doubles::to_double(Lanes::load(a)), y = Doubles::to_double(Lanes::load(b));
        const Vector high = Doubles::multiply(x, y);
        const Vector quotient = Doubles::round(Doubles::multiply(high, inverse));
        Lanes::store(out, canonical(rest(x, y, high, quotient)));
    }
    // x mod q, between -q/2 and q/2 but for rounding.
    Vector reduce(Vector x) const {
        return Doubles::subtract_product(x, Doubles::round(Doubles::multiply(x, inverse)), q);
    }
    // x in (-q, q) to [0, q).
    typename Lanes::Vector canonical(Vector x) const { return Doubles::to_integer(Doubles::add_if_negative(x, q)); }

    Vector q, inverse;

  private:
    // x * y - quotient * q, for the rounded product `high`.
    Vector rest(Vector x, Vector y, Vector high, Vector quotient) const {
        const Vector low = Doubles::subtract_product(high, x, y);
        return Doubles::subtract(Doubles::subtract_product(high, quotient, q), low);
    }
};

// Values grow by at most (1/2 + c/8) q a level from c = 1: 4.1 q after four levels, when they are reduced; and with
// Lazy, for q < 2^46, by at most 0.6 q: below 2^50 after 16 levels without any reduction.
template <class Doubles, bool Lazy>
struct DoubleForward : DoubleModulus<Doubles> {
    using Modulus = DoubleModulus<Doubles>;
    using Modulus::canonical, Modulus::kLanes, Modulus::load, Modulus::reduce, Modulus::store;
    using typename Modulus::Lanes;
    using typename Modulus::Root;
    using typename Modulus::Vector;

    using Modulus::Modulus;

    static void enter(std::uint64_t* a, std::size_t, std::size_t at, std::size_t count) {
        for (std::size_t i = at; i < at + count; i += kLanes) {
            store(a + i, Doubles::to_double(Lanes::load(a + i)));
        }
    }
    void operator()(Vector& x, Vector& y, Root root) const {
        const Vector v = Modulus::multiply(y, root);
        y = Doubles::subtract(x, v);
        x = Doubles::add(x, v);
    }
    void begin(Vector& v0, Vector& v1, Vector& v2, Vector& v3) const {
        if (!Lazy && due) {
            v0 = reduce(v0), v1 = reduce(v1), v2 = reduce(v2), v3 = reduce(v3);
        }
    }
    void next() { due = !due; }
    void finish(const std::uint64_t* roots, const std::uint64_t* quotients, std::size_t n, std::size_t k,
                std::uint64_t* a) const {
        Vector x = load(a), y = load(a + kLanes);
        if (!Lazy) {
            x = reduce(x), y = reduce(y);
        }
        Doubles::sort2(x, y);
        (*this)(x, y, Root::two(roots, quotients, n / 4 + 2 * k));
        Doubles::sort1(x, y);
        (*this)(x, y, Root::four(roots, quotients, n / 2 + 4 * k));
        Doubles::sort1(x, y);
        Doubles::sort2(x, y);
        Lanes::store(a, canonical(reduce(x)));
        Lanes::store(a + kLanes, canonical(reduce(y)));
    }

    bool due = false;  // values are reduced before every second pair of levels
};

// Sums double with each level: they are reduced after every second one, when |x|, |y| <= q have become 4 q and products
// q again; with Lazy never, and N q < 2^51 must hold.
template <class Doubles, bool Lazy>
struct DoubleInverse : DoubleModulus<Doubles> {
    using Modulus = DoubleModulus<Doubles>;
    using Modulus::canonical, Modulus::kLanes, Modulus::load, Modulus::multiply, Modulus::reduce, Modulus::store;
    using typename Modulus::Lanes;
    using typename Modulus::Root;
    using typename Modulus::Vector;
    static constexpr int kStartLevels = 2;

    using Modulus::Modulus;

    void first(Vector& x, Vector& y, Root root) const {
        const Vector sum = Doubles::add(x, y);
        y = multiply(Doubles::subtract(x, y), root);
        x = sum;
    }
    void second(Vector& x, Vector& y, Root root) const {
        first(x, y, root);
        x = Lazy ? x : reduce(x);
    }
    void alone(Vector& x, Vector& y, Root root) const { second(x, y, root); }
    static void next(int) {}
    void start(const std::uint64_t* roots, const std::uint64_t* quotients, std::size_t n, std::size_t k,
               std::uint64_t* a) const {
        Vector x = Doubles::to_double(Lanes::load(a)), y = Doubles::to_double(Lanes::load(a + kLanes));
        Doubles::sort2(x, y);
        Doubles::sort1(x, y);
        first(x, y, Root::four(roots, quotients, n / 2 + 4 * k));
        Doubles::sort1(x, y);
        second(x, y, Root::two(roots, quotients, n / 4 + 2 * k));
        Doubles::sort2(x, y);
        store(a, x);
        store(a + kLanes, y);
    }
    void last(std::uint64_t* x, std::uint64_t* y, Root sum_root, Root difference_root) const {
        const Vector u = load(x), v = load(y);
        const Vector sum = multiply(Doubles::add(u, v), sum_root);
        const Vector difference = multiply(Doubles::subtract(u, v), difference_root);
        Lanes::store(x, canonical(sum));
        Lanes::store(y, canonical(difference));
    }
};

inline void prepare_doubles(std::uint64_t* roots, std::uint64_t* quotients, std::size_t n, std::uint64_t q) {
    for (std::size_t i = 0; i < n; ++i) {
        const double root = roots[i] > q / 2 ? -static_cast<double>(q - roots[i]) : static_cast<double>(roots[i]);
        roots[i] = as_word(root);
        quotients[i] = as_word(root / static_cast<double>(q));
    }
}

inline void prepare_doubles(NttTable& table) {
    prepare_doubles(table.roots, table.quotients, table.degree, table.prime.value);
    prepare_doubles(table.inverse_roots, table.inverse_quotients, table.degree, table.prime.value);
}

template <class Doubles>
void forward_in_doubles(const NttTable& table, std::uint64_t* residues, Support support) {
    return table.prime.bits <= 46 ? forward<DoubleForward<Doubles, true>>(table, residues, support)
                                  : forward<DoubleForward<Doubles, false>>(table, residues, support);
}

template <class Doubles>
void inverse_in_doubles(const NttTable& table, std::uint64_t* residues) {
    // Sums below N q make the quotient of a product be off by less than 1/2 + 1/4.
    return table.prime.bits + log2_of(table.degree) <= 51 ? inverse<DoubleInverse<Doubles, true>>(table, residues)
                                                          : inverse<DoubleInverse<Doubles, false>>(table, residues);
}

// Sums of products of residues below 2^31 in 64-bit integers, reduced as doubles.
template <class Doubles, std::size_t TileOutputs>
struct HalfSum {
    using Lanes = typename Doubles::Lanes;
    static constexpr std::size_t kTileOutputs = TileOutputs;
    static constexpr bool kPrefetch = false;

    struct Modulus : DoubleModulus<Doubles> {
        explicit Modulus(const Prime& prime)
            : DoubleModulus<Doubles>(prime), power(of(reduce_word(std::uint64_t{1} << 31, prime))) {}

        typename DoubleModulus<Doubles>::Root of(std::uint64_t residue) const {
            const auto value = Doubles::all(static_cast<double>(residue));
            return {value, Doubles::multiply(value, this->inverse)};
        }
        // high * 2^31 + low mod q, for |high| <= 2^33 and low < 2^31.
        typename Lanes::Vector residue(typename Doubles::Vector high, typename Doubles::Vector low) const {
            return this->canonical(this->reduce(Doubles::add(this->multiply(high, power), low)));
        }
        typename DoubleModulus<Doubles>::Root power;  // 2^31
    };

    // Products that a 64-bit sum holds on top of a residue.
    static std::size_t lazy_terms(const Prime& prime) { return vectorised::lazy_terms(63 - 2 * prime.bits); }
    template <class Halves>
    void add(Halves a, typename Lanes::Vector b) {
        words = Lanes::add_product(words, a, b);
    }
    typename Lanes::Vector residues(const Modulus& modulus) const {
        return modulus.residue(Doubles::to_double(Lanes::template shift_right<31>(words)),
                               Doubles::to_double(Lanes::both(words, Lanes::all((std::uint64_t{1} << 31) - 1))));
    }

    typename Lanes::Vector words = Lanes::zero();
};

}  // namespace vectorised

}  // namespace

}  // namespace hesplit
