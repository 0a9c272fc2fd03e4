// The agreed ranges of activations: which samples are beyond them, and what clipping makes of those.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "rlwe/parameters.h"

namespace hesplit {

struct Inspection {
    bool finite = true;
    std::vector<std::size_t> beyond;  // samples beyond the ranges
};

template <class T>
Inspection inspect(const T* x, std::size_t samples, std::size_t features, const ParameterChoice& choice) {
    constexpr double kSlack = 1 + 5e-6;  // clipped float32 rows must pass
    Inspection inspection;
    for (std::size_t s = 0; s < samples; ++s) {
        const T* row = x + s * features;
        double square = 0, largest = 0;
        for (std::size_t i = 0; i < features; ++i) {
            const double value = std::abs(static_cast<double>(row[i]));
            square += value * value;
            largest = std::max(largest, value);
        }
        if (!std::isfinite(square)) {
            inspection.finite = false;
        } else if (largest > choice.activation_bound * kSlack || std::sqrt(square) > choice.activation_norm * kSlack) {
            inspection.beyond.push_back(s);
        }
    }
    return inspection;
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

}  // namespace hesplit
