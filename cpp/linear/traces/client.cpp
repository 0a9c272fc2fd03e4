#include "linear/traces/client.h"

#include <algorithm>

#include "linear/precision.h"
#include "linear/traces/refusal.h"
#include "rlwe/decryption.h"

namespace hesplit {

TraceClientPacking::TraceClientPacking(const Parameters& parameters, std::size_t features, std::size_t outputs)
    : scale_(parameters.choice().scale),
      bound_(parameters.choice().activation_bound * kRangeSlack),
      ring_(parameters.ring_degree(), parameters.data_primes()),
      layout_(plan_traces(ring_.degree() / 2, features, outputs, parameters.choice().batch_size)),
      embedding_(ring_.degree()),
      traces_(2 * layout_.classes()) {}

BatchShape TraceClientPacking::shape_of(std::size_t samples) const {
    check_samples(samples);
    return {static_cast<std::uint32_t>(samples), static_cast<std::uint32_t>(layout_.group_size), 0};
}

template <class T>
void TraceClientPacking::encode_input(const T* x, std::size_t samples, std::size_t input,
                                      std::uint64_t* coefficients) const {
    const SecretBuffer<double> slots = place_trace_input(layout_, x, samples, input);
    embedding_.encode(slots.data(), bound_, scale_, ring_, ring_.degree(), coefficients);
}

void TraceClientPacking::encode(const BatchShape&, const float* x, std::size_t samples, std::size_t input,
                                std::uint64_t* coefficients) const {
    encode_input(x, samples, input, coefficients);
}

void TraceClientPacking::encode(const BatchShape&, const double* x, std::size_t samples, std::size_t input,
                                std::uint64_t* coefficients) const {
    encode_input(x, samples, input, coefficients);
}

void TraceClientPacking::decode(const BatchShape&, std::size_t product, std::size_t samples,
                                View<const std::int64_t> values, double scale, double* y) const {
    // The polynomial in the subfield, whose other coefficients follow from its slots being real.
    const std::size_t classes = layout_.classes();
    SecretBuffer<double> coefficients(2 * classes, 0.0);
    for (std::size_t j = 0; j < classes; ++j) {
        coefficients[j] = static_cast<double>(values[j]) * static_cast<double>(layout_.width()) / scale;
        coefficients[(2 * classes - j) % (2 * classes)] = j == 0 ? coefficients[0] : -coefficients[j];
    }
    SecretBuffer<double> sums(classes);
    traces_.to_slots(coefficients.data(), sums.data());
    const std::size_t first = product * layout_.outputs_per_product();
    for (std::size_t s = 0; s < samples; ++s) {
        std::copy_n(sums.data() + s * layout_.period, layout_.outputs_of(product), y + s * layout_.outputs + first);
    }
}

double TraceClientPacking::rounding_error() const {
    return trace_rounding_error(layout_, ring_.degree());
}

double TraceClientPacking::largest(int bits) const {
    return static_cast<double>(layout_.width()) * std::ldexp(1.0, bits - 1);
}

std::vector<GradientRun> TraceClientPacking::gradient_runs(const BatchShape&) const {
    refuse_on_traces("weight gradients");
}

std::vector<std::uint32_t> TraceClientPacking::gradient_positions(const BatchShape&, const GradientRun&) const {
    refuse_on_traces("weight gradients");
}

double TraceClientPacking::weight_l1(const BatchShape&, double) const {
    refuse_on_traces("flooded releases");
}

double TraceClientPacking::gradient_l1(const BatchShape&, View<const double>, double) const {
    refuse_on_traces("weight gradients");
}

}  // namespace hesplit
