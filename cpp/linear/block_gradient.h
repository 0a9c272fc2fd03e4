// The encrypted weight gradient on coefficient blocks: the inputs of a forward pass times polynomials of dJ/dY.
#pragma once

#include <cstdint>
#include <vector>

#include "packing/blocks.h"
#include "ring/ring.h"

namespace hesplit {

// The input ciphertexts of one group, one polynomial after the other, in NTT form.
struct GroupInputs {
    std::size_t count = 0;
    Buffer<std::uint64_t> c0;
    Buffer<std::uint64_t> c1;
};

// dJ/dY encoded for one layout and all groups of a batch, in NTT form. `gradient` is row-major [samples, outputs].
class BlockGradient {
  public:
    BlockGradient(const Ring& ring, const BlockLayout& layout, View<const double> gradient, double scale);

    // The ciphertext of dW of product p and input j, both polynomials in coefficient form. `inputs` are the groups of
    // the batch.
    void product(const std::vector<GroupInputs>& inputs, std::size_t p, std::size_t j, std::uint64_t* c0,
                 std::uint64_t* c1) const;

  private:
    const Ring& ring_;
    BlockLayout layout_;
    std::size_t groups_;
    std::vector<Buffer<std::uint64_t>> encoded_;  // [product, group]
};

}  // namespace hesplit
