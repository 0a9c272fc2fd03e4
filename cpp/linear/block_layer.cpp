#include "linear/block_layer.h"

#include <algorithm>
#include <cmath>

#include "core/parallel.h"

namespace hesplit {

namespace {

// Encoded weights above this are made anew for every forward pass instead of kept.
constexpr std::size_t kMaxKeptBytes = std::size_t{256} << 20;

std::vector<const std::uint64_t*> pointers(const std::uint64_t* first, std::size_t count, std::size_t step) {
    std::vector<const std::uint64_t*> list(count);
    for (std::size_t i = 0; i < count; ++i) {
        list[i] = first + i * step;
    }
    return list;
}

}  // namespace

BlockWeights::BlockWeights(const Parameters& parameters, const Ring& ring, const BlockLayout& layout,
                           View<const double> weight, View<const double> bias)
    : ring_(ring),
      layout_(layout),
      scaling_(
          scale_blocks(parameters.choice(), ring,
                       weight_norms(parameters.choice(), weight, bias, layout.features, layout.per_product(), false),
                       layout.features, layout.per_product(), weight)),
      weight_(weight),
      bias_(bias) {
    const std::size_t products = layout_.products();
    const std::size_t inputs = layout_.inputs();
    if (layout_.scalar() || direct()) {
        encode_rows();
    }
    if (!layout_.scalar() && products * inputs * ring.size() * sizeof(std::uint64_t) <= kMaxKeptBytes) {
        encoded_.resize(products);
        parallel_for(products, [&](std::size_t p) {
            encoded_[p].resize(inputs * ring_.size());
            encode(p, encoded_[p].data());
        });
    }
}

void BlockWeights::encode_rows() {
    const std::size_t features = layout_.features, outputs = layout_.outputs, inputs = layout_.inputs();
    const std::size_t padded = layout_.scalar() ? 1 : padded_width();
    residues_.resize(ring_.rows() * outputs * inputs * padded);
    parallel_for(outputs, [&](std::size_t o) {
        const std::size_t size = inputs * padded;
        Buffer<std::int64_t> integers((size + 15) / 16 * 16, 0);
        Buffer<std::uint64_t> residues(integers.size());
        for (std::size_t i = 0; i < features; ++i) {
            const std::size_t j = i / layout_.width;
            integers[j * padded + i % layout_.width] = std::llrint(weight_[o * features + i] * scaling_.weight_scale);
        }
        // Scalar layouts: products at once are neighbours, and each group of them starts a new run of rows.
        const std::size_t group = layout_.scalar() ? products_at_once() : outputs;
        const std::size_t first = o / group * group;
        const std::size_t members = std::min(group, outputs - first);
        for (std::size_t row = 0; row < ring_.rows(); ++row) {
            ring_.lift_row({integers.data(), integers.size()}, row, residues.data());
            if (scaling_.weight_shift > 0) {
                ring_.scale_row({residues.data(), residues.size()},
                                ring_.residue(std::ldexp(1.0, scaling_.weight_shift), row), row);
            }
            std::copy_n(residues.data(), size,
                        residues_.data() + (first * ring_.rows() + row * members + o - first) * size);
        }
    });
}

void BlockWeights::encode(std::size_t p, std::uint64_t* polys) const {
    if (!residues_.empty()) {
        return encode_residues(p, polys);
    }
    Buffer<std::int64_t> coefficients(ring_.degree());
    const View<std::int64_t> out{coefficients.data(), coefficients.size()};
    for (std::size_t j = 0; j < layout_.inputs(); ++j) {
        std::uint64_t* poly = polys + j * ring_.size();
        place_weight(layout_, weight_.data, p, j, scaling_.weight_scale, out);
        ring_.lift(View<const std::int64_t>{out.data, out.size}, poly);
        if (scaling_.weight_shift > 0) {
            ring_.multiply_power_of_two(poly, scaling_.weight_shift);
        }
        ring_.to_ntt(poly);
    }
}

// As place_weight, with the residues that encode_rows made: rounded and reduced once instead of twice.
void BlockWeights::encode_residues(std::size_t p, std::uint64_t* polys) const {
    const std::size_t n = ring_.degree(), inputs = layout_.inputs(), padded = padded_width();
    for (std::size_t index = 0; index < inputs * ring_.rows(); ++index) {
        const std::size_t j = index / ring_.rows(), row = index % ring_.rows(), used = layout_.features_of(j);
        const std::uint64_t q = ring_.prime(row);
        std::uint64_t* out = polys + index * n;
        std::fill_n(out, n, std::uint64_t{0});
        for (std::size_t u = 0; u < layout_.outputs_of(p); ++u) {
            const std::uint64_t* values =
                residues_.data() + ((row * layout_.outputs + p * layout_.per_product() + u) * inputs + j) * padded;
            const std::size_t origin = u * layout_.rows * layout_.width;
            if (u == 0) {  // x^-i is -x^(N - i)
                out[0] = values[0];
                for (std::size_t i = 1; i < used; ++i) {
                    out[n - i] = std::min(std::uint64_t{0} - values[i], q - values[i]);  // 0 for 0
                }
            } else {
                for (std::size_t i = 0; i < used; ++i) {
                    out[origin - i] = values[i];
                }
            }
        }
        ring_.to_ntt_row(out, row);
    }
}

void BlockWeights::add_bias(std::size_t p, std::size_t samples, std::uint64_t* outputs) const {
    if (bias_.size == 0) {
        return;
    }
    for (std::size_t u = 0; u < layout_.outputs_of(p); ++u) {
        const double value = std::nearbyint(bias_[p * layout_.per_product() + u] * scaling_.product_scale);
        for (std::size_t row = 0; row < ring_.rows(); ++row) {
            const std::uint64_t q = ring_.prime(row);
            const std::uint64_t residue = ring_.residue(value, row);
            for (std::size_t s = 0; s < samples; ++s) {
                std::uint64_t& coefficient = outputs[row * padded_outputs() + u * samples + s];
                const std::uint64_t sum = coefficient + residue;
                coefficient = sum >= q ? sum - q : sum;
            }
        }
    }
}

Buffer<std::uint64_t> BlockWeights::prepare(Buffer<std::uint64_t> c0) const {
    const std::size_t n = ring_.degree(), count = layout_.inputs();
    if (layout_.scalar()) {
        return c0;
    }
    if (!direct()) {
        parallel_for(count, [&](std::size_t j) { ring_.to_ntt(c0.data() + j * ring_.size()); });
        return c0;
    }
    // (-c0, c0), so that multiplying by x^-i is reading further along; and zeros, so that runs may end late.
    Buffer<std::uint64_t> windows(count * ring_.rows() * window());
    parallel_for(count * ring_.rows(), [&](std::size_t index) {
        const std::uint64_t* from = c0.data() + index * n;
        std::uint64_t* out = windows.data() + index * window();
        ring_.negate_row(from, index % ring_.rows(), out);
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
    for (std::size_t row = 0; row < ring_.rows(); ++row) {
        const std::uint64_t* first =
            residues_.data() + (row * layout_.outputs + p * layout_.per_product()) * inputs * padded;
        for (std::size_t u = 0; u < weights.size(); ++u) {
            weights[u] = first + u * padded;
        }
        for (std::size_t u = 0; u < count; ++u) {
            for (std::size_t s = 0; s < samples; ++s) {
                for (std::size_t v = 0; v < count; ++v) {
                    const std::size_t at =
                        n + (u * layout_.rows + s) * layout_.width - v * layout_.rows * layout_.width;
                    for (std::size_t j = 0; j < inputs; ++j) {
                        runs[v * inputs + j] = windows.data() + (j * ring_.rows() + row) * window() + at;
                    }
                }
                outputs[row * padded_outputs() + u * samples + s] =
                    ring_.inner({runs.data(), runs.size()}, {weights.data(), weights.size()}, padded, row);
            }
        }
    }
}

void BlockWeights::multiply(const Buffer<std::uint64_t>& inputs, std::size_t p, std::size_t count,
                            std::uint64_t* out) const {
    const auto list = pointers(inputs.data(), layout_.inputs(), ring_.size());
    const View<const std::uint64_t* const> view{list.data(), list.size()};
    if (layout_.scalar()) {
        std::vector<std::uint64_t*> products(count);
        for (std::size_t i = 0; i < count; ++i) {
            products[i] = out + i * ring_.size();
        }
        const std::uint64_t* scalars = residues_.data() + p * ring_.rows() * layout_.inputs();
        ring_.combine(view, scalars, {products.data(), count});
        return;
    }
    for (std::size_t i = 0; i < count; ++i) {
        Buffer<std::uint64_t> made;
        if (encoded_.empty()) {
            made.resize(layout_.inputs() * ring_.size());
            encode(p + i, made.data());
        }
        const auto weights =
            pointers(encoded_.empty() ? made.data() : encoded_[p + i].data(), layout_.inputs(), ring_.size());
        ring_.dot(view, {weights.data(), weights.size()}, out + i * ring_.size());
    }
}

void BlockWeights::products(const Buffer<std::uint64_t>& c1, std::size_t first, std::size_t count,
                            std::uint64_t* out) const {
    multiply(c1, first, count, out);
    for (std::size_t i = 0; i < count; ++i) {
        ring_.to_coefficients(out + i * ring_.size());
    }
}

void BlockWeights::outputs(const Buffer<std::uint64_t>& prepared, std::size_t first, std::size_t count,
                           std::size_t samples, std::uint64_t* out) const {
    const std::size_t stride = ring_.rows() * padded_outputs();
    const bool whole = layout_.scalar() || !direct();
    Buffer<std::uint64_t> products(whole ? count * ring_.size() : 0);
    if (whole) {
        multiply(prepared, first, count, products.data());
    }
    for (std::size_t i = 0; i < count; ++i) {
        if (whole) {
            std::uint64_t* product = products.data() + i * ring_.size();
            if (!layout_.scalar()) {
                ring_.to_coefficients(product);
            }
            const std::vector<std::uint32_t> positions = output_positions(layout_, first + i, samples);
            for (std::size_t row = 0; row < ring_.rows(); ++row) {
                for (std::size_t k = 0; k < positions.size(); ++k) {
                    out[i * stride + row * padded_outputs() + k] = product[row * ring_.degree() + positions[k]];
                }
            }
        } else {
            direct_outputs(prepared, first + i, samples, out + i * stride);
        }
        add_bias(first + i, samples, out + i * stride);
    }
}

}  // namespace hesplit
