#include "linear/messages.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

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

BlockLayout checked_block_layout(const BatchShape& shape, std::size_t degree, std::size_t features,
                                 std::size_t outputs) {
    if (shape.group_size < 1 || shape.group_size > shape.samples || shape.width < 1 || shape.width > features ||
        std::size_t{shape.group_size} * shape.width > degree) {
        throw WireError("a message with an impossible block layout");
    }
    return BlockLayout{degree, features, outputs, shape.group_size, shape.width};
}

RequestHead read_request_head(WireReader& reader) {
    RequestHead head;
    head.shape = read_shape(reader);
    for (Seed* seed : {&head.seed, &head.announced}) {
        const View<const std::uint8_t> bytes = reader.raw(seed->size());
        std::copy(bytes.begin(), bytes.end(), seed->begin());
    }
    return head;
}

void write_reply_head(WireWriter& writer, const ReplyHead& head) {
    write_shape(writer, head.shape);
    writer.u8(static_cast<std::uint8_t>(head.bits));
    writer.f64(head.scale);
}

ReplyHead read_reply_head(WireReader& reader, const Ring& ring) {
    ReplyHead head;
    head.shape = read_shape(reader);
    head.bits = reader.u8();
    head.scale = reader.f64();
    const int most_bits = static_cast<int>(std::floor(std::log2(ring.modulus_value())));
    if (head.bits < 1 || head.bits > std::min(62, most_bits) || !std::isfinite(head.scale) || head.scale <= 0) {
        throw WireError("a reply with an impossible number of bits or scale");
    }
    return head;
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
