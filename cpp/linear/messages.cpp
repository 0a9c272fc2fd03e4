#include "linear/messages.h"

#include <algorithm>

namespace hesplit {

void write_shape(WireWriter& writer, const BatchShape& shape) {
    writer.u32(shape.samples);
    writer.u32(shape.group_size);
    writer.u32(shape.width);
}

BatchShape read_shape(WireReader& reader) {
    BatchShape shape;
    shape.samples = reader.u32();
    shape.group_size = reader.u32();
    shape.width = reader.u32();
    return shape;
}

std::vector<GradientRun> weight_gradient_runs(const BlockLayout& layout) {
    std::vector<GradientRun> runs;
    for (std::size_t p = 0; p < layout.products(); ++p) {
        for (std::size_t j = 0; j < layout.inputs(); ++j) {
            runs.push_back({p, j, layout.outputs_of(p) * layout.features_of(j)});
        }
    }
    return runs;
}

std::vector<GradientRun> weight_gradient_runs(const SlotLayout& layout, std::size_t degree) {
    std::vector<GradientRun> runs;
    for (std::size_t p = 0; p < gradient_products(layout); ++p) {
        for (std::size_t j = 0; j < layout.inputs(); ++j) {
            runs.push_back({p, j, degree});
        }
    }
    return runs;
}

}  // namespace hesplit
