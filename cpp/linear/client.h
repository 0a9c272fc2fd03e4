// The client's half of the encrypted linear layer: encrypt activations, decrypt logits and weight gradients.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "linear/client_packing.h"
#include "linear/client_session.h"
#include "linear/messages.h"
#include "rlwe/parameters.h"
#include "rlwe/secret_key.h"
#include "wire/codec.h"

namespace hesplit {

// Decryption for local use and for release are two calls: whoever sees ciphertexts and values computed from their
// decryptions learns about the key unless these are flooded with noise (docs/security.md).
enum class Purpose { local, release };

// Safe to use from several threads.
class LinearClient {
  public:
    // `fresh_keys`: every request under a key of its own, `key` then only names the parameters (blocks only).
    // `weight_gradients`: the server shall compute them, from public_material() made for that. `byte_ns`: what a byte
    // to the server costs, for layouts (blocks).
    LinearClient(std::shared_ptr<const SecretKey> key, std::size_t features, std::size_t outputs,
                 bool fresh_keys = false, bool weight_gradients = false, double byte_ns = 8);

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
    Request encrypt(const T* x, std::size_t samples, bool clip);

    // The samples of the request that a reply, or a share, answers. Throws KeyMismatchError. This and what decrypts
    // take a message that was opened once, so that both say the same of it.
    std::size_t samples_of(const WireReader& reply) const;
    // y is row-major [samples, outputs]. Each request is answered once, and with `weight_gradient_follows` once more by
    // open_weight_gradient. Returns the deviation of the noise added to each y: 0 for local use.
    double decrypt(WireReader reply, Purpose purpose, bool weight_gradient_follows, double* y);

    // The client's share of masked logits (LinearServer::share), for the server: a release, flooded as decrypt() floods
    // one. `deviation` receives that of the noise added to each logit.
    std::string open_share(View<const std::uint8_t> message, bool weight_gradient_follows, double& deviation);
    // The same for local use: row-major [samples, outputs], modulo 2^bits at a scale, which are returned.
    ReplyHead decrypt_share(WireReader message, std::uint64_t* share);

    // The opened, still masked weight gradient for the server: a release. `gradient` is dJ/dY, row-major [samples,
    // outputs], as the server got it; empty with private weights, where only the server knows it.
    std::string open_weight_gradient(View<const std::uint8_t> message, View<const double> gradient);

    // Zeroes every key; every later call throws KeyMismatchError.
    void destroy() { session_.destroy(); }

  private:
    template <class T>
    std::string write_request(const BatchShape& shape, const T* x, const Encryptions& encryptions,
                              const Seed& announced, const Id& message) const;
    ReplyHead read_reply(WireReader& reader, const Outstanding& request) const;
    void check_precise(const ReplyHead& reply) const;
    // `noise`, one value for each logit in the order of the reply, is added before anything is divided or rounded.
    void decrypt_groups(const ReplyHead& reply, const ClientKey& key, WireReader& reader,
                        const SecretBuffer<std::int64_t>& noise, double* y) const;
    // The deviation of the noise that floods released logits, in units of the reply's last bit; 0 without releases.
    double release_deviation(const ReplyHead& reply) const;
    SecretBuffer<std::int64_t> gradient_noise(const ReplyHead& message, ClientKey& key, View<const double> gradient,
                                              std::size_t coefficients);
    // Ciphertexts under masks, of `counts` coefficients each: decrypted, flooded, packed.
    using Positions = std::function<std::vector<std::uint32_t>(std::size_t)>;
    std::string open_runs(MessageType opened, const ReplyHead& message, const ClientKey& key, WireReader& reader,
                          const std::vector<std::size_t>& counts, const Positions& positions,
                          const SecretBuffer<std::int64_t>& noise);

    Parameters parameters_;
    std::size_t features_;
    std::size_t outputs_;
    bool fresh_keys_;
    bool weight_gradients_;
    std::unique_ptr<const ClientPacking> packing_;
    const Ring& ring_;
    PolynomialCodec codec_;
    ClientSession session_;
};

}  // namespace hesplit
