// Automorphisms x -> x^element of ciphertexts: the keys that switch back to the secret, and how keys travel.
//
// c1 is decomposed into digits, each of one or more data primes; the digits meet the key over the key ring, whose last
// prime is the special one, and the result is divided by that (Bajard, Eynard, Hasan and Zucca 2016; Cheon, Han, Kim,
// Kim and Song 2018; digits of several primes: Han and Ki 2020).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/buffer.h"
#include "ring/ring.h"
#include "rlwe/secret_key.h"
#include "wire/format.h"

namespace hesplit {

struct GaloisKey {
    std::vector<std::uint32_t> permutation;  // of the NTT form: out[i] = in[permutation[i]]
    // Per digit a pair over the key ring, permuted the other way, so that digits need not be.
    Buffer<std::uint64_t> c0, c1;
};

// A key ring, whose last prime is the special one, and into how many digits c1 is decomposed: from 1 to as many as
// there are data primes.
struct KeySwitching {
    const Ring& key;
    std::size_t digits;

    std::size_t data_primes() const { return key.prime_count() - 1; }
    // Digit d is made of the data primes from first_row(d) up to first_row(d + 1): the first ones have one more where
    // they cannot all have as many.
    std::size_t first_row(std::size_t digit) const { return (digit * data_primes() + digits - 1) / digits; }
    std::uint64_t special() const { return key.prime(data_primes()); }
};

// Keys for these elements in a message: one public seed, then c0 of each key, digit by digit. Nothing without elements.
// read throws WireError.
std::size_t galois_key_bytes(const KeySwitching& switching, std::size_t count);
void write_galois_keys(const KeySwitching& switching, const std::vector<std::uint64_t>& elements,
                       const SecretKey& secret, WireWriter& writer);
std::vector<GaloisKey> read_galois_keys(const KeySwitching& switching, const std::vector<std::uint64_t>& elements,
                                        WireReader& reader);

// The inverse of the special prime modulo each data prime. Throws ParameterError where two primes are the same.
std::vector<std::uint64_t> inverse_special(const KeySwitching& switching);

// Residues in [0, q) as integers in [-q/2, q/2].
void centre(const std::uint64_t* residues, std::uint64_t q, std::size_t n, std::int64_t* out);
// out[i] = in[permutation[i]].
void permute(const std::vector<std::uint32_t>& permutation, const std::uint64_t* in, std::uint64_t* out);

// The variance per coefficient of the noise that the keys of one switch add, of what is divided by the special prime. A
// digit of several primes may be the sum of as many terms of its size, each below one half (ckks/slot_ring.h).
double switching_variance(const KeySwitching& switching);
// The standard deviation of all that one switch adds, the rounding of the division included.
double switching_deviation(const KeySwitching& switching);

}  // namespace hesplit
