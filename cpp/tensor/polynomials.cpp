#include "tensor/polynomials.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/error.h"
#include "base/parallel.h"
#include "rlwe/decryption.h"
#include "rlwe/encryption.h"
#include "wire/codec.h"

namespace hesplit {

namespace {

// How polynomials were encrypted: with the secret key, c1 from a seed; or with a public one, c1 sent.
enum class Encryption : std::uint8_t { seeded = 1, whole = 2 };

constexpr std::size_t kPositionBits = 16;  // ring degrees are up to 2^15

std::size_t count_of(const TensorRing& ring, View<const std::int64_t> coefficients) {
    const std::size_t count = coefficients.size / ring.ring().degree();
    if (count < 1 || count > kMostPolynomials || coefficients.size % ring.ring().degree() != 0) {
        throw ParameterError("expected 1 to " + std::to_string(kMostPolynomials) + " polynomials of " +
                             std::to_string(ring.ring().degree()) + " coefficients");
    }
    return count;
}

// c0 += the coefficients, in coefficient form.
void add_message(const Ring& ring, const std::int64_t* coefficients, std::uint64_t* c0) {
    SecretBuffer<std::uint64_t> message(ring.size());
    ring.lift(View<const std::int64_t>{coefficients, ring.degree()}, message.data());
    ring.add(c0, message.data());
}

WireWriter polynomial_writer(const TensorRing& ring, const Id& key, Encryption encryption, std::size_t count,
                             std::size_t polynomial_bytes) {
    const bool seeded = encryption == Encryption::seeded;
    WireWriter writer(
        {MessageType::polynomials, ring.parameters().hash(), key, random_id()},
        1 + sizeof(std::uint32_t) + (seeded ? sizeof(Seed) : 0) + count * (seeded ? 1 : 2) * polynomial_bytes);
    writer.u8(static_cast<std::uint8_t>(encryption));
    writer.u32(static_cast<std::uint32_t>(count));
    return writer;
}

}  // namespace

TensorRing::TensorRing(Parameters parameters)
    : parameters_(std::move(parameters)),
      ring_(parameters_.ring_degree(), parameters_.data_primes()),
      auxiliary_(auxiliary_ring(parameters_.ring_degree())) {
    if (parameters_.packing() != Packing::blocks || parameters_.total_bits() < kLeastTensorBits) {
        throw ParameterError("tensors need packing=\"blocks\" and a modulus of at least " +
                             std::to_string(kLeastTensorBits) + " bits");
    }
}

void TensorRing::require(const ParameterHash& parameters) const {
    if (parameters != parameters_.hash()) {
        throw KeyMismatchError("this key is for other parameters than the context");
    }
}

void TensorRing::require(const SecretKey& key, const Id& id) const {
    require(key.parameters().hash());
    if (key.id() != id) {
        throw KeyMismatchError("this tensor was encrypted under another key");
    }
}

void check_coefficients(View<const std::int64_t> coefficients) {
    for (const std::int64_t value : coefficients) {
        if (value > kMostCoefficient || value < -kMostCoefficient) {
            throw RangeError("a coefficient is beyond 2^60");
        }
    }
}

std::string encrypt_polynomials(const TensorRing& tensor_ring, const SecretKey& key,
                                View<const std::int64_t> coefficients) {
    tensor_ring.require(key.parameters().hash());
    const Ring& ring = tensor_ring.ring();
    const std::size_t count = count_of(tensor_ring, coefficients);
    const PolynomialCodec codec(ring, 0);
    const KeyBuffer<std::uint64_t> secret = secret_in_ring(key, ring);
    const EncryptionRandomness randomness = EncryptionRandomness::fresh();
    WireWriter writer = polynomial_writer(tensor_ring, key.id(), Encryption::seeded, count, codec.bytes());
    writer.seed(randomness.seed);
    std::uint8_t* out = writer.reserve(count * codec.bytes());
    parallel_for(count, [&](std::size_t j) {
        SecretBuffer<std::uint64_t> c0(ring.size());
        Buffer<std::uint64_t> scratch;
        encrypt_zero(ring, secret, randomness, static_cast<std::uint32_t>(j), c0.data());
        add_message(ring, coefficients.data + j * ring.degree(), c0.data());
        codec.pack(c0.data(), out + j * codec.bytes(), scratch);
    });
    return writer.finish();
}

std::string encrypt_polynomials(const TensorRing& tensor_ring, const PublicKey& key,
                                View<const std::int64_t> coefficients) {
    tensor_ring.require(key.parameters().hash());
    const Ring& ring = tensor_ring.ring();
    const std::size_t count = count_of(tensor_ring, coefficients);
    const PolynomialCodec codec(ring, 0);
    WireWriter writer = polynomial_writer(tensor_ring, key.id(), Encryption::whole, count, codec.bytes());
    std::uint8_t* out = writer.reserve(count * 2 * codec.bytes());
    parallel_for(count, [&](std::size_t j) {
        SecretBuffer<std::uint64_t> c0(ring.size());
        Buffer<std::uint64_t> c1(ring.size()), scratch;
        key.encrypt_zero(c0.data(), c1.data());
        add_message(ring, coefficients.data + j * ring.degree(), c0.data());
        codec.pack(c0.data(), out + 2 * j * codec.bytes(), scratch);
        codec.pack(c1.data(), out + (2 * j + 1) * codec.bytes(), scratch);
    });
    return writer.finish();
}

namespace {

// The frame of a message of polynomials: everything but the numbers themselves.
struct PolynomialMessage {
    Id key{};
    bool seeded = false;
    std::size_t count = 0;
    Seed seed{};
    const std::uint8_t* in = nullptr;  // [count, 1 or 2, codec.bytes()]

