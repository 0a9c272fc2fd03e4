// Replies that say no more of the weights than their logits do (docs/security.md, "Private weights").
//
// A product of the server has (c0, c1) = sum_j (c0_j, c1_j) * w_j. The client knows every c1_j and the noise of every
// c0_j, so both halves are equations in the weights. A fresh encryption of zero under the client's public key makes c1
// pseudorandom (ring-LWE, with the server's u as its secret), and a uniform flood hides the noise of c0 at the
// coefficients that are sent. A key that is not well made lets those coefficients say something of u; so u is as wide
// as the noise of the product allows, and what they say is a part of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/buffer.h"
#include "rlwe/public_key.h"
#include "wire/format.h"

namespace hesplit {

// Adds a fresh encryption of zero to c1 of a product, in coefficient form, and returns what must be added to the part
// of c0 that is sent: [primes, padded] residues at `positions`, then zeros. That is flooded with numbers uniform in
// [-2^flood_bits, 2^flood_bits), unless flood_bits is 0. `spread_bits` are those of
// PublicKey::encrypt_zero. `padded` is a multiple of 16.
SecretBuffer<std::uint64_t> hide_product(const PublicKey& key, View<const std::uint32_t> positions, std::size_t padded,
                                         int flood_bits, int spread_bits, std::uint64_t* c1);

// a += b, of `count` coefficients whose residues are `count` apart.
void add_residues(const Ring& ring, const std::uint64_t* b, std::size_t count, std::uint64_t* a);

// Fresh masks of so many numbers each, uniform in [0, 2^bits).
std::vector<SecretBuffer<std::uint64_t>> uniform_masks(const std::vector<std::size_t>& counts, int bits);
// values += mask modulo 2^bits.
void add_mask(const SecretBuffer<std::uint64_t>& mask, int bits, std::uint64_t* values);
// What a client opened of the masked message with that header, its lengths checked. Throws WireError or
// KeyMismatchError.
WireReader read_opened(View<const std::uint8_t> opened, MessageType type, const Header& asked,
                       const std::vector<SecretBuffer<std::uint64_t>>& masks, int bits);
// The numbers of its next run without their mask, modulo 2^bits, as signed numbers.
SecretBuffer<std::int64_t> take_masked(WireReader& reader, const SecretBuffer<std::uint64_t>& mask, int bits);

// Puts values of a product in their places, rows of row-major [samples, outputs]: they are ordered by output, from
// `first` on, then sample.
template <class From, class To>
void place_logits(const From& values, std::size_t samples, std::size_t first, std::size_t outputs, To* rows) {
    for (std::size_t i = 0; i < values.size(); ++i) {
        rows[(i % samples) * outputs + first + i / samples] = static_cast<To>(values[i]);
    }
}

// With private weights dJ/dY is private too: scale and length of its product with a batch follow from this gradient,
// [samples, outputs], whose entries sum to 1 for every output, as those of a mean cross entropy do at most.
std::vector<double> agreed_gradient(std::size_t samples, std::size_t outputs);
// Throws RangeError where the sum of |dJ/dY| over a batch is larger for some output.
void check_agreed_gradient(View<const double> gradient, std::size_t outputs);

}  // namespace hesplit
