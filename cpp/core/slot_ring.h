// The CKKS machinery of SEAL that slots need: the canonical embedding (encode, decode) and rotations with their keys.
#pragma once

#include <seal/ciphertext.h>
#include <seal/ckks.h>
#include <seal/context.h>
#include <seal/evaluator.h>
#include <seal/galoiskeys.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/buffer.h"
#include "core/parameters.h"
#include "core/ring.h"
#include "core/rlwe.h"

namespace hesplit {

class SlotRing {
  public:
    static constexpr int kEncodedBits = 50;

    explicit SlotRing(const Parameters& parameters);

    std::size_t slots() const { return data_.degree() / 2; }
    const Ring& data() const { return data_; }  // what ciphertexts use
    const Ring& key() const { return key_; }    // with the key-switching prime

    // round(scale * embedding^-1(values)), coefficients over the data ring; with a scale above 2^kEncodedBits rounded
    // to multiples of a power of two. Throws RangeError if it does not fit.
    void encode(const std::vector<double>& values, double scale, std::uint64_t* coefficients) const;
    // The same in NTT form.
    void encode_ntt(const std::vector<double>& values, double scale, std::uint64_t* poly) const;
    // The real parts of the slots of a polynomial with |coefficients| < 2^(bits-1).
    std::vector<double> decode(View<const std::int64_t> coefficients, int bits, double scale) const;

    // One rotation key: for each data prime a pair over the key ring, in NTT form; c1 is expanded from the seed.
    // `index` numbers the ciphertexts under one seed; a key uses data().rows() numbers from it.
    void make_rotation_key(const SecretKey& secret, int step, const EncryptionRandomness& randomness,
                           std::uint32_t index, std::uint64_t* c0) const;
    std::size_t rotation_key_size() const { return data_.rows() * key_.size(); }  // residues of the c0 parts
    void load_rotation_key(int step, const Seed& seed, std::uint32_t index, const std::uint64_t* c0,
                           seal::GaloisKeys& keys) const;

    // A ciphertext of two polynomials in NTT form over the data ring, all zero.
    seal::Ciphertext zero_ciphertext() const;
    // Rotates slots to the left: slot i takes the value of slot i + step. Zero ciphertexts stay as they are.
    void rotate(const seal::Ciphertext& in, int step, const seal::GaloisKeys& keys, seal::Ciphertext& out) const;

    // The standard deviation per coefficient of the noise that one rotation adds.
    double rotation_deviation() const;

  private:
    std::uint32_t galois_element(int step) const;

    seal::SEALContext context_;
    seal::CKKSEncoder encoder_;
    seal::Evaluator evaluator_;
    Ring data_;
    Ring key_;
};

}  // namespace hesplit
