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
