// The client's half of a layer whose weights do not change: every request under secrets of its own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "linear/frozen/agreement.h"
#include "wire/format.h"

namespace hesplit {

// What decrypts the reply to one request: a ternary secret for every group of rows, and the norms of the rows.
struct FrozenSecret {
    Id message{};
    SecretBuffer<double> norms;
    std::vector<KeyBuffer<std::int8_t>> secrets;
};

// Safe to use from several threads.
class FrozenClient {
  public:
    // `bias`: the last feature is 1 in every row, and its weight the bias.
    FrozenClient(std::shared_ptr<const FrozenAgreement> agreement, std::size_t outputs, bool bias);

    std::size_t inputs() const { return agreement_->features() - (bias_ ? 1 : 0); }
    std::size_t outputs() const { return outputs_; }

    // The server's FrozenServer::hint(), which takes resident_bytes() here; another one replaces it. Throws WireError
    // or KeyMismatchError.
    void load_hint(View<const std::uint8_t> message);
    bool has_hint() const;
    std::size_t resident_bytes() const;

    // x is row-major [rows, inputs()]; each row is scaled by its norm. Throws RangeError for NaN and infinities.
    template <class T>
    std::string encrypt(const T* x, std::size_t rows, FrozenSecret& secret) const;

    // y is row-major [rows, outputs()]. Throws WireError for what is no reply to that request, KeyMismatchError where
    // the hint is of other weights than the reply, or missing.
    void decrypt(View<const std::uint8_t> reply, const FrozenSecret& secret, double* y) const;

  private:
    struct Hint {
        Id weights{};
        std::vector<double> norms;
        // Of each output: the polynomial c1 of its products split by residues of exponents modulo k into parts, each
        // transformed; their points take turns (ShortProducts).
        Buffer<std::uint32_t> outputs;
    };
    std::shared_ptr<const Hint> hint() const;

    std::shared_ptr<const FrozenAgreement> agreement_;
    std::size_t outputs_;
    bool bias_;
    Ring parts_;  // of degree N / k, modulo that of hints
    mutable std::mutex mutex_;
    std::shared_ptr<const Hint> hint_;
};

}  // namespace hesplit
