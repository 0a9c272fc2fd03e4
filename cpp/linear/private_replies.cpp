#include "linear/private_replies.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "ring/prng.h"

namespace hesplit {

void add_residues(const Ring& ring, const std::uint64_t* b, std::size_t count, std::uint64_t* a) {
    for (std::size_t row = 0; row < ring.prime_count(); ++row) {
        const std::uint64_t q = ring.prime(row);
        for (std::size_t i = row * count; i < (row + 1) * count; ++i) {
            const std::uint64_t sum = a[i] + b[i];
            a[i] = std::min(sum, sum - q);  // sum < q: sum - q wraps around and is larger
        }
    }
}

namespace {

// Adds `count` numbers high * 2^low_bits + low, uniform in [-2^flood_bits, 2^flood_bits): longer than a word, so in two
// parts.
void add_flood(const Ring& ring, int flood_bits, std::size_t count, std::size_t padded, std::uint64_t* residues) {
    const int low_bits = std::min(flood_bits, 60), high_bits = flood_bits + 1 - low_bits;
    SecretBuffer<std::uint8_t> stream_key(32);
    os_random(stream_key.data(), stream_key.size());
    ChaCha20 stream(stream_key.data(), Domain::flood, 0, 0);
    SecretBuffer<std::uint64_t> drawn(count), lifted(ring.prime_count() * padded);
    SecretBuffer<std::int64_t> high(padded, 0), low(padded, 0);
    sample_bits(stream, high_bits, drawn.data(), count);
    for (std::size_t i = 0; i < count; ++i) {
        high[i] = static_cast<std::int64_t>(drawn[i]) - (std::int64_t{1} << (high_bits - 1));
    }
    sample_bits(stream, low_bits, drawn.data(), count);
    std::copy_n(drawn.begin(), count, low.begin());
    for (const auto& [part, shift] : {std::pair{&high, low_bits}, std::pair{&low, 0}}) {
        for (std::size_t row = 0; row < ring.prime_count(); ++row) {
            std::uint64_t* out = lifted.data() + row * padded;
            ring.lift_row({part->data(), padded}, row, out);
            ring.scale_row({out, padded}, ring.residue(std::ldexp(1.0, shift), row), row);
        }
        add_residues(ring, lifted.data(), padded, residues);
    }
}

}  // namespace

void hide_product(const PublicKey& key, View<const std::uint32_t> positions, std::size_t padded, int flood_bits,
                  std::uint64_t* c1, std::uint64_t* c0_part) {
    const Ring& ring = key.ring();
    SecretBuffer<std::uint64_t> zero_c0(ring.size()), zero_c1(ring.size());
    key.encrypt_zero(zero_c0.data(), zero_c1.data());
    ring.add(c1, zero_c1.data());
    for (std::size_t row = 0; row < ring.prime_count(); ++row) {
        std::uint64_t* out = c0_part + row * padded;
        for (std::size_t i = 0; i < positions.size; ++i) {
            out[i] = zero_c0[row * ring.degree() + positions[i]];
        }
        std::fill(out + positions.size, out + padded, std::uint64_t{0});
    }
    if (flood_bits > 0) {
        add_flood(ring, flood_bits, positions.size, padded, c0_part);
    }
}

}  // namespace hesplit
