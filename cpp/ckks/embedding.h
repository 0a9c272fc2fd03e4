// The canonical embedding of real slots: polynomials with real coefficients, evaluated at half of the complex roots.
//
// Slot i is the value at zeta^(3^i), zeta = exp(i pi / N), as in SEAL's CKKSEncoder. A real slot is also the value at
// the conjugate root, and of each such pair one exponent is 4 j + 1. With u_k = m_k + i m_(k + N/2), i being
// zeta^(N/2 (4 j + 1)), those values are
//   m(zeta^(4 j + 1)) = sum_k (u_k zeta^k) exp(2 pi i j k / (N/2)):
// a twist and a Fourier transform of N/2 points, real on one side, so one of N/4 complex points. That is a quarter of
// the usual transform over all N roots.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/buffer.h"

namespace hesplit {

class Embedding {
  public:
    // `degree` N is a power of two, at least 16.
    explicit Embedding(std::size_t degree);

    std::size_t slots() const { return 2 * half_; }
    // The N coefficients of the polynomial with these values in its slots().
    void to_coefficients(const double* slots, double* coefficients) const;
    // The real parts of the slots.
    void to_slots(const double* coefficients, double* slots) const;

  private:
    struct Complex {
        SecretBuffer<double> re, im;  // of messages, for a moment
        explicit Complex(std::size_t size) : re(size), im(size) {}
    };
    // sum_k x_k exp(-2 pi i j k / half) for all j; x in bit-reversed order. With re and im exchanged in both x and the
    // result, the transform with the other sign.
    void transform(double* re, double* im) const;

    std::size_t half_;                // N / 4
    Buffer<std::uint32_t> index_;     // j of each slot
    Buffer<std::uint32_t> reversed_;  // bits of [0, half)
    Complex roots_;                   // exp(-pi i k / length) at length + k, for each power of two up to half
    Complex twist_;                   // zeta^-k, k < 2 half
};

}  // namespace hesplit
