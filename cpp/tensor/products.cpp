#include "tensor/products.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/parallel.h"
#include "rlwe/decryption.h"
#include "wire/codec.h"
#include "wire/format.h"

namespace hesplit {

namespace {

constexpr std::size_t kPositionBits = 16;  // ring degrees are up to 2^15

void check_operands(const TensorRing& tensor_ring, const std::vector<Operand>& operands,
                    const std::vector<Wanted>& products) {
    const Ring& ring = tensor_ring.ring();
    if (operands.empty() || products.empty() || products.size() > kMostPolynomials) {
        throw ParameterError("expected operands, and 1 to " + std::to_string(kMostPolynomials) + " products");
    }
    for (const Operand& operand : operands) {
        operand.polynomials->require_under(tensor_ring, operands.front().polynomials->key());
        if (operand.weights.size != products.size() * operand.polynomials->count() * ring.degree()) {
            throw ParameterError("expected weights of shape [products, polynomials, " + std::to_string(ring.degree()) +
                                 "]");
        }
    }
    for (const Wanted& wanted : products) {
        if (wanted.positions.size == 0 || wanted.positions.size > ring.degree() ||
            wanted.constants.size != wanted.positions.size) {
            throw ParameterError("expected 1 to " + std::to_string(ring.degree()) +
                                 " positions of a product, and as many constants");
        }
        for (std::size_t i = 0; i < wanted.positions.size; ++i) {
            if (wanted.positions[i] >= ring.degree() || !(std::abs(wanted.constants[i]) < ring.modulus_value() / 2)) {
                throw ParameterError("a position beyond the ring degree, or a constant beyond the modulus");
            }
        }
    }
}

// One product, in coefficient form.
void multiply(const Ring& ring, const std::vector<Operand>& operands, std::size_t p, std::uint64_t* c0,
              std::uint64_t* c1) {
    std::vector<const std::uint64_t*> first, second, factors;
    Buffer<std::uint64_t> weights;
    std::size_t terms = 0;
    for (const Operand& operand : operands) {
        terms += operand.polynomials->count();
    }
    weights.resize(terms * ring.size());
    for (const Operand& operand : operands) {
        for (std::size_t j = 0; j < operand.polynomials->count(); ++j) {
            std::uint64_t* weight = weights.data() + factors.size() * ring.size();
            const std::int64_t* given = operand.weights.data + (p * operand.polynomials->count() + j) * ring.degree();
            ring.lift(View<const std::int64_t>{given, ring.degree()}, weight);
            ring.to_ntt(weight);
            first.push_back(operand.polynomials->c0(j));
            second.push_back(operand.polynomials->c1(j));
            factors.push_back(weight);
        }
    }
    const View<const std::uint64_t* const> by{factors.data(), factors.size()};
    ring.dot_both({first.data(), first.size()}, {second.data(), second.size()}, by, c0, c1);
    ring.to_coefficients(c0);
    ring.to_coefficients(c1);
}

std::size_t product_bytes(const Ring& ring, std::size_t values, int bits) {
    return sizeof(std::uint32_t) + packed_bytes(values, kPositionBits) + packed_bytes(values, bits) +
           packed_bytes(ring.degree(), bits);
}

}  // namespace

std::string multiply_polynomials(const TensorRing& tensor_ring, const std::vector<Operand>& operands,
                                 const std::vector<Wanted>& products, int bits, double unit) {
    check_operands(tensor_ring, operands, products);
    if (bits < kLeastProductBits || bits > kMostProductBits || !(unit > 0) || !std::isfinite(unit)) {
        throw ParameterError("products have 16 to 60 bits and a positive unit");
    }
    const Ring& ring = tensor_ring.ring();
    std::size_t body = sizeof(std::uint32_t) + 1 + sizeof(double);
    for (const Wanted& wanted : products) {
        body += product_bytes(ring, wanted.positions.size, bits);
    }
    WireWriter writer(
        {MessageType::products, tensor_ring.parameters().hash(), operands.front().polynomials->key(), random_id()},
        body);
    writer.u32(static_cast<std::uint32_t>(products.size()));
    writer.u8(static_cast<std::uint8_t>(bits));
    writer.f64(unit * std::ldexp(1.0, bits) / ring.modulus_value());
    std::vector<std::uint8_t*> outs;
    for (const Wanted& wanted : products) {
        writer.u32(static_cast<std::uint32_t>(wanted.positions.size));
        outs.push_back(writer.reserve(product_bytes(ring, wanted.positions.size, bits) - sizeof(std::uint32_t)));
    }
    parallel_for(products.size(), [&](std::size_t p) {
        const View<const std::uint32_t> positions = products[p].positions;
        Buffer<std::uint64_t> c0(ring.size()), c1(ring.size()), numbers(ring.degree());
        multiply(ring, operands, p, c0.data(), c1.data());
        for (std::size_t row = 0; row < ring.prime_count(); ++row) {
            for (std::size_t i = 0; i < positions.size; ++i) {
                std::uint64_t& at = c0[row * ring.degree() + positions[i]];
                at = (at + ring.residue(products[p].constants[i], row)) % ring.prime(row);
            }
        }
        std::uint8_t* out = outs[p];
        const View<std::uint64_t> values{numbers.data(), positions.size};
        std::copy(positions.begin(), positions.end(), values.begin());
        pack_bits({values.data, values.size}, kPositionBits, out);
        out += packed_bytes(values.size, kPositionBits);
        ring.switch_to_bits(c0.data(), positions, bits, values.data);
        pack_bits({values.data, values.size}, bits, out);
        out += packed_bytes(values.size, bits);
        ring.switch_to_bits(c1.data(), bits, numbers.data());
        pack_bits({numbers.data(), numbers.size()}, bits, out);
    });
    return writer.finish();
}

namespace {

// One product of a message, not yet read.
struct ProductRun {
    std::size_t first = 0;  // of its values among all
    std::size_t values = 0;
    const std::uint8_t* in = nullptr;
};

// The frame of a message of products: everything but the numbers themselves.
struct ProductMessage {
    Id key{};
    int bits = 0;
    double scale = 0;  // of a value
    std::vector<ProductRun> runs;
    std::size_t values = 0;
};

ProductMessage read_products(const TensorRing& tensor_ring, View<const std::uint8_t> message) {
    const Ring& ring = tensor_ring.ring();
    WireReader reader(message, MessageType::products);
    ProductMessage products;
    products.key = reader.header().key;
    reader.require(tensor_ring.parameters().hash(), products.key);
    const std::size_t count = reader.u32();
    products.bits = reader.u8();
    products.scale = reader.f64();
    if (count < 1 || count > kMostPolynomials || products.bits < kLeastProductBits ||
        products.bits > kMostProductBits || !(products.scale > 0) || !std::isfinite(products.scale)) {
        throw WireError("products with an impossible count, length or scale");
    }
    for (std::size_t p = 0; p < count; ++p) {
        const std::size_t values = reader.u32();
        if (values < 1 || values > ring.degree()) {
            throw WireError("a product with an impossible number of values");
        }
        const std::size_t bytes = product_bytes(ring, values, products.bits) - sizeof(std::uint32_t);
        products.runs.push_back({products.values, values, reader.raw(bytes).data});
        products.values += values;
    }
    reader.require_remaining(0);
    return products;
}

}  // namespace

std::size_t count_products(const TensorRing& ring, View<const std::uint8_t> message) {
    return read_products(ring, message).values;
}

SecretBuffer<double> decrypt_products(const TensorRing& tensor_ring, const SecretKey& key,
                                      View<const std::uint8_t> message) {
    const std::size_t degree = tensor_ring.ring().degree();
    const ProductMessage products = read_products(tensor_ring, message);
    tensor_ring.require(key, products.key);
    const PhaseDecryptor decryptor(key, tensor_ring.auxiliary());
    SecretBuffer<double> out(products.values);
    parallel_for(products.runs.size(), [&](std::size_t p) {
        const ProductRun& run = products.runs[p];
        const std::uint8_t* in = run.in;
        const std::size_t count = run.values;
        const std::uint64_t limit = std::uint64_t{1} << products.bits;
        Buffer<std::uint64_t> places(count), c0(count), c1(degree);
        unpack_bits(in, {places.data(), count}, kPositionBits, degree);
        in += packed_bytes(count, kPositionBits);
        unpack_bits(in, {c0.data(), count}, products.bits, limit);
        in += packed_bytes(count, products.bits);
        unpack_bits(in, {c1.data(), degree}, products.bits, limit);
        const std::vector<std::uint32_t> positions(places.begin(), places.end());
        SecretBuffer<std::int64_t> phases(count);
        decryptor.phase({c1.data(), degree}, {c0.data(), count}, {positions.data(), count}, products.bits,
                        phases.data());
        for (std::size_t i = 0; i < count; ++i) {
            out[run.first + i] = static_cast<double>(phases[i]) / products.scale;
        }
    });
    return out;
}

std::string add_to_products(const TensorRing& tensor_ring, View<const std::uint8_t> message,
                            View<const double> constants) {
    const ProductMessage products = read_products(tensor_ring, message);
    if (constants.size != products.values) {
        throw ParameterError("expected a constant for each of " + std::to_string(products.values) + " values");
    }
    std::string sum(message.begin(), message.end());
    const std::uint64_t limit = std::uint64_t{1} << products.bits;
    for (const ProductRun& run : products.runs) {
        const std::size_t skipped = packed_bytes(run.values, kPositionBits);
        Buffer<std::uint64_t> c0(run.values);
        unpack_bits(run.in + skipped, {c0.data(), run.values}, products.bits, limit);
        for (std::size_t i = 0; i < run.values; ++i) {
            const double added = constants[run.first + i] * products.scale;
            if (!(std::abs(added) < std::ldexp(1.0, products.bits - 1))) {
                throw RangeError("a constant is beyond the range of this tensor");
            }
            c0[i] = (c0[i] + static_cast<std::uint64_t>(std::llround(added))) & (limit - 1);
        }
        auto* out = reinterpret_cast<std::uint8_t*>(sum.data()) + (run.in + skipped - message.data);
        pack_bits({c0.data(), run.values}, products.bits, out);
    }
    seal_message({reinterpret_cast<std::uint8_t*>(sum.data()), sum.size()});
    return sum;
}

double product_rounding_deviation(const TensorRing& ring, int bits) {
    return reply_rounding_deviation(ring.ring().degree()) * ring.ring().modulus_value() / std::ldexp(1.0, bits);
}

}  // namespace hesplit
