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

// Safe to use from several threads. seal() and update() wait for each other; which comes first is the caller's to say.
class SealedLayerClient {
  public:
    // `weight_norm`: the largest l2 norm of a row of the weight that must fit before the scale has to change: once, to
    // the widest that the parameters allow.
    SealedLayerClient(std::shared_ptr<const SecretKey> key, std::size_t features, std::size_t outputs,
                      double weight_norm);

    std::size_t features() const { return layout_.features - 1; }
    std::size_t outputs() const { return layout_.outputs; }
    SealedScaling scaling() const { return held()->scaling; }

    // All of W and b, encrypted anew: the first message of a session, and later a refresh, which clears the noise of
    // updates. weight is row-major [outputs, features].
    std::string seal(View<const double> weight, View<const double> bias);
    // How many updates the parameters allow before the next seal().
    std::uint32_t updates_left() const { return parameters_.choice().updates - held()->updates; }
    // Whether W has outgrown its scale or taken as many updates as the parameters allow: seal() is due before update().
    bool refresh_due(View<const double> weight, View<const double> bias) const;

    // Encrypted activations, row-major [samples, features]. Throws RangeError beyond the agreed ranges.
    std::string encrypt(View<const double> x);
    std::size_t samples_of(View<const std::uint8_t> reply) const;
    // Logits, row-major [samples, outputs].
    void decrypt(View<const std::uint8_t> reply, double* y);

    // Encrypted dJ/dY, row-major [samples, outputs], and the step from the weights sent last to these.
    std::string update(View<const double> gradient, View<const double> weight, View<const double> bias);
    // dJ/da, row-major [samples, features], by the weights before that update.
    void decrypt_input_gradient(View<const std::uint8_t> reply, double* gradient);

    void destroy() { session_.destroy(); }

  private:
    // What the server's ciphertexts are encryptions of. Immutable: replaced by seal() and update().
    struct Held {
        SealedScaling scaling;
        std::vector<std::int64_t> integers;  // [outputs, features with the bias]; empty before the first seal()
        std::uint32_t updates = 0;
    };
    // Coefficients of one ciphertext, to be multiplied by 2^shift.
    struct Message {
        Buffer<std::int64_t> coefficients;
        int shift = 0;
    };
    using Messages = std::vector<Message>;

    std::shared_ptr<const Held> held() const;
    void replace_held(Held next);
    bool refresh_due(const Held& held, View<const double> weight, View<const double> bias) const;
    std::vector<std::int64_t> with_bias(View<const double> weight, View<const double> bias, double scale) const;
    void place_weights(const std::vector<std::int64_t>& integers, Messages& messages) const;
    Messages place_activations(View<const double> x, const BatchShape& shape) const;
    void place_gradients(View<const double> gradient, const BatchShape& shape, double scale, Messages& messages) const;
    double gradient_scale(View<const double> gradient, const Held& held) const;
    BatchShape shape_of(std::size_t samples) const;
    Outstanding request(Awaited awaited, const BatchShape& shape, std::shared_ptr<ClientKey> key, int bits,
                        double product_scale) const;
    void write_ciphertexts(WireWriter& writer, const BatchShape& shape, const Messages& messages,
                           const ZeroEncryptions& zeros) const;
    std::string write_message(MessageType type, const Id& id, const BatchShape& shape, const Messages& messages,
                              const Encryptions& encryptions) const;
    void open(View<const std::uint8_t> reply, Awaited awaited, double* out);
    void scatter(const Outstanding& request, std::size_t group, std::size_t run,
                 const SecretBuffer<std::int64_t>& values, double* out) const;

    Parameters parameters_;
    Ring ring_;
    PolynomialCodec codec_;
    BlockLayout layout_;
    SealedScaling widest_;
    std::mutex order_mutex_;  // held through seal() and update()
    mutable std::mutex mutex_;
    std::shared_ptr<const Held> held_;
    ClientSession session_;
};

}  // namespace hesplit
