#include "core/slot_ring.h"

#include <seal/encryptionparams.h>
#include <seal/modulus.h>
#include <seal/util/galois.h>
#include <seal/util/uintarithsmallmod.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "core/error.h"

namespace hesplit {

namespace {

seal::SEALContext make_context(const Parameters& parameters) {
    seal::EncryptionParameters seal_parameters(seal::scheme_type::ckks);
    seal_parameters.set_poly_modulus_degree(parameters.ring_degree());
    std::vector<seal::Modulus> moduli;
    for (const std::uint64_t prime : parameters.primes()) {
        moduli.emplace_back(prime);
    }
    seal_parameters.set_coeff_modulus(moduli);
    // Security is checked by Parameters, whose limits are stricter than SEAL's.
    seal::SEALContext context(seal_parameters, true, seal::sec_level_type::none);
    if (!context.parameters_set()) {
        throw ParameterError(std::string("SEAL refuses the parameters: ") + context.parameter_error_message());
    }
    return context;
}

}  // namespace

SlotRing::SlotRing(const Parameters& parameters)
    : context_(make_context(parameters)),
      encoder_(context_),
      evaluator_(context_),
      data_(parameters.ring_degree(), parameters.data_primes()),
      key_(parameters.ring_degree(), parameters.primes()) {}

void SlotRing::encode(const std::vector<double>& values, double scale, std::uint64_t* coefficients) const {
    encode_ntt(values, scale, coefficients);
    data_.to_coefficients(coefficients);
}

void SlotRing::encode_ntt(const std::vector<double>& values, double scale, std::uint64_t* poly) const {
    seal::Plaintext plain(seal::MemoryPoolHandle::Global());
    // Doubles have no more bits than that; SEAL's path for larger coefficients is several times slower.
    const int shift = std::max(0, static_cast<int>(std::ceil(std::log2(scale))) - kEncodedBits);
    try {
        encoder_.encode(values, context_.first_parms_id(), std::ldexp(scale, -shift), plain,
                        seal::MemoryPoolHandle::Global());
    } catch (const std::exception&) {
        throw RangeError("values do not fit the modulus at scale 2^" + std::to_string(std::log2(scale)));
    }
    std::copy_n(plain.data(), data_.size(), poly);
    if (shift > 0) {
        data_.multiply_power_of_two(poly, shift);
    }
}

std::vector<double> SlotRing::decode(View<const std::int64_t> coefficients, int bits, double scale) const {
    // The lowest level whose modulus holds the coefficients: fewer primes, less work.
    auto level = context_.first_context_data();
    while (level->next_context_data() && level->next_context_data()->total_coeff_modulus_bit_count() > bits + 1) {
        level = level->next_context_data();
    }
    std::vector<std::uint64_t> primes;
    for (const seal::Modulus& modulus : level->parms().coeff_modulus()) {
        primes.push_back(modulus.value());
    }
    seal::Plaintext plain(data_.degree() * primes.size(), seal::MemoryPoolHandle::Global());
    for (std::size_t row = 0; row < primes.size(); ++row) {
        std::uint64_t* out = plain.data() + row * data_.degree();
        for (std::size_t i = 0; i < data_.degree(); ++i) {
            out[i] = data_.residue(coefficients[i], row);
        }
        data_.to_ntt_row(out, row);
    }
    plain.parms_id() = level->parms_id();
    plain.scale() = scale;
    std::vector<double> values;
    encoder_.decode(plain, values, seal::MemoryPoolHandle::Global());
    secure_zero(plain.data(), plain.coeff_count() * sizeof(std::uint64_t));
    return values;
}

std::uint32_t SlotRing::galois_element(int step) const {
    return context_.key_context_data()->galois_tool()->get_elt_from_step(step);
}

void SlotRing::make_rotation_key(const SecretKey& secret, int step, const EncryptionRandomness& randomness,
                                 std::uint32_t index, std::uint64_t* c0) const {
    // s(x^element), the key to switch from.
    const std::size_t n = key_.degree();
    const std::uint32_t element = galois_element(step);
    SecretBuffer<std::int8_t> rotated(n);
    for (std::size_t i = 0; i < n; ++i) {
        const std::size_t exponent = (i * element) % (2 * n);
        const std::int8_t s = secret.coefficients()[i];
        rotated[exponent % n] = exponent < n ? s : static_cast<std::int8_t>(-s);
    }
    SecretBuffer<std::uint64_t> rotated_ntt(key_.size());
    key_.lift(View<const std::int8_t>{rotated.data(), n}, rotated_ntt.data());
    key_.to_ntt(rotated_ntt.data());

    const SecretBuffer<std::uint64_t> secret_ntt = secret_in_ring(secret, key_);
    const std::vector<std::uint64_t> zero(key_.size(), 0);
    Buffer<std::uint64_t> scratch;
    const std::uint64_t special = key_.prime(key_.rows() - 1);
    for (std::size_t digit = 0; digit < data_.rows(); ++digit) {
        std::uint64_t* out = c0 + digit * key_.size();
        encrypt(key_, secret_ntt, randomness, index + static_cast<std::uint32_t>(digit), zero.data(), out, scratch);
        key_.to_ntt(out);
        // An encryption of special * s(x^element) in the row of this digit, of zero in the others.
        const seal::Modulus& q = key_.modulus(digit);
        const std::uint64_t factor = special % q.value();
        for (std::size_t i = digit * n; i < (digit + 1) * n; ++i) {
            out[i] = seal::util::add_uint_mod(out[i], seal::util::multiply_uint_mod(rotated_ntt[i], factor, q), q);
        }
    }
}

void SlotRing::load_rotation_key(int step, const Seed& seed, std::uint32_t index, const std::uint64_t* c0,
                                 seal::GaloisKeys& keys) const {
    const std::size_t slot = seal::GaloisKeys::get_index(galois_element(step));
    keys.parms_id() = context_.key_parms_id();
    if (keys.data().size() <= slot) {
        keys.data().resize(data_.degree());
    }
    std::vector<seal::PublicKey>& digits = keys.data()[slot];
    digits.clear();
    for (std::size_t digit = 0; digit < data_.rows(); ++digit) {
        seal::PublicKey part;
        part.data().resize(context_, context_.key_parms_id(), 2);
        part.data().is_ntt_form() = true;
        part.data().scale() = 1.0;
        std::copy_n(c0 + digit * key_.size(), key_.size(), part.data().data(0));
        expand_uniform(key_, seed, index + static_cast<std::uint32_t>(digit), part.data().data(1));
        digits.push_back(std::move(part));
    }
}

seal::Ciphertext SlotRing::zero_ciphertext() const {
    seal::Ciphertext ciphertext(seal::MemoryPoolHandle::Global());
    ciphertext.resize(context_, context_.first_parms_id(), 2);
    ciphertext.is_ntt_form() = true;
    ciphertext.scale() = 1.0;
    std::fill_n(ciphertext.data(0), 2 * data_.size(), 0);
    return ciphertext;
}

void SlotRing::rotate(const seal::Ciphertext& in, int step, const seal::GaloisKeys& keys, seal::Ciphertext& out) const {
    if (step == 0 || in.is_transparent()) {
        // A transparent ciphertext (c1 = 0) comes only from all-zero weights here, and then c0 is zero too.
        out = in;
        return;
    }
    evaluator_.rotate_vector(in, step, keys, out, seal::MemoryPoolHandle::Global());
}

double SlotRing::rotation_deviation() const {
    const auto n = static_cast<double>(data_.degree());
    const auto special = static_cast<double>(key_.prime(key_.rows() - 1));
    double variance = 0;
    for (std::size_t row = 0; row < data_.rows(); ++row) {
        const double ratio = static_cast<double>(data_.prime(row)) / special;
        variance += n / 12 * kNoiseVariance * ratio * ratio;
    }
    const double rounding = reply_rounding_deviation(data_.degree());
    return std::sqrt(variance + rounding * rounding);
}

}  // namespace hesplit
