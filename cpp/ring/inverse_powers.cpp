#include "ring/inverse_powers.h"

namespace hesplit {

std::shared_ptr<const Buffer<std::uint64_t>> InversePowers::of(std::size_t exponent) {
    if (exponent == 0) {
        return nullptr;
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    if (exponent != exponent_) {
        auto power = std::make_shared<Buffer<std::uint64_t>>(ring_.size(), 0);
        for (std::size_t row = 0; row < ring_.prime_count(); ++row) {
            (*power)[row * ring_.degree() + ring_.degree() - exponent] = ring_.prime(row) - 1;  // x^-e is -x^(N - e)
        }
        ring_.to_ntt(power->data());
        power_ = std::move(power);
        exponent_ = exponent;
    }
    return power_;
}

}  // namespace hesplit
