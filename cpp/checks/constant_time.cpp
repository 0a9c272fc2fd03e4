// Is there a branch or an address that depends on a secret? Run under Valgrind, which is told that secrets are
// uninitialised memory and then reports every such use (Langley's ctgrind):
//
//   cmake -S . -B build -DHESPLIT_CHECKS=ON && cmake --build build --target constant_time
//   HESPLIT_CPU=avx2 valgrind build/cpp/constant_time
//
// Secret are the key's coefficients, the key of the noise, messages until they are encrypted, and a server's private
// weights with what it draws to hide them. Public are seeds, ciphertexts and lengths. That private weights are within
// the agreed norm is public too, so Valgrind's reports from check_weights and weight_norms are expected and not
// counted. Valgrind has no AVX-512, and runs on ARM for NEON: those variants are checked by reading.
#include <seal/modulus.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <valgrind/memcheck.h>

#include <cstdio>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "linear/blocks/layout.h"
#include "linear/blocks/weights.h"
#include "linear/client.h"
#include "linear/frozen/client.h"
#include "linear/frozen/server.h"
#include "linear/precision.h"
#include "linear/ranges.h"
#include "linear/server.h"
#include "linear/traces/client.h"
#include "rlwe/decryption.h"
#include "rlwe/encryption.h"
#include "rlwe/public_key.h"
#include "rlwe/secret_key.h"
#include "tensor/products.h"
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
void hide_coefficients(const SecretKey& key) {
    key.use_coefficients([](View<const std::int8_t> secret) { VALGRIND_MAKE_MEM_UNDEFINED(secret.data, secret.size); });
}

View<const std::uint8_t> view(const std::string& bytes) {
    return {reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size()};
}
View<const double> view(const std::vector<double>& values) {
    return {values.data(), values.size()};
}

// Whether what the operating system draws is hidden: true where nothing public is drawn, such as seeds.
bool random_is_secret = false;

// What `work` returns, whose random numbers are all secret.
template <class Work>
auto with_secret_randomness(const Work& work) {
    random_is_secret = true;
    auto made = work();
    random_is_secret = false;
    return made;
}

}  // namespace

// In place of the C library's, for the whole program.
extern "C" ssize_t getrandom(void* memory, std::size_t size, unsigned flags) {
    const ssize_t got = syscall(SYS_getrandom, memory, size, flags);
    if (random_is_secret && got > 0) {
        VALGRIND_MAKE_MEM_UNDEFINED(memory, static_cast<std::size_t>(got));
    }
    return got;
}

