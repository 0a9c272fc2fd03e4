#include "ring/prng.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "kernels/kernels.h"

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
    kernels().chacha20(state_, out, size / 64);
    state_[12] += static_cast<std::uint32_t>(size / 64);
}

namespace {

// The stream a chunk at a time: a whole number of blocks, of 64-bit words and of 6-byte coins for 8 values.
constexpr std::size_t kChunk = 64 * 48;

class Chunk {
  public:
    explicit Chunk(ChaCha20& stream) : stream_(stream) {}
    ~Chunk() { secure_zero(bytes_, sizeof(bytes_)); }
    Chunk(const Chunk&) = delete;
    Chunk& operator=(const Chunk&) = delete;

    // Draws the next `size` <= kChunk bytes, rounded up to whole blocks.
    const std::uint8_t* draw(std::size_t size) {
        stream_.blocks(bytes_, (size + 63) / 64 * 64);
        return bytes_;
    }

  private:
    ChaCha20& stream_;
    alignas(kAlignment) std::uint8_t bytes_[kChunk];
};

// 64-bit little-endian words.
class Words {
  public:
    explicit Words(ChaCha20& stream) : chunk_(stream) {}

    std::uint64_t next() {
        if (left_ == 0) {
            in_ = chunk_.draw(kChunk);
            left_ = kChunk / 8;
        }
        const std::uint64_t word = std::uint64_t{load32(in_)} | std::uint64_t{load32(in_ + 4)} << 32;
        in_ += 8;
        --left_;
        return word;
    }

  private:
    Chunk chunk_;
    const std::uint8_t* in_ = nullptr;
    std::size_t left_ = 0;
};

int bit_length(std::uint64_t value) {
    int bits = 0;
    for (; value != 0; value >>= 1) {
        ++bits;
    }
    return bits;
}

}  // namespace

void sample_uniform(ChaCha20& stream, std::uint64_t modulus, std::uint64_t* out, std::size_t count) {
    // Masked words are rejected with probability below 1/2; for our primes, just under a power of two, almost never.
    // Words have 32 bits where that is enough, else 64, and none is skipped.
    const std::uint64_t mask = (std::uint64_t{1} << bit_length(modulus - 1)) - 1;
    const bool narrow = modulus <= (std::uint64_t{1} << 32);
    const std::size_t word = narrow ? 4 : 8;
    Chunk chunk(stream);
    while (count > 0) {
        const std::size_t drawn = std::min(kChunk, (count * word + 63) / 64 * 64);
        const std::uint8_t* bytes = chunk.draw(drawn);
        for (std::size_t at = 0; at < drawn / word && count > 0;) {
            const std::size_t candidates = std::min(count, drawn / word - at);
            const std::size_t kept = kernels().accept(bytes + at * word, narrow, mask, modulus, out, candidates);
            at += candidates;
            out += kept;
            count -= kept;
        }
    }
}

void sample_noise(ChaCha20& stream, std::int8_t* out, std::size_t count) {
    constexpr std::size_t kValues = kChunk / 6;
    Chunk chunk(stream);
    while (count >= 8) {
        const std::size_t values = std::min(count / 8 * 8, kValues);
        kernels().noise(chunk.draw(6 * values), out, values);
        out += values;
        count -= values;
    }
    if (count > 0) {
        SecretBuffer<std::int8_t> last(8);
        kernels().noise(chunk.draw(48), last.data(), last.size());
        std::copy_n(last.begin(), count, out);
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
