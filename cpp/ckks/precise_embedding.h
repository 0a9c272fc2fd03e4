// The canonical embedding in double-double arithmetic: coefficients to 100 bits.
//
// Where replies hide weights, a flood that is 2^40 times as large as what it hides, and still a small part of a logit,
// leaves no room for the 53 bits of doubles: a rounding error of the embedding would be larger than all noise. Slots
// are those of ckks/embedding.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/buffer.h"
#include "ring/ring.h"

namespace hesplit {

// Immutable.
class PreciseEmbedding {
  public:
    // What a coefficient may be off by, beside its rounding: this part of the largest slot (docs/precision.md).
    static constexpr double kRelativeError = 0x1p-95;

    // `degree` N is a power of two, at least 16.
    explicit PreciseEmbedding(std::size_t degree);

    std::size_t slots() const { return slots_; }
    // round(scale * m) for the first `count` coefficients of the polynomial m with these real slots, none larger than
    // `bound`: residues, those of one prime `count` apart. count is a multiple of 16, at most N. Takes the same time
    // for all slots.
    void encode(const double* slots, double bound, double scale, const Ring& ring, std::size_t count,
                std::uint64_t* residues) const;

  private:
    // An unevaluated sum, |low| at most half of the last bit of high.
    struct Sum {
        double high, low;
    };
    struct Complex {
        Sum re, im;
    };
    static Sum quick(double large, double small);
    static Sum sum(double a, double b);
    static Sum product(double a, double b);
    static Sum add(Sum a, Sum b);
    static Sum multiply(Sum a, Sum b);
    static Sum square_root(Sum a);
    static Complex rotate(const Complex& a, const Complex& root);

    void fill_roots();
    // The first slots_ coefficients, times slots_.
    SecretBuffer<Sum> cosine_sums(const double* slots) const;

    std::size_t slots_;
    Buffer<std::uint32_t> place_;  // of each slot in the transform's input
    Buffer<Complex> roots_;        // exp(-pi i k / N), k < N
};

}  // namespace hesplit
