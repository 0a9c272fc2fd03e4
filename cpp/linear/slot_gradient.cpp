#include "linear/slot_gradient.h"

#include <algorithm>
#include <utility>

#include "base/parallel.h"

namespace hesplit {

SlotCiphertext slot_gradient(const SlotRing& ring, const SlotLayout& layout, const std::vector<SlotGroupInputs>& inputs,
                             const RotationKeys& keys, View<const double> gradient, double scale, std::size_t p,
                             std::size_t j) {
    const std::size_t samples = gradient.size / layout.outputs;
    const std::vector<std::int64_t> shifts = gradient_shifts(layout, samples);
    SlotCiphertext result(ring.data());
    std::vector<SwitchedCiphertext> terms(shifts.size());
    parallel_for(shifts.size(), [&](std::size_t k) {
        // Groups are summed before the rotation, of which one per shift is then enough.
        std::vector<Buffer<std::uint64_t>> encoded;
        std::vector<const std::uint64_t*> in0, in1, factors;
        for (std::size_t group = 0; group < inputs.size(); ++group) {
            const std::size_t first = group * layout.group_size();
            const std::vector<double> values =
                place_slot_gradient(layout, gradient.data + first * layout.outputs,
                                    std::min(layout.group_size(), samples - first), p, shifts[k]);
            if (values.empty()) {
                continue;
            }
            encoded.emplace_back(ring.data().size());
            ring.encode_ntt(values, scale, encoded.back().data());
            in0.push_back(inputs[group][j].c0.data());
            in1.push_back(inputs[group][j].c1.data());
        }
        for (const Buffer<std::uint64_t>& poly : encoded) {
            factors.push_back(poly.data());
        }
        SlotCiphertext sum(ring.data());
        const View<const std::uint64_t* const> view{factors.data(), factors.size()};
        ring.data().dot({in0.data(), in0.size()}, view, sum.c0.data());
        ring.data().dot({in1.data(), in1.size()}, view, sum.c1.data());
        const int step = gradient_step(layout, shifts[k]);
        if (step == 0) {
            result = std::move(sum);  // the only shift that stays in place
        } else {
            terms[k] = ring.rotate(sum, keys.at(step));
        }
    });
    ring.add_divided(terms, result);
    ring.data().to_coefficients(result.c0.data());
    ring.data().to_coefficients(result.c1.data());
    return result;
}

}  // namespace hesplit
