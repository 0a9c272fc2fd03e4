// The encrypted weight gradient on coefficient blocks: the inputs of a forward pass times polynomials of dJ/dY.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "linear/server_packing.h"
#include "packing/blocks.h"
#include "ring/ring.h"

namespace hesplit {

// dJ/dY encoded for one layout and all groups of a batch, in NTT form. `gradient` is row-major [samples, outputs].
class BlockGradient final : public LayerGradient {
  public:
    BlockGradient(const Ring& ring, const BlockLayout& layout, View<const double> gradient, double scale);

    void product(const std::vector<GroupInputs>& inputs, const GradientRun& run, std::uint64_t* c0,
                 std::uint64_t* c1) const override;

  private:
    const Ring& ring_;
    BlockLayout layout_;
    std::size_t groups_;
    std::vector<Buffer<std::uint64_t>> encoded_;  // [product, group]
};

}  // namespace hesplit
