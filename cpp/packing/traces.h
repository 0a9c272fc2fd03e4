// SIMD slots whose logits are traces: where activations, weights and outputs of private layers sit (docs/packing.md).
//
// Slot part * M + s * o' + t belongs to class s * o' + t of M = n' * o': sample s, output t. It holds a feature of that
// sample, the same for all t, and the weight of that feature for output t. So a logit is the sum of the products in all
// slots of one class, and none of its terms are anywhere else. That sum is the trace to the subfield whose polynomials
// have coefficients at multiples of N / 2M alone: of a product of real slots, N/2M times those at the first M of these
// say all M sums, and nothing else of it. No slot is ever rotated.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/buffer.h"

namespace hesplit {

struct TraceLayout {
    std::size_t slots = 0;       // N / 2
    std::size_t features = 0;    // d
    std::size_t outputs = 0;     // o
    std::size_t group_size = 1;  // n', samples of a group
    std::size_t period = 1;      // o', a power of two like n'

    std::size_t classes() const { return group_size * period; }  // M, at least 8
    std::size_t width() const { return slots / classes(); }      // features of a sample in one input ciphertext
    std::size_t inputs() const { return (features + width() - 1) / width(); }
    std::size_t outputs_per_product() const { return period < outputs ? period : outputs; }
    std::size_t products() const { return (outputs + outputs_per_product() - 1) / outputs_per_product(); }
    std::size_t outputs_of(std::size_t p) const;
    std::size_t features_of(std::size_t j) const;
};

// The layout with the least estimated cost for batches of `samples`; depends on nothing but its arguments.
TraceLayout plan_traces(std::size_t slots, std::size_t features, std::size_t outputs, std::size_t samples);

// The slots of input ciphertext j for `count` <= group_size samples. `x` is row-major [count, features].
template <class T>
SecretBuffer<double> place_trace_input(const TraceLayout& layout, const T* x, std::size_t count, std::size_t j);

// The slots of the weights of product p that meet input j. `weight` is row-major [outputs, features].
SecretBuffer<double> place_trace_weight(const TraceLayout& layout, const double* weight, std::size_t p, std::size_t j);

// The coefficients of a product that say its logits: M of them.
std::vector<std::uint32_t> trace_positions(const TraceLayout& layout);

}  // namespace hesplit
