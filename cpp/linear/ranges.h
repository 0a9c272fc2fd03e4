// Ranges of values, checked in one place: that numbers are finite, that activations are within the agreed ranges (and
// what clipping makes of those that are not), that decrypted values did not wrap around.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/buffer.h"
#include "rlwe/parameters.h"

namespace hesplit {

// Throws RangeError("the <what> NaN or infinity") unless all are finite: what is "weights contain", for example.
void check_finite(View<const double> values, const char* what);

// Throws ParameterError unless weight is [outputs, features] and bias [outputs] or empty, RangeError for NaN and
// infinities.
void check_weights(View<const double> weight, View<const double> bias, std::size_t features, std::size_t outputs);

struct Inspection {
    bool finite = true;
    std::vector<std::size_t> beyond;  // samples beyond the ranges
};

// x is row-major [samples, features], of float or double, here and below.
template <class T>
Inspection inspect(const T* x, std::size_t samples, std::size_t features, const ParameterChoice& choice);

// Throws RangeError for NaN and infinities; returns the samples beyond the agreed ranges.
template <class T>
std::vector<std::size_t> samples_beyond(const T* x, std::size_t samples, std::size_t features,
                                        const ParameterChoice& choice);

// x with the samples `beyond` clipped.
template <class T>
SecretBuffer<T> clip_samples(const T* x, std::size_t samples, std::size_t features,
                             const std::vector<std::size_t>& beyond, const ParameterChoice& choice);

// Throws RangeError if a decrypted value modulo 2^bits is so near the edge that it may have wrapped around. A genuine
// logit never comes near it: precision.cpp leaves more room than that.
void check_edge(View<const std::int64_t> values, int bits);

}  // namespace hesplit
