#include "linear/messages.h"

#include <cmath>
#include <string>

#include "base/error.h"
#include "wire/codec.h"

namespace hesplit {

bool possible_layer(std::size_t features, std::size_t outputs) {
    return features >= 1 && outputs >= 1 && features <= kMaxFeatures && outputs <= kMaxOutputs;
}

void check_samples(std::size_t samples) {
    if (samples < 1 || samples > kMaxSamples) {
        throw ParameterError("a request holds 1 to " + std::to_string(kMaxSamples) + " samples, got " +
                             std::to_string(samples));
    }
}

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

void write_request_head(WireWriter& writer, const RequestHead& head) {
    write_shape(writer, head.shape);
    writer.seed(head.seed);
    writer.seed(head.announced);
}

RequestHead read_request_head(WireReader& reader) {
    RequestHead head;
    head.shape = read_shape(reader);
    head.seed = reader.seed();
    head.announced = reader.seed();
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

WireWriter begin_reply(Header header, MessageType type, const ReplyHead& head, std::size_t ciphertext_bytes) {
    header.type = type;
    WireWriter writer(header, kReplyPrefix + ciphertext_bytes);
    write_reply_head(writer, head);
    return writer;
}

std::uint8_t* pack_switched(const Ring& ring, const std::uint64_t* coefficients, int bits, std::uint8_t* out) {
    Buffer<std::uint64_t> switched(ring.degree());
    ring.switch_to_bits(coefficients, bits, switched.data());
    pack_bits({switched.data(), switched.size()}, bits, out);
    return out + packed_bytes(switched.size(), bits);
}

std::uint8_t* pack_switched(const Ring& ring, const std::uint64_t* coefficients, View<const std::uint32_t> positions,
                            int bits, std::uint8_t* out) {
    Buffer<std::uint64_t> switched(ring.degree());
    ring.switch_to_bits(coefficients, positions, bits, switched.data());
    pack_bits({switched.data(), positions.size}, bits, out);
    return out + packed_bytes(positions.size, bits);
}

}  // namespace hesplit