    std::size_t each(const PolynomialCodec& codec) const { return (seeded ? 1 : 2) * codec.bytes(); }
};

PolynomialMessage read_polynomials(const TensorRing& ring, const PolynomialCodec& codec,
                                   View<const std::uint8_t> bytes) {
    WireReader reader(bytes, MessageType::polynomials);
    PolynomialMessage message;
    message.key = reader.header().key;
    reader.require(ring.parameters().hash(), message.key);
    const std::uint8_t encryption = reader.u8();
    message.seeded = encryption == static_cast<std::uint8_t>(Encryption::seeded);
    if (!message.seeded && encryption != static_cast<std::uint8_t>(Encryption::whole)) {
        throw WireError("encrypted polynomials of an unknown kind");
    }
    message.count = reader.u32();
    if (message.count < 1 || message.count > kMostPolynomials) {
        throw WireError("a message holds 1 to " + std::to_string(kMostPolynomials) + " polynomials, this one " +
                        std::to_string(message.count));
    }
    if (message.seeded) {
        message.seed = reader.seed();
    }
    reader.require_remaining(message.count * message.each(codec));
    message.in = reader.raw(reader.remaining()).data;
    return message;
}

}  // namespace

EncryptedPolynomials::EncryptedPolynomials(std::shared_ptr<const TensorRing> tensor_ring,
                                           View<const std::uint8_t> bytes)
    : ring_(std::move(tensor_ring)) {
    const Ring& ring = ring_->ring();
    const PolynomialCodec codec(ring, 0);
    const PolynomialMessage message = read_polynomials(*ring_, codec, bytes);
    key_ = message.key;
    c0_.resize(message.count * ring.size());
    c1_.resize(message.count * ring.size());
    parallel_for(message.count, [&](std::size_t j) {
        const std::uint8_t* in = message.in + j * message.each(codec);
        std::uint64_t* c0 = c0_.data() + j * ring.size();
        std::uint64_t* c1 = c1_.data() + j * ring.size();
        codec.unpack(in, c0);
        ring.to_ntt(c0);
        if (message.seeded) {
            expand_uniform(ring, message.seed, static_cast<std::uint32_t>(j), c1);
        } else {
            codec.unpack(in + codec.bytes(), c1);
            ring.to_ntt(c1);
        }
    });
}

void EncryptedPolynomials::require_under(const TensorRing& tensor_ring, const Id& key) const {
    if (ring_->parameters().hash() != tensor_ring.parameters().hash() || key_ != key) {
        throw KeyMismatchError("tensors under different keys cannot be added");
    }
}

std::string add_to_polynomials(const TensorRing& tensor_ring, View<const std::uint8_t> bytes,
                               View<const std::int64_t> coefficients) {
    const Ring& ring = tensor_ring.ring();
    const PolynomialCodec codec(ring, 0);
    const PolynomialMessage message = read_polynomials(tensor_ring, codec, bytes);
    if (count_of(tensor_ring, coefficients) != message.count) {
        throw ParameterError("expected coefficients for each of " + std::to_string(message.count) + " polynomials");
    }
    std::string sum(bytes.begin(), bytes.end());
    auto* out = reinterpret_cast<std::uint8_t*>(sum.data()) + (message.in - bytes.data);
    Buffer<std::uint64_t> c0(ring.size()), scratch;
    for (std::size_t j = 0; j < message.count; ++j) {
        codec.unpack(message.in + j * message.each(codec), c0.data());
        add_message(ring, coefficients.data + j * ring.degree(), c0.data());
        codec.pack(c0.data(), out + j * message.each(codec), scratch);
    }
    seal_message({reinterpret_cast<std::uint8_t*>(sum.data()), sum.size()});
    return sum;
}

std::string sum_polynomials(const std::vector<const EncryptedPolynomials*>& terms) {
    if (terms.empty()) {
        throw ParameterError("expected polynomials to add up");
    }
    const EncryptedPolynomials& first = *terms.front();
    const TensorRing& tensor_ring = first.ring();
    for (const EncryptedPolynomials* term : terms) {
        term->require_under(tensor_ring, first.key());
        if (term->count() != first.count()) {
            throw ParameterError("expected as many polynomials of each tensor");
        }
    }
    const Ring& ring = tensor_ring.ring();
    const PolynomialCodec codec(ring, 0);
    WireWriter writer = polynomial_writer(tensor_ring, first.key(), Encryption::whole, first.count(), codec.bytes());
    std::uint8_t* out = writer.reserve(first.count() * 2 * codec.bytes());
    parallel_for(2 * first.count(), [&](std::size_t i) {
        const auto part = [i](const EncryptedPolynomials& term) {
            return i % 2 == 0 ? term.c0(i / 2) : term.c1(i / 2);
        };
        Buffer<std::uint64_t> sum(part(first), part(first) + ring.size()), scratch;
        for (std::size_t t = 1; t < terms.size(); ++t) {
            ring.add(sum.data(), part(*terms[t]));
        }
        ring.to_coefficients(sum.data());
        codec.pack(sum.data(), out + i * codec.bytes(), scratch);
    });
    return writer.finish();
}

void EncryptedPolynomials::decrypt(const SecretKey& key, double* out) const {
    ring_->require(key, key_);
    const Ring& ring = ring_->ring();
    const KeyBuffer<std::uint64_t> secret = secret_in_ring(key, ring);
    // Coefficients are below kMostSummands * kMostCoefficient = 2^65, and then there is noise. So that they fill the
    // modulus, they are multiplied by a power of two; then 62 bits say them to within 2^5.
    const int shift = static_cast<int>(std::floor(std::log2(ring.modulus_value()))) - 67, bits = 62;
    const double unit = ring.modulus_value() / std::ldexp(1.0, bits + shift);
    parallel_for(count(), [&](std::size_t j) {
        SecretBuffer<std::uint64_t> phase(ring.size()), switched(ring.degree());
        ring.multiply(c1(j), secret.data(), phase.data());
        ring.add(phase.data(), c0(j));
        ring.to_coefficients(phase.data());
        ring.multiply_power_of_two(phase.data(), shift);
        ring.switch_to_bits(phase.data(), bits, switched.data());
        for (std::size_t i = 0; i < ring.degree(); ++i) {
            const std::int64_t centred = static_cast<std::int64_t>(switched[i] << (64 - bits)) >> (64 - bits);
            out[j * ring.degree() + i] = static_cast<double>(centred) * unit;
        }
    });
}

namespace {

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
    ring.dot({first.data(), first.size()}, by, c0);
    ring.dot({second.data(), second.size()}, by, c1);
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

void decrypt_products(const TensorRing& tensor_ring, const SecretKey& key, View<const std::uint8_t> message,
                      double* out) {
    const std::size_t degree = tensor_ring.ring().degree();
    const ProductMessage products = read_products(tensor_ring, message);
    tensor_ring.require(key, products.key);
    const PhaseDecryptor decryptor(key, tensor_ring.auxiliary());
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
