// Decryption of replies whose modulus was switched to a power of two, and what that switch adds to their noise.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>

#include "base/buffer.h"
#include "ring/ring.h"
#include "rlwe/secret_key.h"

namespace hesplit {

// The ring with a modulus of 60 bits in which c1 * s does not wrap around: scratch for decryption, the same for every
// key.
Ring auxiliary_ring(std::size_t degree);

// Decrypts replies whose modulus was switched to a power of two. Safe to use from several threads.
class PhaseDecryptor {
  public:
    // `auxiliary` is auxiliary_ring(degree) and outlives this object.
    PhaseDecryptor(const SecretKey& key, const Ring& auxiliary);

    // out[i] = c0[i] + (c1 * s)[positions[i]] mod 2^bits, centred: in [-2^(bits-1), 2^(bits-1)). c1 has all N
    // coefficients, c0 only those at `positions`. 1 <= bits <= 62.
    void phase(View<const std::uint64_t> c1, View<const std::uint64_t> c0, View<const std::uint32_t> positions,
               int bits, std::int64_t* out) const;

  private:
    // c1 * s.
    void product_direct(View<const std::uint64_t> c1, View<const std::uint32_t> positions, std::uint64_t* out) const;
    void product_ntt(View<const std::uint64_t> c1, View<const std::uint32_t> positions, int bits,
                     std::uint64_t* out) const;
    void product_wide(View<const std::uint64_t> c1, View<const std::uint32_t> positions, int bits,
                      std::uint64_t* out) const;
    void to_auxiliary(View<const std::uint64_t> values, int bits, std::uint64_t* out) const;
    const KeyBuffer<std::uint64_t>& secret() const;

    std::size_t degree_;
    KeyBuffer<std::uint64_t> reversed_sign_;     // of s reversed: all ones where the coefficient is -1
    KeyBuffer<std::uint64_t> reversed_nonzero_;  // all ones where it is not 0
    const Ring* auxiliary_;
    mutable std::once_flag once_;              // a key for one step often needs no transform
    mutable KeyBuffer<std::uint64_t> secret_;  // s in NTT form over the auxiliary ring
};

// An upper bound on the standard deviation of the rounding error of a degree-1 reply, in units of its last bit: 1/12 of
// variance for c0 and for each nonzero coefficient of s, of which a ternary s has at most 2N/3 + 6 standard deviations.
double reply_rounding_deviation(std::size_t ring_degree);

// The worst case of a degree-1 reply's rounding, in the same units, for any ternary secret.
double reply_rounding_bound(std::size_t ring_degree, std::size_t primes, int bits);

}  // namespace hesplit
