// The bodies of the messages between clients and servers of the linear layer (framing: wire/format.h).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/buffer.h"
#include "ring/ring.h"
#include "wire/format.h"

namespace hesplit {

// Size limits, for both sides. A polygenic score has up to a million features, a table that is searched as many rows.
inline constexpr std::size_t kMaxFeatures = std::size_t{1} << 20;
inline constexpr std::size_t kMaxOutputs = std::size_t{1} << 20;
inline constexpr std::size_t kMaxSamples = 65536;

// Whether a layer has at least one feature and output and no more than fit.
bool possible_layer(std::size_t features, std::size_t outputs);

// The bits per coefficient of a reply, for planning, before any weights are known.
inline constexpr double kTypicalReplyBits = 30;

// How a batch is laid out. `group_size` samples form a group, which shares its ciphertexts; the last group may be
// short.
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

// Throws ParameterError unless a request may hold so many samples.
void check_samples(std::size_t samples);

inline constexpr std::size_t kShapeBytes = 12;
void write_shape(WireWriter& writer, const BatchShape& shape);
BatchShape read_shape(WireReader& reader);

// What a sealed request's body starts with, before the ciphertexts: shape and seed.
inline constexpr std::size_t kSealedRequestPrefix = kShapeBytes + 32;
// And a sealed reply's: shape, and which weights it was made with.
inline constexpr std::size_t kSealedReplyPrefix = kShapeBytes + sizeof(Id);

// What a request's body starts with, before the ciphertexts.
struct RequestHead {
    BatchShape shape;
    Seed seed{};       // of c1
    Seed announced{};  // of the next request of this shape; zeros: none is
};
inline constexpr std::size_t kRequestPrefix = kShapeBytes + 32 + 32;
void write_request_head(WireWriter& writer, const RequestHead& head);
RequestHead read_request_head(WireReader& reader);

// What the body of a reply, or of a masked weight gradient, starts with: residues are modulo 2^bits, at that scale.
struct ReplyHead {
    BatchShape shape;
    int bits = 0;
    double scale = 1;
};
inline constexpr std::size_t kReplyPrefix = kShapeBytes + 1 + 8;
void write_reply_head(WireWriter& writer, const ReplyHead& head);
// Throws WireError when bits or scale are none that a server with this ring could send.
ReplyHead read_reply_head(WireReader& reader, const Ring& ring);
// A message that answers the one with this header, up to its ciphertexts, for which so many bytes are left.
WireWriter begin_reply(Header header, MessageType type, const ReplyHead& head, std::size_t ciphertext_bytes);

// Ciphertexts that follow one another in a reply: of each, c0 at some coefficients, then c1 whole.
class CiphertextRuns {
  public:
    CiphertextRuns(std::size_t ring_degree, int bits) : whole_bytes_(packed_bytes(ring_degree, bits)), bits_(bits) {}

    void add(std::size_t c0_coefficients) {
        offsets_.push_back(total_);
        total_ += packed_bytes(c0_coefficients, bits_) + whole_bytes_;
    }
    std::size_t offset(std::size_t run) const { return offsets_[run]; }
    std::size_t bytes() const { return total_; }

  private:
    std::size_t whole_bytes_;
    int bits_;
    std::vector<std::size_t> offsets_;
    std::size_t total_ = 0;
};

// Switches the modulus of a polynomial in coefficient form to 2^bits and packs it: where the next run begins.
std::uint8_t* pack_switched(const Ring& ring, const std::uint64_t* coefficients, int bits, std::uint8_t* out);
// The same of its coefficients at `positions` alone.
std::uint8_t* pack_switched(const Ring& ring, const std::uint64_t* coefficients, View<const std::uint32_t> positions,
                            int bits, std::uint8_t* out);

// One ciphertext of an encrypted weight gradient: product p of input j, of which `coefficients` are sent. It holds
// dW[first_output, first_feature] and so on, ordered by output, then feature; `features` of each.
struct GradientRun {
    std::size_t p = 0;
    std::size_t j = 0;
    std::size_t coefficients = 0;
    std::size_t first_output = 0;
    std::size_t first_feature = 0;
    std::size_t features = 0;
};

}  // namespace hesplit
