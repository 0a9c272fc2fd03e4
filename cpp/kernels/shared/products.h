// Loops over residues that the vectorised kernels have in common, as templates over what an instruction set brings:
//
//   Lanes   64-bit words side by side: Vector, kLanes, load, store, all, zero, add, subtract,
//           subtract_once(x, q)    x - q where x >= q, for x < 2q
//           add_if_negative(x, q)  x + q where x < 0, for -q <= x < q
//           negate(x, q)           q - x, but 0 for 0
//           small(bytes)           kLanes signed bytes
//           sum(x)                 of the lanes, modulo 2^64
//           high_half(x)           x >> 32
//           add_ternary(sum, signs(sign, nonzero), x)   sum + s * x for s in {-1, 0, 1}
//   Sum     kLanes sums of products: Lanes, Modulus (made from a Prime), words (what a sum begins with, a residue),
//           add(a, b), residues(modulus), lazy_terms(prime) that a sum holds, kTileOutputs, kPrefetch
//
// Files that are compiled for an instruction set must not emit functions that the linker may take for somebody else's:
// of several equal inline functions or instances of a template it keeps one for all, and the one that has AVX-512
// instructions would then run everywhere. So all that such a file defines, here and in its own directory, lies in an
// anonymous namespace, and it uses neither templates nor inline functions of others, the standard library's included
// (of our own headers only Rows::operator[], which is always inlined). cpp/CMakeLists.txt checks it.
#pragma once

#include "kernels/kernels.h"

