// The client's half of the sealed linear layer (linear/sealed/plan.h): encrypts the weights and updates of its server.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "linear/client_session.h"
#include "linear/messages.h"
#include "linear/sealed/plan.h"
#include "packing/blocks.h"
#include "rlwe/parameters.h"
#include "rlwe/secret_key.h"
#include "wire/codec.h"

namespace hesplit {

// Safe to use from several threads. seal() and update() wait for each other; which comes first is the caller's to say,
// and a request can only be answered by the weights that were sent last before it was made.
class SealedLayerClient {
  public:
    // `weight_norm`: the largest l2 norm of a row of the weight that must fit before the scale has to change: once, to
    // the widest that the parameters allow.
    SealedLayerClient(std::shared_ptr<const SecretKey> key, std::size_t features, std::size_t outputs,
                      double weight_norm);

    std::size_t features() const { return layout_.features; }
    std::size_t outputs() const { return layout_.outputs; }
    SealedScaling scaling() const { return held()->scaling; }
    // Updates since the weights were sent last.
    std::uint32_t behind() const { return held()->behind; }

    // All of W and b, encrypted: the first message of a session, and whenever the layer is replaced. weight is
    // row-major [outputs, features].
    std::string seal(View<const double> weight, View<const double> bias);

    // Encrypted activations, row-major [samples, features]. Throws RangeError beyond the agreed ranges.
    std::string encrypt(View<const double> x);
    std::size_t samples_of(const WireReader& reply) const;
    // Logits by the layer as it was at encrypt(), row-major [samples, outputs].
    void decrypt(WireReader reply, double* y);

    // Encrypted dJ/dY, row-major [samples, outputs], after which the layer is this one. Every choice.updates of them it
    // goes with the message, encrypted anew; until then the client adds what the server's copy lacks.
    std::string update(View<const double> gradient, View<const double> weight, View<const double> bias);
    // dJ/da, row-major [samples, features], by the layer before that update.
    void decrypt_input_gradient(WireReader reply, double* gradient);

    void destroy();

  private:
    // What the server's ciphertexts are encryptions of, and what the layer is beyond that. Immutable: replaced by
    // seal() and update().
    struct Sent {
        Id name{};  // of the message that brought them
        SealedScaling scaling;
        SecretBuffer<double> weight;                  // [outputs, features], as it was rounded
        SecretBuffer<double> bias;                    // [outputs]
        std::vector<KeyBuffer<std::uint64_t>> masks;  // c1 * s of every weight polynomial [product, input], NTT form
        SecretBuffer<std::uint64_t> bias_mask;        // minus c1 * s of every bias, with its noise: [prime, output]
    };
    struct Held {
        SealedScaling scaling;              // of the next weights that are sent
        std::shared_ptr<const Sent> sent;   // null before the first seal()
        SecretBuffer<double> weight, bias;  // the layer less what was sent
        std::uint32_t behind = 0;           // updates since that
    };
    // Coefficients of one ciphertext, to be multiplied by 2^shift.
    struct Message {
        SecretBuffer<std::int64_t> coefficients;
        int shift = 0;
    };
    using Messages = std::vector<Message>;

    std::shared_ptr<const Held> held() const;
    void replace_held(Held next);
    void require_sent(const Held& held) const;
    SealedScaling scaling_for(const SealedScaling& present, View<const double> weight, View<const double> bias) const;
    std::shared_ptr<const Sent> sent_of(const Id& name, const SealedScaling& scaling, View<const double> weight,
                                        View<const double> bias, ZeroEncryptions& zeros) const;
    std::size_t weight_count() const { return layout_.products() * layout_.inputs(); }
    std::size_t weight_bytes() const;
    std::size_t update_ciphertexts(const Held& held, const BatchShape& shape) const;
    Messages place_weights(View<const double> weight, double scale) const;
    Messages place_activations(View<const double> x, const BatchShape& shape) const;
    Messages place_gradients(View<const double> gradient, const BatchShape& shape, double scale) const;
    double gradient_scale(View<const double> gradient, const Sent& sent) const;
    BatchShape shape_of(std::size_t samples) const;
    Outstanding request(Awaited awaited, const BatchShape& shape, const Encryptions& encryptions, const Sent& sent,
                        double product_scale) const;
    SecretBuffer<std::uint64_t> added_phase(const Outstanding& request, const Sent& sent, const ZeroEncryptions& zeros,
                                            std::size_t first) const;
    std::vector<std::vector<std::uint32_t>> positions(Awaited awaited, const BatchShape& shape) const;
    void write_ciphertexts(WireWriter& writer, const PolynomialCodec& codec, const Messages& messages,
                           const ZeroEncryptions& zeros, std::size_t first) const;
    void write_weights(WireWriter& writer, const Sent& sent, View<const double> weight,
                       const ZeroEncryptions& zeros) const;
    void open(WireReader reader, Awaited awaited, double* out);
    void scatter(const Outstanding& request, std::size_t group, std::size_t run,
                 const SecretBuffer<std::int64_t>& values, double* out) const;

    Parameters parameters_;
    Ring ring_;
    PolynomialCodec codec_;
    BlockLayout layout_;
    PolynomialCodec bias_codec_;
    SealedScaling widest_;
    std::mutex order_mutex_;  // held through seal() and update()
    mutable std::mutex mutex_;
    std::shared_ptr<const Held> held_;
    ClientSession session_;
};

}  // namespace hesplit
