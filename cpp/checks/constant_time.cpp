// Is there a branch or an address that depends on a secret? Run under Valgrind, which is told that secrets are
// uninitialised memory and then reports every such use (Langley's ctgrind):
//
//   cmake -S . -B build -DHESPLIT_CHECKS=ON && cmake --build build --target constant_time
//   HESPLIT_CPU=avx2 valgrind build/cpp/constant_time
//
// Secret are the key's coefficients, the key of the noise, and messages until they are encrypted. Public are seeds,
// ciphertexts and lengths. Valgrind has no AVX-512: that variant is checked by reading.
#include <seal/modulus.h>
#include <valgrind/memcheck.h>

#include <cstdio>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "linear/frozen/client.h"
#include "linear/frozen/server.h"
#include "linear/precision.h"
#include "rlwe/decryption.h"
#include "rlwe/encryption.h"
#include "rlwe/public_key.h"
#include "rlwe/secret_key.h"
#include "tensor/polynomials.h"
#include "wire/codec.h"

using namespace hesplit;

namespace {

template <class Container>
void hide(const Container& values) {
    VALGRIND_MAKE_MEM_UNDEFINED(values.data(), values.size() * sizeof(values[0]));
}
template <class Container>
void reveal(const Container& values) {
    VALGRIND_MAKE_MEM_DEFINED(values.data(), values.size() * sizeof(values[0]));
}

void check_encryption(const SecretKey& key, const Ring& ring) {
    EncryptionRandomness randomness = EncryptionRandomness::fresh();
    hide(randomness.noise_key);
    const KeyBuffer<std::uint64_t> secret = secret_in_ring(key, ring);
    Buffer<std::int64_t> message(ring.degree(), 12345);
    hide(message);
    Buffer<std::uint64_t> c0(ring.size()), zero(ring.size()), scratch;
    ring.lift(View<const std::int64_t>{message.data(), message.size()}, c0.data());
    encrypt_zero(ring, secret, randomness, 0, zero.data());
    ring.add(c0.data(), zero.data());
    const PolynomialCodec codec(ring, dropped_bits(ring));
    std::vector<std::uint8_t> bytes(codec.bytes());
    codec.pack(c0.data(), bytes.data(), scratch);
    reveal(bytes);
}

void check_decryption(const SecretKey& key, const Ring& auxiliary, std::size_t count, int bits) {
    const std::size_t n = auxiliary.degree();
    const PhaseDecryptor decryptor(key, auxiliary);
    std::vector<std::uint64_t> c0(count), c1(n), c2(n);
    std::vector<std::uint32_t> positions(count);
    std::iota(positions.begin(), positions.end(), 0U);
    for (std::size_t i = 0; i < n; ++i) {
        c1[i] = (i * 7919) & ((std::uint64_t{1} << bits) - 1);
        c2[i] = (i * 104729) & ((std::uint64_t{1} << bits) - 1);
    }
    std::vector<std::int64_t> out(count);
    const View<const std::uint64_t> v0{c0.data(), count}, v1{c1.data(), n}, v2{c2.data(), n};
    decryptor.phase(v1, v0, {positions.data(), count}, bits, out.data());
    if (bits <= max_degree_2_bits(n)) {
        decryptor.phase(v1, v2, v0, {positions.data(), count}, bits, out.data());
    }
    reveal(out);
}

// A reply of a frozen layer, under secrets that its client drew itself: they are hidden once the request is made.
void check_frozen_decryption(Precision precision) {
    const std::shared_ptr<const FrozenAgreement> agreement = FrozenAgreement::of(20, precision, "");
    const std::vector<double> weight(60, 0.5), x(40, 1.0);
    const FrozenServer server(agreement, {weight.data(), weight.size()}, 3);
    FrozenClient client(agreement, 3, false);
    const auto view = [](const std::string& bytes) {
        return View<const std::uint8_t>{reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size()};
    };
    client.load_hint(view(server.hint()));
    FrozenSecret secret;
    const std::string reply = server.multiply(view(client.encrypt(x.data(), 2, secret)));
    for (const KeyBuffer<std::int8_t>& ternary : secret.secrets) {
        hide(ternary);
    }
    std::vector<double> y(6);
    client.decrypt(view(reply), secret, y.data());
    reveal(y);
}

// Tensors: encryption of a hidden message under either key, and decryption. The public key's own randomness is drawn
// inside, so what is watched there is the message.
void check_tensors(const SecretKey& key) {
    const auto ring = std::make_shared<const TensorRing>(key.parameters());
    const std::size_t n = ring->ring().degree();
    std::string bytes = PublicKey::of(key)->bytes();
    reveal(bytes);
    const auto view = [](const std::string& text) {
        return View<const std::uint8_t>{reinterpret_cast<const std::uint8_t*>(text.data()), text.size()};
    };
    const std::shared_ptr<const PublicKey> public_key = PublicKey::parse(view(bytes));
    std::vector<std::int64_t> message(n, 12345);
    hide(message);
    const View<const std::int64_t> values{message.data(), n};
    std::string seeded = encrypt_polynomials(*ring, key, values),
                whole = encrypt_polynomials(*ring, *public_key, values);
    for (std::string* text : {&seeded, &whole}) {
        reveal(*text);
        const EncryptedPolynomials polynomials(ring, view(*text));
        std::vector<double> out(n);
        polynomials.decrypt(key, out.data());
        reveal(out);
    }
    std::vector<std::int64_t> weights(n);
    weights[0] = 3;
    std::vector<std::uint32_t> positions(200);
    std::iota(positions.begin(), positions.end(), 0U);
    const std::vector<double> constants(positions.size(), 0.0);
    const EncryptedPolynomials polynomials(ring, view(seeded));
    const std::string product =
        multiply_polynomials(*ring, {{&polynomials, {weights.data(), n}}},
                             {{{positions.data(), positions.size()}, {constants.data(), constants.size()}}}, 50, 1);
    std::vector<double> out(positions.size());
    decrypt_products(*ring, key, view(product), out.data());
    reveal(out);
}

// A branch on a secret, which must be reported: else nothing that follows means anything.
bool valgrind_sees_a_branch() {
    const auto before = VALGRIND_COUNT_ERRORS;
    std::vector<std::uint8_t> secret(1, 7);
    hide(secret);
    volatile int branches = 0;
    if (secret[0] > 5) {
        branches = 1;
    }
    return branches == 1 && VALGRIND_COUNT_ERRORS > before;
}

}  // namespace

