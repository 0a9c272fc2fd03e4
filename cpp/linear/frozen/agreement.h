// What client and server of a frozen layer agree on, all of it from its number of features, a precision and an epoch:
// parameters, scales, lengths of messages, and the matrix that all requests have in common.
//
// Inputs lie as in packing/blocks with one output to a product: k = N / n coefficients to a row of a group of n rows,
// feature j*k + i of row s at coefficient s*k + i of polynomial j. A product is not computed in the ring at all:
// coefficient s*k of sum_j c0_j * W_p,j is sum_f C0[s, f] * W[p, f] for C0[s, j*k + i], the coefficient s*k + i of
// c0_j. So the server's work is the layer itself, on a matrix of residues.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "ring/prng.h"
#include "ring/ring.h"
#include "rlwe/parameters.h"

namespace hesplit {

// A client keeps a hint for every output, half a gigabyte for so many.
inline constexpr std::size_t kMaxFrozenOutputs = 65536;

// single: an error like that of float32 sums, two primes. half: between bfloat16's and float32's, one prime.
enum class Precision : std::uint8_t { single = 1, half = 2 };

// Rows of a group: what one secret encrypts. Requests hold any number of rows up to the second.
inline constexpr std::size_t kFrozenGroup = 128;
inline constexpr std::size_t kMaxFrozenRows = 2048;

// How numbers are scaled, and what they take in messages.
struct FrozenScaling {
    double row_scale = 0;             // of rows of l2 norm at most 1
    double weight_scale = 0;          // of rows of W, likewise: an integer
    int request_dropped = 0;          // low bits of c0 that are not sent
    int request_bits = 0;             // of a number of a request,
    std::uint64_t request_limit = 0;  // which is below this
    int reply_bits = 0;               // of a number of a reply
    // |decrypted - exact| <= error for rows of x and W of l2 norm at most 1, except with probability 2^-39.
    double error = 0;
};

// The matrix of uniform polynomials under which every request for this number of features is encrypted, each with a
// secret of its own: public, nobody's choice, and new in every epoch.
class FrozenAgreement {
  public:
    // Throws ParameterError for 0 or more than kMaxFeatures features.
    FrozenAgreement(std::size_t features, Precision precision, const std::string& epoch);
    // The same object for all layers that agree, as long as one of them lives.
    static std::shared_ptr<const FrozenAgreement> of(std::size_t features, Precision precision,
                                                     const std::string& epoch);

    const Parameters& parameters() const { return parameters_; }
    const FrozenScaling& scaling() const { return scaling_; }
    const Ring& ring() const { return ring_; }
    double modulus() const { return ring_.modulus_value(); }
    std::size_t features() const { return features_; }
    std::size_t width() const { return ring_.degree() / kFrozenGroup; }              // k
    std::size_t polynomials() const { return (features_ + width() - 1) / width(); }  // J
    const Id& id() const { return id_; }                                             // travels with requests

    // Numbers of hints are rounded to this modulus, a prime: far fewer bits than q has say them well enough.
    std::uint64_t hint_modulus() const { return hint_modulus_; }
    int hint_bits() const;

    // Polynomial j of the common matrix, in NTT form.
    void expand(std::size_t j, std::uint64_t* polynomial) const;
    // All of them for a client, which uses them again and again: expanded when they are first asked for.
    const std::vector<Buffer<std::uint64_t>>& matrix() const;
    std::size_t matrix_bytes() const { return polynomials() * ring_.size() * sizeof(std::uint64_t); }

  private:
    std::size_t features_;
    Parameters parameters_;
    FrozenScaling scaling_;
    Ring ring_;
    std::uint64_t hint_modulus_;
    Seed seed_{};
    Id id_{};
    mutable std::once_flag expanded_;
    mutable std::vector<Buffer<std::uint64_t>> matrix_;
};

// Bytes of whole messages.
std::size_t frozen_request_bytes(const FrozenAgreement& agreement, std::size_t rows);
std::size_t frozen_reply_bytes(const FrozenAgreement& agreement, std::size_t outputs, std::size_t rows);
std::size_t frozen_hint_bytes(const FrozenAgreement& agreement, std::size_t outputs);

}  // namespace hesplit
