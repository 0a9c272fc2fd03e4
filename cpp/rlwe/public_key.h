// Encryption by somebody who does not hold the secret key.
//
// The public key is an encryption of zero, (b, a) with b = e - a*s and a uniform, expanded from a seed. With a fresh
// ternary u and fresh noise, (b*u + e0, a*u + e1) is one more: its phase is e*u + e0 + e1*s (Lyubashevsky, Peikert and
// Regev 2010).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "base/buffer.h"
#include "ring/prng.h"
#include "ring/ring.h"
#include "rlwe/parameters.h"
#include "rlwe/secret_key.h"
#include "wire/format.h"

namespace hesplit {

// Safe to use from several threads.
class PublicKey {
  public:
    // One of the keys that belong to this secret: fresh randomness at every call.
    static std::shared_ptr<const PublicKey> of(const SecretKey& key);

    const Parameters& parameters() const { return parameters_; }
    const Id& id() const { return id_; }  // of the secret key
    const Ring& ring() const { return ring_; }

    // A fresh encryption of zero in coefficient form, to which a message is added: until then c0 is as secret as the
    // message will be.
    // With `spread_bits` u is uniform in [-2^spread_bits, 2^spread_bits) instead of ternary: from a key that is not
    // well made, which reads u, that keeps more of it (linear/private_replies.h).
    void encrypt_zero(std::uint64_t* c0, std::uint64_t* c1, int spread_bits = 0) const;

    // parse throws WireError.
    std::string bytes() const;
    static std::shared_ptr<const PublicKey> parse(View<const std::uint8_t> bytes);
    // The key as a part of another message, which names parameters and secret key. read throws WireError.
    static std::size_t body_bytes(const Ring& ring);
    void write(WireWriter& writer) const;
    static std::shared_ptr<const PublicKey> read(WireReader& reader, const Parameters& parameters);

  private:
    PublicKey(Parameters parameters, const Id& id, const Seed& seed);

    Parameters parameters_;
    Id id_;
    Seed seed_;
    Ring ring_;
    Buffer<std::uint64_t> a_, b_;  // in NTT form
};

// Of the phase of an encryption of zero: the most that a coefficient can be, and a bound on its standard deviation that
// holds for all but a negligible share of ternary secrets.
double public_noise_bound(std::size_t ring_degree, int spread_bits = 0);
double public_noise_deviation(std::size_t ring_degree);

}  // namespace hesplit
