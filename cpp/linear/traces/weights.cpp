#include "linear/traces/weights.h"

#include <utility>

#include "base/parallel.h"

namespace hesplit {

TraceWeights::TraceWeights(const Parameters& parameters, const Ring& ring, const TraceLayout& layout,
                           View<const double> weight, std::vector<double> bias)
    : ring_(ring),
      layout_(layout),
      scaling_(scale_traces(parameters.choice(), ring,
                            weight_norms(parameters.choice(), weight, {bias.data(), bias.size()}, layout.features, 1),
                            layout)),
      positions_(trace_positions(layout)),
      traces_(2 * layout.classes()),
      reach_(parameters.choice().activation_norm * parameters.choice().weight_norm),
      bias_(std::move(bias)) {
    const PreciseEmbedding embedding(ring.degree());
    encoded_.resize(layout.products() * layout.inputs());
    parallel_for(encoded_.size(), [&](std::size_t index) {
        const SecretBuffer<double> slots =
            place_trace_weight(layout_, weight.data, index / layout_.inputs(), index % layout_.inputs());
        encoded_[index].resize(ring_.size());
        embedding.encode(slots.data(), parameters.choice().weight_norm, scaling_.weight_scale, ring_, ring_.degree(),
                         encoded_[index].data());
        ring_.to_ntt(encoded_[index].data());
    });
}

void TraceWeights::product(const GroupInputs& inputs, std::size_t p, std::uint64_t* c0, std::uint64_t* c1) const {
    std::vector<const std::uint64_t*> weights;
    for (std::size_t j = 0; j < layout_.inputs(); ++j) {
        weights.push_back(encoded_[p * layout_.inputs() + j].data());
    }
    for (const auto& [in, out] : {std::pair{&inputs.c0, c0}, std::pair{&inputs.c1, c1}}) {
        const auto parts = pointers(in->data(), layout_.inputs(), ring_.size());
        ring_.dot({parts.data(), parts.size()}, {weights.data(), weights.size()}, out);
        ring_.to_coefficients(out);
    }
}

SecretBuffer<std::uint64_t> TraceWeights::bias(std::size_t p, std::size_t samples) const {
    SecretBuffer<std::uint64_t> residues(ring_.prime_count() * padded(), 0);
    if (bias_.empty()) {
        return residues;
    }
    // In the subfield, where every class has one slot.
    SecretBuffer<double> slots(layout_.classes(), 0.0);
    for (std::size_t s = 0; s < samples; ++s) {
        for (std::size_t t = 0; t < layout_.outputs_of(p); ++t) {
            slots[s * layout_.period + t] = bias_[p * layout_.outputs_per_product() + t];
        }
    }
    const double scale = scaling_.product_scale / static_cast<double>(layout_.width());
    traces_.encode(slots.data(), reach_, scale, ring_, padded(), residues.data());
    return residues;
}

}  // namespace hesplit
