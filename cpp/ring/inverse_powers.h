// x^-e in NTT form. Of several exponents the last one is kept: a server is asked for the same one again and again.
#pragma once

#include <memory>
#include <mutex>

#include "ring/ring.h"

namespace hesplit {

class InversePowers {
  public:
    explicit InversePowers(const Ring& ring) : ring_(ring) {}

    // exponent < degree; nothing for 0.
    std::shared_ptr<const Buffer<std::uint64_t>> of(std::size_t exponent);

  private:
    const Ring& ring_;
    std::mutex mutex_;
    std::size_t exponent_ = 0;
    std::shared_ptr<const Buffer<std::uint64_t>> power_;
};

}  // namespace hesplit
