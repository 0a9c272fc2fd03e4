#include "packing/merged.h"

#include <algorithm>
#include <functional>

namespace hesplit {

namespace {

// out = poly(x^element) modulo x^N + 1.
void substitute(View<const std::int64_t> poly, std::uint64_t element, std::int64_t* out) {
    const std::size_t n = poly.size;  // a power of two
    for (std::size_t i = 0; i < n; ++i) {
        const std::size_t to = i * element;
        out[to & (n - 1)] = (to & n) == 0 ? poly[i] : -poly[i];
    }
}

// out = x^exponent * poly modulo x^N + 1.
void shift(View<const std::int64_t> poly, std::uint64_t exponent, std::int64_t* out) {
    const std::size_t n = poly.size, by = exponent % n;
    const bool negative = exponent / n % 2 == 1;
    const auto put = [&](std::size_t from, std::size_t to, std::size_t count, bool negated) {
        if (negated) {
            std::transform(poly.data + from, poly.data + from + count, out + to, std::negate<>());
        } else {
            std::copy_n(poly.data + from, count, out + to);
        }
    };
    put(0, by, n - by, negative);
    put(n - by, 0, by, !negative);
}

// The inverse of an odd number modulo a power of two (Newton's iteration, which doubles the bits that are right).
std::uint64_t inverse_odd(std::uint64_t value, std::uint64_t modulus) {
    std::uint64_t inverse = value;
    for (int round = 0; round < 6; ++round) {
        inverse *= 2 - value * inverse;
    }
    return inverse % modulus;
}

}  // namespace

std::size_t MergedLayout::products_of(std::size_t r) const {
    return std::min(most_merged(), blocks.products() - first_product(r));
}

std::size_t MergedLayout::outputs_of(std::size_t r) const {
    return std::min(products_of(r) * blocks.per_product(), blocks.outputs - first_product(r) * blocks.per_product());
}

std::size_t MergedLayout::levels_of(std::size_t r) const {
    std::size_t needed = 0;
    while (std::size_t{1} << needed < products_of(r)) {
        ++needed;
    }
    return needed;
}

std::size_t MergedLayout::giants_of(std::size_t r, std::size_t babies) const {
    return std::min(levels_of(r), levels - babies);
}

std::size_t merged_width(std::size_t degree, std::size_t features) {
    std::size_t width = 1;
    while (width < features && width < degree) {
        width *= 2;
    }
    return width;
}

std::size_t most_merged_samples(std::size_t degree, std::size_t features, std::size_t batch_size) {
    return std::min(batch_size, degree / merged_width(degree, features));
}

std::size_t merged_group_size(std::size_t degree, std::size_t features, std::size_t samples, std::size_t batch_size) {
    const std::size_t most = most_merged_samples(degree, features, batch_size);
    const std::size_t groups = (samples + most - 1) / most;
    return (samples + groups - 1) / groups;
}

MergedLayout merged_layout(std::size_t degree, std::size_t features, std::size_t outputs, std::size_t group_size) {
    MergedLayout layout{{degree, features, outputs, group_size, merged_width(degree, features)}};
    while (layout.most_merged() < layout.blocks.products() && layout.apart() > 1) {
        ++layout.levels;
    }
    return layout;
}

std::uint64_t merging_element(std::size_t degree, std::size_t width, std::size_t level) {
    return degree / (width >> level) + 1;
}

std::vector<std::uint64_t> merging_elements(std::size_t degree, std::size_t features, std::size_t outputs,
                                            std::size_t batch_size) {
    const MergedLayout layout =
        merged_layout(degree, features, outputs, most_merged_samples(degree, features, batch_size));
    std::vector<std::uint64_t> elements;
    for (std::size_t level = 1; level <= layout.levels; ++level) {
        elements.push_back(merging_element(degree, layout.blocks.width, level));
    }
    return elements;
}

Buffer<std::int64_t> place_merged_weights(const MergedLayout& layout, const double* weight, std::size_t r,
                                          std::size_t j, double scale, std::size_t babies) {
    const std::size_t n = layout.blocks.degree, own = layout.levels_of(r), first = layout.levels - own + 1;
    Buffer<std::int64_t> polys((std::size_t{1} << own) * n, 0);
    for (std::size_t i = 0; i < layout.products_of(r); ++i) {
        place_weight(layout.blocks, weight, layout.first_product(r) + i, j, scale, {polys.data() + i * n, n});
    }
    // The exponent of s_e for the levels that e has among those from `from` to `to`.
    const auto element = [&](std::size_t e, std::size_t from, std::size_t to) {
        std::uint64_t product = 1;
        for (std::size_t level = from; level <= to; ++level) {
            if (e & layout.bit(level)) {
                product = product * merging_element(n, layout.blocks.width, level) % (2 * n);
            }
        }
        return product;
    };
    // Level by level a bit of i becomes one of e. s_t negates x^(h_t), the shift of the products that have the bit.
    Buffer<std::int64_t> shifted(n);
    for (std::size_t level = first; level <= layout.levels; ++level) {
        const std::size_t bit = layout.bit(level), half = layout.blocks.width >> level;
        for (std::size_t e = 0; e < std::size_t{1} << own; ++e) {
            if (e & bit) {
                continue;
            }
            std::int64_t *low = polys.data() + e * n, *high = polys.data() + (e | bit) * n;
            shift({high, n}, half * inverse_odd(element(e, first, level - 1), 2 * n), shifted.data());
            for (std::size_t c = 0; c < n; ++c) {
                high[c] = low[c] - shifted[c];
                low[c] += shifted[c];
            }
        }
    }
    for (std::size_t e = 0; e < std::size_t{1} << own; ++e) {
        const std::uint64_t rotation = element(e, first, babies);
        if (rotation != 1) {
            substitute({polys.data() + e * n, n}, rotation, shifted.data());
            std::copy_n(shifted.data(), n, polys.data() + e * n);
        }
    }
    return polys;
}

std::vector<std::uint32_t> merged_positions(const MergedLayout& layout, std::size_t r, std::size_t count) {
    std::vector<std::uint32_t> positions;
    positions.reserve(layout.outputs_of(r) * count);
    for (std::size_t i = 0; i < layout.products_of(r); ++i) {
        for (const std::uint32_t position : output_positions(layout.blocks, layout.first_product(r) + i, count)) {
            positions.push_back(position + static_cast<std::uint32_t>(i * layout.apart()));
        }
    }
    return positions;
}

std::size_t merging_rotations(const MergedLayout& layout, std::size_t babies) {
    const auto giants = [&](std::size_t r) { return (std::size_t{1} << layout.giants_of(r, babies)) - 1; };
    const std::size_t last = layout.replies() - 1;
    return layout.blocks.inputs() * ((std::size_t{1} << babies) - 1) + last * giants(0) + giants(last);
}

std::size_t best_babies(const MergedLayout& layout, std::size_t most) {
    std::size_t best = 0;
    for (std::size_t babies = 1; babies <= std::min(layout.levels, most); ++babies) {
        best = merging_rotations(layout, babies) < merging_rotations(layout, best) ? babies : best;
    }
    return best;
}

std::size_t merged_polynomials(const MergedLayout& layout) {
    const std::size_t last = layout.replies() - 1;
    return (last << layout.levels) + (std::size_t{1} << layout.levels_of(last));
}

}  // namespace hesplit
