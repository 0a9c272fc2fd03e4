// The sealed linear layer: the server holds W and b only as ciphertexts under the client's key, and adds encrypted
// updates to them. Products are of degree 2 and are decrypted with s^2: no relinearisation, no evaluation keys.
//
// The bias is the weight of one more feature, which is always 1. Both sides plan the same layout.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/ahead.h"
#include "linear/messages.h"
#include "packing/blocks.h"
#include "rlwe/decryption.h"
#include "rlwe/encryption.h"
#include "rlwe/parameters.h"
#include "rlwe/secret_key.h"

namespace hesplit {

// Bits per coefficient of a reply with logits, and of one with dJ/da, whose range the client fits to each step.
struct SealedBits {
    int logits = 0;
    int input_gradient = 0;
};
inline constexpr int kInputGradientBits = 26;

// The layout with the fewest bytes per training step of choice.batch_size samples; features includes the bias.
BlockLayout plan_sealed(const ParameterChoice& choice, std::size_t features, std::size_t outputs, double request_bits,
                        double reply_bits);

// How a client that can hold weights up to a reach scales them, and what precision results (docs/precision.md).
struct SealedScaling {
    double reach = 0;         // every |w_o . x| + |b_o| stays below it
    double weight_scale = 1;  // integers are w * weight_scale
    int logit_bits = 0;
    double error = 0;  // bound on |y - exact y| after choice.updates updates
};

// Throws RangeError when the parameters cannot keep their error bound with such weights.
SealedScaling scale_sealed(const ParameterChoice& choice, const Ring& ring, const BlockLayout& layout,
                           double weight_norm);

// The client's half. Safe to use from several threads, but updates have an order that the caller keeps.
class SealedClient {
  public:
    // `weight_norm`: the largest l2 norm of a row of the weight that must fit before the scale has to change.
    SealedClient(std::shared_ptr<const SecretKey> key, std::size_t features, std::size_t outputs, double weight_norm);

    std::size_t features() const { return layout_.features - 1; }
    std::size_t outputs() const { return layout_.outputs; }
    const SealedScaling& scaling() const { return scaling_; }

    // All of W and b, encrypted anew: the first message of a session, and later a refresh, which clears the noise of
    // updates. weight is row-major [outputs, features].
    std::string seal(View<const double> weight, View<const double> bias);
    // How many updates the parameters allow before the next seal().
    std::uint32_t updates_left() const { return parameters_.choice().updates - updates_; }
    // Whether W has outgrown its scale or taken as many updates as the parameters allow: seal() is due before update().
    bool refresh_due(View<const double> weight, View<const double> bias) const;

    // Encrypted activations, row-major [samples, features]. Throws RangeError beyond the agreed ranges.
    std::string encrypt(View<const double> x) const;
    std::size_t samples_of(View<const std::uint8_t> reply) const;
    // Logits, row-major [samples, outputs].
    void decrypt(View<const std::uint8_t> reply, double* y) const;

    // Encrypted dJ/dY, row-major [samples, outputs], and the step from the weights sent last to these.
    std::string update(View<const double> gradient, View<const double> weight, View<const double> bias);
    // dJ/da, row-major [samples, features], by the weights before that update.
    void decrypt_input_gradient(View<const std::uint8_t> reply, double* gradient) const;

    void destroy() const;

  private:
    struct Outstanding {
        BatchShape shape;
        bool input_gradient = false;
        double scale = 1;  // of the reply before its modulus was switched
    };
    struct Opened;
    std::vector<std::int64_t> with_bias(View<const double> weight, View<const double> bias) const;
    std::string encrypt_all(MessageType type, const BatchShape& shape, std::size_t prefix_bytes,
                            const std::vector<Buffer<std::int64_t>>& messages, const Id& id,
                            const ZeroEncryptions& zeros) const;
    std::vector<Buffer<std::int64_t>> weight_messages(const std::vector<std::int64_t>& integers) const;
    BatchShape shape_of(std::size_t samples) const;
    Id remember(const Outstanding& entry) const;
    Outstanding take(const Header& header, bool input_gradient) const;
    std::shared_ptr<const SecretBuffer<std::uint64_t>> secret() const;
    ZeroEncryptions take_zeros(ZeroEncryptions& ahead, std::size_t count) const;
    void prepare_next_step() const;
    void open(View<const std::uint8_t> reply, bool input_gradient, double* out) const;

    std::shared_ptr<const SecretKey> key_;
    Parameters parameters_;
    Ring ring_;
    Ring auxiliary_;
    PolynomialCodec codec_;
    BlockLayout layout_;
    SealedScaling scaling_;
    std::vector<std::int64_t> sealed_;  // the integers that the server's ciphertexts hold
    std::uint32_t updates_ = 0;

    mutable std::mutex mutex_;
    mutable std::shared_ptr<const SecretBuffer<std::uint64_t>> secret_;  // null once destroyed
    mutable std::unique_ptr<PhaseDecryptor> phase_;
    mutable std::map<Id, Outstanding> outstanding_;

    // For the next step, as many as the last one took; guarded by ahead_mutex_, or written by the job. Last, so that a
    // job ends before the rest.
    mutable std::mutex ahead_mutex_;
    mutable ZeroEncryptions next_request_, next_update_;
    mutable std::size_t request_count_ = 0, update_count_ = 0;
    mutable Ahead ahead_;
};

// The server's half. Safe to use from several threads.
class SealedServer {
  public:
    // From SealedClient::seal(), or from saved(). Throws WireError.
    SealedServer(View<const std::uint8_t> bytes, std::size_t max_samples);

    const Parameters& parameters() const { return parameters_; }
    std::size_t features() const { return layout_.features - 1; }
    std::size_t outputs() const { return layout_.outputs; }

    // Replaces the weights by newly encrypted ones.
    void refresh(View<const std::uint8_t> sealed);
    std::string forward(View<const std::uint8_t> request) const;
    // dJ/da by the present weights; then the update is added to them.
    std::string update(View<const std::uint8_t> update);
    // Everything that this server holds, as ciphertexts.
    std::string saved() const;

  private:
    // c0 and c1 of every weight polynomial [product, input], in NTT form.
    struct Weights {
        Buffer<std::uint64_t> c0, c1;
        std::uint32_t updates = 0;
    };
    SealedServer(WireReader reader, std::size_t max_samples);
    std::shared_ptr<const Weights> read_weights(WireReader& reader) const;
    std::shared_ptr<const Weights> read_state(WireReader& reader) const;
    void read_ciphertexts(View<const std::uint8_t> bytes, const Seed& seed, std::size_t first, std::size_t count,
                          std::uint64_t* c0, std::uint64_t* c1) const;
    void check_shape(const BatchShape& shape) const;
    std::shared_ptr<const Weights> weights() const;

    Parameters parameters_;
    Id key_id_{};
    BlockLayout layout_;
    SealedBits bits_;
    std::size_t max_samples_;
    std::unique_ptr<Ring> ring_;
    std::unique_ptr<PolynomialCodec> codec_;

    mutable std::mutex mutex_;
    std::shared_ptr<const Weights> weights_;
};

// What a sealed_weight message starts with: parameters (length, bytes), features, outputs, rows, width, bits (2), seed.
inline constexpr std::size_t kSealedPrefix = 2 + 16 + 2 + 32;

}  // namespace hesplit
