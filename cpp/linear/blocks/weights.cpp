#include "linear/blocks/weights.h"

#include <algorithm>
#include <cmath>

#include "base/parallel.h"

namespace hesplit {

namespace {

// Of weights times x^(width - 1); that of all polynomials where they have none.
Support support_of(const BlockLayout& layout) {
    const std::size_t n = layout.degree, period = layout.per_product() == 1 ? n : layout.block();
    std::size_t used = 32;
    while (used < layout.width) {
        used *= 2;
    }
    const bool possible = (period & (period - 1)) == 0 && used < period && n <= 16 * period;
    return possible ? Support{period, used} : Support{n, n};
}

}  // namespace

BlockWeights::BlockWeights(const Ring& ring, InversePowers& powers, const BlockLayout& layout, const Scaling& scaling,
                           View<const double> weight, View<const double> bias)
    : ring_(ring), layout_(layout), scaling_(scaling), support_(support_of(layout)), weight_(weight), bias_(bias) {
    const std::size_t products = layout_.products();
    const std::size_t inputs = layout_.inputs();
    if (prefers_strands(layout_, ring.prime_count())) {
        const std::size_t padded = StrandWeights::padded_features(layout_);
        strands_ = std::make_unique<const StrandWeights>(ring, layout_, weight_residues(1, layout_.features, padded));
        return;
    }
    shift_ = powers.of(layout.width - 1);
    if (direct()) {
        residues_ = weight_residues(inputs, layout_.width, padded_width());
    }
    if (products * inputs * ring.size() * sizeof(std::uint64_t) <= kMaxKeptBytes) {
        encoded_.resize(products);
        parallel_for(products, [&](std::size_t p) {
            encoded_[p].resize(inputs * ring_.size());
            encode(p, encoded_[p].data());
        });
    }
}

std::size_t BlockWeights::bytes() const {
    const std::size_t polynomials = encoded_.size() * layout_.inputs() * ring_.size();
    return (polynomials + residues_.size()) * sizeof(std::uint64_t) + (strands_ ? strands_->bytes() : 0);
}

Buffer<std::uint64_t> BlockWeights::weight_residues(std::size_t inputs, std::size_t width, std::size_t padded) const {
    const std::size_t features = layout_.features, outputs = layout_.outputs;
    Buffer<std::uint64_t> all(ring_.prime_count() * outputs * inputs * padded);
    parallel_for(outputs, [&](std::size_t o) {
        const std::size_t size = inputs * padded;
        Buffer<std::int64_t> integers((size + 15) / 16 * 16, 0);
        Buffer<std::uint64_t> residues(integers.size());
        const double* row_weights = weight_.data + o * features;
        for (std::size_t j = 0; j < inputs; ++j) {
            for (std::size_t i = j * width; i < std::min((j + 1) * width, features); ++i) {
                integers[j * padded + i - j * width] = std::llrint(row_weights[i] * scaling_.weight_scale);
            }
        }
        for (std::size_t row = 0; row < ring_.prime_count(); ++row) {
            ring_.lift_row({integers.data(), integers.size()}, row, residues.data());
            if (scaling_.weight_shift > 0) {
                ring_.scale_row({residues.data(), residues.size()},
                                ring_.residue(std::ldexp(1.0, scaling_.weight_shift), row), row);
            }
            std::copy_n(residues.data(), size, all.data() + (row * outputs + o) * size);
        }
    });
    return all;
}

void BlockWeights::encode(std::size_t p, std::uint64_t* polys) const {
    const std::size_t n = ring_.degree(), width = layout_.width;
    for (std::size_t index = 0; index < layout_.inputs() * ring_.prime_count(); ++index) {
        const std::size_t j = index / ring_.prime_count(), row = index % ring_.prime_count(),
                          used = layout_.features_of(j);
        std::uint64_t* out = polys + index * n;
        for (std::size_t at = 0; at < n; at += support_.period) {
            std::fill_n(out + at, support_.used, std::uint64_t{0});
        }
        for (std::size_t u = 0; u < layout_.outputs_of(p); ++u) {
            place_residues(p * layout_.per_product() + u, j, row, out + u * layout_.block() + width - used);
        }
        ring_.to_ntt_row(out, row, support_);
    }
}

void BlockWeights::place_residues(std::size_t output, std::size_t j, std::size_t row, std::uint64_t* out) const {
    const std::size_t used = layout_.features_of(j);
    if (!residues_.empty()) {
        const std::uint64_t* values =
            residues_.data() + ((row * layout_.outputs + output) * layout_.inputs() + j) * padded_width();
        std::reverse_copy(values, values + used, out);
        return;
    }
    Buffer<std::int64_t> integers((used + 15) / 16 * 16, 0);
    Buffer<std::uint64_t> residues(integers.size());
    const double* weight = weight_.data + output * layout_.features + j * layout_.width;
    for (std::size_t i = 0; i < used; ++i) {
        integers[used - 1 - i] = std::llrint(weight[i] * scaling_.weight_scale);
    }
    ring_.lift_row({integers.data(), integers.size()}, row, residues.data());
    if (scaling_.weight_shift > 0) {
        ring_.scale_row({residues.data(), residues.size()}, ring_.residue(std::ldexp(1.0, scaling_.weight_shift), row),
                        row);
    }
    std::copy_n(residues.data(), used, out);
}

void BlockWeights::add_bias(std::size_t p, std::size_t samples, std::uint64_t* outputs) const {
    if (bias_.size == 0) {
        return;
    }
    for (std::size_t u = 0; u < layout_.outputs_of(p); ++u) {
        const double value = std::nearbyint(bias_[p * layout_.per_product() + u] * scaling_.product_scale);
        for (std::size_t row = 0; row < ring_.prime_count(); ++row) {
            const std::uint64_t q = ring_.prime(row);
            const std::uint64_t residue = ring_.residue(value, row);
            std::uint64_t* run = outputs + row * padded_outputs() + u * samples;
            for (std::size_t s = 0; s < samples; ++s) {
                const std::uint64_t sum = run[s] + residue;
                run[s] = std::min(sum, sum - q);  // sum < q: sum - q wraps around and is larger
            }
        }
    }
}

Buffer<std::uint64_t> BlockWeights::prepare_c1(const Buffer<std::uint64_t>& c1) const {
    if (strands_) {
        return strands_->prepare_c1(c1);
    }
    if (!shift_) {
        return {};
    }
    Buffer<std::uint64_t> shifted(c1.size());
    parallel_for(layout_.inputs(), [&](std::size_t j) {
        ring_.multiply(c1.data() + j * ring_.size(), shift_->data(), shifted.data() + j * ring_.size());
    });
    return shifted;
}

Buffer<std::uint64_t> BlockWeights::prepare_c0(Buffer<std::uint64_t> c0) const {
    const std::size_t n = ring_.degree(), count = layout_.inputs();
    if (strands_) {
        return strands_->prepare_c0(std::move(c0));
    }
    if (!direct()) {
        parallel_for(count, [&](std::size_t j) {
            std::uint64_t* poly = c0.data() + j * ring_.size();
            ring_.to_ntt(poly);
            if (shift_) {
                ring_.multiply(poly, shift_->data(), poly);
            }
        });
        return c0;
    }
    // (-c0, c0), so that multiplying by x^-i is reading further along; and zeros, so that runs may end late.
    Buffer<std::uint64_t> windows(count * ring_.prime_count() * window());
    parallel_for(count * ring_.prime_count(), [&](std::size_t index) {
        const std::uint64_t* from = c0.data() + index * n;
        std::uint64_t* out = windows.data() + index * window();
        ring_.negate_row(from, index % ring_.prime_count(), out);
        std::copy_n(from, n, out + n);
        std::fill_n(out + 2 * n, 8, std::uint64_t{0});
    });
    return windows;
}

void BlockWeights::direct_outputs(const Buffer<std::uint64_t>& windows, std::size_t p, std::size_t samples,
                                  std::uint64_t* outputs) const {
    // Coefficient t of c0 * w is sum_{u, i} W[u, i] * c0[t - u * n * k + i]: for each u a run of k neighbours in the
    // window. Weights beyond k are zero, so that runs may be read to a multiple of 8.
    const std::size_t n = ring_.degree(), padded = padded_width(), count = layout_.outputs_of(p);
    const std::size_t inputs = layout_.inputs();
    std::vector<const std::uint64_t*> runs(count * inputs), weights(runs.size());
    for (std::size_t row = 0; row < ring_.prime_count(); ++row) {
        const std::uint64_t* first =
            residues_.data() + (row * layout_.outputs + p * layout_.per_product()) * inputs * padded;
        for (std::size_t u = 0; u < weights.size(); ++u) {
            weights[u] = first + u * padded;
        }
        for (std::size_t u = 0; u < count; ++u) {
            for (std::size_t s = 0; s < samples; ++s) {
                for (std::size_t v = 0; v < count; ++v) {
                    const std::size_t at = n + (u * layout_.group_size + s) * layout_.width - v * layout_.block();
                    for (std::size_t j = 0; j < inputs; ++j) {
                        runs[v * inputs + j] = windows.data() + (j * ring_.prime_count() + row) * window() + at;
                    }
                }
                outputs[row * padded_outputs() + u * samples + s] =
                    ring_.inner({runs.data(), runs.size()}, {weights.data(), weights.size()}, padded, row);
            }
        }
    }
}

void BlockWeights::multiply(const Buffer<std::uint64_t>& inputs, std::size_t p, std::uint64_t* out) const {
    Buffer<std::uint64_t> made;
    if (encoded_.empty()) {
        made.resize(layout_.inputs() * ring_.size());
        encode(p, made.data());
    }
    const auto list = pointers(inputs.data(), layout_.inputs(), ring_.size());
    const auto weights = pointers(encoded_.empty() ? made.data() : encoded_[p].data(), layout_.inputs(), ring_.size());
    ring_.dot({list.data(), list.size()}, {weights.data(), weights.size()}, out);
}

void BlockWeights::products(const Buffer<std::uint64_t>& c1, std::size_t first, std::size_t count,
                            std::uint64_t* out) const {
    if (strands_) {
        return strands_->products(c1, first, count, out);
    }
    for (std::size_t i = 0; i < count; ++i) {
        multiply(c1, first + i, out + i * ring_.size());
        ring_.to_coefficients(out + i * ring_.size());
    }
}

void BlockWeights::outputs(const Buffer<std::uint64_t>& prepared, std::size_t first, std::size_t count,
                           std::size_t samples, std::uint64_t* out) const {
    const std::size_t stride = ring_.prime_count() * padded_outputs();
    if (strands_) {
        strands_->outputs(prepared, first, count, samples, out, stride, padded_outputs());
    }
    Buffer<std::uint64_t> product(strands_ || direct() ? 0 : ring_.size());
    for (std::size_t i = 0; i < count; ++i) {
        std::uint64_t* to = out + i * stride;
        if (!product.empty()) {
            multiply(prepared, first + i, product.data());
            ring_.to_coefficients(product.data());
            const std::vector<std::uint32_t> positions = output_positions(layout_, first + i, samples);
            for (std::size_t row = 0; row < ring_.prime_count(); ++row) {
                for (std::size_t k = 0; k < positions.size(); ++k) {
                    to[row * padded_outputs() + k] = product[row * ring_.degree() + positions[k]];
                }
            }
        } else if (!strands_) {
            direct_outputs(prepared, first + i, samples, to);
        }
        add_bias(first + i, samples, to);
    }
}

}  // namespace hesplit
