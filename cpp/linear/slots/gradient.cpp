#include "linear/slots/gradient.h"

#include <algorithm>
#include <utility>

#include "base/parallel.h"

namespace hesplit {

SlotCiphertext SlotGradient::shifted_sum(const std::vector<GroupInputs>& inputs, const GradientRun& run,
                                         std::int64_t shift) const {
    const Ring& ring = ring_.data();
    const std::size_t samples = gradient_.size / layout_.outputs;
    std::vector<Buffer<std::uint64_t>> encoded;
    std::vector<const std::uint64_t*> in0, in1, factors;
    for (std::size_t group = 0; group < inputs.size(); ++group) {
        const std::size_t first = group * layout_.group_size();
        const std::vector<double> values =
            place_slot_gradient(layout_, gradient_.data + first * layout_.outputs,
                                std::min(layout_.group_size(), samples - first), run.p, shift);
        if (values.empty()) {
            continue;
        }
        encoded.emplace_back(ring.size());
        ring_.encode_ntt(values, scale_, encoded.back().data());
        in0.push_back(inputs[group].c0.data() + run.j * ring.size());
        in1.push_back(inputs[group].c1.data() + run.j * ring.size());
    }
    for (const Buffer<std::uint64_t>& poly : encoded) {
        factors.push_back(poly.data());
    }
    SlotCiphertext sum(ring);
    const View<const std::uint64_t* const> view{factors.data(), factors.size()};
    ring.dot({in0.data(), in0.size()}, view, sum.c0.data());
    ring.dot({in1.data(), in1.size()}, view, sum.c1.data());
    return sum;
}

void SlotGradient::product(const std::vector<GroupInputs>& inputs, const GradientRun& run, std::uint64_t* c0,
                           std::uint64_t* c1) const {
    const Ring& ring = ring_.data();
    const std::vector<std::int64_t> shifts = gradient_shifts(layout_, gradient_.size / layout_.outputs);
    SlotCiphertext result(ring);
    std::vector<SwitchedCiphertext> terms(shifts.size());
    parallel_for(shifts.size(), [&](std::size_t k) {
        // Groups are summed before the rotation, of which one per shift is then enough.
        SlotCiphertext sum = shifted_sum(inputs, run, shifts[k]);
        const int step = gradient_step(layout_, shifts[k]);
        if (step == 0) {
            result = std::move(sum);  // the only shift that stays in place
        } else {
            terms[k] = ring_.rotate(sum, keys_.at(step));
        }
    });
    ring_.add_divided(terms, result);
    ring.to_coefficients(result.c0.data());
    ring.to_coefficients(result.c1.data());
    std::copy(result.c0.begin(), result.c0.end(), c0);
    std::copy(result.c1.begin(), result.c1.end(), c1);
}

}  // namespace hesplit
