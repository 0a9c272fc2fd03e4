// Randomness: the operating system's CSPRNG, ChaCha20 (RFC 8439) to expand it, and the three distributions
// of RLWE: uniform residues, centred binomial noise, ternary secrets.
//
// There is no generator state between calls: every encryption draws fresh keys from the operating system,
// so a forked process can never repeat its parent's randomness.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "base/buffer.h"

namespace hesplit {

using Seed = std::array<std::uint8_t, 32>;
using Id = std::array<std::uint8_t, 16>;

// Fills memory from the operating system's CSPRNG. Throws Error when there is none.
void os_random(void* memory, std::size_t size);

// A fresh public seed or random identifier.
Seed random_seed();
Id random_id();

// Separates the streams that are expanded from one seed.
enum class Domain : std::uint32_t {
    uniform = 1,
    noise = 2,
    secret = 3,
    flood = 4,
    mask = 5,
    privacy = 6,
    ephemeral = 7
};

// The ChaCha20 key stream of RFC 8439 section 2.4 (block counter from 0) under the nonce (domain, index, row), little
// endian.
class ChaCha20 {
  public:
    ChaCha20(const std::uint8_t key[32], Domain domain, std::uint32_t index, std::uint32_t row);
    ChaCha20(const std::uint8_t key[32], const std::array<std::uint32_t, 3>& nonce, std::uint32_t counter);
    ~ChaCha20();
    ChaCha20(const ChaCha20&) = delete;
    ChaCha20& operator=(const ChaCha20&) = delete;

    // Writes the next `size` bytes of the stream; size is a multiple of 64.
    void blocks(std::uint8_t* out, std::size_t size);

  private:
    std::uint32_t state_[16];
};

// `count` residues, uniform in [0, modulus), by rejection from the stream; modulus < 2^61. The stream is public.
void sample_uniform(ChaCha20& stream, std::uint64_t modulus, std::uint64_t* out, std::size_t count);

// `count` values of the centred binomial distribution with 21 + 21 coins: |e| <= 21, variance 10.5. Constant time.
void sample_noise(ChaCha20& stream, std::int8_t* out, std::size_t count);
inline constexpr double kNoiseBound = 21;
inline constexpr double kNoiseVariance = 10.5;

// `count` values, uniform in {-1, 0, 1}.
void sample_ternary(ChaCha20& stream, std::int8_t* out, std::size_t count);

// `count` normally distributed values of that deviation, rounded to integers: what floods a released decryption
// (Box-Muller in double precision; |value| <= 8.6 deviations). deviation < 2^55.
void sample_gaussian(ChaCha20& stream, double deviation, std::int64_t* out, std::size_t count);

// `count` values, uniform in [0, 2^bits): masks; 1 <= bits <= 62.
void sample_bits(ChaCha20& stream, int bits, std::uint64_t* out, std::size_t count);

}  // namespace hesplit
