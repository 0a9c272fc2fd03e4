#include "linear/block_layer.h"

#include <cmath>

#include "core/parallel.h"

namespace hesplit {

namespace {

// Encoded weights above this are made anew for every forward pass instead of kept.
constexpr std::size_t kMaxKeptBytes = std::size_t{256} << 20;

std::vector<const std::uint64_t*> pointers(const std::uint64_t* first, std::size_t count, std::size_t step) {
    std::vector<const std::uint64_t*> list(count);
    for (std::size_t i = 0; i < count; ++i) {
        list[i] = first + i * step;
    }
    return list;
}

}  // namespace

BlockWeights::BlockWeights(const Parameters& parameters, const Ring& ring, const BlockLayout& layout,
                           View<const double> weight, View<const double> bias)
    : ring_(ring),
      layout_(layout),
      scaling_(
          scale_blocks(parameters.choice(), ring,
                       weight_norms(parameters.choice(), weight, bias, layout.features, layout.per_product(), false),
                       layout.features, layout.per_product(), weight)),
      weight_(weight),
      bias_(bias) {
    const std::size_t products = layout_.products();
    const std::size_t inputs = layout_.inputs();
    if (layout_.scalar()) {
        scalars_.resize(weight.size * ring.rows());
        for (std::size_t i = 0; i < weight.size; ++i) {
            const std::int64_t value = std::llrint(weight[i] * scaling_.weight_scale);
            const std::size_t p = i / inputs;
            for (std::size_t row = 0; row < ring.rows(); ++row) {
                scalars_[(p * ring.rows() + row) * inputs + i % inputs] =
                    ring.residue(std::ldexp(static_cast<double>(value), scaling_.weight_shift), row);
            }
        }
    } else if (products * inputs * ring.size() * sizeof(std::uint64_t) <= kMaxKeptBytes) {
        encoded_.resize(products);
        parallel_for(products, [&](std::size_t p) {
            encoded_[p].resize(inputs * ring_.size());
            encode(p, encoded_[p].data());
        });
    }
}

void BlockWeights::encode(std::size_t p, std::uint64_t* polys) const {
    Buffer<std::int64_t> coefficients(ring_.degree());
    const View<std::int64_t> out{coefficients.data(), coefficients.size()};
    for (std::size_t j = 0; j < layout_.inputs(); ++j) {
        std::uint64_t* poly = polys + j * ring_.size();
        place_weight(layout_, weight_.data, p, j, scaling_.weight_scale, out);
        ring_.lift(View<const std::int64_t>{out.data, out.size}, poly);
        if (scaling_.weight_shift > 0) {
            ring_.multiply_power_of_two(poly, scaling_.weight_shift);
        }
        ring_.to_ntt(poly);
    }
}

void BlockWeights::add_bias(std::size_t p, std::uint64_t* c0) const {
    if (bias_.size == 0) {
        return;
    }
    for (std::size_t u = 0; u < layout_.outputs_of(p); ++u) {
        const double value = std::nearbyint(bias_[p * layout_.per_product() + u] * scaling_.product_scale);
        for (std::size_t row = 0; row < ring_.rows(); ++row) {
            const std::uint64_t q = ring_.prime(row);
            const std::uint64_t residue = ring_.residue(value, row);
            for (std::size_t s = 0; s < layout_.rows; ++s) {
                std::uint64_t& coefficient = c0[row * ring_.degree() + (u * layout_.rows + s) * layout_.width];
                const std::uint64_t sum = coefficient + residue;
                coefficient = sum >= q ? sum - q : sum;
            }
        }
    }
}

void BlockWeights::product(const GroupInputs& inputs, std::size_t p, std::uint64_t* c0, std::uint64_t* c1) const {
    const auto in0 = pointers(inputs.c0.data(), inputs.count, ring_.size());
    const auto in1 = pointers(inputs.c1.data(), inputs.count, ring_.size());
    const View<const std::uint64_t* const> view0{in0.data(), in0.size()};
    const View<const std::uint64_t* const> view1{in1.data(), in1.size()};
    if (layout_.scalar()) {
        const std::uint64_t* scalars = scalars_.data() + p * layout_.inputs() * ring_.rows();
        ring_.combine(view0, scalars, {&c0, 1});
        ring_.combine(view1, scalars, {&c1, 1});
    } else {
        Buffer<std::uint64_t> made;
        if (encoded_.empty()) {
            made.resize(layout_.inputs() * ring_.size());
            encode(p, made.data());
        }
        const auto weights = pointers(encoded_.empty() ? made.data() : encoded_[p].data(), inputs.count, ring_.size());
        const View<const std::uint64_t* const> view{weights.data(), weights.size()};
        ring_.dot(view0, view, c0);
        ring_.dot(view1, view, c1);
        ring_.to_coefficients(c0);
    }
    ring_.to_coefficients(c1);
    add_bias(p, c0);
}

}  // namespace hesplit
