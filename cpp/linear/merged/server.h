// The layer on merged blocks, as a server computes it. Requests and weight gradients are those of blocks.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "linear/blocks/server.h"
#include "linear/merged/merging.h"

namespace hesplit {

class MergedServerPacking final : public BlockServerPacking {
  public:
    MergedServerPacking(const Parameters& parameters, std::size_t features, std::size_t outputs);

    ServingCost weights_cost() const override;
    std::shared_ptr<const LayerWeights> make_weights(std::vector<double> weight,
                                                     std::vector<double> bias) const override;
    void check_shape(const BatchShape& shape) const override;
    ServingCost cost(Served served, const BatchShape& shape, int bits) const override;

  private:
    Ring key_;
    Merging merging_;
};

}  // namespace hesplit
