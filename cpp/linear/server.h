// The server's half of the encrypted linear layer: y = x W^T + b on ciphertexts.
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
#include "linear/server_packing.h"
#include "rlwe/parameters.h"
#include "rlwe/public_key.h"
#include "wire/format.h"

namespace hesplit {

// Safe to use from several threads: a forward pass uses the weights that were set when it began.
class LinearServer {
  public:
    // Throws WireError unless the bytes are LinearClient::public_material(). Requests of more samples, and what costs
    // more than the limits, are refused before anything is done for them.
    LinearServer(View<const std::uint8_t> public_material, std::size_t max_samples, const ServingLimits& limits = {});

    std::size_t features() const { return features_; }
    std::size_t outputs() const { return outputs_; }
    const Parameters& parameters() const { return parameters_; }

    // weight is row-major [outputs, features], bias [outputs] or empty. Throws RangeError when the parameters cannot
    // hold them, WireError when that would take more than the limits.
    void set_weight(View<const double> weight, View<const double> bias);

    // The ciphertexts of a request, kept for its weight gradient.
    struct Kept {
        Header header;
        BatchShape shape;
        std::vector<GroupInputs> groups;
    };
    // The masks of that gradient, until the client has opened it.
    struct Masked {
        Header header;
        ReplyHead head;
        std::vector<GradientRun> runs;
        std::vector<SecretBuffer<std::uint64_t>> masks;  // by run, uniform in [0, 2^bits)
    };

    // The other half of the logits of a request, until the client returns its own.
    struct Share {
        Header header;
        ReplyHead head;
        LogitMasks masks;
    };

    // What forward() would take for a request, with `keep` what it takes to keep it; and weight_gradient(), at most.
    ServingCost cost(View<const std::uint8_t> request, bool keep) const;
    ServingCost gradient_cost(const Kept& kept) const;

    // A reply of as many samples as the request has, which `samples` receives if it is not null. Throws WireError or
    // KeyMismatchError. `kept`, if not null, receives what weight_gradient needs.
    std::string forward(View<const std::uint8_t> request, std::size_t* samples = nullptr,
                        std::shared_ptr<const Kept>* kept = nullptr) const;

    // The same with every logit masked uniformly modulo 2^bits: what the client decrypts and `share` add up to the
    // logits. Throws ParameterError unless the weights are private: the reply would say them.
    std::string share(View<const std::uint8_t> request, std::shared_ptr<const Share>& share,
                      std::shared_ptr<const Kept>* kept = nullptr) const;
    // Its logits, row-major [samples, outputs], from what the client sent back. Throws WireError or KeyMismatchError.
    void join(const Share& share, View<const std::uint8_t> opened, double* y) const;

    // This side's share, row-major [samples, outputs]: with the client's it adds up to the logits modulo 2^bits.
    void own_share(const Share& share, std::uint64_t* values) const;

    // A server of the same weights, shared with this one, for another client of the same parameters and shape (blocks).
    // Throws as the constructor, KeyMismatchError for other parameters.
    std::unique_ptr<LinearServer> for_client(View<const std::uint8_t> public_material) const;

    // Enc(dJ/dW) under uniform masks, for the client to open. `gradient` is dJ/dY, row-major [samples, outputs].
    std::string weight_gradient(const Kept& kept, View<const double> gradient,
                                std::shared_ptr<const Masked>& masked) const;
    // dJ/dW, row-major [outputs, features], from what the client sent back. Throws WireError or KeyMismatchError.
    void unmask(const Masked& masked, View<const std::uint8_t> opened, double* weight_gradient) const;

  private:
    LinearServer(WireReader reader, std::size_t max_samples, const ServingLimits& limits, const LinearServer* like);
    std::string reply(View<const std::uint8_t> bytes, std::size_t* samples, std::shared_ptr<const Kept>* kept,
                      LogitMasks* masks) const;
    // Every product's values, made of its mask, in their places.
    template <class To, class Made>
    void place(const Share& share, To* out, const Made& made) const;
    ForwardRequest read(View<const std::uint8_t> request) const;
    std::shared_ptr<const LayerWeights> weights() const;

    Parameters parameters_;
    Id key_id_{};
    std::size_t max_samples_;
    ServingLimits limits_;
    std::size_t features_ = 0;
    std::size_t outputs_ = 0;
    bool weight_gradients_ = false;                               // the client sent what they need
    std::shared_ptr<const PublicKey> public_key_;                 // of the client, where replies hide the weights
    std::shared_ptr<const std::vector<GaloisKey>> merging_keys_;  // of the client, on merged blocks
    std::shared_ptr<const ServerPacking> packing_;
    std::size_t ciphertext_bytes_ = 0;  // of one in a request

    mutable std::mutex mutex_;
    std::shared_ptr<const LayerWeights> weights_;
};

}  // namespace hesplit
