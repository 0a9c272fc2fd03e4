#include "packing/traces.h"

#include <algorithm>
#include <limits>

namespace hesplit {

namespace {

// The least that ckks/embedding.h takes half of.
constexpr std::size_t kLeastClasses = 8;

// Relative costs of an input and a product (encryption, transport, decryption), of multiplying an input by weights, and
// of encoding these.
constexpr double kInput = 4, kProduct = 1.5, kMultiply = 0.05, kEncode = 0.1;

double cost(const TraceLayout& layout, std::size_t samples) {
    const auto groups = static_cast<double>((samples + layout.group_size - 1) / layout.group_size);
    const auto inputs = static_cast<double>(layout.inputs()), products = static_cast<double>(layout.products());
    const double pairs = inputs * products;
    return groups * (inputs * kInput + products * kProduct + pairs * kMultiply) + pairs * kEncode;
}

std::size_t power_of_two_from(std::size_t least) {
    std::size_t power = 1;
    while (power < least) {
        power *= 2;
    }
    return power;
}

}  // namespace

std::size_t TraceLayout::outputs_of(std::size_t p) const {
    return std::min(outputs_per_product(), outputs - p * outputs_per_product());
}

std::size_t TraceLayout::features_of(std::size_t j) const {
    return std::min(width(), features - j * width());
}

TraceLayout plan_traces(std::size_t slots, std::size_t features, std::size_t outputs, std::size_t samples) {
    TraceLayout best, candidate;
    double best_cost = std::numeric_limits<double>::infinity();
    candidate.slots = slots, candidate.features = features, candidate.outputs = outputs;
    const std::size_t most_samples = power_of_two_from(std::max(samples, kLeastClasses));
    const std::size_t most_outputs = power_of_two_from(outputs);
    for (candidate.group_size = 1; candidate.group_size <= most_samples; candidate.group_size *= 2) {
        for (candidate.period = 1; candidate.period <= most_outputs; candidate.period *= 2) {
            if (candidate.classes() < kLeastClasses || candidate.classes() > slots) {
                continue;
            }
            const double found = cost(candidate, samples);
            if (found < best_cost) {
                best_cost = found;
                best = candidate;
            }
        }
    }
    return best;
}

template <class T>
SecretBuffer<double> place_trace_input(const TraceLayout& layout, const T* x, std::size_t count, std::size_t j) {
    SecretBuffer<double> values(layout.slots, 0.0);
    const std::size_t first = j * layout.width(), used = layout.features_of(j);
    for (std::size_t part = 0; part < used; ++part) {
        for (std::size_t s = 0; s < count; ++s) {
            const auto value = static_cast<double>(x[s * layout.features + first + part]);
            std::fill_n(values.data() + part * layout.classes() + s * layout.period, layout.outputs_per_product(),
                        value);
        }
    }
    return values;
}

template SecretBuffer<double> place_trace_input<float>(const TraceLayout&, const float*, std::size_t, std::size_t);
template SecretBuffer<double> place_trace_input<double>(const TraceLayout&, const double*, std::size_t, std::size_t);

SecretBuffer<double> place_trace_weight(const TraceLayout& layout, const double* weight, std::size_t p, std::size_t j) {
    SecretBuffer<double> values(layout.slots, 0.0);
    const std::size_t first = j * layout.width(), used = layout.features_of(j);
    for (std::size_t part = 0; part < used; ++part) {
        for (std::size_t t = 0; t < layout.outputs_of(p); ++t) {
            const std::size_t row = p * layout.outputs_per_product() + t;
            const double value = weight[row * layout.features + first + part];
            for (std::size_t s = 0; s < layout.group_size; ++s) {
                values[part * layout.classes() + s * layout.period + t] = value;
            }
        }
    }
    return values;
}

std::vector<std::uint32_t> trace_positions(const TraceLayout& layout) {
    std::vector<std::uint32_t> positions(layout.classes());
    for (std::size_t j = 0; j < positions.size(); ++j) {
        positions[j] = static_cast<std::uint32_t>(j * layout.width());
    }
    return positions;
}

}  // namespace hesplit
