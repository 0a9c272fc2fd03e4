// Small layers, each with a client and a server that know each other, made once for a program.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "fuzz.h"
#include "linear/client.h"
#include "linear/frozen/client.h"
#include "linear/frozen/server.h"
#include "linear/sealed/client.h"
#include "linear/sealed/server.h"
#include "linear/server.h"
#include "tensor/products.h"

namespace hesplit::fuzz {

struct Linear {
    LinearClient client;
    std::string material;
    LinearServer server;
    std::size_t samples;
    ParameterHash hash;

    Linear(const ParameterChoice& choice, std::size_t features, std::size_t outputs);
    std::vector<double> activations() const;
    std::string request();
    // A request that waits for its reply: the same one until it has been answered.
    const std::string& waiting();
    void answered() { waiting_.clear(); }
    // A request's gradient dJ/dY, as that of a mean; and what its client knows of it: with private weights nothing.
    std::vector<double> gradient() const;
    std::vector<double> shown_gradient() const;
    bool hides_weights() const;

  private:
    std::string waiting_;
};

// On blocks with one small prime, on blocks with three, on blocks with a flooded release and a fresh key a request, on
// slots, and on blocks with private weights, whose releases are not flooded or are.
const std::vector<std::unique_ptr<Linear>>& linears();
// Those with private weights.
std::vector<Linear*> private_linears();

struct Sealed {
    SealedLayerClient client;
    std::string weight;
    SealedLayerServer server;
    Id key;
    std::size_t samples;
    ParameterHash hash;

    Sealed(const std::shared_ptr<const SecretKey>& secret_key, std::size_t features, std::size_t outputs);
    std::string request();
    std::string update();
};

const std::vector<std::unique_ptr<Sealed>>& sealed_layers();

struct Frozen {
    std::shared_ptr<const FrozenAgreement> agreement;
    FrozenClient client;
    FrozenServer server;
    ParameterHash hash;

    explicit Frozen(Precision precision);
    // A request, and what decrypts its reply.
    std::string request(FrozenSecret& secret);
};

// Of either precision. Their rings are not smaller than those in use.
const std::vector<std::unique_ptr<Frozen>>& frozen_layers();

// A small ring for tensors, a key, and messages of two polynomials: seeded, and whole under the public key.
struct Tensors {
    std::shared_ptr<const TensorRing> ring;
    std::shared_ptr<const SecretKey> key;
    std::shared_ptr<const PublicKey> public_key;
    std::vector<std::int64_t> coefficients;
    std::vector<std::string> messages;

    Tensors();
    // The polynomials of a message times constants, at four coefficients.
    std::string multiplied(const EncryptedPolynomials& polynomials) const;
};

const Tensors& tensors();

// The layer with the parameters that the bytes name, or the first.
template <class Pointer>
auto& layer_of(const std::vector<Pointer>& layers, const Bytes& bytes) {
    for (const Pointer& layer : layers) {
        if (layer->hash == parameter_hash(bytes)) {
            return *layer;
        }
    }
    return *layers.front();
}

}  // namespace hesplit::fuzz
