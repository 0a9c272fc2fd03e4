#include "core/prng.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>

#include "core/error.h"

#if defined(__linux__)
#include <sys/random.h>
#else
#include <random>
#endif

namespace hesplit {

void os_random(void* memory, std::size_t size) {
#if defined(__linux__)
    auto* out = static_cast<unsigned char*>(memory);
    while (size > 0) {
        const ssize_t got = getrandom(out, size, 0);
        if (got < 0) {
            if (errno == EINTR) {
                continue;
            }
            throw Error(
                "the operating system's random generator (getrandom) failed; no key or ciphertext can be made safely");
        }
        out += got;
        size -= static_cast<std::size_t>(got);
    }
#else
    std::random_device device;
    auto* out = static_cast<unsigned char*>(memory);
    for (std::size_t i = 0; i < size; ++i) {
        out[i] = static_cast<unsigned char>(device());
    }
#endif
}

Seed random_seed() {
    Seed seed;
    os_random(seed.data(), seed.size());
    return seed;
}

Id random_id() {
    Id id;
    os_random(id.data(), id.size());
    return id;
}

namespace {

std::uint32_t load32(const std::uint8_t* in) {
    return std::uint32_t{in[0]} | std::uint32_t{in[1]} << 8 | std::uint32_t{in[2]} << 16 | std::uint32_t{in[3]} << 24;
}

// Blocks computed side by side: the inner loops over lanes are what the compiler turns into vector code.
constexpr std::size_t kLanes = 8;

using Lanes = std::uint32_t[kLanes];

template <int Bits>
inline void rotate(Lanes& x) {
    for (std::size_t l = 0; l < kLanes; ++l) {
        x[l] = (x[l] << Bits) | (x[l] >> (32 - Bits));
    }
}

inline void add(Lanes& x, const Lanes& y) {
    for (std::size_t l = 0; l < kLanes; ++l) {
        x[l] += y[l];
    }
}

inline void exclusive_or(Lanes& x, const Lanes& y) {
    for (std::size_t l = 0; l < kLanes; ++l) {
        x[l] ^= y[l];
    }
}

inline void quarter_round(Lanes& a, Lanes& b, Lanes& c, Lanes& d) {
    add(a, b), exclusive_or(d, a), rotate<16>(d);
    add(c, d), exclusive_or(b, c), rotate<12>(b);
    add(a, b), exclusive_or(d, a), rotate<8>(d);
    add(c, d), exclusive_or(b, c), rotate<7>(b);
}

// Writes kLanes consecutive 64-byte blocks.
void eight_blocks(const std::uint32_t state[16], std::uint8_t* out) {
    alignas(kAlignment) Lanes start[16];
    alignas(kAlignment) Lanes x[16];
    for (std::size_t w = 0; w < 16; ++w) {
        for (std::size_t l = 0; l < kLanes; ++l) {
            start[w][l] = state[w] + (w == 12 ? static_cast<std::uint32_t>(l) : 0U);
        }
    }
    std::memcpy(x, start, sizeof(x));
    for (int round = 0; round < 10; ++round) {
        quarter_round(x[0], x[4], x[8], x[12]);
        quarter_round(x[1], x[5], x[9], x[13]);
        quarter_round(x[2], x[6], x[10], x[14]);
        quarter_round(x[3], x[7], x[11], x[15]);
        quarter_round(x[0], x[5], x[10], x[15]);
        quarter_round(x[1], x[6], x[11], x[12]);
        quarter_round(x[2], x[7], x[8], x[13]);
        quarter_round(x[3], x[4], x[9], x[14]);
    }
    for (std::size_t w = 0; w < 16; ++w) {
        add(x[w], start[w]);
    }
    for (std::size_t l = 0; l < kLanes; ++l) {
        for (std::size_t w = 0; w < 16; ++w) {
            const std::uint32_t word = x[w][l];
            std::uint8_t* to = out + 64 * l + 4 * w;
            to[0] = static_cast<std::uint8_t>(word);
            to[1] = static_cast<std::uint8_t>(word >> 8);
            to[2] = static_cast<std::uint8_t>(word >> 16);
            to[3] = static_cast<std::uint8_t>(word >> 24);
        }
    }
    secure_zero(x, sizeof(x));
}

}  // namespace

ChaCha20::ChaCha20(const std::uint8_t key[32], const std::array<std::uint32_t, 3>& nonce, std::uint32_t counter) {
    state_[0] = 0x61707865U, state_[1] = 0x3320646eU, state_[2] = 0x79622d32U, state_[3] = 0x6b206574U;
    for (std::size_t i = 0; i < 8; ++i) {
        state_[4 + i] = load32(key + 4 * i);
    }
    state_[12] = counter;
    state_[13] = nonce[0], state_[14] = nonce[1], state_[15] = nonce[2];
}

ChaCha20::ChaCha20(const std::uint8_t key[32], Domain domain, std::uint32_t index, std::uint32_t row)
    : ChaCha20(key, {static_cast<std::uint32_t>(domain), index, row}, 0) {}

ChaCha20::~ChaCha20() {
    secure_zero(state_, sizeof(state_));
}

void ChaCha20::blocks(std::uint8_t* out, std::size_t size) {
    constexpr std::size_t kChunk = 64 * kLanes;
    while (size >= kChunk) {
        eight_blocks(state_, out);
        state_[12] += kLanes;
        out += kChunk;
        size -= kChunk;
    }
    if (size > 0) {
        std::uint8_t last[kChunk];
        eight_blocks(state_, last);
        state_[12] += static_cast<std::uint32_t>(size / 64);
        std::memcpy(out, last, size);
        secure_zero(last, sizeof(last));
    }
}

namespace {

// Reads 64-bit little-endian words from the stream, a chunk at a time.
class Words {
  public:
    explicit Words(ChaCha20& stream) : stream_(stream) {}
    ~Words() { secure_zero(bytes_, sizeof(bytes_)); }
    Words(const Words&) = delete;
    Words& operator=(const Words&) = delete;

