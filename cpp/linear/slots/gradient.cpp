#include "linear/slots/gradient.h"

#include <algorithm>
#include <utility>

#include "base/parallel.h"

namespace hesplit {

SlotGradientPlan::SlotGradientPlan(const SlotRing& slots, const SlotLayout& layout, std::size_t samples)
    : groups((samples + layout.group_size() - 1) / layout.group_size()),
      shifts(gradient_shifts(layout, samples)),
      rotates_inputs(groups == 1 && slots.switches_quietly()),
      ring(rotates_inputs ? slots.key() : slots.data()) {
    constexpr std::size_t kMaxBytes = std::size_t{64} << 20;
    shared = layout.inputs() > 1 && polynomials() * ring.size() * sizeof(std::uint64_t) <= kMaxBytes;
}

SlotGradient::SlotGradient(const SlotRing& ring, const SlotLayout& layout, const RotationKeys& keys,
                           View<const double> gradient, double scale, std::size_t p)
    : ring_(ring),
      layout_(layout),
      keys_(keys),
      gradient_(gradient),
      scale_(scale),
      p_(p),
      plan_(ring, layout, gradient.size / layout.outputs) {
    std::vector<Buffer<std::uint64_t>> encoded(plan_.shared ? plan_.polynomials() : 0);
    parallel_for(encoded.size(), [&](std::size_t i) { encoded[i] = encode(i / plan_.groups, i % plan_.groups); });
    encoded_ = std::move(encoded);
}

Buffer<std::uint64_t> SlotGradient::encode(std::size_t shift, std::size_t group) const {
    const std::size_t samples = gradient_.size / layout_.outputs, first = group * layout_.group_size();
    const std::vector<double> values = place_slot_gradient(layout_, gradient_.data + first * layout_.outputs,
                                                           std::min(layout_.group_size(), samples - first), p_,
                                                           plan_.shifts[shift], plan_.rotates_inputs);
    Buffer<std::uint64_t> poly;
    if (!values.empty()) {
        poly.resize(plan_.ring.size());
        ring_.encode_ntt({values.data(), values.size()}, scale_, plan_.ring, poly.data());
    }
    return poly;
}

SlotCiphertext SlotGradient::shifted_sum(const std::vector<GroupInputs>& inputs, std::size_t j,
                                         std::size_t shift) const {
    const Ring& ring = ring_.data();
    std::vector<Buffer<std::uint64_t>> encoded;
    for (std::size_t group = 0; !plan_.shared && group < plan_.groups; ++group) {
        encoded.push_back(encode(shift, group));
    }
    std::vector<const std::uint64_t*> in0, in1, factors;
    for (std::size_t group = 0; group < plan_.groups; ++group) {
        const Buffer<std::uint64_t>& poly = plan_.shared ? encoded_[shift * plan_.groups + group] : encoded[group];
        if (!poly.empty()) {
            in0.push_back(inputs[group].c0.data() + j * ring.size());
            in1.push_back(inputs[group].c1.data() + j * ring.size());
            factors.push_back(poly.data());
        }
    }
    SlotCiphertext sum(ring);
    const View<const std::uint64_t* const> view{factors.data(), factors.size()};
    ring.dot_both({in0.data(), in0.size()}, {in1.data(), in1.size()}, view, sum.c0.data(), sum.c1.data());
    return sum;
}

std::vector<SwitchedCiphertext> SlotGradient::rotate_sums(const std::vector<GroupInputs>& inputs, std::size_t j,
                                                          SlotCiphertext& result) const {
    std::vector<SwitchedCiphertext> terms(plan_.shifts.size());
    parallel_for(terms.size(), [&](std::size_t k) {
        // Groups are summed before the rotation, of which one per shift is then enough.
        SlotCiphertext sum = shifted_sum(inputs, j, k);
        const int step = gradient_step(layout_, plan_.shifts[k]);
        if (step == 0) {
            result = std::move(sum);  // the only shift that stays in place
        } else {
            terms[k] = ring_.rotate(sum, keys_.at(step));
        }
    });
    return terms;
}

std::vector<SwitchedCiphertext> SlotGradient::rotate_input(const GroupInputs& inputs, std::size_t j,
                                                           SlotCiphertext& result) const {
    const Ring& ring = ring_.data();
    SlotCiphertext input(ring);
    std::copy_n(inputs.c0.data() + j * ring.size(), ring.size(), input.c0.data());
    std::copy_n(inputs.c1.data() + j * ring.size(), ring.size(), input.c1.data());
    const Buffer<std::uint64_t> digits = ring_.decompose(input);
    std::vector<SwitchedCiphertext> terms(plan_.shifts.size());
    parallel_for(terms.size(), [&](std::size_t k) {
        const Buffer<std::uint64_t> own = plan_.shared ? Buffer<std::uint64_t>() : encode(k, 0);
        const Buffer<std::uint64_t>& poly = plan_.shared ? encoded_[k] : own;
        const int step = gradient_step(layout_, plan_.shifts[k]);
        if (poly.empty()) {
            return;
        }
        if (step == 0) {
            ring.multiply(input.c0.data(), poly.data(), result.c0.data());
            ring.multiply(input.c1.data(), poly.data(), result.c1.data());
        } else {
            terms[k] = ring_.rotate(input, digits, keys_.at(step));
            ring_.multiply(terms[k], poly.data());
        }
    });
    return terms;
}

void SlotGradient::product(const std::vector<GroupInputs>& inputs, const GradientRun& run, std::uint64_t* c0,
                           std::uint64_t* c1) const {
    const Ring& ring = ring_.data();
    SlotCiphertext result(ring);
    std::vector<SwitchedCiphertext> terms =
        plan_.rotates_inputs ? rotate_input(inputs[0], run.j, result) : rotate_sums(inputs, run.j, result);
    ring_.add_divided(terms, result);
    ring.to_coefficients(result.c0.data());
    ring.to_coefficients(result.c1.data());
    std::copy(result.c0.begin(), result.c0.end(), c0);
    std::copy(result.c1.begin(), result.c1.end(), c1);
}

}  // namespace hesplit