namespace hesplit {

namespace {

namespace vectorised {

inline std::size_t least(std::size_t a, std::size_t b) {
    return b < a ? b : a;
}

// The number of products to sum before a reduction: 2^spare_bits, within reason.
inline std::size_t lazy_terms(int spare_bits) {
    return std::size_t{1} << (spare_bits < kLazyBits ? spare_bits : kLazyBits);
}

// Any 64-bit word mod q.
inline std::uint64_t reduce_word(std::uint64_t x, const Prime& q) {
    __extension__ typedef unsigned __int128 Wide;
    const std::uint64_t rest = x - static_cast<std::uint64_t>((Wide{x} * q.ratio_high) >> 64) * q.value;  // < 2q
    const std::uint64_t less = rest - q.value;
    return rest < less ? rest : less;
}

template <class Lanes>
void add(std::uint64_t q, std::uint64_t* a, const std::uint64_t* b, std::size_t n) {
    const auto modulus = Lanes::all(q);
    for (std::size_t i = 0; i < n; i += Lanes::kLanes) {
        const auto sum = Lanes::add(Lanes::load(a + i), Lanes::load(b + i));
        Lanes::store(a + i, Lanes::subtract_once(sum, modulus));
    }
}

template <class Lanes>
void subtract_from(std::uint64_t q, std::uint64_t* a, const std::uint64_t* b, std::size_t n) {
    const auto modulus = Lanes::all(q);
    for (std::size_t i = 0; i < n; i += Lanes::kLanes) {
        const auto difference = Lanes::subtract(Lanes::load(b + i), Lanes::load(a + i));
        Lanes::store(a + i, Lanes::add_if_negative(difference, modulus));
    }
}

template <class Lanes>
void negate(std::uint64_t q, const std::uint64_t* a, std::uint64_t* out, std::size_t n) {
    const auto modulus = Lanes::all(q);
    for (std::size_t i = 0; i < n; i += Lanes::kLanes) {
        Lanes::store(out + i, Lanes::negate(Lanes::load(a + i), modulus));
    }
}

template <class Lanes>
void add_small(std::uint64_t q, std::uint64_t* a, const std::int8_t* small, std::size_t n) {
    const auto modulus = Lanes::all(q);
    for (std::size_t i = 0; i < n; i += Lanes::kLanes) {
        const auto residue = Lanes::add_if_negative(Lanes::small(small + i), modulus);
        Lanes::store(a + i, Lanes::subtract_once(Lanes::add(Lanes::load(a + i), residue), modulus));
    }
}

template <class Sum>
void dot(const Prime& prime, Rows a, Rows b, std::size_t terms, std::uint64_t* out, std::size_t n) {
    using Lanes = typename Sum::Lanes;
    constexpr std::size_t kLanes = Lanes::kLanes;
    const typename Sum::Modulus modulus(prime);
    const std::size_t lazy = Sum::lazy_terms(prime);
    for (std::size_t i = 0; i < n; i += 2 * kLanes) {
        Sum first, second;
        for (std::size_t j = 0; j < terms;) {
            const std::size_t stop = least(j + lazy, terms);
            for (; j < stop; ++j) {
                const std::uint64_t* x = a[j] + i;
                const std::uint64_t* y = b[j] + i;
                if (Sum::kPrefetch) {
                    // Rotation keys come from beyond the second cache, and the hardware stops at the end of each page.
                    __builtin_prefetch(y + 192);
                    __builtin_prefetch(y + 200);
                }
                first.add(Lanes::load(x), Lanes::load(y));
                second.add(Lanes::load(x + kLanes), Lanes::load(y + kLanes));
            }
            if (j < terms) {
                first = Sum{first.residues(modulus)};
                second = Sum{second.residues(modulus)};
            }
        }
        Lanes::store(out + i, first.residues(modulus));
        Lanes::store(out + i + kLanes, second.residues(modulus));
    }
}

template <class Sum>
std::uint64_t inner(const Prime& prime, const std::uint64_t* const* a, const std::uint64_t* const* b,
                    std::size_t segments, std::size_t n) {
    using Lanes = typename Sum::Lanes;
    constexpr std::size_t kLanes = Lanes::kLanes;
    const typename Sum::Modulus modulus(prime);
    const std::size_t lazy = Sum::lazy_terms(prime);
    std::size_t room = lazy;  // products that each lane still takes
    Sum sum;
    for (std::size_t j = 0; j < segments; ++j) {
        for (std::size_t i = 0; i < n;) {
            if (room == 0) {
                sum = Sum{sum.residues(modulus)};
                room = lazy;
            }
            const std::size_t run = least((n - i) / kLanes, room);
            room -= run;
            for (const std::size_t stop = i + run * kLanes; i < stop; i += kLanes) {
                sum.add(Lanes::load(a[j] + i), Lanes::load(b[j] + i));
            }
        }
    }
    return reduce_word(Lanes::sum(sum.residues(modulus)), prime);  // a few residues below 2^50
}

// Adds `terms` products to out[o][at, ...], or overwrites it. `tile` holds 2 * kLanes residues for every term.
template <class Sum, std::size_t Outputs>
void combine_tile(const typename Sum::Modulus& modulus, const std::uint64_t* tile, std::size_t terms,
                  const std::uint64_t* scalars, std::size_t stride, bool overwrite, std::uint64_t* const* out,
                  std::size_t at) {
    using Lanes = typename Sum::Lanes;
    constexpr std::size_t kLanes = Lanes::kLanes;
    Sum sums[Outputs][2];
    if (!overwrite) {
        for (std::size_t o = 0; o < Outputs; ++o) {
            sums[o][0].words = Lanes::load(out[o] + at);
            sums[o][1].words = Lanes::load(out[o] + at + kLanes);
        }
    }
    for (std::size_t j = 0; j < terms; ++j) {
        const auto x0 = Lanes::load(tile + 2 * kLanes * j), x1 = Lanes::load(tile + 2 * kLanes * j + kLanes);
        for (std::size_t o = 0; o < Outputs; ++o) {
            const auto scalar = Lanes::all(scalars[o * stride + j]);
            sums[o][0].add(x0, scalar);
            sums[o][1].add(x1, scalar);
        }
    }
    for (std::size_t o = 0; o < Outputs; ++o) {
        Lanes::store(out[o] + at, sums[o][0].residues(modulus));
        Lanes::store(out[o] + at + kLanes, sums[o][1].residues(modulus));
    }
}

// By tiles of two vectors, of as many terms as need no reduction, and of as many outputs as registers hold sums of.
template <class Sum>
void combine(const Prime& prime, Rows a, std::size_t terms, const std::uint64_t* scalars, std::size_t outputs,
             std::uint64_t* const* out, std::size_t n) {
    using Lanes = typename Sum::Lanes;
    constexpr std::size_t kWidth = 2 * Lanes::kLanes, kOutputs = Sum::kTileOutputs;
    constexpr std::size_t kTerms = 384;  // a tile of them fits the first-level cache
    const typename Sum::Modulus modulus(prime);
    const std::size_t step = least(Sum::lazy_terms(prime), kTerms);
    alignas(kAlignment) std::uint64_t tile[kTerms * kWidth];
    for (std::size_t at = 0; at < n; at += kWidth) {
        for (std::size_t first = 0; first == 0 || first < terms; first += step) {
            const std::size_t count = least(terms - first, step);
            for (std::size_t j = 0; j < count; ++j) {
                const std::uint64_t* row = a[first + j] + at;
                Lanes::store(tile + kWidth * j, Lanes::load(row));
                Lanes::store(tile + kWidth * j + Lanes::kLanes, Lanes::load(row + Lanes::kLanes));
                // The next tile, which takes a page for every term: too far apart for the processor to foresee.
                for (std::size_t line = 0; line < kWidth; line += kAlignment / sizeof(*row)) {
                    __builtin_prefetch(row + kWidth + line, 0, 2);
                }
            }
            std::size_t o = 0;
            for (; o + kOutputs <= outputs; o += kOutputs) {
                combine_tile<Sum, kOutputs>(modulus, tile, count, scalars + o * terms + first, terms, first == 0,
                                            out + o, at);
            }
            for (; o < outputs; ++o) {
                combine_tile<Sum, 1>(modulus, tile, count, scalars + o * terms + first, terms, first == 0, out + o, at);
            }
        }
    }
}

// `Sum` adds products of halves of words, and needs no reduction on the way.
template <class Sum>
void dot_short(const Prime& prime, const std::uint32_t* a, const std::uint64_t* b, std::size_t terms,
               std::uint64_t* out, std::size_t n) {
    using Lanes = typename Sum::Lanes;
    const typename Sum::Modulus modulus(prime);
    for (std::size_t i = 0; i < n; i += Lanes::kLanes) {
        const std::size_t at = i / 8 * terms * 8 + i % 8;
        Sum sum;
        for (std::size_t j = 0; j < terms; ++j) {
            sum.add(Lanes::load_halves(a + at + 8 * j), Lanes::load(b + at + 8 * j));
        }
        Lanes::store(out + i, sum.residues(modulus));
    }
}

template <class Lanes, std::size_t Windows>
void ternary_dot_tile(const std::uint64_t* sign, const std::uint64_t* nonzero, const std::uint64_t* const* windows,
                      std::uint64_t* out, std::size_t n) {
    typename Lanes::Vector sums[Windows];
    for (auto& sum : sums) {
        sum = Lanes::zero();
    }
    for (std::size_t i = 0; i < n; i += Lanes::kLanes) {
        const auto signs = Lanes::signs(sign + i, nonzero + i);
        for (std::size_t p = 0; p < Windows; ++p) {
            sums[p] = Lanes::add_ternary(sums[p], signs, Lanes::load(windows[p] + i));
        }
    }
    for (std::size_t p = 0; p < Windows; ++p) {
        out[p] = Lanes::sum(sums[p]);
    }
}

// Four windows at a time share the signs.
template <class Lanes>
void ternary_dot(const std::uint64_t* sign, const std::uint64_t* nonzero, const std::uint64_t* const* windows,
                 std::size_t count, std::uint64_t* out, std::size_t n) {
    std::size_t p = 0;
    for (; p + 4 <= count; p += 4) {
        ternary_dot_tile<Lanes, 4>(sign, nonzero, windows + p, out + p, n);
    }
    for (; p < count; ++p) {
        ternary_dot_tile<Lanes, 1>(sign, nonzero, windows + p, out + p, n);
    }
}

}  // namespace vectorised

}  // namespace

}  // namespace hesplit
