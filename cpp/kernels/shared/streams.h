// Key streams and samples, as templates over what an instruction set brings; see shared/products.h for the rules.
//
//   Blocks  32-bit words, one of each of kCount blocks side by side: Vector, all, numbers (0, 1, ...), add,
//           exclusive_or, rotate<bits>, write(words, count, out)   the first `count` blocks of 16 words each
//   Coins   64-bit lanes: kLanes, load(bytes)                 kLanes words of 48 bits
//           split(word)                                       bits 0 to 20 in the lower half of a lane, 21 to 41 in the
//                                                             upper
//           count_ones(x)                                     in each half of a lane
//           store(x, out)                                     lower half minus upper half of each lane, as bytes
//   Lanes   load, load32 (kLanes words of 32 bits), all, both(a, b), keep_below(x, q, out): stores those lanes of x
//   that
//           are below q, side by side; returns how many. May write all.
#pragma once

#include "kernels/kernels.h"
#include "kernels/tables.h"

namespace hesplit {

namespace {

namespace vectorised {

template <class Blocks, class Vector>
void quarter_round(Vector& a, Vector& b, Vector& c, Vector& d) {
    a = Blocks::add(a, b), d = Blocks::template rotate<16>(Blocks::exclusive_or(d, a));
    c = Blocks::add(c, d), b = Blocks::template rotate<12>(Blocks::exclusive_or(b, c));
    a = Blocks::add(a, b), d = Blocks::template rotate<8>(Blocks::exclusive_or(d, a));
    c = Blocks::add(c, d), b = Blocks::template rotate<7>(Blocks::exclusive_or(b, c));
}

template <class Blocks>
void chacha20(const std::uint32_t state[16], std::uint8_t* out, std::size_t blocks) {
    typename Blocks::Vector start[16], x[16];
    for (std::size_t w = 0; w < 16; ++w) {
        start[w] = Blocks::all(state[w]);
    }
    start[12] = Blocks::add(start[12], Blocks::numbers());
    for (std::size_t first = 0; first < blocks; first += Blocks::kCount) {
        for (std::size_t w = 0; w < 16; ++w) {
            x[w] = start[w];
        }
        for (int round = 0; round < 10; ++round) {
            quarter_round<Blocks>(x[0], x[4], x[8], x[12]);
            quarter_round<Blocks>(x[1], x[5], x[9], x[13]);
            quarter_round<Blocks>(x[2], x[6], x[10], x[14]);
            quarter_round<Blocks>(x[3], x[7], x[11], x[15]);
            quarter_round<Blocks>(x[0], x[5], x[10], x[15]);
            quarter_round<Blocks>(x[1], x[6], x[11], x[12]);
            quarter_round<Blocks>(x[2], x[7], x[8], x[13]);
            quarter_round<Blocks>(x[3], x[4], x[9], x[14]);
        }
        for (std::size_t w = 0; w < 16; ++w) {
            x[w] = Blocks::add(x[w], start[w]);
        }
        const std::size_t left = blocks - first;
        Blocks::write(x, left < Blocks::kCount ? left : Blocks::kCount, out + 64 * first);
        start[12] = Blocks::add(start[12], Blocks::all(Blocks::kCount));
    }
    secure_zero(x, sizeof(x));
    secure_zero(start, sizeof(start));
}

template <class Coins>
void noise(const std::uint8_t* coins, std::int8_t* out, std::size_t n) {
    for (std::size_t i = 0; i < n; i += Coins::kLanes) {
        Coins::store(Coins::count_ones(Coins::split(Coins::load(coins + 6 * i))), out + i);
    }
}

template <class Lanes>
std::size_t accept(const std::uint8_t* words, bool narrow, std::uint64_t mask, std::uint64_t q, std::uint64_t* out,
                   std::size_t n) {
    const std::size_t size = narrow ? 4 : 8;
    std::size_t kept = 0, i = 0;
    for (; i + Lanes::kLanes <= n; i += Lanes::kLanes) {
        const auto word = narrow ? Lanes::load32(words + 4 * i) : Lanes::load(words + 8 * i);
        kept += Lanes::keep_below(Lanes::both(word, Lanes::all(mask)), q, out + kept);
    }
    return kept + kScalarStreams.accept(words + size * i, narrow, mask, q, out + kept, n - i);
}

}  // namespace vectorised

}  // namespace

}  // namespace hesplit
