// The server's half of a layer whose weights do not change: the product of residues with W, and what it computes once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "linear/frozen/agreement.h"
#include "linear/frozen/matrix.h"

namespace hesplit {

// Safe to use from several threads. Nothing of a client is kept.
class FrozenServer {
  public:
    // weight: row-major [outputs, features]; agreement->features() features. Throws RangeError for NaN and infinities.
    FrozenServer(std::shared_ptr<const FrozenAgreement> agreement, View<const double> weight, std::size_t outputs);

    std::size_t outputs() const { return norms_.size(); }
    // Names these weights: replies and hints carry it.
    const Id& id() const { return id_; }
    std::size_t resident_bytes() const { return matrix_.bytes() + norms_.size() * sizeof(double); }

    // The reply to a request. Throws WireError or KeyMismatchError.
    std::string multiply(View<const std::uint8_t> request) const;
    // What a client needs besides a reply, the same for all of them: the common matrix times W, and the norms of W's
    // rows.
    std::string hint() const;

    // Beyond the messages themselves, while one thread works on a request of so many rows, or on the hint.
    std::size_t working_bytes(std::size_t rows) const;
    std::size_t hint_working_bytes() const;

  private:
    // The integers of W's rows, row-major, each row scaled by its norm.
    struct Scaled {
        std::vector<double> norms;
        Buffer<float> integers;
    };
    static Scaled scaled(const FrozenAgreement& agreement, View<const double> weight, std::size_t outputs);
    FrozenServer(std::shared_ptr<const FrozenAgreement> agreement, const Scaled& rows);

    std::shared_ptr<const FrozenAgreement> agreement_;
    std::vector<double> norms_;
    Id id_;
    IntegerMatrix matrix_;
};

}  // namespace hesplit
