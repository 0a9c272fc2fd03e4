// Replies that say no more of the weights than their logits do (docs/security.md, "Private weights").
//
// A product of the server has (c0, c1) = sum_j (c0_j, c1_j) * w_j. The client knows every c1_j and the noise of every
// c0_j, so both halves are equations in the weights. A fresh encryption of zero under the client's public key makes c1
// pseudorandom (ring-LWE, with the server's ternary u as its secret), and a uniform flood hides the noise of c0 at the
// coefficients that are sent.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/buffer.h"
#include "rlwe/public_key.h"

namespace hesplit {

// Adds a fresh encryption of zero to a product in coefficient form: to c1, and to the part of c0 that is sent, which
// must be added to it in turn: [primes, padded] residues at `positions`, then zeros. That part is flooded with numbers
// uniform in [-2^flood_bits, 2^flood_bits), unless flood_bits is 0. `padded` is a multiple of 16.
void hide_product(const PublicKey& key, View<const std::uint32_t> positions, std::size_t padded, int flood_bits,
                  std::uint64_t* c1, std::uint64_t* c0_part);

// a += b, of `count` coefficients whose residues are `count` apart.
void add_residues(const Ring& ring, const std::uint64_t* b, std::size_t count, std::uint64_t* a);

}  // namespace hesplit
