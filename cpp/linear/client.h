// The client's half of the encrypted linear layer: encrypt activations, decrypt logits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "core/parameters.h"
#include "core/rlwe.h"
#include "core/slot_ring.h"
#include "linear/messages.h"
#include "packing/blocks.h"
#include "packing/slots.h"

namespace hesplit {

// Safe to use from several threads.
class LinearClient {
  public:
    LinearClient(std::shared_ptr<const SecretKey> key, std::size_t features, std::size_t outputs);

    std::size_t features() const { return features_; }
    std::size_t outputs() const { return outputs_; }

    // Parameters, shape and, for slots, the rotation keys: what a server needs. Fresh randomness at every call.
    std::string public_material() const;

    struct Request {
        std::string bytes;
        std::size_t clipped = 0;  // samples that were beyond the agreed ranges
    };
    // x is row-major [samples, features]. Samples beyond the ranges are clipped, or a RangeError if `clip` is false;
    // NaN and infinities always are.
    template <class T>
    Request encrypt(const T* x, std::size_t samples, bool clip) const;

    // The samples of the request that a reply answers. Throws WireError or KeyMismatchError.
    std::size_t samples_of(View<const std::uint8_t> reply) const;
    // y is row-major [samples, outputs]. Each request is answered once.
    void decrypt(View<const std::uint8_t> reply, double* y) const;

  private:
    struct Reply;
    BatchShape plan(std::size_t samples) const;
    void encode(const BatchShape& shape, const void* x, bool is_float, std::size_t group, std::size_t input,
                std::uint64_t* message) const;
    void decrypt_group(const Reply& reply, std::size_t group, double* y) const;
    BatchShape outstanding(const Id& message) const;
    std::size_t inputs(const BatchShape& shape) const;

    std::shared_ptr<const SecretKey> key_;
    std::size_t features_;
    std::size_t outputs_;
    std::unique_ptr<SlotRing> slot_ring_;  // slots only
    SlotLayout slots_;
    std::unique_ptr<Ring> own_ring_;  // blocks only
    const Ring& ring_;
    SecretBuffer<std::uint64_t> secret_;
    PhaseDecryptor phase_;
    RequestCodec codec_;

    mutable std::mutex mutex_;
    mutable std::map<Id, BatchShape> outstanding_;
    mutable std::vector<Id> order_;
};

// The bits per coefficient of a reply, for planning, before any weights are known.
inline constexpr double kTypicalReplyBits = 30;

BlockLayout block_layout(const Ring& ring, std::size_t features, std::size_t outputs, const BatchShape& shape);

}  // namespace hesplit
