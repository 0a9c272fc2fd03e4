#include "linear/slots/weights.h"

#include <algorithm>
#include <utility>

#include "base/parallel.h"

namespace hesplit {

SlotWeights::SlotWeights(const Parameters& parameters, const SlotRing& ring, const SlotLayout& layout,
                         View<const double> weight, View<const double> bias)
    : ring_(ring),
      layout_(layout),
      scaling_(scale_slots(
          parameters.choice(), ring,
          weight_norms(parameters.choice(), weight, bias, layout.features, layout.outputs_per_product()), layout)) {
    const std::size_t babies = layout.babies, inputs = layout.inputs(), giants = layout.giants();
    diagonals_.resize(layout.products() * giants * inputs * babies);
    parallel_for(diagonals_.size(), [&](std::size_t index) {
        const std::size_t b = index % babies;
        const std::size_t j = index / babies % inputs;
        const std::size_t g = index / babies / inputs % giants;
        const std::size_t p = index / babies / inputs / giants;
        const std::vector<double> values = place_slot_weight(layout_, weight.data, p, j, g, b);
        if (!values.empty()) {
            diagonals_[index].resize(ring_.data().size());
            ring_.encode_ntt({values.data(), values.size()}, scaling_.weight_scale, ring_.data(),
                             diagonals_[index].data());
        }
    });
    for (std::size_t p = 0; bias.size != 0 && p < layout.products(); ++p) {
        std::vector<double> values(layout.slots, 0.0);
        const std::vector<std::uint32_t> slots = output_slots(layout, p, layout.group_size());
        for (std::size_t i = 0; i < slots.size(); ++i) {
            values[slots[i]] = bias[p * layout.outputs_per_product() + i / layout.group_size()];
        }
        bias_.emplace_back(ring_.data().size());
        ring_.encode({values.data(), values.size()}, scaling_.product_scale, bias_.back().data());
    }
}

const Buffer<std::uint64_t>& SlotWeights::diagonal(std::size_t p, std::size_t g, std::size_t j, std::size_t b) const {
    return diagonals_[((p * layout_.giants() + g) * layout_.inputs() + j) * layout_.babies + b];
}

SlotCiphertext SlotWeights::giant_sum(const std::vector<SlotCiphertext>& rotated, std::size_t p, std::size_t g) const {
    std::vector<const std::uint64_t*> in0, in1, weights;
    for (std::size_t j = 0; j < layout_.inputs(); ++j) {
        for (std::size_t b = 0; b < layout_.babies; ++b) {
            const Buffer<std::uint64_t>& weight = diagonal(p, g, j, b);
            if (!weight.empty()) {
                const SlotCiphertext& input = rotated[j * layout_.babies + b];
                in0.push_back(input.c0.data());
                in1.push_back(input.c1.data());
                weights.push_back(weight.data());
            }
        }
    }
    SlotCiphertext sum(ring_.data());
    const View<const std::uint64_t* const> view{weights.data(), weights.size()};
    ring_.data().dot_both({in0.data(), in0.size()}, {in1.data(), in1.size()}, view, sum.c0.data(), sum.c1.data());
    return sum;
}

std::vector<SlotCiphertext> SlotWeights::rotate_inputs(const GroupInputs& inputs, const RotationKeys& keys) const {
    const Ring& ring = ring_.data();
    const std::size_t babies = layout_.babies, count = layout_.inputs();
    std::vector<SlotCiphertext> rotated(count * babies, SlotCiphertext(ring));
    // One decomposition of each input serves all of its rotations.
    std::vector<Buffer<std::uint64_t>> digits(count);
    parallel_for(count, [&](std::size_t j) {
        SlotCiphertext& input = rotated[j * babies];
        std::copy_n(inputs.c0.data() + j * ring.size(), ring.size(), input.c0.data());
        std::copy_n(inputs.c1.data() + j * ring.size(), ring.size(), input.c1.data());
        if (babies > 1) {
            digits[j] = ring_.decompose(input);
        }
    });
    parallel_for(rotated.size(), [&](std::size_t i) {
        const std::size_t j = i / babies, baby = i % babies;
        if (baby != 0) {
            SwitchedCiphertext switched = ring_.rotate(rotated[j * babies], digits[j], keys.at(static_cast<int>(baby)));
            ring_.add_divided(switched, rotated[i]);
        }
    });
    return rotated;
}

std::vector<SlotCiphertext> SlotWeights::products(const GroupInputs& inputs, const RotationKeys& keys) const {
    const Ring& ring = ring_.data();
    const std::vector<SlotCiphertext> rotated = rotate_inputs(inputs, keys);
    std::vector<SlotCiphertext> results(layout_.products(), SlotCiphertext(ring));
    for (std::size_t p = 0; p < layout_.products(); ++p) {
        SlotCiphertext& sum = results[p];
        const auto slots = static_cast<std::int64_t>(layout_.slots);
        // The giants' sum is divided once.
        std::vector<SwitchedCiphertext> terms(layout_.giants());
        parallel_for(terms.size(), [&](std::size_t g) {
            const auto step = static_cast<int>((layout_.giant_step(g) + slots) % slots);
            SlotCiphertext giant = giant_sum(rotated, p, g);
            if (step == 0) {
                sum = std::move(giant);  // the only giant that stays in place
            } else {
                terms[g] = ring_.rotate(giant, keys.at(step));
            }
        });
        ring_.add_divided(terms, sum);
        ring.to_coefficients(sum.c0.data());
        ring.to_coefficients(sum.c1.data());
        if (!bias_.empty()) {
            ring.add(sum.c0.data(), bias_[p].data());
        }
    }
    return results;
}

}  // namespace hesplit
