#include "linear/slot_gradient.h"

#include <algorithm>

#include "core/parallel.h"

namespace hesplit {

Buffer<std::uint64_t> slot_gradient(const SlotRing& ring, const SlotLayout& layout,
                                    const std::vector<SlotGroupInputs>& inputs, const seal::GaloisKeys& keys,
                                    View<const double> gradient, double scale, std::size_t p, std::size_t j) {
    const std::size_t samples = gradient.size / layout.outputs;
    const std::vector<std::int64_t> shifts = gradient_shifts(layout, samples);
    std::vector<seal::Ciphertext> terms(shifts.size());
    parallel_for(shifts.size(), [&](std::size_t k) {
        // Groups are summed before the rotation, of which one per shift is then enough.
        std::vector<Buffer<std::uint64_t>> encoded;
        std::vector<const std::uint64_t*> in0, in1, factors;
        for (std::size_t group = 0; group < inputs.size(); ++group) {
            const std::size_t first = group * layout.rows();
            const std::vector<double> values = place_slot_gradient(
                layout, gradient.data + first * layout.outputs, std::min(layout.rows(), samples - first), p, shifts[k]);
            if (values.empty()) {
                continue;
            }
            encoded.emplace_back(ring.data().size());
            ring.encode_ntt(values, scale, encoded.back().data());
            in0.push_back(inputs[group][j].data(0));
            in1.push_back(inputs[group][j].data(1));
        }
        for (const Buffer<std::uint64_t>& poly : encoded) {
            factors.push_back(poly.data());
        }
        seal::Ciphertext sum = ring.zero_ciphertext();
        const View<const std::uint64_t* const> view{factors.data(), factors.size()};
        ring.data().dot({in0.data(), in0.size()}, view, sum.data(0));
        ring.data().dot({in1.data(), in1.size()}, view, sum.data(1));
        ring.rotate(sum, gradient_step(layout, shifts[k]), keys, terms[k]);
    });
    for (std::size_t k = 1; k < terms.size(); ++k) {
        ring.data().add(terms[0].data(0), terms[k].data(0));
        ring.data().add(terms[0].data(1), terms[k].data(1));
    }
    ring.data().to_coefficients(terms[0].data(0));
    ring.data().to_coefficients(terms[0].data(1));
    return {terms[0].data(0), terms[0].data(0) + 2 * ring.data().size()};
}

}  // namespace hesplit
