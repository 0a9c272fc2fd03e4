// Encrypted polynomials that any linear map may be applied to: what stands behind tensors of ciphertexts
// (hesplit_native.tenseal).
//
// Where the layers of linear/ agree beforehand on a layout for one matrix, here somebody encrypts coefficients without
// knowing what will be done with them (products.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "ring/ring.h"
#include "rlwe/parameters.h"
#include "rlwe/public_key.h"
#include "rlwe/secret_key.h"
#include "wire/format.h"

namespace hesplit {

// Parameters and the rings that they need, which all tensors of a context share.
class TensorRing {
  public:
    // Throws ParameterError unless they are for blocks, with a modulus of at least kLeastTensorBits bits.
    explicit TensorRing(Parameters parameters);

    const Parameters& parameters() const { return parameters_; }
    const Ring& ring() const { return ring_; }
    const Ring& auxiliary() const { return auxiliary_; }

    // Throws KeyMismatchError for a key of other parameters.
    void require(const ParameterHash& parameters) const;
    // Throws KeyMismatchError unless `key` decrypts what was encrypted under the key with this id.
    void require(const SecretKey& key, const Id& id) const;

  private:
    Parameters parameters_;
    Ring ring_;
    Ring auxiliary_;
};

// Coefficients are integers of up to this absolute value; so many tensors may be added up before they are decrypted.
inline constexpr std::int64_t kMostCoefficient = std::int64_t{1} << 60;
inline constexpr int kMostSummands = 32;
inline constexpr int kLeastTensorBits = 80;
// Polynomials or products of one message.
inline constexpr std::size_t kMostPolynomials = 65536;

// Polynomials under one key. Safe to use from several threads.
class EncryptedPolynomials {
  public:
    // Throws WireError or KeyMismatchError.
    EncryptedPolynomials(std::shared_ptr<const TensorRing> ring, View<const std::uint8_t> message);

    const TensorRing& ring() const { return *ring_; }
    const Id& key() const { return key_; }
    std::size_t count() const { return c0_.size() / ring_->ring().size(); }

    // Throws KeyMismatchError unless they can be added up with others in this ring, under this key.
    void require_under(const TensorRing& ring, const Id& key) const;

    // In NTT form.
    const std::uint64_t* c0(std::size_t j) const { return c0_.data() + j * ring_->ring().size(); }
    const std::uint64_t* c1(std::size_t j) const { return c1_.data() + j * ring_->ring().size(); }

    // All coefficients, [count(), N]. Throws KeyMismatchError.
    void decrypt(const SecretKey& key, double* out) const;

  private:
    std::shared_ptr<const TensorRing> ring_;
    Id key_{};
    Buffer<std::uint64_t> c0_, c1_;
};

// Throws RangeError for a coefficient beyond kMostCoefficient. Apart from encryption, which looks at no coefficient.
void check_coefficients(View<const std::int64_t> coefficients);

// The message that holds these coefficients, [count, N], that were checked. Throws KeyMismatchError for a key of other
// parameters. With the secret key it is half as long.
std::string encrypt_polynomials(const TensorRing& ring, const SecretKey& key, View<const std::int64_t> coefficients);
std::string encrypt_polynomials(const TensorRing& ring, const PublicKey& key, View<const std::int64_t> coefficients);

// The same message with coefficients added, [count, N]; the sums have to fit, which nobody checks here. Throws
// WireError, KeyMismatchError or ParameterError.
std::string add_to_polynomials(const TensorRing& ring, View<const std::uint8_t> message,
                               View<const std::int64_t> coefficients);

// The sum of polynomials under one key, as many of each. Throws ParameterError or KeyMismatchError.
std::string sum_polynomials(const std::vector<const EncryptedPolynomials*>& terms);

}  // namespace hesplit
