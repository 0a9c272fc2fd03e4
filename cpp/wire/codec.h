// Numbers packed to the bit: runs of values of any length, and whole polynomials of residues.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/buffer.h"
#include "ring/ring.h"

namespace hesplit {

// Bytes that `count` values of `bits` bits take.
constexpr std::size_t packed_bytes(std::size_t count, int bits) {
    return (count * static_cast<std::size_t>(bits) + 7) / 8;
}

// Values below 2^bits, lowest bits first; the run ends on a byte boundary, filled with zero bits.
void pack_bits(View<const std::uint64_t> values, int bits, std::uint8_t* out);
// Throws WireError unless every value is below `limit` and the fill bits are zero.
void unpack_bits(const std::uint8_t* in, View<std::uint64_t> values, int bits, std::uint64_t limit);

// Bits that a number takes; 0 for 0.
int bit_length(std::uint64_t value);

// Integers below a modulus without their low bits: rounded, half-way cases to the even side (a bias of 1/2, always
// upwards, would add up in sealed weights), they are below rounded_limit; and back, modulo the modulus, which rounding
// up may have reached.
std::uint64_t rounded_limit(std::uint64_t modulus, int dropped);
void drop_bits(View<std::uint64_t> values, int dropped);
void restore_bits(View<std::uint64_t> values, int dropped, std::uint64_t modulus);

// Polynomials in coefficient form: as integers below q where q is small (by the Chinese remainder theorem), else as
// residues; each rounded to a multiple of 2^dropped and bit-packed, run by run.
class PolynomialCodec {
  public:
    PolynomialCodec(const Ring& ring, int dropped) : PolynomialCodec(ring, dropped, ring.degree()) {}
    // Of the first `coefficients` alone; the others are read as 0.
    PolynomialCodec(const Ring& ring, int dropped, std::size_t coefficients);

    std::size_t bytes() const { return bytes_; }  // of one polynomial
    double bits_per_coefficient() const;
    void pack(const std::uint64_t* poly, std::uint8_t* out, Buffer<std::uint64_t>& scratch) const;
    // Of a composable ring, from integers in [0, q), of which nothing useful is left.
    void pack_integers(std::uint64_t* integers, std::uint8_t* out) const;
    void unpack(const std::uint8_t* in, std::uint64_t* poly) const;  // throws WireError

  private:
    struct Run {
        std::uint64_t modulus = 0;
        std::uint64_t limit = 0;  // rounded numbers are below it
        int bits = 0;
    };

    void pack_run(std::uint64_t* numbers, int bits, std::uint8_t* out) const;

    const Ring& ring_;
    int dropped_;
    std::size_t coefficients_;
    std::vector<Run> runs_;  // one, or one for each prime
    std::size_t bytes_ = 0;
};

}  // namespace hesplit
