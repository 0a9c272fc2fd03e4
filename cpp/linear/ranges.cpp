#include "linear/ranges.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "base/error.h"

namespace hesplit {

namespace {

[[noreturn]] void throw_not_finite(const char* what) {
    throw RangeError(std::string("the ") + what + " NaN or infinity");
}

template <class T>
void clip_row(T* row, std::size_t features, const ParameterChoice& choice) {
    const auto bound = static_cast<T>(choice.activation_bound);
    double square = 0;
    for (std::size_t i = 0; i < features; ++i) {
        row[i] = std::clamp(row[i], -bound, bound);
        square += static_cast<double>(row[i]) * static_cast<double>(row[i]);
    }
    const double norm = std::sqrt(square);
    if (norm > choice.activation_norm) {
        const auto factor = static_cast<T>(choice.activation_norm / norm);
        for (std::size_t i = 0; i < features; ++i) {
            row[i] *= factor;
        }
    }
}

}  // namespace

void check_finite(View<const double> values, const char* what) {
    for (const double value : values) {
        if (!std::isfinite(value)) {
            throw_not_finite(what);
        }
    }
}

void check_weights(View<const double> weight, View<const double> bias, std::size_t features, std::size_t outputs) {
    if (weight.size != features * outputs || (bias.size != 0 && bias.size != outputs)) {
        throw ParameterError("expected weight [" + std::to_string(outputs) + ", " + std::to_string(features) +
                             "] and bias [" + std::to_string(outputs) + "]");
    }
    check_finite(weight, "weights contain");
    check_finite(bias, "weights contain");
}

template <class T>
Inspection inspect(const T* x, std::size_t samples, std::size_t features, const ParameterChoice& choice) {
    constexpr double kSlack = 1 + 5e-6;  // clipped float32 samples must pass
    Inspection inspection;
    for (std::size_t s = 0; s < samples; ++s) {
        const T* row = x + s * features;
        // Several sums take turns: additions to one would wait for one another.
        constexpr std::size_t kSums = 4;
        double squares[kSums] = {}, most[kSums] = {};
        const auto add = [&](std::size_t i, std::size_t sum) {
            const double value = std::abs(static_cast<double>(row[i]));
            squares[sum] += value * value;
            most[sum] = std::max(most[sum], value);
        };
        std::size_t i = 0;
        for (; i + kSums <= features; i += kSums) {
            for (std::size_t sum = 0; sum < kSums; ++sum) {
                add(i + sum, sum);
            }
        }
        for (; i < features; ++i) {
            add(i, 0);
        }
        const double square = (squares[0] + squares[1]) + (squares[2] + squares[3]);
        const double largest = *std::max_element(most, most + kSums);
        if (!std::isfinite(square)) {
            inspection.finite = false;
        } else if (largest > choice.activation_bound * kSlack || std::sqrt(square) > choice.activation_norm * kSlack) {
            inspection.beyond.push_back(s);
        }
    }
    return inspection;
}

template Inspection inspect<float>(const float*, std::size_t, std::size_t, const ParameterChoice&);
template Inspection inspect<double>(const double*, std::size_t, std::size_t, const ParameterChoice&);

template <class T>
std::vector<std::size_t> samples_beyond(const T* x, std::size_t samples, std::size_t features,
                                        const ParameterChoice& choice) {
    Inspection found = inspect(x, samples, features, choice);
    if (!found.finite) {
        throw_not_finite("activations contain");
    }
    return std::move(found.beyond);
}

template std::vector<std::size_t> samples_beyond<float>(const float*, std::size_t, std::size_t, const ParameterChoice&);
template std::vector<std::size_t> samples_beyond<double>(const double*, std::size_t, std::size_t,
                                                         const ParameterChoice&);

template <class T>
SecretBuffer<T> clip_samples(const T* x, std::size_t samples, std::size_t features,
                             const std::vector<std::size_t>& beyond, const ParameterChoice& choice) {
    SecretBuffer<T> clipped(x, x + samples * features);
    for (const std::size_t s : beyond) {
        clip_row(clipped.data() + s * features, features, choice);
    }
    return clipped;
}

template SecretBuffer<float> clip_samples<float>(const float*, std::size_t, std::size_t,
                                                 const std::vector<std::size_t>&, const ParameterChoice&);
template SecretBuffer<double> clip_samples<double>(const double*, std::size_t, std::size_t,
                                                   const std::vector<std::size_t>&, const ParameterChoice&);

void check_edge(View<const std::int64_t> values, int bits) {
    const double largest = std::ldexp(0.999, bits - 1);
    for (const std::int64_t value : values) {
        if (std::abs(static_cast<double>(value)) > largest) {
            throw RangeError(
                "a decrypted reply is at the edge of its range: the agreed ranges were exceeded, or the reply is not "
                "genuine");
        }
    }
}

}  // namespace hesplit
