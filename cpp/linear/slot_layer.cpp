#include "linear/slot_layer.h"

#include "core/parallel.h"

namespace hesplit {

SlotWeights::SlotWeights(const Parameters& parameters, const SlotRing& ring, const SlotLayout& layout,
                         View<const double> weight, View<const double> bias)
    : ring_(ring),
      layout_(layout),
      scaling_(scale_slots(
          parameters.choice(), ring,
          weight_norms(parameters.choice(), weight, bias, layout.features, layout.outputs_per_product(), true),
          layout)) {
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
            ring_.encode_ntt(values, scaling_.weight_scale, diagonals_[index].data());
        }
    });
    for (std::size_t p = 0; bias.size != 0 && p < layout.products(); ++p) {
        std::vector<double> values(layout.slots, 0.0);
        const std::vector<std::uint32_t> slots = output_slots(layout, p, layout.rows());
        for (std::size_t i = 0; i < slots.size(); ++i) {
            values[slots[i]] = bias[p * layout.outputs_per_product() + i / layout.rows()];
        }
        bias_.emplace_back(ring_.data().size());
        // Encoded at a quarter of the scale: SEAL refuses to encode values that fill the modulus, as a bias alone may.
        ring_.encode(values, scaling_.product_scale / 4, bias_.back().data());
        ring_.data().multiply_power_of_two(bias_.back().data(), 2);
    }
}

const Buffer<std::uint64_t>& SlotWeights::diagonal(std::size_t p, std::size_t g, std::size_t j, std::size_t b) const {
    return diagonals_[((p * layout_.giants() + g) * layout_.inputs() + j) * layout_.babies + b];
}

seal::Ciphertext SlotWeights::giant_sum(const std::vector<seal::Ciphertext>& rotated, std::size_t p,
                                        std::size_t g) const {
    std::vector<const std::uint64_t*> in0, in1, weights;
    for (std::size_t j = 0; j < layout_.inputs(); ++j) {
        for (std::size_t b = 0; b < layout_.babies; ++b) {
            const Buffer<std::uint64_t>& weight = diagonal(p, g, j, b);
            if (!weight.empty()) {
                const seal::Ciphertext& input = rotated[j * layout_.babies + b];
                in0.push_back(input.data(0));
                in1.push_back(input.data(1));
                weights.push_back(weight.data());
            }
        }
    }
    seal::Ciphertext sum = ring_.zero_ciphertext();
    const View<const std::uint64_t* const> view{weights.data(), weights.size()};
    ring_.data().dot({in0.data(), in0.size()}, view, sum.data(0));
    ring_.data().dot({in1.data(), in1.size()}, view, sum.data(1));
    return sum;
}

std::vector<Buffer<std::uint64_t>> SlotWeights::products(const std::vector<seal::Ciphertext>& inputs,
                                                         const seal::GaloisKeys& keys) const {
    const Ring& ring = ring_.data();
    const std::size_t babies = layout_.babies;
    std::vector<seal::Ciphertext> rotated(inputs.size() * babies);
    parallel_for(rotated.size(), [&](std::size_t i) {
        ring_.rotate(inputs[i / babies], static_cast<int>(i % babies), keys, rotated[i]);
    });

    std::vector<Buffer<std::uint64_t>> results(layout_.products());
    for (std::size_t p = 0; p < layout_.products(); ++p) {
        const auto slots = static_cast<std::int64_t>(layout_.slots);
        std::vector<seal::Ciphertext> terms(layout_.giants());
        parallel_for(terms.size(), [&](std::size_t g) {
            const std::int64_t step = (layout_.giant_step(g) + slots) % slots;
            ring_.rotate(giant_sum(rotated, p, g), static_cast<int>(step), keys, terms[g]);
        });
        seal::Ciphertext& sum = terms[0];
        for (std::size_t g = 1; g < terms.size(); ++g) {
            ring.add(sum.data(0), terms[g].data(0));
            ring.add(sum.data(1), terms[g].data(1));
        }
        seal::Ciphertext shifted(seal::MemoryPoolHandle::Global());
        for (std::size_t f = 0; f < layout_.folds; ++f) {
            ring_.rotate(sum, static_cast<int>(layout_.period << f), keys, shifted);
            ring.add(sum.data(0), shifted.data(0));
            ring.add(sum.data(1), shifted.data(1));
        }
        ring.to_coefficients(sum.data(0));
        ring.to_coefficients(sum.data(1));
        if (!bias_.empty()) {
            ring.add(sum.data(0), bias_[p].data());
        }
        results[p].assign(sum.data(0), sum.data(0) + 2 * ring.size());
    }
    return results;
}

}  // namespace hesplit
