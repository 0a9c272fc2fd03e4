// The CKKS machinery that slots need: encoding, and rotations with their keys.
//
// A rotation is a permutation of the NTT form and a key switch: c1 is decomposed into digits, the digits meet the key
// over the key ring, and the result is divided by the special prime. Decompositions and divisions cost almost
// everything, so both are steps of their own: several rotations of one ciphertext share the first, a sum of rotations
// shares the second (Halevi and Shoup 2018, "hoisting").
//
// With digits of more primes there are fewer of them, so that keys are shorter and decompositions cheaper, and the
// noise of a rotation is larger. Products fill the modulus, and their replies are rounded to far fewer bits: there are
// as few digits as keep the noise below that rounding. Where one for each prime keep it as low as that of an
// encryption, there are as many: inputs may then be rotated before they are multiplied.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

#include "base/buffer.h"
#include "ckks/embedding.h"
#include "ring/ring.h"
#include "rlwe/galois.h"
#include "rlwe/parameters.h"

namespace hesplit {

// Two polynomials in NTT form over the data ring, zero at first.
struct SlotCiphertext {
    explicit SlotCiphertext(const Ring& data) : c0(data.size(), 0), c1(data.size(), 0) {}
    Buffer<std::uint64_t> c0, c1;
};

using RotationKeys = std::map<int, GaloisKey>;  // by step

// A rotated ciphertext before the division by the special prime: (k0, k1) over the key ring, and c0 beside it.
struct SwitchedCiphertext {
    Buffer<std::uint64_t> k0, k1, c0;
};

class SlotRing {
  public:
    // Encoding is in double precision: of larger coefficients the bits below these are noise.
    static constexpr int kEncodedBits = 50;

    // Of replies. Every coefficient of their product with the secret is needed, which must not wrap around in the
    // client's auxiliary ring (rlwe/decryption.cpp).
    static constexpr int kMaxReplyBits = 44;

    explicit SlotRing(const Parameters& parameters);

    std::size_t slots() const { return data_.degree() / 2; }
    const Ring& data() const { return data_; }  // what ciphertexts use
    const Ring& key() const { return key_; }    // with the key-switching prime
    KeySwitching switching() const { return {key_, digits_}; }

    // scale * embedding^-1(values), rounded at random (ring/rounding.h): coefficients over the data ring, for any
    // positive scale. Throws RangeError where a coefficient does not fit the modulus.
    void encode(View<const double> values, double scale, std::uint64_t* coefficients) const;
    // The same in NTT form, over the data ring or the key ring.
    void encode_ntt(View<const double> values, double scale, const Ring& ring, std::uint64_t* poly) const;
    // The real parts of the slots, divided by the scale.
    SecretBuffer<double> decode(View<const std::int64_t> coefficients, double scale) const;

    // The automorphism that rotates by a step is x -> x^element, of elements that the keys are for.
    std::uint64_t galois_element(int step) const;

    // Rotates slots to the left: slot i takes the value of slot i + step.
    SwitchedCiphertext rotate(const SlotCiphertext& in, const GaloisKey& key) const;
    // The same for several rotations of one ciphertext, whose digits they share: c1's, polynomials over the key ring:
    // [switching().digits, key().size()].
    Buffer<std::uint64_t> decompose(const SlotCiphertext& in) const;
    SwitchedCiphertext rotate(const SlotCiphertext& in, const Buffer<std::uint64_t>& digits,
                              const GaloisKey& key) const;
    // Times a plaintext over the key ring, in NTT form. The noise of its rotation meets the plaintext then.
    void multiply(SwitchedCiphertext& in, const std::uint64_t* plaintext) const;
    // Whether that noise is less than the noise of an encryption, which meets it anyway.
    bool switches_quietly() const { return switching_variance(switching()) <= kNoiseVariance; }
    // out += in / special prime.
    void add_divided(SwitchedCiphertext& in, SlotCiphertext& out) const;
    // The same for a sum, divided once; empty terms are passed over.
    void add_divided(std::vector<SwitchedCiphertext>& terms, SlotCiphertext& out) const;

    // The standard deviation per coefficient of the noise that one rotation adds.
    double rotation_deviation() const { return switching_deviation(switching()); }

  private:
    void encode(View<const double> values, double scale, const Ring& ring, std::uint64_t* coefficients) const;
    std::size_t choose_digits() const;
    // What c1 is the sum of within each digit, as integers, one for each data prime: with D the product of the digit's
    // primes and q one of them, D / q times the centred residue of c1 / (D / q) modulo q. [prime_count, degree].
    Buffer<std::int64_t> centred_terms(const SlotCiphertext& in) const;
    // One of the digits in one row of the key ring, in NTT form: c1's own, or the sum of its terms in `out`.
    const std::uint64_t* digit_row(const SlotCiphertext& in, const Buffer<std::int64_t>& terms, std::size_t digit,
                                   std::size_t row, std::uint64_t* out) const;
    // One row of a rotation, from that row of the digits.
    void switch_row(const SlotCiphertext& in, View<const std::uint64_t* const> digits, const GaloisKey& key,
                    std::size_t row, SwitchedCiphertext& out) const;

    Embedding embedding_;
    Ring data_;
    Ring key_;
    std::size_t digits_;
    std::vector<std::uint64_t> inverse_special_;    // of the special prime modulo each data prime
    std::vector<std::uint64_t> inverse_cofactors_;  // of each data prime's D / q modulo q
    // D / q of each data prime modulo each prime of the key ring: [key prime, data prime].
    std::vector<std::uint64_t> cofactors_;
};

}  // namespace hesplit