    std::uint64_t next() {
        if (at_ == kWords) {
            stream_.blocks(bytes_, sizeof(bytes_));
            at_ = 0;
        }
        const std::uint8_t* in = bytes_ + 8 * at_++;
        return std::uint64_t{load32(in)} | std::uint64_t{load32(in + 4)} << 32;
    }

  private:
    static constexpr std::size_t kWords = 128;
    ChaCha20& stream_;
    alignas(kAlignment) std::uint8_t bytes_[8 * kWords];
    std::size_t at_ = kWords;
};

int bit_length(std::uint64_t value) {
    int bits = 0;
    for (; value != 0; value >>= 1) {
        ++bits;
    }
    return bits;
}

// The number of ones among the low 21 bits, without a table and without a branch.
std::uint64_t count_ones_21(std::uint64_t x) {
    x &= 0x1fffff;
    x = (x & 0x155555) + ((x >> 1) & 0x155555);
    x = (x & 0x133333) + ((x >> 2) & 0x133333);
    x = (x & 0x0f0f0f) + ((x >> 4) & 0x0f0f0f);
    return (x + (x >> 8) + (x >> 16)) & 0x1f;
}

}  // namespace

void sample_uniform(ChaCha20& stream, std::uint64_t modulus, std::uint64_t* out, std::size_t count) {
    // Masked words are rejected with probability below 1/2; for our primes, just under a power of two, almost never.
    const std::uint64_t mask = (std::uint64_t{1} << bit_length(modulus - 1)) - 1;
    Words words(stream);
    for (std::size_t i = 0; i < count;) {
        const std::uint64_t candidate = words.next() & mask;
        if (candidate < modulus) {
            out[i++] = candidate;
        }
    }
}

void sample_noise(ChaCha20& stream, std::int8_t* out, std::size_t count) {
    Words words(stream);
    for (std::size_t i = 0; i < count; ++i) {
        const std::uint64_t coins = words.next();
        out[i] = static_cast<std::int8_t>(static_cast<int>(count_ones_21(coins)) -
                                          static_cast<int>(count_ones_21(coins >> 21)));
    }
}

void sample_ternary(ChaCha20& stream, std::int8_t* out, std::size_t count) {
    // A word modulo 3: the bias, 2^-63, is far below anything a distinguisher sees, and no rejection is needed.
    Words words(stream);
    for (std::size_t i = 0; i < count; ++i) {
        out[i] = static_cast<std::int8_t>(static_cast<int>(words.next() % 3) - 1);
    }
}

void sample_gaussian(ChaCha20& stream, double deviation, std::int64_t* out, std::size_t count) {
    constexpr double kTwoPi = 6.283185307179586476925;
    Words words(stream);
    for (std::size_t i = 0; i < count; i += 2) {
        // In (0, 1]: the logarithm stays finite.
        const double u = std::ldexp(static_cast<double>((words.next() >> 11) + 1), -53);
        const double angle = kTwoPi * std::ldexp(static_cast<double>(words.next() >> 11), -53);
        const double radius = deviation * std::sqrt(-2 * std::log(u));
        out[i] = std::llrint(radius * std::cos(angle));
        if (i + 1 < count) {
            out[i + 1] = std::llrint(radius * std::sin(angle));
        }
    }
}

void sample_bits(ChaCha20& stream, int bits, std::uint64_t* out, std::size_t count) {
    Words words(stream);
    for (std::size_t i = 0; i < count; ++i) {
        out[i] = words.next() >> (64 - bits);
    }
}

}  // namespace hesplit