int main() {
    if (!valgrind_sees_a_branch()) {
        std::puts("run this under valgrind");
        return 2;
    }
    const auto planted = VALGRIND_COUNT_ERRORS;
    ParameterChoice choice;
    choice.ring_degree = 2048;
    choice.modulus_bits = {26, 27};
    choice.scale = 1 << 20;
    choice.activation_bound = choice.activation_norm = choice.error_bound = 1;
    const std::shared_ptr<const SecretKey> key = SecretKey::generate(Parameters(choice));
    key->use_coefficients(
        [](View<const std::int8_t> secret) { VALGRIND_MAKE_MEM_UNDEFINED(secret.data, secret.size); });

    for (const std::vector<int>& sizes : {std::vector<int>{26, 27}, {50}, {40, 41}, {60}}) {
        std::vector<std::uint64_t> primes;
        for (const seal::Modulus& modulus : seal::CoeffModulus::Create(2048, sizes)) {
            primes.push_back(modulus.value());
        }
        check_encryption(*key, Ring(2048, primes));
    }
    const Ring auxiliary = auxiliary_ring(2048);
    for (const std::size_t count : {std::size_t{8}, std::size_t{200}}) {
        for (const int bits : {28, 36, 55}) {
            check_decryption(*key, auxiliary, count, bits);
        }
    }
    check_frozen_decryption(Precision::single);
    check_frozen_decryption(Precision::half);
    choice.ring_degree = 4096;
    choice.modulus_bits = {45, 45};
    const std::shared_ptr<const SecretKey> tensor_key = SecretKey::generate(Parameters(choice));
    tensor_key->use_coefficients(
        [](View<const std::int8_t> secret) { VALGRIND_MAKE_MEM_UNDEFINED(secret.data, secret.size); });
    check_tensors(*tensor_key);
    Buffer<std::uint8_t> stream_key(32);
    hide(stream_key);
    ChaCha20 stream(stream_key.data(), Domain::secret, 0, 0);
    Buffer<std::int8_t> ternary(2048);
    sample_ternary(stream, ternary.data(), ternary.size());
    const auto found = VALGRIND_COUNT_ERRORS - planted;
    std::printf("%s kernels: %u uses of secrets in branches and addresses\n", kernels().name,
                static_cast<unsigned>(found));
    return found != 0;
}
