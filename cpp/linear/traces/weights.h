// Private weights on slots: one plaintext for every product and input, no rotations.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "ckks/precise_embedding.h"
#include "linear/precision.h"
#include "linear/server_packing.h"
#include "packing/traces.h"

namespace hesplit {

// Immutable.
class TraceWeights {
  public:
    TraceWeights(const Parameters& parameters, const Ring& ring, const TraceLayout& layout, View<const double> weight,
                 std::vector<double> bias);

    const Scaling& scaling() const { return scaling_; }
    // Coefficients that say the logits of a product, and how far apart their residues are.
    const std::vector<std::uint32_t>& positions() const { return positions_; }
    std::size_t padded() const { return (positions_.size() + 15) / 16 * 16; }

    // Product p of a group, without bias, in coefficient form.
    void product(const GroupInputs& inputs, std::size_t p, std::uint64_t* c0, std::uint64_t* c1) const;
    // What the bias adds to the coefficients at positions() for `samples` samples: [primes, padded()] residues.
    SecretBuffer<std::uint64_t> bias(std::size_t p, std::size_t samples) const;

  private:
    const Ring& ring_;
    TraceLayout layout_;
    Scaling scaling_;
    std::vector<std::uint32_t> positions_;
    PreciseEmbedding traces_;  // of the subfield
    double reach_;             // of a logit
    std::vector<double> bias_;
    std::vector<Buffer<std::uint64_t>> encoded_;  // [product, input] in NTT form
};

}  // namespace hesplit
