// The bodies of the messages between LinearClient and LinearServer (framing: wire/format.h).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "packing/blocks.h"
#include "packing/slots.h"
#include "ring/ring.h"
#include "wire/format.h"

namespace hesplit {

// Size limits, for both sides.
inline constexpr std::size_t kMaxFeatures = 65536;
inline constexpr std::size_t kMaxSamples = 65536;

// The bits per coefficient of a reply, for planning, before any weights are known.
inline constexpr double kTypicalReplyBits = 30;

// How a batch is laid out. `group_size` samples form a group; the last group may be short.
struct BatchShape {
    std::uint32_t samples = 0;
    std::uint32_t group_size = 0;
    std::uint32_t width = 0;  // blocks: k; slots: 0

    std::size_t groups() const { return (std::size_t{samples} + group_size - 1) / group_size; }
    std::size_t samples_of(std::size_t group) const {
        return std::min<std::size_t>(group_size, samples - group * group_size);
    }
    bool operator==(const BatchShape& other) const {
        return samples == other.samples && group_size == other.group_size && width == other.width;
    }
};

inline constexpr std::size_t kShapeBytes = 12;
void write_shape(WireWriter& writer, const BatchShape& shape);
BatchShape read_shape(WireReader& reader);

// The layout of a message on coefficient blocks. Throws WireError when there is none of that shape.
BlockLayout checked_block_layout(const BatchShape& shape, std::size_t degree, std::size_t features,
                                 std::size_t outputs);

// What a request's body starts with, before the ciphertexts.
struct RequestHead {
    BatchShape shape;
    Seed seed{};       // of c1
    Seed announced{};  // of the next request of this shape; zeros: none is
};
RequestHead read_request_head(WireReader& reader);

// What the body of a reply, or of a masked weight gradient, starts with: residues are modulo 2^bits, at that scale.
struct ReplyHead {
    BatchShape shape;
    int bits = 0;
    double scale = 1;
};
void write_reply_head(WireWriter& writer, const ReplyHead& head);
// Throws WireError when bits or scale are none that a server with this ring could send.
ReplyHead read_reply_head(WireReader& reader, const Ring& ring);

// One ciphertext of an encrypted weight gradient: product p of input j, of which `coefficients` are sent.
struct GradientRun {
    std::size_t p = 0;
    std::size_t j = 0;
    std::size_t coefficients = 0;
};

std::vector<GradientRun> weight_gradient_runs(const BlockLayout& layout);
std::vector<GradientRun> weight_gradient_runs(const SlotLayout& layout, std::size_t degree);

// What a sealed request's body starts with, before the ciphertexts: shape and seed.
inline constexpr std::size_t kSealedRequestPrefix = kShapeBytes + 32;
// The same of a request, with the seed that is announced for the next request of this shape; zeros: none is.
inline constexpr std::size_t kRequestPrefix = kSealedRequestPrefix + 32;
// What a reply's body starts with: shape, bits, scale.
inline constexpr std::size_t kReplyPrefix = kShapeBytes + 1 + 8;

}  // namespace hesplit