namespace {

// How many uses of secrets `work` makes.
template <class Work>
unsigned uses(const Work& work) {
    const unsigned before = VALGRIND_COUNT_ERRORS;
    work();
    return VALGRIND_COUNT_ERRORS - before;
}

void check_encryption(const SecretKey& key, const Ring& ring) {
    EncryptionRandomness randomness = EncryptionRandomness::fresh();
    hide(randomness.noise_key);
    const KeyBuffer<std::uint64_t> secret = secret_in_ring(key, ring);
    Buffer<std::int64_t> message(ring.degree(), 12345);
    hide(message);
    Buffer<std::uint64_t> c0(ring.size()), zero(ring.size()), mask(ring.size()), scratch;
    ring.lift(View<const std::int64_t>{message.data(), message.size()}, c0.data());
    encrypt_zero(ring, secret, randomness, 0, zero.data(), mask.data());
    ring.add(c0.data(), zero.data());
    const PolynomialCodec codec(ring, dropped_bits(ring));
    std::vector<std::uint8_t> bytes(codec.bytes());
    codec.pack(c0.data(), bytes.data(), scratch);
    reveal(bytes);
    if (ring.composable()) {
        encrypt_zero_integers(ring, secret_for_composition(key, ring), randomness, 1, zero.data());
        Buffer<std::uint64_t> integers(ring.degree(), 12345);
        hide(integers);
        ring.add_integers(integers.data(), zero.data());
        codec.pack_integers(integers.data(), bytes.data());
        reveal(bytes);
    }
}

void check_decryption(const SecretKey& key, const Ring& auxiliary, std::size_t count, int bits) {
    const std::size_t n = auxiliary.degree();
    const PhaseDecryptor decryptor(key, auxiliary);
    std::vector<std::uint64_t> c0(count), c1(n);
    std::vector<std::uint32_t> positions(count);
    std::iota(positions.begin(), positions.end(), 0U);
    for (std::size_t i = 0; i < n; ++i) {
        c1[i] = (i * 7919) & ((std::uint64_t{1} << bits) - 1);
    }
    std::vector<std::int64_t> out(count);
    decryptor.phase({c1.data(), n}, {c0.data(), count}, {positions.data(), count}, bits, out.data());
    reveal(out);
}

// A reply of a frozen layer, under secrets that its client drew itself: they are hidden once the request is made.
void check_frozen_decryption(Precision precision) {
    const std::shared_ptr<const FrozenAgreement> agreement = FrozenAgreement::of(20, precision, "");
    const std::vector<double> weight(60, 0.5), x(40, 1.0);
    const FrozenServer server(agreement, {weight.data(), weight.size()}, 3);
    FrozenClient client(agreement, 3, false);
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

// Tensors: encryption of a hidden message under either key, and decryption.
void check_tensors(const SecretKey& key) {
    const auto ring = std::make_shared<const TensorRing>(key.parameters());
    const std::size_t n = ring->ring().degree();
    std::string bytes = PublicKey::of(key)->bytes();
    reveal(bytes);
    const std::shared_ptr<const PublicKey> public_key = PublicKey::parse(view(bytes));
    std::vector<std::int64_t> message(n, 12345);
    hide(message);
    const View<const std::int64_t> values{message.data(), n};
    std::string seeded = encrypt_polynomials(*ring, key, values),
                whole = with_secret_randomness([&] { return encrypt_polynomials(*ring, *public_key, values); });
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
    decrypt_products(*ring, key, view(product));
    reveal(out);
}

ParameterChoice private_choice(const std::vector<int>& modulus_bits, std::size_t samples) {
    ParameterChoice choice;
    choice.ring_degree = 2048;
    choice.modulus_bits = modulus_bits;
    choice.scale = 0x1p40;
    choice.security = Security::paper;  // no secret is at stake
    choice.activation_bound = choice.activation_norm = 1;
    choice.error_bound = 0.1;
    choice.batch_size = samples;
    choice.private_bits = 20;
    choice.weight_norm = 2;
    return choice;
}

// A layer with private weights: its client's key, then the server's weights and all that it draws. Returns how often
// weights were used to find out whether they are within the agreed norm.
unsigned check_private(const std::vector<int>& modulus_bits, std::size_t features, std::size_t outputs,
                       std::size_t samples) {
    const ParameterChoice choice = private_choice(modulus_bits, samples);
    const std::shared_ptr<const SecretKey> key = SecretKey::generate(Parameters(choice));
    hide_coefficients(*key);
    LinearClient client(key, features, outputs);
    const std::string material = client.public_material();
    reveal(material);
    LinearServer server(view(material), samples);
    std::vector<double> weight(features * outputs, 0.125), bias(outputs, 0.25);
    server.set_weight(view(weight), view(bias));
    const std::vector<double> x(samples * features, 0.125);
    const auto request = [&] {
        std::string bytes = client.encrypt(x.data(), samples, true).bytes;
        reveal(bytes);
        return bytes;
    };

    // The client's share of logits, opened for the server and for use at the client.
    std::shared_ptr<const LinearServer::Share> share;
    double deviation = 0;
    const std::string opened = client.open_share(view(server.share(view(request()), share)), false, deviation);
    std::vector<std::uint64_t> own(samples * outputs);
    client.decrypt_share(WireReader(view(server.share(view(request()), share)), MessageType::share), own.data());
    reveal(opened);
    reveal(own);

    hide(weight);
    hide(bias);
    const Ring ring(choice.ring_degree, key->parameters().data_primes());
    const std::string first = request(), second = request();
    WireReader reader(view(first), MessageType::request);
    const BlockLayout layout = block_layout(ring, features, outputs, read_request_head(reader).shape);
    const auto norms = [&](std::size_t per_product) {
        const WeightNorms found = weight_norms(choice, view(weight), view(bias), features, per_product);
        scale_blocks(choice, ring, found, features, per_product, view(weight));
    };
    // Once when they are set, and once for the layout.
    const unsigned agreed = uses([&] {
        check_weights(view(weight), view(bias), features, outputs);
        norms(1);
        norms(layout.per_product());
    });
    server.set_weight(view(weight), view(bias));
    for (const std::string& bytes : {first, second}) {
        const std::string reply = with_secret_randomness([&] { return server.forward(view(bytes)); });
        reveal(reply);
    }
    std::printf("private weights: %zu x %zu -> %zu, %s\n", samples, features, outputs,
                prefers_strands(layout, ring.prime_count()) ? "as a matrix product"
                : outputs <= kMaxDirectOutputs              ? "as inner products"
                                                            : "by transforms");
    return 2 * agreed;  // here and at the server
}

// The same on slots, with the activations, too.
unsigned check_private_slots(std::size_t features, std::size_t outputs, std::size_t samples) {
    ParameterChoice choice = private_choice({40, 40, 40}, samples);
    choice.packing = Packing::slots;
    choice.scale = 0x1p52;
    const Parameters parameters(choice);
    const std::shared_ptr<const SecretKey> key = SecretKey::generate(parameters);
    hide_coefficients(*key);
    LinearClient client(key, features, outputs);
    const std::string material = client.public_material();
    reveal(material);
    LinearServer server(view(material), samples);
    std::vector<double> weight(features * outputs, 0.125), bias(outputs, 0.25);
    const std::vector<double> x(samples * features, 0.125);
    const std::string request = client.encrypt(x.data(), samples, true).bytes;
    reveal(request);
    // Encoding alone: whether activations are within the agreed ranges is public.
    const TraceClientPacking packing(parameters, features, outputs);
    Buffer<std::uint64_t> encoded(packing.ring().size());
    std::vector<double> secret_x = x;
    hide(secret_x);
    packing.encode(packing.shape_of(samples), secret_x.data(), samples, 0, encoded.data());

    hide(weight);
    hide(bias);
    const Ring ring(choice.ring_degree, parameters.data_primes());
    const TraceLayout layout = plan_traces(ring.degree() / 2, features, outputs, samples);
    const unsigned agreed = uses([&] {
        check_weights(view(weight), view(bias), features, outputs);
        scale_traces(choice, ring, weight_norms(choice, view(weight), view(bias), features, 1), layout);
    });
    server.set_weight(view(weight), view(bias));
    const std::string reply = with_secret_randomness([&] { return server.forward(view(request)); });
    reveal(reply);
    std::printf("private weights: %zu x %zu -> %zu, on slots\n", samples, features, outputs);
    return 2 * agreed;  // here and at the server
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
    hide_coefficients(*key);

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
    hide_coefficients(*tensor_key);
    check_tensors(*tensor_key);
    unsigned agreed = 0;
    for (const std::vector<int>& sizes : {std::vector<int>{40, 41}, {26, 27, 27}}) {
        agreed += check_private(sizes, 20, 3, 4) + check_private(sizes, 40, 30, 4) + check_private(sizes, 4, 30, 512);
    }
    agreed += check_private_slots(20, 3, 4) + check_private_slots(150, 9, 2);
    Buffer<std::uint8_t> stream_key(32);
    hide(stream_key);
    ChaCha20 stream(stream_key.data(), Domain::secret, 0, 0);
    Buffer<std::int8_t> ternary(2048);
    sample_ternary(stream, ternary.data(), ternary.size());
    const auto found = VALGRIND_COUNT_ERRORS - planted - agreed;
    std::printf("%s kernels: %u uses of secrets in branches and addresses\n", kernels().name,
                static_cast<unsigned>(found));
    return found != 0;
}
