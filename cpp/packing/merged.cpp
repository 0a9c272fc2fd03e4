#include "packing/merged.h"

#include <algorithm>

namespace hesplit {

std::size_t MergedLayout::products_of(std::size_t r) const {
    return std::min(most_merged(), blocks.products() - first_product(r));
}

std::size_t MergedLayout::outputs_of(std::size_t r) const {
    return std::min(products_of(r) * blocks.per_product(), blocks.outputs - first_product(r) * blocks.per_product());
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

MergedLayout merged_layout(std::size_t degree, std::size_t features, std::size_t outputs, std::size_t group_size) {
    MergedLayout layout{{degree, features, outputs, group_size, merged_width(degree, features)}};
    while (layout.most_merged() < layout.blocks.products() && layout.half(layout.levels) > 1) {
        ++layout.levels;
    }
    return layout;
}

std::vector<std::uint64_t> merging_elements(std::size_t degree, std::size_t features, std::size_t outputs,
                                            std::size_t batch_size) {
    const MergedLayout layout =
        merged_layout(degree, features, outputs, most_merged_samples(degree, features, batch_size));
    std::vector<std::uint64_t> elements;
    for (std::size_t level = 1; level <= layout.levels; ++level) {
        elements.push_back(degree / layout.half(level) + 1);
    }
    return elements;
}

std::size_t pairs_of(const MergedLayout& layout, std::size_t r) {
    return std::min(layout.products_of(r), std::max<std::size_t>(1, layout.most_merged() / 2));
}

bool place_weight_pair(const MergedLayout& layout, const double* weight, std::size_t r, std::size_t i, std::size_t j,
                       double scale, View<std::int64_t> sum, View<std::int64_t> difference) {
    const std::size_t first = layout.first_product(r) + i, other = i + layout.most_merged() / 2;
    place_weight(layout.blocks, weight, first, j, scale, sum);
    if (layout.levels == 0) {
        return false;
    }
    if (other >= layout.products_of(r)) {
        for (std::int64_t& value : sum) {
            value *= 2;
        }
        return false;
    }
    Buffer<std::int64_t> shifted(sum.size);
    place_weight(layout.blocks, weight, layout.first_product(r) + other, j, scale, {shifted.data(), shifted.size()});
    const auto half = static_cast<std::ptrdiff_t>(layout.half(1));
    std::rotate(shifted.begin(), shifted.end() - half, shifted.end());
    std::transform(shifted.begin(), shifted.begin() + half, shifted.begin(), [](std::int64_t v) { return -v; });
    for (std::size_t c = 0; c < sum.size; ++c) {
        difference[c] = sum[c] - shifted[c];
        sum[c] += shifted[c];
    }
    return true;
}

std::vector<std::uint32_t> merged_positions(const MergedLayout& layout, std::size_t r, std::size_t count) {
    const std::size_t apart = layout.half(layout.levels);
    std::vector<std::uint32_t> positions;
    positions.reserve(layout.outputs_of(r) * count);
    for (std::size_t i = 0; i < layout.products_of(r); ++i) {
        for (const std::uint32_t position : output_positions(layout.blocks, layout.first_product(r) + i, count)) {
            positions.push_back(position + static_cast<std::uint32_t>(i * apart));
        }
    }
    return positions;
}

}  // namespace hesplit
