// Linear maps of encrypted polynomials: whoever chooses polynomials w wants certain coefficients of
//   sum_j m_j * w_j.
// A product is computed once, at the end, whatever linear operations it stands for. Only the coefficients that are
// wanted are sent, with the modulus switched to a power of two.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "rlwe/secret_key.h"
#include "tensor/polynomials.h"

namespace hesplit {

// Bits of a number of a product.
inline constexpr int kLeastProductBits = 16, kMostProductBits = 60;

// What a product adds up: encrypted polynomials, each times a polynomial of weights.
struct Operand {
    const EncryptedPolynomials* polynomials = nullptr;
    View<const std::int64_t> weights;  // [products, polynomials.count(), N]
};

// The wanted coefficients of one product and what is added to them, an integer each.
struct Wanted {
    View<const std::uint32_t> positions;
    View<const double> constants;
};

// A message with the coefficients of the products; decrypt_products() gives them in this order, divided by `unit`, with
// numbers of `bits` bits. All operands are under one key. Nobody checks here that sums stay below q/2 - that is what
// whoever chooses the weights knows. Throws KeyMismatchError or ParameterError.
std::string multiply_polynomials(const TensorRing& ring, const std::vector<Operand>& operands,
                                 const std::vector<Wanted>& products, int bits, double unit);

// How many values a message of products holds. Throws WireError or KeyMismatchError.
std::size_t count_products(const TensorRing& ring, View<const std::uint8_t> message);
// The values of that message. Throws WireError or KeyMismatchError.
SecretBuffer<double> decrypt_products(const TensorRing& ring, const SecretKey& key, View<const std::uint8_t> message);

// The same message with a constant added to each of its values; the sums have to fit, which nobody checks here. Throws
// WireError, KeyMismatchError, ParameterError, or RangeError for a constant that no value of so many bits can be.
std::string add_to_products(const TensorRing& ring, View<const std::uint8_t> message, View<const double> constants);

// What the switch to that many bits adds to a value before the division by `unit`, as an integer modulo q: a bound on
// its standard deviation.
double product_rounding_deviation(const TensorRing& ring, int bits);

}  // namespace hesplit
