#include "linear/blocks/server.h"

#include <cmath>
#include <utility>

#include "linear/blocks/gradient.h"
#include "linear/blocks/layout.h"
#include "linear/precision.h"

namespace hesplit {

BlockServerPacking::BlockServerPacking(const Parameters& parameters, std::size_t features, std::size_t outputs)
    : parameters_(parameters),
      features_(features),
      outputs_(outputs),
      ring_(parameters.ring_degree(), parameters.data_primes()),
      codec_(ring_, dropped_bits(ring_)),
      powers_(ring_) {}

BlockLayout BlockServerPacking::layout(const BatchShape& shape) const {
    return block_layout(ring_, features_, outputs_, shape);
}

std::shared_ptr<const LayerWeights> BlockServerPacking::make_weights(std::vector<double> weight,
                                                                     std::vector<double> bias) const {
    return std::make_shared<const BlockLayerWeights>(
        BlockServing{parameters_, ring_, codec_, next_, powers_, features_, outputs_}, std::move(weight),
        std::move(bias));
}

void BlockServerPacking::check_shape(const BatchShape& shape) const {
    checked_block_layout(shape, ring_.degree(), features_, outputs_);
}

std::size_t BlockServerPacking::inputs(const BatchShape& shape) const {
    return layout(shape).inputs();
}

ServingCost BlockServerPacking::cost(Served served, const BatchShape& shape, int bits) const {
    return block_serving_cost(served, ring_, codec_.bytes(), layout(shape), shape, bits,
                              parameters_.choice().private_bits != 0);
}

std::size_t BlockServerPacking::gradient_products_at_once(const BatchShape& shape) const {
    return hesplit::gradient_products_at_once(shape.groups(), ring_.size() * sizeof(std::uint64_t));
}

double BlockServerPacking::gradient_scale(View<const double> gradient) const {
    return largest_gradient_scale(parameters_.choice(), ring_, gradient, outputs_);
}

int BlockServerPacking::gradient_bits(const BatchShape& shape, View<const double> gradient, double scale) const {
    return flooded_bits(ring_, largest_gradient_l1(layout(shape), gradient, scale));
}

std::vector<GradientRun> BlockServerPacking::gradient_runs(const BatchShape& shape) const {
    return weight_gradient_runs(layout(shape));
}

std::vector<std::uint32_t> BlockServerPacking::gradient_positions(const BatchShape& shape,
                                                                  const GradientRun& run) const {
    return weight_gradient_positions(layout(shape), run.p, run.j);
}

std::unique_ptr<const LayerGradient> BlockServerPacking::make_gradient(const BatchShape& shape,
                                                                       View<const double> gradient, double scale,
                                                                       std::size_t first, std::size_t count) const {
    return std::make_unique<const BlockGradient>(ring_, layout(shape), gradient, scale, first, count);
}

std::vector<double> BlockServerPacking::decode_gradient(const GradientRun&, View<const std::int64_t> values,
                                                        double scale) const {
    std::vector<double> part(values.size);
    for (std::size_t i = 0; i < values.size; ++i) {
        part[i] = static_cast<double>(values[i]) / scale;
    }
    return part;
}

}  // namespace hesplit
