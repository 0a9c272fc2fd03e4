// The server's half of the sealed linear layer (linear/sealed/plan.h): computes on encrypted weights.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "linear/costs.h"
#include "linear/messages.h"
#include "linear/sealed/messages.h"
#include "linear/sealed/plan.h"
#include "packing/blocks.h"
#include "rlwe/parameters.h"
#include "wire/codec.h"
#include "wire/format.h"

namespace hesplit {

// Safe to use from several threads: a call uses the weights that were there when it began.
class SealedLayerServer {
  public:
    // From SealedLayerClient::seal(), or from saved(). Throws WireError. Messages of more samples, and what costs more
    // than the limits, are refused before anything is done for them.
    SealedLayerServer(View<const std::uint8_t> bytes, std::size_t max_samples, const ServingLimits& limits = {});

    const Parameters& parameters() const { return parameters_; }
    std::size_t features() const { return layout_.features; }
    std::size_t outputs() const { return layout_.outputs; }

    // What forward() or update() would take for a message.
    ServingCost cost(View<const std::uint8_t> message) const;
    // Replaces the weights by newly encrypted ones.
    void refresh(View<const std::uint8_t> sealed);
    std::string forward(View<const std::uint8_t> request) const;
    // dJ/da by the present weights; then those that came with it, if any, take their place. Throws WireError where they
    // are due and did not come.
    std::string update(View<const std::uint8_t> update);
    // Everything that this server holds, as ciphertexts: a message from which another can be made.
    std::string saved() const;

  private:
    // c0 and c1 of every weight polynomial [product, input], in NTT form. Immutable once it is in use.
    struct Weights {
        Id name{};  // of the message that brought them
        SealedBits bits;
        Seed seed{};
        std::vector<std::uint8_t> ciphertexts;  // as they came, for saved()
        Buffer<std::uint64_t> c0, c1;
        Buffer<std::uint64_t> bias;  // c0 of each output [prime, output]
    };
    // A request or an update whose lengths have been checked.
    struct Batch {
        Header header;
        BatchShape shape;
        bool weights = false;  // come with it, with the bits of replies to them
        SealedBits bits;
        Seed seed{};
        View<const std::uint8_t> sealed;       // of the weights
        View<const std::uint8_t> ciphertexts;  // of activations or gradients
    };
    SealedLayerServer(WireReader reader, std::size_t max_samples, const ServingLimits& limits);
    std::shared_ptr<const Weights> read_sealed(WireReader& reader, const SealedBits& bits) const;
    std::shared_ptr<const Weights> read_weights(const Id& name, const SealedBits& bits, const Seed& seed,
                                                View<const std::uint8_t> ciphertexts) const;
    void check_bits(const SealedBits& bits) const;
    std::size_t weight_count() const { return layout_.products() * layout_.inputs(); }
    std::size_t weight_bytes() const;
    void read_ciphertexts(const PolynomialCodec& codec, View<const std::uint8_t> bytes, const Seed& seed,
                          std::size_t index, std::uint64_t* c0, std::uint64_t* c1) const;
    Batch read_batch(View<const std::uint8_t> bytes, MessageType type, const Weights& weights) const;
    ServingCost cost(const Batch& batch, const Weights& weights) const;
    void add_bias(const Weights& weights, std::size_t product, std::size_t samples,
                  const std::vector<std::uint32_t>& positions, std::uint64_t* c0) const;
    std::string input_gradient(const Batch& batch, const Weights& weights) const;
    void check_shape(const BatchShape& shape) const;
    std::shared_ptr<const Weights> weights() const;

    Parameters parameters_;
    Id key_id_{};
    SealedLayer layer_;  // as it was announced first; weights_ knows the present bits
    std::size_t max_samples_;
    ServingLimits limits_;
    std::unique_ptr<const Ring> ring_;
    std::unique_ptr<const PolynomialCodec> codec_;
    BlockLayout layout_;
    std::unique_ptr<const PolynomialCodec> bias_codec_;

    mutable std::mutex mutex_;
    std::shared_ptr<const Weights> weights_;
    std::uint32_t behind_ = 0;  // updates since they came
};

}  // namespace hesplit
