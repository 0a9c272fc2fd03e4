// The wire format: what travels between client and server, and key files. Ours, bit-packed, versioned, validated.
//
// clang-format off
//   header  magic "HESN", version, type, 2 zero bytes, total length (8),
//           parameter hash (16), key id (16), message id (16)
//   body    little-endian integers and doubles, bit-packed runs of residues
//   footer  checksum (8) over everything before it
// clang-format on
//
// The checksum finds accidental damage: each word enters through a bijection, so no change within one word goes
// unnoticed. It does not authenticate: that is the transport's work (mutual TLS).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "base/buffer.h"
#include "ring/prng.h"
#include "wire/codec.h"

namespace hesplit {

enum class MessageType : std::uint8_t {
    public_material = 1,
    request = 2,
    reply = 3,
    secret_key = 4,
    weight_gradient = 5,  // masked, encrypted dJ/dW, to the client
    opened_gradient = 6,  // decrypted, still masked, back to the server
    // 7 to 11 were sealed weights whose replies had three polynomials.
    frozen_request = 12,  // encrypted rows for weights that do not change
    frozen_reply = 13,    // their products, without what the hint says
    frozen_hint = 14,     // what all replies of one layer have in common
    public_key = 15,      // what anybody can encrypt with
    polynomials = 16,     // encrypted, for any linear map
    products = 17,        // what such a map made of them
    share = 18,           // a reply whose logits are masked
    opened_share = 19,    // decrypted, still masked, back to the server
    sealed_weight = 20,   // encrypted weights; also what a server saves
    sealed_request = 21,  // encrypted activations for them
    sealed_reply = 22,    // encrypted logits or dJ/da
    sealed_update = 23,   // encrypted dJ/dY, every so often with weights
};

inline constexpr std::uint8_t kWireVersion = 3;
inline constexpr std::size_t kHeaderBytes = 64;
inline constexpr std::size_t kFooterBytes = 8;

// Of the parameters that a message was made under (rlwe/parameters.h).
using ParameterHash = std::array<std::uint8_t, 16>;

struct Header {
    MessageType type = MessageType::request;
    ParameterHash parameters{};
    Id key{};
    Id message{};
};

class WireWriter {
  public:
    explicit WireWriter(const Header& header, std::size_t body_bytes);

    void u8(std::uint8_t value);
    void u16(std::uint16_t value);
    void u32(std::uint32_t value);
    void f64(double value);
    void raw(View<const std::uint8_t> bytes);
    void seed(const Seed& seed);
    void packed(View<const std::uint64_t> values, int bits);

    // Where a run of that many bytes goes, to be filled by pack_bits, for filling runs from several threads.
    std::uint8_t* reserve(std::size_t bytes);

    // The finished message. Throws Error if the body is not as long as announced.
    std::string finish();

  private:
    std::string bytes_;
    std::size_t at_ = kHeaderBytes;
};

// Checks everything that does not depend on the type before it gives access to the body: magic, version, type, length,
// checksum. Every failure is a WireError.
class WireReader {
  public:
    WireReader(View<const std::uint8_t> bytes, MessageType type);

    const Header& header() const { return header_; }
    // Throws WireError unless it is of this type.
    void require(MessageType type) const;
    // Throws KeyMismatchError unless the message was made under these parameters and this key.
    void require(const ParameterHash& parameters, const Id& key) const;

    std::uint8_t u8();
    std::uint16_t u16();
    std::uint32_t u32();
    double f64();
    View<const std::uint8_t> raw(std::size_t size);
    Seed seed();
    // Reads values of `bits` bits, each below `limit`; the fill bits must be zero.
    void packed(View<std::uint64_t> values, int bits, std::uint64_t limit);

    std::size_t remaining() const { return end_ - at_; }
    // Throws WireError unless exactly this much of the body is left.
    void require_remaining(std::size_t size) const;

  private:
    View<const std::uint8_t> bytes_;
    Header header_;
    std::size_t at_ = kHeaderBytes;
    std::size_t end_ = 0;
};

// Writes the checksum of a whole message into its footer.
void seal_message(View<std::uint8_t> message);

}  // namespace hesplit
