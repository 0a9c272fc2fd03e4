#include "wire/format.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "wire/little_endian.h"

namespace hesplit {

namespace {

constexpr std::uint8_t kMagic[4] = {'H', 'E', 'S', 'N'};

// Eight interleaved sums; each word is mixed in by xor, an odd multiplication and a shifted xor: bijections of 64 bits.
std::uint64_t checksum(const std::uint8_t* in, std::size_t size) {
    constexpr std::uint64_t kOdd = 0x9e3779b97f4a7c15ULL;
    constexpr std::size_t kLanes = 8;  // independent, so that multiplications overlap
    std::uint64_t sums[kLanes] = {1, 2, 3, 4, 5, 6, 7, 8 + size};
    const auto mix = [](std::uint64_t sum, std::uint64_t word) {
        sum = (sum ^ word) * kOdd;
        return sum ^ (sum >> 29);
    };
    std::size_t at = 0;
    for (; at + 8 * kLanes <= size; at += 8 * kLanes) {
        for (std::size_t lane = 0; lane < kLanes; ++lane) {
            sums[lane] = mix(sums[lane], load_little_endian(in + at + 8 * lane));
        }
    }
    for (; at < size; at += 8) {
        sums[0] = mix(sums[0], load_little_endian(in + at, size - at < 8 ? size - at : 8));
    }
    for (std::size_t lane = 1; lane < kLanes; ++lane) {
        sums[0] = mix(sums[0], sums[lane]);
    }
    return sums[0];
}

std::string name(MessageType type) {
    switch (type) {
        case MessageType::public_material:
            return "public material";
        case MessageType::request:
            return "request";
        case MessageType::reply:
            return "reply";
        case MessageType::secret_key:
            return "secret key";
        case MessageType::weight_gradient:
            return "encrypted weight gradient";
        case MessageType::opened_gradient:
            return "opened weight gradient";
        case MessageType::sealed_weight:
            return "sealed weight";
        case MessageType::sealed_request:
            return "sealed request";
        case MessageType::sealed_reply:
            return "sealed reply";
        case MessageType::sealed_update:
            return "sealed update";
        case MessageType::frozen_request:
            return "frozen request";
        case MessageType::frozen_reply:
            return "frozen reply";
        case MessageType::frozen_hint:
            return "frozen hint";
        case MessageType::public_key:
            return "public key";
        case MessageType::polynomials:
            return "encrypted polynomials";
        case MessageType::products:
            return "products of polynomials";
        case MessageType::share:
            return "share of logits";
        case MessageType::opened_share:
            return "opened share of logits";
    }
    return "message of unknown type";
}

std::uint8_t* as_bytes(std::string& text) {
    return reinterpret_cast<std::uint8_t*>(text.data());
}

}  // namespace

WireWriter::WireWriter(const Header& header, std::size_t body_bytes) {
    bytes_.resize(kHeaderBytes + body_bytes + kFooterBytes);
    std::uint8_t* out = as_bytes(bytes_);
    std::memcpy(out, kMagic, sizeof(kMagic));
    out[4] = kWireVersion;
    out[5] = static_cast<std::uint8_t>(header.type);
    out[6] = out[7] = 0;
    store_little_endian(out + 8, bytes_.size(), 8);
    std::memcpy(out + 16, header.parameters.data(), 16);
    std::memcpy(out + 32, header.key.data(), 16);
    std::memcpy(out + 48, header.message.data(), 16);
}

std::uint8_t* WireWriter::reserve(std::size_t bytes) {
    if (at_ + bytes + kFooterBytes > bytes_.size()) {
        throw Error("internal error: a message is longer than announced");
    }
    std::uint8_t* out = as_bytes(bytes_) + at_;
    at_ += bytes;
    return out;
}

void WireWriter::u8(std::uint8_t value) {
    store_little_endian(reserve(1), value, 1);
}
void WireWriter::u16(std::uint16_t value) {
    store_little_endian(reserve(2), value, 2);
}
void WireWriter::u32(std::uint32_t value) {
    store_little_endian(reserve(4), value, 4);
}

void WireWriter::f64(double value) {
    store_little_endian(reserve(8), bits_of(value), 8);
}

void WireWriter::raw(View<const std::uint8_t> bytes) {
    std::memcpy(reserve(bytes.size), bytes.data, bytes.size);
}

void WireWriter::seed(const Seed& seed) {
    raw({seed.data(), seed.size()});
}

void WireWriter::packed(View<const std::uint64_t> values, int bits) {
    pack_bits(values, bits, reserve(packed_bytes(values.size, bits)));
}

std::string WireWriter::finish() {
    if (at_ + kFooterBytes != bytes_.size()) {
        throw Error("internal error: a message is shorter than announced");
    }
    seal_message({as_bytes(bytes_), bytes_.size()});
    return std::move(bytes_);
}

void seal_message(View<std::uint8_t> message) {
    const std::size_t end = message.size - kFooterBytes;
    store_little_endian(message.data + end, checksum(message.data, end), 8);
}

WireReader::WireReader(View<const std::uint8_t> bytes, MessageType type) : bytes_(bytes) {
    if (bytes.size < kHeaderBytes + kFooterBytes) {
        throw WireError("expected a " + name(type) + ", got only " + std::to_string(bytes.size) + " bytes");
    }
    if (std::memcmp(bytes.data, kMagic, sizeof(kMagic)) != 0) {
        throw WireError("expected a " + name(type) + " of hesplit_native, got other bytes");
    }
    if (bytes[4] != kWireVersion) {
        throw WireError("wire version " + std::to_string(bytes[4]) + " is not supported (this build speaks version " +
                        std::to_string(kWireVersion) + "); run the same release at both ends");
    }
    header_.type = static_cast<MessageType>(bytes[5]);
    require(type);
    const std::uint64_t announced = load_little_endian(bytes.data + 8, 8);
    if (bytes[6] != 0 || bytes[7] != 0 || announced != bytes.size) {
        throw WireError("a " + name(type) + " of " + std::to_string(bytes.size) + " bytes announces " +
                        std::to_string(announced) + ": truncated, extended or damaged");
    }
    end_ = bytes.size - kFooterBytes;
    if (load_little_endian(bytes.data + end_, 8) != checksum(bytes.data, end_)) {
        throw WireError("the checksum of a " + name(type) + " is wrong: it was damaged on the way");
    }
    std::memcpy(header_.parameters.data(), bytes.data + 16, 16);
    std::memcpy(header_.key.data(), bytes.data + 32, 16);
    std::memcpy(header_.message.data(), bytes.data + 48, 16);
}

void WireReader::require(MessageType type) const {
    if (header_.type != type) {
        throw WireError("expected a " + name(type) + ", got a " + name(header_.type));
    }
}

void WireReader::require(const ParameterHash& parameters, const Id& key) const {
    if (header_.parameters != parameters) {
        throw KeyMismatchError("a " + name(header_.type) + " made under other parameters");
    }
    if (header_.key != key) {
        throw KeyMismatchError("a " + name(header_.type) + " made under another key");
    }
}

View<const std::uint8_t> WireReader::raw(std::size_t size) {
    if (size > remaining()) {
        throw WireError("a " + name(header_.type) + " ends too early");
    }
    const View<const std::uint8_t> view{bytes_.data + at_, size};
    at_ += size;
    return view;
}

Seed WireReader::seed() {
    Seed seed;
    const View<const std::uint8_t> bytes = raw(seed.size());
    std::copy(bytes.begin(), bytes.end(), seed.begin());
    return seed;
}

std::uint8_t WireReader::u8() {
    return raw(1)[0];
}
std::uint16_t WireReader::u16() {
    return static_cast<std::uint16_t>(load_little_endian(raw(2).data, 2));
}
std::uint32_t WireReader::u32() {
    return static_cast<std::uint32_t>(load_little_endian(raw(4).data, 4));
}

double WireReader::f64() {
    return double_of(load_little_endian(raw(8).data, 8));
}

void WireReader::packed(View<std::uint64_t> values, int bits, std::uint64_t limit) {
    unpack_bits(raw(packed_bytes(values.size, bits)).data, values, bits, limit);
}

void WireReader::require_remaining(std::size_t size) const {
    if (remaining() != size) {
        throw WireError("a " + name(header_.type) + " has " + std::to_string(remaining()) + " bytes of payload where " +
                        std::to_string(size) + " are expected");
    }
}

}  // namespace hesplit
