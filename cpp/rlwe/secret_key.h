// The secret key of ring-LWE: a ternary polynomial.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <shared_mutex>

#include "base/buffer.h"
#include "ring/prng.h"
#include "ring/ring.h"
#include "rlwe/parameters.h"

namespace hesplit {

// A ternary secret with its parameters and its random public identifier. Zeroed when freed. Safe to use from several
// threads.
class SecretKey {
  public:
    static std::shared_ptr<const SecretKey> generate(const Parameters& parameters);
    ~SecretKey();
    SecretKey(const SecretKey&) = delete;
    SecretKey& operator=(const SecretKey&) = delete;

    const Parameters& parameters() const { return parameters_; }
    const Id& id() const { return id_; }

    // Calls use(coefficients), which destroy() waits for. Throws KeyMismatchError once the key is destroyed.
    template <class Use>
    void use_coefficients(const Use& use) const {
        const std::shared_lock<std::shared_mutex> lock(mutex_);
        require_alive();
        use(View<const std::int8_t>{coefficients_.data(), coefficients_.size()});
    }

    // Zeroes the secret, also for everybody else who holds the key: what a client does when a peer has shown by its
    // replies that it is not honest.
    void destroy() const;

    // Counts one release of a decryption under this key, whoever makes it: one read twice from a file is one key.
    // Throws ParameterError when its parameters allow no more.
    void count_release() const;
    // At least so many releases were counted elsewhere.
    void released_before(std::uint32_t count) const;
    std::uint32_t released() const;

    // The bytes of a key file (not encrypted; 2 bits per coefficient, checksummed) and back. parse throws WireError.
    SecretBuffer<std::uint8_t> bytes() const;
    static std::shared_ptr<const SecretKey> parse(View<const std::uint8_t> bytes);

  private:
    SecretKey(Parameters parameters, const Id& id, KeyBuffer<std::int8_t> coefficients, bool filed);
    void require_alive() const;

    Parameters parameters_;
    Id id_;
    mutable std::atomic<bool> filed_;  // its bytes were written or read, so that it may come again
    mutable std::shared_mutex mutex_;  // of what follows
    mutable KeyBuffer<std::int8_t> coefficients_;
    mutable bool destroyed_ = false;
};

// The secret in NTT form over one ring; and one whose coefficients are held elsewhere.
KeyBuffer<std::uint64_t> secret_in_ring(View<const std::int8_t> coefficients, const Ring& ring);
KeyBuffer<std::uint64_t> secret_in_ring(const SecretKey& key, const Ring& ring);
// Of a composable ring, with the inverse cofactors in it (Ring::compose_lifted).
KeyBuffer<std::uint64_t> secret_for_composition(const SecretKey& key, const Ring& ring);

}  // namespace hesplit
