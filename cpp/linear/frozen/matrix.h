// A matrix of integers, and its exact product with residues in double precision.
//
// Residues are taken between -q/2 and q/2, and sums are reduced before they can reach 2^53: as many terms are added up
// as the norms of W's rows allow (Cauchy and Schwarz). What the floor is: a multiplication-addition of doubles for each
// weight, row and prime, half as fast as those of float32 are in the plaintext layer.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/buffer.h"
#include "kernels/kernels.h"
#include "ring/ring.h"

namespace hesplit {

// Reducing sums takes little time after so many terms.
inline constexpr std::size_t kLeastTerms = 64;
// The largest l2 norm that rows of W may have for sums of so many terms to be exact.
double largest_exact_norm(const Ring& ring, std::size_t terms);

class IntegerMatrix {
  public:
    // `values`: row-major [outputs, features], integers of at most 24 bits.
    IntegerMatrix(View<const float> values, std::size_t outputs, std::size_t features,
                  const Kernels& kernels = hesplit::kernels());

    std::size_t bytes() const { return columns_.size() * sizeof(float); }

    // out[t, r, p] = sum_f numbers[r, f] * W[p, f] modulo prime t of the ring, for `rows` rows of numbers below 2^51.
    // Throws ParameterError when not even kLeastTerms may be added up.
    void multiply(const Ring& ring, const std::uint64_t* numbers, std::size_t rows, std::uint64_t* out) const;

  private:
    std::size_t outputs_;
    std::size_t features_;
    const Kernels* kernels_;
    double largest_norm_ = 0;
    Buffer<float> columns_;  // [tile of outputs, feature, output of the tile]
};

}  // namespace hesplit
