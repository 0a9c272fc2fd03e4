// The encrypted weight gradient on coefficient blocks: the inputs of a forward pass times polynomials of dJ/dY.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "linear/server_packing.h"
#include "packing/blocks.h"
#include "ring/ring.h"

namespace hesplit {

// How many products are encoded at once, so that they do not take much memory: a batch may have many groups.
std::size_t gradient_products_at_once(std::size_t groups, std::size_t polynomial_bytes);

// dJ/dY encoded for one layout and all groups of a batch, in NTT form, for `count` products from the `first` on.
// `gradient` is row-major [samples, outputs].
class BlockGradient final : public LayerGradient {
  public:
    BlockGradient(const Ring& ring, const BlockLayout& layout, View<const double> gradient, double scale,
                  std::size_t first, std::size_t count);

    void product(const std::vector<GroupInputs>& inputs, const GradientRun& run, std::uint64_t* c0,
                 std::uint64_t* c1) const override;

  private:
    const Ring& ring_;
    BlockLayout layout_;
    std::size_t first_;
    std::size_t groups_;
    std::vector<Buffer<std::uint64_t>> encoded_;  // [product - first, group]
};

}  // namespace hesplit
