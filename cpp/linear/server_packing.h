// How one packing computes the layer on ciphertexts: all that differs between servers of blocks and of slots. Chosen
// once per server; a call works on a whole request or polynomial, so that dispatch costs nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "linear/costs.h"
#include "linear/messages.h"
#include "ring/ring.h"
#include "rlwe/galois.h"
#include "rlwe/public_key.h"
#include "wire/codec.h"
#include "wire/format.h"

namespace hesplit {

// A request whose lengths have been checked; its residues are checked when they are unpacked.
struct ForwardRequest {
    Header header;
    RequestHead head;
    View<const std::uint8_t> ciphertexts;
    std::shared_ptr<const PublicKey> public_key;  // of the client, where the reply is to hide the weights
    std::shared_ptr<const std::vector<GaloisKey>> merging_keys;  // of the client, on merged blocks
};

// What masks the logits of a reply, modulo 2^bits: by group and product, uniform, in the order of its coefficients.
using LogitMasks = std::vector<SecretBuffer<std::uint64_t>>;

// The input ciphertexts of one group, one polynomial after the other, in NTT form.
struct GroupInputs {
    Buffer<std::uint64_t> c0;
    Buffer<std::uint64_t> c1;
};

// Those of a group of `inputs` ciphertexts. Throws WireError for residues beyond the modulus.
GroupInputs read_group(const Ring& ring, const PolynomialCodec& codec, const ForwardRequest& request, std::size_t group,
                       std::size_t inputs);

// The weights of a layer, made ready for one packing. Safe to use from several threads.
class LayerWeights {
  public:
    virtual ~LayerWeights() = default;

    // Of a coefficient of the replies to requests of that shape.
    virtual int reply_bits(const BatchShape& shape) const = 0;
    // The reply to a request. `kept`, if not null, receives its input ciphertexts, by group; with `masks` the reply is
    // a share, and they receive the other (blocks).
    virtual std::string forward(const ForwardRequest& request, std::vector<GroupInputs>* kept,
                                LogitMasks* masks) const = 0;
    // Begins what can be computed of the reply to the next request, before that has come.
    virtual void work_ahead() const = 0;
};

// Some products of dJ/dY of a batch, made ready to be multiplied with the kept inputs of its request.
class LayerGradient {
  public:
    virtual ~LayerGradient() = default;

    // The ciphertext of a run, two polynomials in coefficient form. May be called from several threads.
    virtual void product(const std::vector<GroupInputs>& inputs, const GradientRun& run, std::uint64_t* c0,
                         std::uint64_t* c1) const = 0;
};

// Safe to use from several threads. Outlives the weights and gradients that it makes.
class ServerPacking {
  public:
    virtual ~ServerPacking() = default;

    virtual const Ring& ring() const = 0;  // what ciphertexts use

    // Of memory for the weights before any request has come.
    virtual ServingCost weights_cost() const = 0;
    // Throws RangeError when the parameters cannot hold these weights. weight is row-major [outputs, features], bias
    // [outputs] or empty.
    virtual std::shared_ptr<const LayerWeights> make_weights(std::vector<double> weight,
                                                             std::vector<double> bias) const = 0;

    // Throws WireError for a batch that is laid out in an impossible way.
    virtual void check_shape(const BatchShape& shape) const = 0;
    virtual std::size_t inputs(const BatchShape& shape) const = 0;  // ciphertexts of a group
    // What serving a batch of such a shape takes, with so many bits to a coefficient of the reply.
    virtual ServingCost cost(Served served, const BatchShape& shape, int bits) const = 0;

    // Throws WireError where there can be no weight gradient of such a batch.
    virtual void check_gradient(const BatchShape& shape) const = 0;
    // The weight gradient: scale of G (row-major [samples, outputs]), bits of the message, and its ciphertexts.
    virtual double gradient_scale(View<const double> gradient) const = 0;
    virtual int gradient_bits(const BatchShape& shape, View<const double> gradient, double scale) const = 0;
    virtual std::vector<GradientRun> gradient_runs(const BatchShape& shape) const = 0;
    virtual std::vector<std::uint32_t> gradient_positions(const BatchShape& shape, const GradientRun& run) const = 0;
    // How many products of it are best encoded at once, and these, from the `first` on.
    virtual std::size_t gradient_products_at_once(const BatchShape& shape) const = 0;
    virtual std::unique_ptr<const LayerGradient> make_gradient(const BatchShape& shape, View<const double> gradient,
                                                               double scale, std::size_t first,
                                                               std::size_t count) const = 0;
    // The part of dW that a run holds, ordered by output, then feature, from its decrypted values.
    virtual std::vector<double> decode_gradient(const GradientRun& run, View<const std::int64_t> values,
                                                double scale) const = 0;
};

}  // namespace hesplit
