#include "wire/codec.h"

#include <algorithm>

#include "base/error.h"
#include "kernels/kernels.h"
#include "kernels/tables.h"

namespace hesplit {

void pack_bits(View<const std::uint64_t> values, int bits, std::uint8_t* out) {
    // Eight values fill whole bytes; up to seven are left.
    const std::size_t whole = bits < 8 ? 0 : values.size / 8 * 8;
    kernels().pack(values.data, bits, out, whole);
    kScalarBitPacking.pack(values.data + whole, bits, out + packed_bytes(whole, bits), values.size - whole);
}

void unpack_bits(const std::uint8_t* in, View<std::uint64_t> values, int bits, std::uint64_t limit) {
    const std::size_t whole = bits < 8 ? 0 : values.size / 8 * 8, rest = values.size - whole;
    const std::uint8_t* tail = in + packed_bytes(whole, bits);
    const std::uint64_t largest = std::max(kernels().unpack(in, bits, values.data, whole),
                                           kScalarBitPacking.unpack(tail, bits, values.data + whole, rest));
    const std::size_t used = rest * static_cast<std::size_t>(bits) % 8;
    if (used != 0 && tail[packed_bytes(rest, bits) - 1] >> used != 0) {
        throw WireError("a packed run of numbers does not end in zero bits");
    }
    if (largest >= limit) {
        throw WireError("a number is not below its modulus");
    }
}

PolynomialCodec::PolynomialCodec(const Ring& ring, int dropped) : ring_(ring), dropped_(dropped) {
    const std::uint64_t half = (std::uint64_t{1} << dropped_) >> 1;
    for (std::size_t prime = 0; prime < ring_.prime_count(); ++prime) {
        if (prime == 0 || !ring_.composable()) {
            runs_.push_back({ring_.prime(prime), 0, 0});
        } else {
            runs_[0].modulus *= ring_.prime(prime);
        }
    }
    for (Run& run : runs_) {
        run.limit = ((run.modulus - 1 + half) >> dropped_) + 1;
        for (std::uint64_t largest = run.limit - 1; largest != 0; largest >>= 1) {
            ++run.bits;
        }
        bytes_ += packed_bytes(ring_.degree(), run.bits);
    }
}

double PolynomialCodec::bits_per_coefficient() const {
    return 8.0 * static_cast<double>(bytes_) / static_cast<double>(ring_.degree());
}

void PolynomialCodec::pack(const std::uint64_t* poly, std::uint8_t* out, Buffer<std::uint64_t>& scratch) const {
    const std::size_t n = ring_.degree();
    const std::uint64_t half = (std::uint64_t{1} << dropped_) >> 1;
    scratch.resize(n);
    for (std::size_t r = 0; r < runs_.size(); ++r) {
        if (ring_.composable()) {
            ring_.compose(poly, scratch.data());
        } else {
            std::copy_n(poly + r * n, n, scratch.data());
        }
        for (std::size_t i = 0; dropped_ != 0 && i < n; ++i) {
            // Half-way cases go to the even side: a bias of 1/2, always upwards, would add up in sealed weights.
            const std::uint64_t odd = (scratch[i] >> dropped_) & 1;
            scratch[i] = (scratch[i] + half - 1 + odd) >> dropped_;
        }
        pack_bits({scratch.data(), n}, runs_[r].bits, out);
        out += packed_bytes(n, runs_[r].bits);
    }
}

void PolynomialCodec::unpack(const std::uint8_t* in, std::uint64_t* poly) const {
    const std::size_t n = ring_.degree();
    for (std::size_t r = 0; r < runs_.size(); ++r) {
        const Run& run = runs_[r];
        std::uint64_t* out = poly + r * n;
        unpack_bits(in, {out, n}, run.bits, run.limit);
        in += packed_bytes(n, run.bits);
        for (std::size_t i = 0; dropped_ != 0 && i < n; ++i) {
            const std::uint64_t value = out[i] << dropped_;
            out[i] = std::min(value, value - run.modulus);  // rounding up may have reached the modulus
        }
    }
    if (ring_.composable()) {
        ring_.decompose(poly, poly);
    }
}

}  // namespace hesplit
