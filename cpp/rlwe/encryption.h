// Seeded symmetric encryption of ring-LWE.
//
// A fresh ciphertext of m is (c0, c1) with c1 uniform, expanded from a public seed, and c0 = m + e - c1 * s.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/buffer.h"
#include "ring/prng.h"
#include "ring/ring.h"

namespace hesplit {

// The uniform c1, in NTT form, of ciphertext `index` under a public seed.
void expand_uniform(const Ring& ring, const Seed& seed, std::uint32_t index, std::uint64_t* c1);

// Fresh randomness of one message of several ciphertexts: a public seed, and a secret key for the noise.
struct EncryptionRandomness {
    Seed seed;
    SecretBuffer<std::uint8_t> noise_key;

    static EncryptionRandomness fresh();
};

// c0 of a fresh encryption of zero, in coefficient form; a message is added to it. Until then it is as secret as the
// message will be. `secret` is secret_in_ring. Never call it twice with the same randomness and index. Unless `mask` is
// null, it gets c1 * s, in NTT form, which says as much as the key.
void encrypt_zero(const Ring& ring, const KeyBuffer<std::uint64_t>& secret, const EncryptionRandomness& randomness,
                  std::uint32_t index, std::uint64_t* c0, std::uint64_t* mask = nullptr);

// The same in the first words of c0, as integers in [0, q) of a composable ring; `secret` is secret_for_composition.
void encrypt_zero_integers(const Ring& ring, const KeyBuffer<std::uint64_t>& secret,
                           const EncryptionRandomness& randomness, std::uint32_t index, std::uint64_t* c0);

// How encryptions of zero are made: integers of a composable ring, residues, or residues beside their c1 * s.
enum class ZeroForm { integers, residues, residues_and_masks };

// Encryptions of zero, numbered from 0, for the ciphertexts of one message, to be used once. They may be made ahead of
// the message, but not be used by a forked child.
struct ZeroEncryptions {
    EncryptionRandomness randomness;
    std::vector<SecretBuffer<std::uint64_t>> c0;
    std::vector<SecretBuffer<std::uint64_t>> masks;  // c1 * s of each in NTT form, where the form has them
    long process = 0;

    static ZeroEncryptions begin();  // fresh randomness, nothing encrypted yet
    void fill(const Ring& ring, const KeyBuffer<std::uint64_t>& secret, std::size_t count, ZeroForm form);
    // Whether there are so many of them, made by this process.
    bool usable(std::size_t count) const;
};

}  // namespace hesplit
