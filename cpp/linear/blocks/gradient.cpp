#include "linear/blocks/gradient.h"

#include <algorithm>
#include <cmath>

#include "base/parallel.h"
#include "linear/precision.h"

namespace hesplit {

std::size_t gradient_products_at_once(std::size_t groups, std::size_t polynomial_bytes) {
    constexpr std::size_t kMaxBytes = std::size_t{64} << 20;
    return std::max<std::size_t>(1, kMaxBytes / (groups * polynomial_bytes));
}

BlockGradient::BlockGradient(const Ring& ring, const BlockLayout& layout, View<const double> gradient, double scale,
                             std::size_t first, std::size_t count)
    : ring_(ring), layout_(layout), first_(first) {
    const std::size_t samples = gradient.size / layout.outputs;
    groups_ = (samples + layout.group_size - 1) / layout.group_size;
    encoded_.resize(count * groups_);
    const int shift = gradient_shift(gradient, scale);
    const double rounded = std::ldexp(scale, -shift);
    parallel_for(encoded_.size(), [&](std::size_t index) {
        const std::size_t p = first_ + index / groups_;
        const std::size_t sample = (index % groups_) * layout_.group_size;
        SecretBuffer<std::int64_t> coefficients(ring_.degree());  // dJ/dY may be the server's alone
        place_gradient_for_weight(layout_, gradient.data + sample * layout_.outputs,
                                  std::min(layout_.group_size, samples - sample), p, rounded,
                                  {coefficients.data(), coefficients.size()});
        encoded_[index].resize(ring_.size());
        ring_.lift(View<const std::int64_t>{coefficients.data(), coefficients.size()}, encoded_[index].data());
        if (shift > 0) {
            ring_.multiply_power_of_two(encoded_[index].data(), shift);
        }
        ring_.to_ntt(encoded_[index].data());
    });
}

void BlockGradient::product(const std::vector<GroupInputs>& inputs, const GradientRun& run, std::uint64_t* c0,
                            std::uint64_t* c1) const {
    std::vector<const std::uint64_t*> in0, in1, gradients;
    for (std::size_t group = 0; group < groups_; ++group) {
        in0.push_back(inputs[group].c0.data() + run.j * ring_.size());
        in1.push_back(inputs[group].c1.data() + run.j * ring_.size());
        gradients.push_back(encoded_[(run.p - first_) * groups_ + group].data());
    }
    const View<const std::uint64_t* const> view{gradients.data(), gradients.size()};
    ring_.dot_both({in0.data(), in0.size()}, {in1.data(), in1.size()}, view, c0, c1);
    ring_.to_coefficients(c0);
    ring_.to_coefficients(c1);
}

}  // namespace hesplit
