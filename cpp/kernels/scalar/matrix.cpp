// Exact matrix products of integers in doubles: what the vectorised ones are tested against.
#include "kernels/kernels.h"
#include "kernels/tables.h"

namespace hesplit {

namespace scalar {

namespace {

constexpr std::size_t kRows = 4, kColumns = 8;

// To the nearest integer, for |x| < 2^51: adding this leaves no bits for a fraction.
double round(double x) {
    constexpr double kMagic = 0x1.8p52;
    return (x + kMagic) - kMagic;
}

void multiply_tile(const double* a, const double* b, std::size_t terms, std::size_t rows, const double* q,
                   const double* inverse, double* sums) {
    for (std::size_t r = 0; r < rows; ++r) {
        double row[kColumns];
        for (std::size_t c = 0; c < kColumns; ++c) {
            row[c] = sums[r * kColumns + c];
        }
        for (std::size_t i = 0; i < terms; ++i) {
            const double factor = a[i * kRows + r];
            for (std::size_t c = 0; c < kColumns; ++c) {
                row[c] += factor * b[i * kColumns + c];
            }
        }
        for (std::size_t c = 0; c < kColumns; ++c) {
            // The product is an integer next to the sum, and so exact.
            sums[r * kColumns + c] = row[c] - round(row[c] * inverse[r]) * q[r];
        }
    }
}

}  // namespace

}  // namespace scalar

const Matrices kScalarMatrices = {scalar::kRows, scalar::kColumns, scalar::multiply_tile};

}  // namespace hesplit
