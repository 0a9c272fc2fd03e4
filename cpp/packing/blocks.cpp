#include "packing/blocks.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "base/error.h"
#include "ring/rounding.h"

namespace hesplit {

std::size_t BlockLayout::per_product() const {
    return std::max<std::size_t>(1, std::min(outputs, degree / block()));
}

std::size_t BlockLayout::outputs_of(std::size_t p) const {
    return std::min(per_product(), outputs - p * per_product());
}

std::size_t BlockLayout::features_of(std::size_t j) const {
    return std::min(width, features - j * width);
}

bool BlockLayout::operator==(const BlockLayout& other) const {
    return degree == other.degree && features == other.features && outputs == other.outputs &&
           group_size == other.group_size && width == other.width;
}

void check(const BlockLayout& layout) {
    if (layout.features < 1 || layout.outputs < 1 || layout.group_size < 1 || layout.width < 1 ||
        layout.width > layout.features || layout.group_size > layout.degree || layout.block() > layout.degree) {
        throw ParameterError("a block layout needs samples of a group * width <= ring degree, got samples " +
                             std::to_string(layout.group_size) + ", width " + std::to_string(layout.width) +
                             ", ring degree " + std::to_string(layout.degree));
    }
}

bool prefers_strands(const BlockLayout& layout, std::size_t primes) {
    // A matrix product needs `width` times as many multiplications as transformed weights, and transforms of length C
    // that are sums of C terms.
    constexpr std::size_t kMaxWidth = 32, kMaxStrands = 32;
    const std::size_t block = layout.block();
    if ((block & (block - 1)) != 0 || block % 16 != 0 || layout.degree / block > kMaxStrands) {
        return false;
    }
    const std::size_t kept = layout.products() * layout.inputs() * layout.degree * primes * sizeof(std::uint64_t);
    return layout.width <= 2 || (layout.width <= kMaxWidth && kept > kMaxKeptBytes);
}

BlockCost block_cost(const BlockLayout& layout, const BlockMedium& medium, std::size_t samples) {
    // Nanoseconds per coefficient and prime: encrypting an input and reading it at the server; encoding weights and
    // multiplying them with an input; finishing a product and decrypting it; a multiplication of the matrix product.
    constexpr double kEncrypt = 7.5, kReceive = 7, kEncode = 2.2, kMultiply = 0.15, kFinish = 2.2, kDecrypt = 2;
    // Between IFMA's, where both take 0.04 to 0.06, and AVX2's, where long primes take four times as long as short
    // ones.
    const double strand = medium.short_primes ? 0.045 : 0.12;
    const bool strands = prefers_strands(layout, medium.primes);
    const auto width = static_cast<double>(layout.width);
    const auto coefficients =
        static_cast<double>(layout.degree * ((samples + layout.group_size - 1) / layout.group_size));
    const auto once = static_cast<double>(layout.degree * medium.primes);
    const double each = coefficients * static_cast<double>(medium.primes);
    const auto inputs = static_cast<double>(layout.inputs());
    const auto products = static_cast<double>(layout.products());
    BlockCost cost;
    cost.client = each * (inputs * kEncrypt + products * kDecrypt);
    cost.server = each * (inputs * kReceive + inputs * products * (strands ? (width + 1) * strand : kMultiply) +
                          products * kFinish) +
                  (strands ? 0 : once * inputs * products * kEncode);
    cost.link = medium.byte_ns / 8 * coefficients * (inputs * medium.request_bits + products * medium.reply_bits);
    return cost;
}

std::size_t next_division(std::size_t size, std::size_t parts) {
    const std::size_t each = (size + parts - 1) / parts;
    return each == 1 ? size + 1 : (size + each - 2) / (each - 1);
}

BlockLayout plan_blocks(std::size_t degree, std::size_t features, std::size_t outputs, std::size_t samples,
                        const BlockMedium& medium, std::size_t most_per_product) {
    const std::size_t groups = (samples + degree - 1) / degree;
    BlockLayout best{degree, features, outputs, (samples + groups - 1) / groups, 0};
    double best_cost = std::numeric_limits<double>::infinity();
    BlockLayout candidate = best;
    // The smallest width for each number of inputs; a larger one with the same number only wastes coefficients.
    for (std::size_t inputs = 1; inputs <= features; inputs = next_division(features, inputs)) {
        candidate.width = (features + inputs - 1) / inputs;
        // Widths fall, so the first that fits has the fewest outputs to a product.
        if (candidate.block() > degree || (best.width != 0 && candidate.per_product() > most_per_product)) {
            continue;
        }
        const double cost = block_cost(candidate, medium, samples).total();
        if (cost < best_cost) {
            best_cost = cost;
            best = candidate;
        }
    }
    check(best);
    return best;
}

template <class T>
void place_input(const BlockLayout& layout, const T* x, std::size_t count, std::size_t j, double scale,
                 View<std::int64_t> out, std::int64_t modulus) {
    const std::size_t first = j * layout.width;
    const std::size_t used = layout.features_of(j);
    RandomRounding rounded;
    std::int64_t* to = out.data;
    for (std::size_t s = 0; s < count; ++s) {
        const T* row = x + s * layout.features + first;
        for (std::size_t i = 0; i < used; ++i) {
            const std::int64_t value = rounded(static_cast<double>(row[i]) * scale);
            to[i] = value + ((value >> 63) & modulus);
        }
        std::fill(to + used, to + layout.width, 0);
        to += layout.width;
    }
    std::fill(to, out.end(), 0);
}

template void place_input<float>(const BlockLayout&, const float*, std::size_t, std::size_t, double, View<std::int64_t>,
                                 std::int64_t);
template void place_input<double>(const BlockLayout&, const double*, std::size_t, std::size_t, double,
                                  View<std::int64_t>, std::int64_t);

void place_weight(const BlockLayout& layout, const double* weight, std::size_t p, std::size_t j, double scale,
                  View<std::int64_t> out) {
    std::fill(out.begin(), out.end(), 0);
    const std::size_t first = j * layout.width;
    const std::size_t used = layout.features_of(j);
    for (std::size_t u = 0; u < layout.outputs_of(p); ++u) {
        const double* row = weight + (p * layout.per_product() + u) * layout.features + first;
        const std::size_t origin = u * layout.block();
        for (std::size_t i = 0; i < used; ++i) {
            const std::int64_t value = std::llrint(row[i] * scale);
            // x^(origin - i); a negative exponent e is -x^(N + e).
            if (i <= origin) {
                out[origin - i] = value;
            } else {
                out[layout.degree + origin - i] = -value;
            }
        }
    }
}

std::vector<std::uint32_t> output_positions(const BlockLayout& layout, std::size_t p, std::size_t count) {
    std::vector<std::uint32_t> positions;
    positions.reserve(layout.outputs_of(p) * count);
    for (std::size_t u = 0; u < layout.outputs_of(p); ++u) {
        for (std::size_t s = 0; s < count; ++s) {
            positions.push_back(static_cast<std::uint32_t>((u * layout.group_size + s) * layout.width));
        }
    }
    return positions;
}

namespace {

// Adds value * x^exponent, -N < exponent < N.
void add_term(View<std::int64_t> poly, std::int64_t exponent, std::int64_t value) {
    if (exponent >= 0) {
        poly[static_cast<std::size_t>(exponent)] += value;
    } else {
        poly[poly.size - static_cast<std::size_t>(-exponent)] -= value;
    }
}

// offset(u, s) is the exponent of G[s, p*per_product+u].
template <class Offset>
void place_gradient(const BlockLayout& layout, const double* gradient, std::size_t count, std::size_t p, double scale,
                    View<std::int64_t> out, const Offset& offset) {
    std::fill(out.begin(), out.end(), 0);
    for (std::size_t s = 0; s < count; ++s) {
        const double* row = gradient + s * layout.outputs + p * layout.per_product();
        for (std::size_t u = 0; u < layout.outputs_of(p); ++u) {
            add_term(out, offset(static_cast<std::int64_t>(u), static_cast<std::int64_t>(s)),
                     std::llrint(row[u] * scale));
        }
    }
}

}  // namespace

void place_gradient_for_weight(const BlockLayout& layout, const double* gradient, std::size_t count, std::size_t p,
                               double scale, View<std::int64_t> out) {
    const auto k = static_cast<std::int64_t>(layout.width);
    const std::int64_t block = static_cast<std::int64_t>(layout.block());
    place_gradient(layout, gradient, count, p, scale, out,
                   [&](std::int64_t u, std::int64_t s) { return u * block - s * k; });
}

void place_gradient_for_input(const BlockLayout& layout, const double* gradient, std::size_t count, std::size_t p,
                              double scale, View<std::int64_t> out) {
    const auto k = static_cast<std::int64_t>(layout.width);
    const std::int64_t block = static_cast<std::int64_t>(layout.block());
    place_gradient(layout, gradient, count, p, scale, out,
                   [&](std::int64_t u, std::int64_t s) { return s * k + k - 1 - u * block; });
}

std::vector<std::uint32_t> weight_gradient_positions(const BlockLayout& layout, std::size_t p, std::size_t j) {
    std::vector<std::uint32_t> positions;
    for (std::size_t u = 0; u < layout.outputs_of(p); ++u) {
        for (std::size_t i = 0; i < layout.features_of(j); ++i) {
            positions.push_back(static_cast<std::uint32_t>(u * layout.block() + i));
        }
    }
    return positions;
}

std::vector<std::uint32_t> input_gradient_positions(const BlockLayout& layout, std::size_t j, std::size_t count) {
    std::vector<std::uint32_t> positions;
    for (std::size_t s = 0; s < count; ++s) {
        for (std::size_t i = 0; i < layout.features_of(j); ++i) {
            positions.push_back(static_cast<std::uint32_t>((s + 1) * layout.width - 1 - i));
        }
    }
    return positions;
}

}  // namespace hesplit
