// The server's half of the encrypted linear layer: y = x W^T + b on ciphertexts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/ahead.h"
#include "ckks/slot_ring.h"
#include "linear/messages.h"
#include "linear/precision.h"
#include "packing/blocks.h"
#include "packing/slots.h"
#include "rlwe/parameters.h"

namespace hesplit {

// Safe to use from several threads: a forward pass uses the weights that were set when it began.
class LinearServer {
  public:
    // Throws WireError unless the bytes are LinearClient::public_material().
    LinearServer(View<const std::uint8_t> public_material, std::size_t max_samples);
    ~LinearServer();

    std::size_t features() const { return features_; }
    std::size_t outputs() const { return outputs_; }
    const Parameters& parameters() const { return parameters_; }

    // weight is row-major [outputs, features], bias [outputs] or empty. Throws RangeError when the parameters cannot
    // hold them.
    void set_weight(View<const double> weight, View<const double> bias);

    // The ciphertexts of a request, kept for its weight gradient, and the masks of that gradient until it is opened.
    struct Kept;
    struct Masked;

    // A reply of as many samples as the request has, which `samples` receives if it is not null. Throws WireError or
    // KeyMismatchError. `kept`, if not null, receives what weight_gradient needs.
    std::string forward(View<const std::uint8_t> request, std::size_t* samples = nullptr,
                        std::shared_ptr<const Kept>* kept = nullptr) const;

    // Enc(dJ/dW) under uniform masks, for the client to open. `gradient` is dJ/dY, row-major [samples, outputs].
    std::string weight_gradient(const Kept& kept, View<const double> gradient,
                                std::shared_ptr<const Masked>& masked) const;
    // dJ/dW, row-major [outputs, features], from what the client sent back. Throws WireError or KeyMismatchError.
    void unmask(const Masked& masked, View<const std::uint8_t> opened, double* weight_gradient) const;

  private:
    struct Weights;  // what set_weight was given, and its encodings by layout

    // What of a reply follows from the seed of its request: c1 of the inputs, and of the products, packed.
    struct Half;

    struct ForwardJob;
    ForwardJob read(View<const std::uint8_t> request) const;
    LinearServer(WireReader reader, std::size_t max_samples);
    void load_rotation_keys(WireReader& reader);
    std::string forward_blocks(const ForwardJob& job, Kept* kept) const;
    std::shared_ptr<Half> make_half(const std::shared_ptr<Weights>& weights, const BatchShape& shape, const Seed& seed,
                                    bool keep_inputs) const;
    std::shared_ptr<Half> take_half(const ForwardJob& job, bool keep_inputs) const;
    void work_ahead(const std::shared_ptr<Weights>& weights) const;
    std::string forward_slots(const ForwardJob& job, Kept* kept) const;

    Parameters parameters_;
    Id key_id_{};
    std::size_t features_ = 0;
    std::size_t outputs_ = 0;
    std::size_t max_samples_;
    bool weight_gradients_ = false;        // the client sent what they need
    std::unique_ptr<SlotRing> slot_ring_;  // slots only
    SlotLayout slots_;
    RotationKeys rotation_keys_;
    std::unique_ptr<Ring> own_ring_;  // blocks only
    const Ring* ring_ = nullptr;
    std::unique_ptr<PolynomialCodec> codec_;

    mutable std::mutex mutex_;
    std::shared_ptr<Weights> weights_;

    // Guarded by ahead_mutex_; the job puts its result into next_half_. Last, so that a job ends before the rest.
    mutable std::mutex ahead_mutex_;
    mutable Seed announced_{};  // for the next request of that shape
    mutable BatchShape announced_shape_;
    mutable std::shared_ptr<std::shared_ptr<Half>> next_half_;
    mutable Ahead ahead_;
};

}  // namespace hesplit
