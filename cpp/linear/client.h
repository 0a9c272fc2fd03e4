// The client's half of the encrypted linear layer: encrypt activations, decrypt logits and weight gradients.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/ahead.h"
#include "ckks/slot_ring.h"
#include "linear/messages.h"
#include "packing/blocks.h"
#include "packing/slots.h"
#include "rlwe/decryption.h"
#include "rlwe/encryption.h"
#include "rlwe/parameters.h"
#include "rlwe/secret_key.h"

namespace hesplit {

BlockLayout block_layout(const Ring& ring, std::size_t features, std::size_t outputs, const BatchShape& shape);

// A secret key made ready for one ring, with the number of decryptions released under it.
struct ClientKey {
    ClientKey(std::shared_ptr<const SecretKey> key, const Ring& ring, const Ring& auxiliary);

    std::shared_ptr<const SecretKey> key;
    SecretBuffer<std::uint64_t> secret;  // in NTT form
    PhaseDecryptor phase;
    std::uint32_t released = 0;  // guarded by LinearClient's mutex
};

// Decryption for local use and for release are two calls: whoever sees ciphertexts and values computed from their
// decryptions learns about the key unless these are flooded with noise (docs/security.md).
enum class Purpose { local, release };

// Safe to use from several threads.
class LinearClient {
  public:
    // `fresh_keys`: every request under a key of its own, `key` then only names the parameters (blocks only).
    // `released`: how many decryptions were released under `key` before. `weight_gradients`: the server shall compute
    // them, from public_material() made for that. `byte_ns`: what a byte to the server costs, for layouts (blocks).
    LinearClient(std::shared_ptr<const SecretKey> key, std::size_t features, std::size_t outputs,
                 bool fresh_keys = false, std::uint32_t released = 0, bool weight_gradients = false,
                 double byte_ns = 8);

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
    // y is row-major [samples, outputs]. Each request is answered once, and with `weight_gradient_follows` once more by
    // open_weight_gradient. Returns the deviation of the noise added to each y: 0 for local use.
    double decrypt(View<const std::uint8_t> reply, Purpose purpose, bool weight_gradient_follows, double* y) const;

    // The opened, still masked weight gradient for the server: a release. `gradient` is dJ/dY, row-major [samples,
    // outputs], as the server got it.
    std::string open_weight_gradient(View<const std::uint8_t> message, View<const double> gradient) const;

    // Zeroes every key; every later call throws KeyMismatchError.
    void destroy() const;

  private:
    struct Outstanding {
        BatchShape shape;
        std::shared_ptr<ClientKey> key;
        bool logits_decrypted = false;
    };
    // What a request needs before its activations are known.
    struct Prepared {
        BatchShape shape;
        std::shared_ptr<ClientKey> key;
        ZeroEncryptions zeros;
    };
    struct Reply;
    std::shared_ptr<Prepared> begin(const BatchShape& shape) const;
    void complete(Prepared& prepared) const;
    std::shared_ptr<Prepared> take_prepared(const BatchShape& shape) const;
    BatchShape plan(std::size_t samples) const;
    void encode(const BatchShape& shape, const void* x, bool is_float, std::size_t group, std::size_t input,
                std::uint64_t* message) const;
    void decrypt_group(const Reply& reply, std::size_t group, double* y) const;
    double release(const Reply& reply, double* y) const;
    std::vector<GradientRun> gradient_runs(const BatchShape& shape) const;
    double gradient_flood(const BatchShape& shape, View<const double> gradient, int bits, double scale) const;
    Outstanding outstanding(const Header& header) const;
    void forget(const Id& message) const;
    std::shared_ptr<ClientKey> current_key() const;
    void count_release(ClientKey& key) const;
    std::size_t inputs(const BatchShape& shape) const;

    Parameters parameters_;
    std::size_t features_;
    std::size_t outputs_;
    bool fresh_keys_;
    bool weight_gradients_;
    double byte_ns_;
    std::unique_ptr<SlotRing> slot_ring_;  // slots only
    SlotLayout slots_;
    std::unique_ptr<Ring> own_ring_;  // blocks only
    const Ring& ring_;
    Ring auxiliary_;
    PolynomialCodec codec_;

    mutable std::mutex mutex_;
    mutable std::shared_ptr<ClientKey> key_;  // null once destroyed
    mutable std::map<Id, Outstanding> outstanding_;
    mutable std::vector<Id> order_;

    // Both guarded by ahead_mutex_; the job completes what next_ points to. Last, so that a job ends before the rest.
    mutable std::mutex ahead_mutex_;
    mutable std::shared_ptr<Prepared> next_;
    mutable Ahead ahead_;
};

}  // namespace hesplit
