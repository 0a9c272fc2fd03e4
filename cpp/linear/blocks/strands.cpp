#include "linear/blocks/strands.h"

#include <algorithm>

#include "base/parallel.h"

namespace hesplit {

StrandWeights::StrandWeights(const Ring& ring, const BlockLayout& layout, const Buffer<std::uint64_t>& residues)
    : ring_(ring), layout_(layout) {
    const std::size_t c = strands(), products = layout_.products(), features = layout_.features;
    const std::size_t padded = padded_features(layout_);
    powers_.resize(ring_.prime_count() * c * c);
    inverse_.resize(powers_.size());
    wrap_.resize(ring_.prime_count() * c);
    for (std::size_t row = 0; row < ring_.prime_count(); ++row) {
        // z_t = root^(m (2t + 1)) for a root of x^N + 1; root^(2N) = 1.
        const std::uint64_t scale = ring_.power(c, ring_.prime(row) - 2, row);
        for (std::size_t t = 0; t < c; ++t) {
            const std::size_t exponent = block() * (2 * t + 1);
            for (std::size_t u = 0; u < c; ++u) {
                const std::size_t at = exponent * u % (2 * ring_.degree());
                powers_[(row * c + t) * c + u] = ring_.power(ring_.root(row), at, row);
                inverse_[(row * c + u) * c + t] =
                    ring_.product(ring_.power(ring_.root(row), 2 * ring_.degree() - at, row), scale, row);
            }
            wrap_[row * c + t] = ring_.power(ring_.root(row), 2 * ring_.degree() - exponent, row);
        }
    }
    values_.resize(ring_.prime_count() * c * products * features);
    parallel_for(products, [&](std::size_t p) {
        const std::size_t terms = layout_.outputs_of(p);
        Buffer<std::uint64_t> made(c * padded), scalars(c * terms);
        std::vector<const std::uint64_t*> from(terms);
        std::vector<std::uint64_t*> to(c);
        for (std::size_t row = 0; row < ring_.prime_count(); ++row) {
            for (std::size_t u = 0; u < terms; ++u) {
                from[u] = residues.data() + (row * layout_.outputs + p * layout_.per_product() + u) * padded;
            }
            for (std::size_t t = 0; t < c; ++t) {
                std::copy_n(powers_.data() + (row * c + t) * c, terms, scalars.data() + t * terms);
                to[t] = made.data() + t * padded;
            }
            ring_.combine({from.data(), terms}, scalars.data(), {to.data(), c}, padded, row);
            for (std::size_t t = 0; t < c; ++t) {
                std::copy_n(to[t], features, values_.data() + place(row, t, p));
            }
        }
    });
}

Buffer<std::uint64_t> StrandWeights::prepare_c1(const Buffer<std::uint64_t>& c1) const {
    const std::size_t c = strands(), m = block(), inputs = layout_.inputs();
    Buffer<std::uint64_t> prepared(ring_.prime_count() * c * inputs * window());
    parallel_for(inputs, [&](std::size_t j) {
        Buffer<std::uint64_t> coefficients(ring_.degree());
        std::vector<std::uint64_t*> to(c);
        for (std::size_t row = 0; row < ring_.prime_count(); ++row) {
            std::copy_n(c1.data() + j * ring_.size() + row * ring_.degree(), ring_.degree(), coefficients.data());
            ring_.to_coefficients_row(coefficients.data(), row);
            for (std::size_t t = 0; t < c; ++t) {
                to[t] = prepared.data() + ((row * c + t) * inputs + j) * window();
            }
            split(row, coefficients.data(), m, {to.data(), c});
            for (std::size_t t = 0; t < c && window() > m; ++t) {
                std::copy_n(to[t], window() - m, to[t] + m);
                ring_.scale_row({to[t] + m, window() - m}, wrap_[row * c + t], row);
            }
        }
    });
    return prepared;
}

Buffer<std::uint64_t> StrandWeights::prepare_c0(Buffer<std::uint64_t> c0) const {
    const std::size_t c = strands(), m = block(), k = layout_.width, n = padded_group();
    if (ring_.prime_count() == 1 && n == ring_.degree()) {
        return c0;
    }
    Buffer<std::uint64_t> prepared(ring_.prime_count() * c * layout_.features * n);
    parallel_for(layout_.inputs(), [&](std::size_t j) {
        const std::size_t used = layout_.features_of(j);
        Buffer<std::uint64_t> gathered(c * n, 0);
        std::vector<std::uint64_t*> to(c);
        for (std::size_t row = 0; row < ring_.prime_count(); ++row) {
            const std::uint64_t* poly = c0.data() + j * ring_.size() + row * ring_.degree();
            // Only coefficients s * k of a product are outputs, and s * k + i < m: no window wraps around.
            for (std::size_t i = 0; i < used; ++i) {
                for (std::size_t t = 0; t < c; ++t) {
                    for (std::size_t s = 0; s < layout_.group_size; ++s) {
                        gathered[t * n + s] = poly[t * m + s * k + i];
                    }
                    to[t] = prepared.data() + ((row * c + t) * layout_.features + j * k + i) * n;
                }
                split(row, gathered.data(), n, {to.data(), c});
            }
        }
    });
    return prepared;
}

void StrandWeights::products(const Buffer<std::uint64_t>& prepared, std::size_t first, std::size_t count,
                             std::uint64_t* out) const {
    const std::size_t c = strands(), m = block(), features = layout_.features, inputs = layout_.inputs();
    Buffer<std::uint64_t> made(c == 1 ? 0 : count * ring_.degree());  // one strand is the whole
    std::vector<const std::uint64_t*> from(features);
    std::vector<std::uint64_t*> to(count);
    for (std::size_t row = 0; row < ring_.prime_count(); ++row) {
        for (std::size_t t = 0; t < c; ++t) {
            for (std::size_t f = 0; f < features; ++f) {
                from[f] = prepared.data() + ((row * c + t) * inputs + f / layout_.width) * window() + f % layout_.width;
            }
            for (std::size_t i = 0; i < count; ++i) {
                to[i] =
                    c == 1 ? out + i * ring_.size() + row * ring_.degree() : made.data() + i * ring_.degree() + t * m;
            }
            ring_.combine({from.data(), features}, values_.data() + place(row, t, first), {to.data(), count}, m, row);
        }
        for (std::size_t i = 0; i < count && c > 1; ++i) {
            join(row, made.data() + i * ring_.degree(), m, out + i * ring_.size() + row * ring_.degree());
        }
    }
}

void StrandWeights::outputs(const Buffer<std::uint64_t>& prepared, std::size_t first, std::size_t count,
                            std::size_t samples, std::uint64_t* out, std::size_t product_stride,
                            std::size_t row_stride) const {
    const std::size_t c = strands(), n = padded_group(), features = layout_.features;
    Buffer<std::uint64_t> made(count * c * n), joined(c * n);
    std::vector<const std::uint64_t*> from(features);
    std::vector<std::uint64_t*> to(count);
    for (std::size_t row = 0; row < ring_.prime_count(); ++row) {
        for (std::size_t t = 0; t < c; ++t) {
            for (std::size_t f = 0; f < features; ++f) {
                from[f] = prepared.data() + ((row * c + t) * features + f) * n;
            }
            for (std::size_t i = 0; i < count; ++i) {
                to[i] = made.data() + (i * c + t) * n;
            }
            ring_.combine({from.data(), features}, values_.data() + place(row, t, first), {to.data(), count}, n, row);
        }
        for (std::size_t i = 0; i < count; ++i) {
            if (c > 1) {
                join(row, made.data() + i * c * n, n, joined.data());
            }
            const std::uint64_t* outputs = c > 1 ? joined.data() : made.data() + i * n;
            for (std::size_t u = 0; u < layout_.outputs_of(first + i); ++u) {
                std::copy_n(outputs + u * n, samples, out + i * product_stride + row * row_stride + u * samples);
            }
        }
    }
}

void StrandWeights::split(std::size_t row, const std::uint64_t* coefficients, std::size_t size,
                          View<std::uint64_t* const> out) const {
    const std::size_t c = strands();
    if (c == 1) {
        std::copy_n(coefficients, size, out[0]);
        return;
    }
    const std::vector<const std::uint64_t*> from = pointers(coefficients, c, size);
    ring_.combine({from.data(), c}, powers_.data() + row * c * c, out, size, row);
}

void StrandWeights::join(std::size_t row, const std::uint64_t* values, std::size_t size, std::uint64_t* out) const {
    const std::size_t c = strands();
    const std::vector<const std::uint64_t*> from = pointers(values, c, size);
    std::vector<std::uint64_t*> to(c);
    for (std::size_t t = 0; t < c; ++t) {
        to[t] = out + t * size;
    }
    ring_.combine({from.data(), c}, inverse_.data() + row * c * c, {to.data(), c}, size, row);
}

}  // namespace hesplit
