// The tile of an exact matrix product, as a template over what an instruction set brings:
//
//   Doubles   kLanes doubles side by side: Vector, load, store, all, multiply, round (to the nearest integer), and with
//             one rounding multiply_add(a, b, c) a * b + c, subtract_product(c, a, b) c - a * b
//
// See shared/products.h for what files compiled for an instruction set may define.
#pragma once

#include "kernels/kernels.h"

namespace hesplit {

namespace {

namespace vectorised {

template <class Doubles, std::size_t Stride, std::size_t Rows, std::size_t Vectors>
void multiply_rows(const double* a, const double* b, std::size_t terms, const double* q, const double* inverse,
                   double* sums) {
    constexpr std::size_t kLanes = Doubles::kLanes, kColumns = Vectors * kLanes;
    typename Doubles::Vector tile[Rows][Vectors];
    for (std::size_t r = 0; r < Rows; ++r) {
        for (std::size_t v = 0; v < Vectors; ++v) {
            tile[r][v] = Doubles::load(sums + r * kColumns + v * kLanes);
        }
    }
    for (std::size_t i = 0; i < terms; ++i) {
        typename Doubles::Vector column[Vectors];
        for (std::size_t v = 0; v < Vectors; ++v) {
            column[v] = Doubles::load(b + i * kColumns + v * kLanes);
        }
        for (std::size_t r = 0; r < Rows; ++r) {
            const auto factor = Doubles::all(a[i * Stride + r]);
            for (std::size_t v = 0; v < Vectors; ++v) {
                tile[r][v] = Doubles::multiply_add(factor, column[v], tile[r][v]);
            }
        }
    }
    for (std::size_t r = 0; r < Rows; ++r) {
        const auto modulus = Doubles::all(q[r]), reciprocal = Doubles::all(inverse[r]);
        for (std::size_t v = 0; v < Vectors; ++v) {
            const auto quotient = Doubles::round(Doubles::multiply(tile[r][v], reciprocal));
            Doubles::store(sums + r * kColumns + v * kLanes, Doubles::subtract_product(tile[r][v], quotient, modulus));
        }
    }
}

// Rows by eights (where the tile has so many), fours and twos.
template <class Doubles, std::size_t Stride, std::size_t Vectors>
void multiply_tile(const double* a, const double* b, std::size_t terms, std::size_t rows, const double* q,
                   const double* inverse, double* sums) {
    constexpr std::size_t kColumns = Vectors * Doubles::kLanes;
    if (Stride == 8 && rows > 4) {
        multiply_rows<Doubles, Stride, Stride, Vectors>(a, b, terms, q, inverse, sums);
        return;
    }
    std::size_t r = 0;
    if (rows > 2) {
        multiply_rows<Doubles, Stride, 4, Vectors>(a, b, terms, q, inverse, sums);
        r = 4;
    }
    for (; r < rows; r += 2) {
        multiply_rows<Doubles, Stride, 2, Vectors>(a + r, b, terms, q + r, inverse + r, sums + r * kColumns);
    }
}

}  // namespace vectorised

}  // namespace

}  // namespace hesplit
