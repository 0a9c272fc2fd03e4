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

int bit_length(std::uint64_t value) {
    int bits = 0;
    for (; value != 0; value >>= 1) {
        ++bits;
    }
    return bits;
}

std::uint64_t rounded_limit(std::uint64_t modulus, int dropped) {
    const std::uint64_t half = (std::uint64_t{1} << dropped) >> 1;
    return ((modulus - 1 + half) >> dropped) + 1;
}

void drop_bits(View<std::uint64_t> values, int dropped) {
    const std::uint64_t half = (std::uint64_t{1} << dropped) >> 1;
    for (std::size_t i = 0; dropped != 0 && i < values.size; ++i) {
        const std::uint64_t odd = (values[i] >> dropped) & 1;
        values[i] = (values[i] + half - 1 + odd) >> dropped;
    }
}

void restore_bits(View<std::uint64_t> values, int dropped, std::uint64_t modulus) {
    for (std::size_t i = 0; dropped != 0 && i < values.size; ++i) {
        const std::uint64_t value = values[i] << dropped;
        values[i] = std::min(value, value - modulus);
    }
}

PolynomialCodec::PolynomialCodec(const Ring& ring, int dropped, std::size_t coefficients)
    : ring_(ring), dropped_(dropped), coefficients_(coefficients) {
    for (std::size_t prime = 0; prime < ring_.prime_count(); ++prime) {
        if (prime == 0 || !ring_.composable()) {
            runs_.push_back({ring_.prime(prime), 0, 0});
        } else {
            runs_[0].modulus *= ring_.prime(prime);
        }
    }
    for (Run& run : runs_) {
        run.limit = rounded_limit(run.modulus, dropped_);
        run.bits = bit_length(run.limit - 1);
        bytes_ += packed_bytes(coefficients_, run.bits);
    }
}

double PolynomialCodec::bits_per_coefficient() const {
    return 8.0 * static_cast<double>(bytes_) / static_cast<double>(coefficients_);
}

void PolynomialCodec::pack(const std::uint64_t* poly, std::uint8_t* out, Buffer<std::uint64_t>& scratch) const {
    const std::size_t n = ring_.degree();
    scratch.resize(n);
    if (ring_.composable()) {
        ring_.compose(poly, scratch.data());
        return pack_integers(scratch.data(), out);
    }
    for (std::size_t r = 0; r < runs_.size(); ++r) {
        std::copy_n(poly + r * n, n, scratch.data());
        pack_run(scratch.data(), runs_[r].bits, out);
        out += packed_bytes(coefficients_, runs_[r].bits);
    }
}

void PolynomialCodec::pack_integers(std::uint64_t* integers, std::uint8_t* out) const {
    pack_run(integers, runs_[0].bits, out);
}

void PolynomialCodec::pack_run(std::uint64_t* numbers, int bits, std::uint8_t* out) const {
    drop_bits({numbers, coefficients_}, dropped_);
    pack_bits({numbers, coefficients_}, bits, out);
}

void PolynomialCodec::unpack(const std::uint8_t* in, std::uint64_t* poly) const {
    const std::size_t n = ring_.degree();
    for (std::size_t r = 0; r < runs_.size(); ++r) {
        const Run& run = runs_[r];
        std::uint64_t* out = poly + r * n;
        unpack_bits(in, {out, coefficients_}, run.bits, run.limit);
        in += packed_bytes(coefficients_, run.bits);
        restore_bits({out, coefficients_}, dropped_, run.modulus);
        std::fill(out + coefficients_, out + n, 0);
    }
    if (ring_.composable()) {
        ring_.decompose(poly, poly);
    }
}

}  // namespace hesplit
