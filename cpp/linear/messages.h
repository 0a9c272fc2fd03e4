// The bodies of the messages between LinearClient and LinearServer (framing: wire/wire.h).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "packing/blocks.h"
#include "packing/slots.h"
#include "ring/ring.h"
#include "wire/wire.h"

namespace hesplit {

// Size limits, for both sides.
inline constexpr std::size_t kMaxFeatures = 65536;
inline constexpr std::size_t kMaxSamples = 65536;

// The bits per coefficient of a reply, for planning, before any weights are known.
inline constexpr double kTypicalReplyBits = 30;

// How a batch is laid out. `rows` samples form a group; the last group may be short.
struct BatchShape {
    std::uint32_t samples = 0;
    std::uint32_t rows = 0;
    std::uint32_t width = 0;  // blocks: k; slots: 0

    std::size_t groups() const { return (std::size_t{samples} + rows - 1) / rows; }
    std::size_t rows_of(std::size_t group) const { return std::min<std::size_t>(rows, samples - group * rows); }
    bool operator==(const BatchShape& other) const {
        return samples == other.samples && rows == other.rows && width == other.width;
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

// c0 of a request, in coefficient form: as integers below q where q is small (by the Chinese remainder theorem), else
// as residues; each rounded to a multiple of 2^dropped and bit-packed run by run.
class RequestCodec {
  public:
    RequestCodec(const Ring& ring, int dropped);

    std::size_t bytes() const { return bytes_; }  // of one ciphertext
    double bits_per_coefficient() const;
    void pack(const std::uint64_t* c0, std::uint8_t* out, Buffer<std::uint64_t>& scratch) const;
    void unpack(const std::uint8_t* in, std::uint64_t* c0) const;  // throws WireError

  private:
    struct Run {
        std::uint64_t modulus = 0;
        std::uint64_t limit = 0;  // rounded numbers are below it
        int bits = 0;
    };

    const Ring& ring_;
    int dropped_;
    std::vector<Run> runs_;  // one, or one for each prime
    std::size_t bytes_ = 0;
};

// What a sealed request's body starts with, before the ciphertexts: shape and seed.
inline constexpr std::size_t kSealedRequestPrefix = kShapeBytes + 32;
// The same of a request, with the seed that is announced for the next request of this shape; zeros: none is.
inline constexpr std::size_t kRequestPrefix = kSealedRequestPrefix + 32;
// What a reply's body starts with: shape, bits, scale.
inline constexpr std::size_t kReplyPrefix = kShapeBytes + 1 + 8;

}  // namespace hesplit
