// How one packing lays out the values of a client: all that differs between clients of blocks and of slots. Chosen once
// per client; a call works on a whole polynomial, so that dispatch costs nothing.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/buffer.h"
#include "linear/messages.h"
#include "ring/ring.h"
#include "rlwe/parameters.h"
#include "rlwe/secret_key.h"
#include "wire/format.h"

namespace hesplit {

// Immutable. In the order in which a batch meets its functions.
class ClientPacking {
  public:
    virtual ~ClientPacking() = default;

    virtual const Ring& ring() const = 0;  // what ciphertexts use

    // What a server needs besides parameters and shape: rotation keys, made with fresh randomness.
    virtual std::size_t evaluation_key_bytes() const = 0;
    virtual void write_evaluation_keys(const SecretKey& key, WireWriter& writer) const = 0;

    // How a batch is laid out, and how many ciphertexts each of its groups takes.
    virtual BatchShape shape_of(std::size_t samples) const = 0;
    virtual std::size_t inputs(const BatchShape& shape) const = 0;
    // Input ciphertext `input` of a group, as coefficients over ring(). x is row-major [samples, features]: the group's
    // samples.
    virtual void encode(const BatchShape& shape, const float* x, std::size_t samples, std::size_t input,
                        std::uint64_t* coefficients) const = 0;
    virtual void encode(const BatchShape& shape, const double* x, std::size_t samples, std::size_t input,
                        std::uint64_t* coefficients) const = 0;

    // The same over a composable ring, as integers in [0, q).
    virtual void encode_integers(const BatchShape& shape, const float* x, std::size_t samples, std::size_t input,
                                 std::uint64_t* integers) const {
        compose_encoded(shape, x, samples, input, integers);
    }
    virtual void encode_integers(const BatchShape& shape, const double* x, std::size_t samples, std::size_t input,
                                 std::uint64_t* integers) const {
        compose_encoded(shape, x, samples, input, integers);
    }

    // The ciphertexts of a reply to one group, and which coefficients of their c0 it holds.
    virtual std::size_t products(const BatchShape& shape) const = 0;
    virtual std::size_t position_count(const BatchShape& shape, std::size_t product, std::size_t samples) const = 0;
    virtual std::vector<std::uint32_t> positions(const BatchShape& shape, std::size_t product,
                                                 std::size_t samples) const = 0;
    // The logits of one product from the values at these positions. y is row-major [samples, outputs].
    virtual void decode(const BatchShape& shape, std::size_t product, std::size_t samples,
                        View<const std::int64_t> values, double scale, double* y) const = 0;
    // What the rounding of a reply adds to a logit at most (but with the probability that error bounds leave), and the
    // largest logit that a reply of so many bits can say, both in units of the reply's last bit.
    virtual double rounding_error() const = 0;
    virtual double largest(int bits) const { return std::ldexp(1.0, bits - 1); }

    // The ciphertexts of an encrypted weight gradient, and the coefficients of their c0.
    virtual std::vector<GradientRun> gradient_runs(const BatchShape& shape) const = 0;
    virtual std::vector<std::uint32_t> gradient_positions(const BatchShape& shape, const GradientRun& run) const = 0;

    // For flooding: bounds on the l1 norm of the plaintexts that a product was multiplied by, from the scale of a
    // product and the agreed ranges; and of a weight gradient, from G and its scale. Throw ParameterError where the
    // packing allows no flooded releases.
    virtual double weight_l1(const BatchShape& shape, double product_scale) const = 0;
    virtual double gradient_l1(const BatchShape& shape, View<const double> gradient, double scale) const = 0;

  protected:
    template <class T>
    void compose_encoded(const BatchShape& shape, const T* x, std::size_t samples, std::size_t input,
                         std::uint64_t* integers) const {
        SecretBuffer<std::uint64_t> coefficients(ring().size());
        encode(shape, x, samples, input, coefficients.data());
        ring().compose(coefficients.data(), integers);
    }
};

}  // namespace hesplit
