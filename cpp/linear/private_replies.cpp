#include "linear/private_replies.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "base/error.h"
#include "base/parallel.h"
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

// Adds `count` numbers uniform in [-2^flood_bits, 2^flood_bits): longer than a word, so drawn in parts of up to 60
// bits, of which the uppermost is signed.
void add_flood(const Ring& ring, int flood_bits, std::size_t count, std::size_t padded, std::uint64_t* residues) {
    constexpr int kPart = 60;
    SecretBuffer<std::uint8_t> stream_key(32);
    os_random(stream_key.data(), stream_key.size());
    ChaCha20 stream(stream_key.data(), Domain::flood, 0, 0);
    SecretBuffer<std::uint64_t> drawn(count), lifted(ring.prime_count() * padded);
    SecretBuffer<std::int64_t> part(padded, 0);
    for (int shift = 0; shift <= flood_bits; shift += kPart) {
        const int bits = std::min(kPart, flood_bits + 1 - shift);
        const std::int64_t half = shift + bits > flood_bits ? std::int64_t{1} << (bits - 1) : 0;
        sample_bits(stream, bits, drawn.data(), count);
        for (std::size_t i = 0; i < count; ++i) {
            part[i] = static_cast<std::int64_t>(drawn[i]) - half;
        }
        for (std::size_t row = 0; row < ring.prime_count(); ++row) {
            std::uint64_t* out = lifted.data() + row * padded;
            ring.lift_row({part.data(), padded}, row, out);
            ring.scale_row({out, padded}, ring.residue(std::ldexp(1.0, shift), row), row);
        }
        add_residues(ring, lifted.data(), padded, residues);
    }
}

}  // namespace

SecretBuffer<std::uint64_t> hide_product(const PublicKey& key, View<const std::uint32_t> positions, std::size_t padded,
                                         int flood_bits, int spread_bits, std::uint64_t* c1) {
    const Ring& ring = key.ring();
    SecretBuffer<std::uint64_t> zero_c0(ring.size()), zero_c1(ring.size());
    key.encrypt_zero(zero_c0.data(), zero_c1.data(), spread_bits);
    ring.add(c1, zero_c1.data());
    SecretBuffer<std::uint64_t> part(ring.prime_count() * padded, 0);
    for (std::size_t row = 0; row < ring.prime_count(); ++row) {
        for (std::size_t i = 0; i < positions.size; ++i) {
            part[row * padded + i] = zero_c0[row * ring.degree() + positions[i]];
        }
    }
    if (flood_bits > 0) {
        add_flood(ring, flood_bits, positions.size, padded, part.data());
    }
    return part;
}

std::vector<SecretBuffer<std::uint64_t>> uniform_masks(const std::vector<std::size_t>& counts, int bits) {
    SecretBuffer<std::uint8_t> stream_key(32);
    os_random(stream_key.data(), stream_key.size());
    std::vector<SecretBuffer<std::uint64_t>> masks(counts.size());
    parallel_for(counts.size(), [&](std::size_t i) {
        masks[i].resize(counts[i]);
        ChaCha20 stream(stream_key.data(), Domain::mask, static_cast<std::uint32_t>(i), 0);
        sample_bits(stream, bits, masks[i].data(), counts[i]);
    });
    return masks;
}

void add_mask(const SecretBuffer<std::uint64_t>& mask, int bits, std::uint64_t* values) {
    const std::uint64_t low = (std::uint64_t{1} << bits) - 1;
    for (std::size_t i = 0; i < mask.size(); ++i) {
        values[i] = (values[i] + mask[i]) & low;
    }
}

WireReader read_opened(View<const std::uint8_t> opened, MessageType type, const Header& asked,
                       const std::vector<SecretBuffer<std::uint64_t>>& masks, int bits) {
    WireReader reader(opened, type);
    reader.require(asked.parameters, asked.key);
    if (reader.header().message != asked.message) {
        throw KeyMismatchError(std::string("an opened ") +
                               (type == MessageType::opened_share ? "share" : "weight gradient") +
                               " that belongs to another request");
    }
    std::size_t total = 0;
    for (const SecretBuffer<std::uint64_t>& mask : masks) {
        total += packed_bytes(mask.size(), bits);
    }
    reader.require_remaining(total);
    return reader;
}

SecretBuffer<std::int64_t> take_masked(WireReader& reader, const SecretBuffer<std::uint64_t>& mask, int bits) {
    Buffer<std::uint64_t> values(mask.size());
    reader.packed({values.data(), values.size()}, bits, std::uint64_t{1} << bits);
    SecretBuffer<std::int64_t> signed_values(values.size());
    for (std::size_t i = 0; i < values.size(); ++i) {
        signed_values[i] = static_cast<std::int64_t>((values[i] - mask[i]) << (64 - bits)) >> (64 - bits);
    }
    return signed_values;
}

std::vector<double> agreed_gradient(std::size_t samples, std::size_t outputs) {
    return std::vector<double>(samples * outputs, 1 / static_cast<double>(samples));
}

void check_agreed_gradient(View<const double> gradient, std::size_t outputs) {
    for (std::size_t o = 0; o < outputs; ++o) {
        double sum = 0;
        for (std::size_t i = o; i < gradient.size; i += outputs) {
            sum += std::abs(gradient[i]);
        }
        if (sum > 1 + 1e-5) {  // float32 sums of a mean
            throw RangeError(
                "with private weights |dJ/dY| may sum to 1 over a batch for every output, as that of a mean cross "
                "entropy does, got " +
                std::to_string(sum) + "; divide dJ/dY by that, and multiply dJ/dW by it");
        }
    }
}

}  // namespace hesplit
