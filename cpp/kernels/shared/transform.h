// Levels of the number-theoretic transforms, as templates over butterflies that an instruction set brings; see
// shared/products.h for the rules. Both kinds have
//
//   Vector, kLanes   kLanes values side by side; the levels with smaller gaps stay within a pair of vectors
//   Root             with broadcast(roots, quotients, i), the same root for all lanes
//   load, store      of values as they are between levels, which may take less memory than residues
//
// and are made from a Prime. What forward and inverse butterflies do besides is listed below.
#pragma once

#include "kernels/kernels.h"

namespace hesplit {

namespace {

namespace vectorised {

// Cooley-Tukey. Forward has
//
//   enter(a, n, at, count)   turns `count` residues from `at` on into values as they are between levels; called from
//                        the end of the polynomial to its beginning
//   (x, y, root)         x, y = x + root * y, x - root * y
//   begin(v0 .. v3)      before two levels;  next() after them
//   finish(roots, quotients, n, k, a)   the last levels, on values 2k * kLanes to 2(k + 1) * kLanes - 1 at a; leaves
//                        residues
template <class Forward, class Word>
void forward(const NttTable& table, Word* a, Support support) {
    using Vector = typename Forward::Vector;
    using Root = typename Forward::Root;
    constexpr std::size_t kLanes = Forward::kLanes;
    const std::uint64_t* roots = table.roots;
    const std::uint64_t* quotients = table.quotients;
    const std::size_t n = table.degree;
    Forward butterfly(table.prime);
    for (std::size_t at = n; at > 0;) {
        at -= support.period;
        butterfly.enter(a, n, at, support.used);
    }
    std::size_t groups = 1, gap = n / 2;
    const auto level = [&](std::size_t used) {
        for (std::size_t g = 0; g < groups; ++g) {
            const Root root = Root::broadcast(roots, quotients, groups + g);
            for (std::size_t at = 2 * g * gap; at < (2 * g + 1) * gap; at += used < gap ? support.period : gap) {
                for (std::size_t i = at; i < at + used; i += kLanes) {
                    Vector x = Forward::load(a + i), y = Forward::load(a + gap + i);
                    butterfly(x, y, root);
                    Forward::store(a + i, x);
                    Forward::store(a + gap + i, y);
                }
            }
        }
        groups *= 2, gap /= 2;
    };
    while (gap >= support.period) {
        level(support.used);
        butterfly.next();
    }
    // Levels that add multiples of 0.
    for (std::size_t at = 0; at < n; at += support.period) {
        for (std::size_t copy = support.used; copy < support.period; copy += support.used) {
            for (std::size_t i = 0; i < support.used; i += kLanes) {
                Forward::store(a + at + copy + i, Forward::load(a + at + i));
            }
        }
    }
    groups = n / support.used, gap = support.used / 2;
    // The levels with gaps of kLanes and more, two at a time; one alone first if their number is odd.
    std::size_t levels = 0;
    for (std::size_t g = gap; g >= kLanes; g /= 2) {
        ++levels;
    }
    if (levels % 2 == 1) {
        level(gap);
    }
    for (; gap >= 2 * kLanes; groups *= 4, gap /= 4) {
        const std::size_t half = gap / 2;
        for (std::size_t g = 0; g < groups; ++g) {
            const Root first = Root::broadcast(roots, quotients, groups + g);
            const Root left = Root::broadcast(roots, quotients, 2 * (groups + g));
            const Root right = Root::broadcast(roots, quotients, 2 * (groups + g) + 1);
            Word* p = a + 2 * g * gap;
            for (std::size_t i = 0; i < half; i += kLanes) {
                Vector v0 = Forward::load(p + i), v1 = Forward::load(p + half + i);
                Vector v2 = Forward::load(p + gap + i), v3 = Forward::load(p + gap + half + i);
                butterfly.begin(v0, v1, v2, v3);
                butterfly(v0, v2, first);
                butterfly(v1, v3, first);
                butterfly(v0, v1, left);
                butterfly(v2, v3, right);
                Forward::store(p + i, v0);
                Forward::store(p + half + i, v1);
                Forward::store(p + gap + i, v2);
                Forward::store(p + gap + half + i, v3);
            }
        }
        butterfly.next();
    }
    for (std::size_t k = 0; k < n / (2 * kLanes); ++k) {
        butterfly.finish(roots, quotients, n, k, a + 2 * kLanes * k);
    }
}

// Gentleman-Sande. Inverse has
//
//   start(roots, quotients, n, k, a)   turns residues 2k * kLanes to 2(k + 1) * kLanes - 1, at a, into values as they
//                        are between levels, and does the first levels, of which there are kStartLevels
//   first, second, alone (x, y, root): x, y = x + y, root * (x - y); the first, the second of two levels, or one alone
//   next(levels)         after so many of them
//   last(x, y, r, s)     the last level, on values at x and y: r * (x + y), s * (x - y) as residues
template <class Inverse, class Word>
void inverse(const NttTable& table, Word* a) {
    using Vector = typename Inverse::Vector;
    using Root = typename Inverse::Root;
    constexpr std::size_t kLanes = Inverse::kLanes;
    const std::uint64_t* roots = table.inverse_roots;
    const std::uint64_t* quotients = table.inverse_quotients;
    const std::size_t n = table.degree;
    Inverse butterfly(table.prime);
    for (std::size_t k = 0; k < n / (2 * kLanes); ++k) {
        butterfly.start(roots, quotients, n, k, a + 2 * kLanes * k);
    }
    butterfly.next(Inverse::kStartLevels);
    std::size_t groups = n / (2 * kLanes), gap = kLanes;
    // Two levels at a time, while more than the last one is left after them.
    for (; groups > 2; groups /= 4, gap *= 4) {
        for (std::size_t g = 0; g < groups / 2; ++g) {
            const Root left = Root::broadcast(roots, quotients, groups + 2 * g);
            const Root right = Root::broadcast(roots, quotients, groups + 2 * g + 1);
            const Root outer = Root::broadcast(roots, quotients, groups / 2 + g);
            Word* p = a + 4 * g * gap;
            for (std::size_t i = 0; i < gap; i += kLanes) {
                Vector v0 = Inverse::load(p + i), v1 = Inverse::load(p + gap + i);
                Vector v2 = Inverse::load(p + 2 * gap + i), v3 = Inverse::load(p + 3 * gap + i);
                butterfly.first(v0, v1, left);
                butterfly.first(v2, v3, right);
                butterfly.second(v0, v2, outer);
                butterfly.second(v1, v3, outer);
                Inverse::store(p + i, v0);
                Inverse::store(p + gap + i, v1);
                Inverse::store(p + 2 * gap + i, v2);
                Inverse::store(p + 3 * gap + i, v3);
            }
        }
        butterfly.next(2);
    }
    if (groups == 2) {
        for (std::size_t g = 0; g < 2; ++g) {
            const Root root = Root::broadcast(roots, quotients, 2 + g);
            Word* p = a + 2 * g * gap;
            for (std::size_t i = 0; i < gap; i += kLanes) {
                Vector x = Inverse::load(p + i), y = Inverse::load(p + gap + i);
                butterfly.alone(x, y, root);
                Inverse::store(p + i, x);
                Inverse::store(p + gap + i, y);
            }
        }
        butterfly.next(1);
        gap *= 2;
    }
    const Root sum_root = Root::broadcast(roots, quotients, 0), difference_root = Root::broadcast(roots, quotients, 1);
    for (std::size_t i = 0; i < gap; i += kLanes) {
        butterfly.last(a + i, a + gap + i, sum_root, difference_root);
    }
}

inline int log2_of(std::size_t power_of_two) {
    int bits = 0;
    for (; power_of_two > 1; power_of_two /= 2) {
        ++bits;
    }
    return bits;
}

template <class Arithmetic>
void multiply(const Prime& q, const std::uint64_t* a, const std::uint64_t* b, std::uint64_t* out, std::size_t n) {
    const Arithmetic modulus(q);
    for (std::size_t i = 0; i < n; i += Arithmetic::kLanes) {
        modulus.multiply(a + i, b + i, out + i);
    }
}

}  // namespace vectorised

}  // namespace

}  // namespace hesplit
