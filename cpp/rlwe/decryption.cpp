#include "rlwe/decryption.h"

#include <seal/modulus.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace hesplit {

namespace {

constexpr int kAuxiliaryBits = 60;

// Up to so many coefficients direct inner products are cheaper than transforms.
constexpr std::size_t kDirectPositions = 128;

}  // namespace

Ring auxiliary_ring(std::size_t degree) {
    // Two primes of half the size: their transforms are faster than those of one.
    std::vector<std::uint64_t> primes;
    for (const seal::Modulus& modulus : seal::CoeffModulus::Create(degree, {kAuxiliaryBits / 2, kAuxiliaryBits / 2})) {
        primes.push_back(modulus.value());
    }
    return Ring(degree, primes);
}

PhaseDecryptor::PhaseDecryptor(const SecretKey& key, const Ring& auxiliary)
    : degree_(auxiliary.degree()), reversed_sign_(degree_), reversed_nonzero_(degree_), auxiliary_(&auxiliary) {
    key.use_coefficients([this](View<const std::int8_t> secret) {
        for (std::size_t i = 0; i < degree_; ++i) {
            const auto s = static_cast<std::uint64_t>(std::int64_t{secret[degree_ - 1 - i]});
            reversed_sign_[i] = std::uint64_t{0} - (s >> 63);
            reversed_nonzero_[i] = std::uint64_t{0} - (s & 1);
        }
    });
}

const KeyBuffer<std::uint64_t>& PhaseDecryptor::secret() const {
    std::call_once(once_, [this] {
        SecretBuffer<std::int8_t> coefficients(degree_);
        for (std::size_t i = 0; i < degree_; ++i) {
            // 0, 1 or, with the sign's all ones, -1.
            coefficients[degree_ - 1 - i] =
                static_cast<std::int8_t>(static_cast<std::int64_t>((reversed_nonzero_[i] & 1) | reversed_sign_[i]));
        }
        secret_.resize(auxiliary_->size());
        auxiliary_->lift(View<const std::int8_t>{coefficients.data(), degree_}, secret_.data());
        auxiliary_->to_ntt(secret_.data());
    });
    return secret_;
}

void PhaseDecryptor::product_direct(View<const std::uint64_t> c1, View<const std::uint32_t> positions,
                                    std::uint64_t* out) const {
    // Coefficient t of c1 * s is sum_i s_i * window[N - 1 + t - i] with window = (-c1[1..N-1], c1): a sliding inner
    // product with s reversed. Sums wrap around modulo 2^64, which is exact for every smaller power of two.
    Buffer<std::uint64_t> window(2 * degree_);
    const std::uint64_t* windows[kDirectPositions];
    for (std::size_t p = 0; p < positions.size; ++p) {
        windows[p] = window.data() + positions[p];
    }
    for (std::size_t i = 1; i < degree_; ++i) {
        window[i - 1] = std::uint64_t{0} - c1[i];
    }
    std::copy(c1.begin(), c1.end(), window.begin() + static_cast<std::ptrdiff_t>(degree_ - 1));
    auxiliary_->kernels().ternary_dot(reversed_sign_.data(), reversed_nonzero_.data(), windows, positions.size, out,
                                      degree_);
}

void PhaseDecryptor::to_auxiliary(View<const std::uint64_t> values, int bits, std::uint64_t* out) const {
    Buffer<std::int64_t> centred(degree_);
    for (std::size_t i = 0; i < degree_; ++i) {
        centred[i] = static_cast<std::int64_t>(values[i] << (64 - bits)) >> (64 - bits);
    }
    auxiliary_->lift(View<const std::int64_t>{centred.data(), degree_}, out);
    auxiliary_->to_ntt(out);
}

void PhaseDecryptor::product_ntt(View<const std::uint64_t> c1, View<const std::uint32_t> positions, int bits,
                                 std::uint64_t* out) const {
    // With centred c1 the integer product is below N * 2^(bits-1) in absolute value: less than half the auxiliary
    // modulus.
    SecretBuffer<std::uint64_t> product(auxiliary_->size());
    to_auxiliary(c1, bits, product.data());
    auxiliary_->multiply(product.data(), secret().data(), product.data());
    auxiliary_->to_coefficients(product.data());
    auxiliary_->compose(product.data(), product.data());
    const std::uint64_t q = auxiliary_->prime(0) * auxiliary_->prime(1);
    for (std::size_t p = 0; p < positions.size; ++p) {
        const std::uint64_t value = product[positions[p]];
        const std::uint64_t negative = std::uint64_t{0} - static_cast<std::uint64_t>(value > q / 2);
        out[p] = value - (negative & q);
    }
}

namespace {

// out[i] = product[i] + c0[i] mod 2^bits, centred.
void add_and_center(const SecretBuffer<std::uint64_t>& product, View<const std::uint64_t> c0, int bits,
                    std::int64_t* out) {
    for (std::size_t i = 0; i < c0.size; ++i) {
        // Shifting the sign bit of the b-bit number to the top and back extends it.
        const std::uint64_t shifted = (product[i] + c0[i]) << (64 - bits);
        out[i] = static_cast<std::int64_t>(shifted) >> (64 - bits);
    }
}

}  // namespace

void PhaseDecryptor::product_wide(View<const std::uint64_t> c1, View<const std::uint32_t> positions, int bits,
                                  std::uint64_t* out) const {
    // c1 = low + 2^30 * high, each of which fits the auxiliary modulus.
    constexpr int kLow = 30;
    Buffer<std::uint64_t> half(degree_);
    SecretBuffer<std::uint64_t> high(positions.size);
    std::transform(c1.begin(), c1.end(), half.begin(), [](std::uint64_t value) { return value >> kLow; });
    product_ntt({half.data(), degree_}, positions, bits - kLow, high.data());
    // Unsigned, so one bit more than it has: nothing of it counts as negative.
    std::transform(c1.begin(), c1.end(), half.begin(),
                   [](std::uint64_t value) { return value & ((std::uint64_t{1} << kLow) - 1); });
    product_ntt({half.data(), degree_}, positions, kLow + 1, out);
    for (std::size_t p = 0; p < positions.size; ++p) {
        out[p] += high[p] << kLow;
    }
}

void PhaseDecryptor::phase(View<const std::uint64_t> c1, View<const std::uint64_t> c0,
                           View<const std::uint32_t> positions, int bits, std::int64_t* out) const {
    SecretBuffer<std::uint64_t> product(positions.size);
    if (positions.size <= kDirectPositions) {
        product_direct(c1, positions, product.data());
    } else if (bits + static_cast<int>(std::lround(std::log2(degree_))) < kAuxiliaryBits) {
        product_ntt(c1, positions, bits, product.data());
    } else {
        product_wide(c1, positions, bits, product.data());
    }
    add_and_center(product, c0, bits, out);
}

namespace {

double most_nonzero(std::size_t ring_degree) {
    const auto n = static_cast<double>(ring_degree);
    return 2 * n / 3 + 6 * std::sqrt(2 * n / 9);
}

}  // namespace

double reply_rounding_deviation(std::size_t ring_degree) {
    return std::sqrt((most_nonzero(ring_degree) + 1) / 12);
}

double reply_rounding_bound(std::size_t ring_degree, std::size_t primes, int bits) {
    const double each = 0.5 + static_cast<double>(primes) * std::ldexp(1.0, bits - 63);
    return (static_cast<double>(ring_degree) + 1) * each;
}

}  // namespace hesplit
