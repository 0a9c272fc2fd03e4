#include "rlwe/galois.h"

#include <seal/modulus.h>
#include <seal/util/common.h>
#include <seal/util/uintarithsmallmod.h>

#include <cmath>

#include "base/error.h"
#include "base/parallel.h"
#include "rlwe/decryption.h"
#include "rlwe/encryption.h"
#include "wire/codec.h"

namespace hesplit {

namespace {

// For each digit a pair over the key ring, in NTT form; c1 is expanded from the seed.
void make_galois_key(const KeySwitching& switching, std::uint64_t element, const SecretKey& secret,
                     const EncryptionRandomness& randomness, std::uint32_t index, std::uint64_t* c0) {
    // s(x^element), the key to switch from.
    const Ring& key = switching.key;
    const std::size_t n = key.degree();
    SecretBuffer<std::int8_t> rotated(n);
    secret.use_coefficients([&](View<const std::int8_t> coefficients) {
        for (std::size_t i = 0; i < n; ++i) {
            const std::size_t exponent = (i * element) % (2 * n);
            const std::int8_t s = coefficients[i];
            rotated[exponent % n] = exponent < n ? s : static_cast<std::int8_t>(-s);
        }
    });
    SecretBuffer<std::uint64_t> rotated_ntt(key.size());
    key.lift(View<const std::int8_t>{rotated.data(), n}, rotated_ntt.data());
    key.to_ntt(rotated_ntt.data());

    const KeyBuffer<std::uint64_t> secret_ntt = secret_in_ring(secret, key);
    for (std::size_t digit = 0; digit < switching.digits; ++digit) {
        std::uint64_t* out = c0 + digit * key.size();
        encrypt_zero(key, secret_ntt, randomness, index + static_cast<std::uint32_t>(digit), out);
        key.to_ntt(out);
        // An encryption of special * s(x^element) in the rows of this digit, of zero in the others.
        for (std::size_t row = switching.first_row(digit); row < switching.first_row(digit + 1); ++row) {
            const seal::Modulus q(key.prime(row));
            const std::uint64_t factor = switching.special() % q.value();
            for (std::size_t i = row * n; i < (row + 1) * n; ++i) {
                out[i] = seal::util::add_uint_mod(out[i], seal::util::multiply_uint_mod(rotated_ntt[i], factor, q), q);
            }
        }
    }
}

GaloisKey load_galois_key(const KeySwitching& switching, std::uint64_t element, const Seed& seed, std::uint32_t index,
                          const Buffer<std::uint64_t>& c0) {
    // Position i of the NTT form holds the value at psi^e for e = 2 reversed(i) + 1; a polynomial after the
    // automorphism has there the value at psi^(element * e).
    const Ring& key = switching.key;
    const std::size_t n = key.degree();
    const int power = seal::util::get_power_of_two(n);
    GaloisKey made;
    made.permutation.resize(n);
    for (std::size_t i = 0; i < n; ++i) {
        const std::uint64_t exponent = (2 * seal::util::reverse_bits(i, power) + 1) * element % (2 * n);
        made.permutation[i] = static_cast<std::uint32_t>(seal::util::reverse_bits((exponent - 1) / 2, power));
    }
    made.c0.resize(c0.size());
    made.c1.resize(c0.size());
    Buffer<std::uint64_t> expanded(key.size());
    for (std::size_t digit = 0; digit < switching.digits; ++digit) {
        expand_uniform(key, seed, index + static_cast<std::uint32_t>(digit), expanded.data());
        for (std::size_t row = 0; row < key.prime_count(); ++row) {
            const std::size_t at = digit * key.size() + row * n;
            for (std::size_t i = 0; i < n; ++i) {
                made.c0[at + made.permutation[i]] = c0[at + i];
                made.c1[at + made.permutation[i]] = expanded[row * n + i];
            }
        }
    }
    return made;
}

}  // namespace

std::size_t galois_key_bytes(const KeySwitching& switching, std::size_t count) {
    return count == 0 ? 0 : sizeof(Seed) + count * switching.digits * PolynomialCodec(switching.key, 0).bytes();
}

void write_galois_keys(const KeySwitching& switching, const std::vector<std::uint64_t>& elements,
                       const SecretKey& secret, WireWriter& writer) {
    if (elements.empty()) {
        return;
    }
    const Ring& key = switching.key;
    const PolynomialCodec codec(key, 0);
    const std::size_t digits = switching.digits, key_bytes = digits * codec.bytes();
    const EncryptionRandomness randomness = EncryptionRandomness::fresh();
    writer.seed(randomness.seed);
    std::uint8_t* out = writer.reserve(elements.size() * key_bytes);
    parallel_for(elements.size(), [&](std::size_t k) {
        Buffer<std::uint64_t> c0(digits * key.size()), scratch;
        make_galois_key(switching, elements[k], secret, randomness, static_cast<std::uint32_t>(k * digits), c0.data());
        for (std::size_t digit = 0; digit < digits; ++digit) {
            codec.pack(c0.data() + digit * key.size(), out + k * key_bytes + digit * codec.bytes(), scratch);
        }
    });
}

std::vector<GaloisKey> read_galois_keys(const KeySwitching& switching, const std::vector<std::uint64_t>& elements,
                                        WireReader& reader) {
    std::vector<GaloisKey> keys;
    if (elements.empty()) {
        return keys;
    }
    const Ring& key = switching.key;
    const PolynomialCodec codec(key, 0);
    const std::size_t digits = switching.digits;
    const Seed seed = reader.seed();
    Buffer<std::uint64_t> c0(digits * key.size());
    for (std::size_t k = 0; k < elements.size(); ++k) {
        for (std::size_t digit = 0; digit < digits; ++digit) {
            codec.unpack(reader.raw(codec.bytes()).data, c0.data() + digit * key.size());
        }
        keys.push_back(load_galois_key(switching, elements[k], seed, static_cast<std::uint32_t>(k * digits), c0));
    }
    return keys;
}

std::vector<std::uint64_t> inverse_special(const KeySwitching& switching) {
    std::vector<std::uint64_t> inverses;
    for (std::size_t row = 0; row < switching.data_primes(); ++row) {
        const seal::Modulus modulus(switching.key.prime(row));
        std::uint64_t inverse = 0;
        if (!seal::util::try_invert_uint_mod(switching.special() % modulus.value(), modulus, inverse)) {
            throw ParameterError("the primes of the modulus must differ");
        }
        inverses.push_back(inverse);
    }
    return inverses;
}

void centre(const std::uint64_t* residues, std::uint64_t q, std::size_t n, std::int64_t* out) {
    for (std::size_t i = 0; i < n; ++i) {
        const std::uint64_t negative = std::uint64_t{0} - ((q / 2 - residues[i]) >> 63);
        out[i] = static_cast<std::int64_t>(residues[i] - (negative & q));
    }
}

void permute(const std::vector<std::uint32_t>& permutation, const std::uint64_t* in, std::uint64_t* out) {
    for (std::size_t i = 0; i < permutation.size(); ++i) {
        out[i] = in[permutation[i]];
    }
}

double switching_variance(const KeySwitching& switching) {
    const auto n = static_cast<double>(switching.key.degree());
    double variance = 0;
    for (std::size_t digit = 0; digit < switching.digits; ++digit) {
        double ratio = 1 / static_cast<double>(switching.special());
        const std::size_t begin = switching.first_row(digit), end = switching.first_row(digit + 1);
        for (std::size_t row = begin; row < end; ++row) {
            ratio *= static_cast<double>(switching.key.prime(row));
        }
        variance += static_cast<double>(end - begin) * n / 12 * kNoiseVariance * ratio * ratio;
    }
    return variance;
}

double switching_deviation(const KeySwitching& switching) {
    const double rounding = reply_rounding_deviation(switching.key.degree());
    return std::sqrt(switching_variance(switching) + rounding * rounding);
}

}  // namespace hesplit
