#include "linear/blocks/layout.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "linear/precision.h"
#include "wire/codec.h"

namespace hesplit {

BlockLayout block_layout(const Ring& ring, std::size_t features, std::size_t outputs, const BatchShape& shape) {
    return BlockLayout{ring.degree(), features, outputs, shape.group_size, shape.width};
}

BlockMedium block_medium(const Ring& ring, double reply_bits, double byte_ns) {
    BlockMedium medium{ring.prime_count(), PolynomialCodec(ring, dropped_bits(ring)).bits_per_coefficient(), reply_bits,
                       byte_ns, true};
    for (std::size_t row = 0; row < ring.prime_count(); ++row) {
        medium.short_primes = medium.short_primes && ring.prime(row) >> kCheapPrimeBits == 0;
    }
    return medium;
}

BlockLayout planned_layout(const ParameterChoice& choice, std::size_t features, std::size_t outputs,
                           std::size_t samples, const BlockMedium& medium) {
    if (choice.private_bits == 0 || samples == choice.batch_size) {
        return plan_blocks(choice.ring_degree, features, outputs, samples, medium);
    }
    const BlockLayout agreed = plan_blocks(choice.ring_degree, features, outputs, choice.batch_size, medium);
    return plan_blocks(choice.ring_degree, features, outputs, samples, medium, agreed.per_product());
}

BlockLayout checked_block_layout(const BatchShape& shape, std::size_t degree, std::size_t features,
                                 std::size_t outputs) {
    if (shape.group_size < 1 || shape.group_size > shape.samples || shape.width < 1 || shape.width > features ||
        std::size_t{shape.group_size} * shape.width > degree) {
        throw WireError("a message with an impossible block layout");
    }
    return BlockLayout{degree, features, outputs, shape.group_size, shape.width};
}

std::vector<GradientRun> weight_gradient_runs(const BlockLayout& layout) {
    std::vector<GradientRun> runs;
    for (std::size_t p = 0; p < layout.products(); ++p) {
        for (std::size_t j = 0; j < layout.inputs(); ++j) {
            runs.push_back({p, j, layout.outputs_of(p) * layout.features_of(j), p * layout.per_product(),
                            j * layout.width, layout.features_of(j)});
        }
    }
    return runs;
}

double largest_gradient_l1(const BlockLayout& layout, View<const double> gradient, double scale) {
    const double rounding = std::ldexp(0.5, gradient_shift(gradient, scale));
    double largest = 0;
    for (std::size_t p = 0; p < layout.products(); ++p) {
        const std::size_t first = p * layout.per_product(), count = layout.outputs_of(p);
        double l1 = 0;
        for (std::size_t s = 0; s < gradient.size / layout.outputs; ++s) {
            for (std::size_t u = 0; u < count; ++u) {
                l1 += std::abs(gradient[s * layout.outputs + first + u]) * scale + rounding;
            }
        }
        largest = std::max(largest, l1);
    }
    return largest;
}

}  // namespace hesplit
