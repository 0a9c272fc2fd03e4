// CKKS parameters: ring degree, primes, scale and the ranges that client and server agree on; their security check and
// their canonical bytes, whose hash travels with every message.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "wire/format.h"

namespace hesplit {

enum class Packing : std::uint8_t { blocks = 1, slots = 2, merged = 3 };

// standard: at least 128 bits against classical computers by the 2024 security guidelines. paper: a published set below
// that, run on request only. quantum: 128 bits by the guidelines' column for quantum computers.
enum class Security : std::uint8_t { standard = 1, paper = 2, quantum = 3 };

// Statistical security of flooded releases when nothing else is chosen.
inline constexpr std::uint32_t kStatisticalBits = 30;

// What a user chooses. Ranges are in the units of the activations and of the logits.
struct ParameterChoice {
    std::size_t ring_degree = 0;
    // On slots, unless weights are private, and on merged blocks the last prime is for key switching.
    std::vector<int> modulus_bits;
    double scale = 0;  // of the activations
    Packing packing = Packing::blocks;
    Security security = Security::standard;
    double activation_bound = 0;  // largest |activation|
    double activation_norm = 0;   // largest l2 norm of one sample's activations
    double error_bound = 0;       // largest |decrypted logit - exact logit|, except with probability 2^-39 per logit
    std::size_t batch_size = 1;   // what slots, merged blocks and sealed weights are laid out for
    std::uint32_t releases = 0;   // decryptions that may be released under one key, each flooded; 0: none is flooded
    std::uint32_t updates = 0;    // after how many sealed weights are sent anew; 0: not sealed
    std::uint32_t statistical_bits = kStatisticalBits;  // s: of the releases under one key (rlwe/flooding.h)
    // Private weights: every number of a reply is within 2^-private_bits of saying no more of them than the logit
    // (linear/private_replies.h), for weights whose rows have at most that l2 norm. 0: replies do not hide the weights.
    std::uint32_t private_bits = 0;
    double weight_norm = 0;
};

class Parameters {
  public:
    // Checks the choice and finds the primes. Throws ParameterError.
    explicit Parameters(ParameterChoice choice);

    const ParameterChoice& choice() const { return choice_; }
    std::size_t ring_degree() const { return choice_.ring_degree; }
    Packing packing() const { return choice_.packing; }
    // Whether slots are laid out so that logits are traces, which say nothing else (packing/traces.h): of private
    // weights. Such slots are never rotated, and have no key-switching prime.
    bool traced() const { return choice_.packing == Packing::slots && choice_.private_bits != 0; }
    // All primes, and those that a ciphertext uses (all but a key-switching prime).
    const std::vector<std::uint64_t>& primes() const { return primes_; }
    std::vector<std::uint64_t> data_primes() const;
    int total_bits() const;

    // The canonical bytes (little endian, fixed layout) and back; parse validates like the constructor. Throws
    // WireError.
    std::vector<std::uint8_t> bytes() const;
    static Parameters parse(View<const std::uint8_t> bytes);
    // The first 16 bytes of BLAKE2b over the canonical bytes and the primes.
    const ParameterHash& hash() const { return hash_; }

  private:
    ParameterChoice choice_;
    std::vector<std::uint64_t> primes_;
    ParameterHash hash_{};
};

// Parameters as a field of a message: their length (2 bytes), then their canonical bytes.
std::size_t parameter_bytes(const Parameters& parameters);
void write_parameters(WireWriter& writer, const Parameters& parameters);
// Throws WireError for parameters that cannot be used, KeyMismatchError where the header names others.
Parameters read_parameters(WireReader& reader);

// The largest log2 of the whole modulus for 128-bit security with a ternary secret (2024 security guidelines), against
// quantum computers or, for every other level, classical ones; or 0 for a ring degree that is not supported.
int max_modulus_bits(std::size_t ring_degree, Security security = Security::standard);

}  // namespace hesplit
