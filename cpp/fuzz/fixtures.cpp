#include "fixtures.h"

namespace hesplit::fuzz {

namespace {

// Far below 128 bits, as fuzzing needs no secrets: rings this small are an order of magnitude faster.
ParameterChoice choice(std::vector<int> modulus_bits, int scale_bits, double error_bound) {
    ParameterChoice choice;
    choice.ring_degree = 1024;
    choice.modulus_bits = std::move(modulus_bits);
    choice.scale = static_cast<double>(std::uint64_t{1} << scale_bits);
    choice.security = Security::paper;
    choice.activation_bound = 4;
    choice.activation_norm = 8;
    choice.error_bound = error_bound;
    choice.batch_size = 4;
    return choice;
}

// Numbers in [-1, 1], the same in every process.
std::vector<double> numbers(std::size_t count) {
    std::vector<double> values(count);
    for (std::size_t i = 0; i < count; ++i) {
        values[i] = static_cast<double>(i * 7 % 17) / 8 - 1;
    }
    return values;
}

}  // namespace

Linear::Linear(const ParameterChoice& choice, std::size_t features, std::size_t outputs)
    : client(SecretKey::generate(Parameters(choice)), features, outputs,
             choice.releases != 0 && choice.private_bits == 0, true),
      material(client.public_material()),
      server(view(material), 16),
      samples(choice.batch_size),
      hash(server.parameters().hash()) {
    std::vector<double> weight = numbers(features * outputs);
    for (double& value : weight) {
        value /= 4;
    }
    const std::vector<double> bias = numbers(outputs);
    server.set_weight({weight.data(), weight.size()}, {bias.data(), bias.size()});
}

std::vector<double> Linear::activations() const {
    return numbers(samples * client.features());
}
const std::string& Linear::waiting() {
    if (waiting_.empty()) {
        waiting_ = request();
    }
    return waiting_;
}
std::vector<double> Linear::gradient() const {
    std::vector<double> mean = numbers(samples * client.outputs());
    for (double& value : mean) {
        value /= static_cast<double>(samples);
    }
    return mean;
}
std::vector<double> Linear::shown_gradient() const {
    return hides_weights() ? std::vector<double>() : gradient();
}
bool Linear::hides_weights() const {
    return server.parameters().choice().private_bits != 0;
}
std::string Linear::request() {
    return client.encrypt(activations().data(), samples, false).bytes;
}

const std::vector<std::unique_ptr<Linear>>& linears() {
    static const std::vector<std::unique_ptr<Linear>> layers = [] {
        std::vector<std::unique_ptr<Linear>> made;
        made.push_back(std::make_unique<Linear>(choice({26}, 10, 1), 20, 3));
        made.push_back(std::make_unique<Linear>(choice({30, 30, 30}, 20, 0.1), 20, 3));
        ParameterChoice flooded = choice({40, 40}, 30, 0.1);
        flooded.releases = 1;
        made.push_back(std::make_unique<Linear>(flooded, 20, 3));
        ParameterChoice slots = choice({30, 30}, 10, 20);
        slots.packing = Packing::slots;
        slots.batch_size = 2;
        made.push_back(std::make_unique<Linear>(slots, 8, 2));
        ParameterChoice merged = choice({28, 28, 30}, 15, 20);
        merged.packing = Packing::merged;
        merged.batch_size = 2;
        made.push_back(std::make_unique<Linear>(merged, 20, 300));
        ParameterChoice hidden = choice({40, 40}, 40, 0.1);
        hidden.private_bits = 20;
        hidden.weight_norm = 2;
        made.push_back(std::make_unique<Linear>(hidden, 20, 3));
        hidden.releases = 1 << 24;  // all under one key: more than a campaign makes
        made.push_back(std::make_unique<Linear>(hidden, 20, 3));
        return made;
    }();
    return layers;
}

std::vector<Linear*> private_linears() {
    std::vector<Linear*> found;
    for (const std::unique_ptr<Linear>& layer : linears()) {
        if (layer->hides_weights()) {
            found.push_back(layer.get());
        }
    }
    return found;
}

Sealed::Sealed(const std::shared_ptr<const SecretKey>& secret_key, std::size_t features, std::size_t outputs)
    : client(secret_key, features, outputs, 4),
      weight(client.seal({numbers(features * outputs).data(), features * outputs}, {numbers(outputs).data(), outputs})),
      server(view(weight), 16),
      key(secret_key->id()),
      samples(secret_key->parameters().choice().batch_size),
      hash(secret_key->parameters().hash()) {}

std::string Sealed::request() {
    const std::vector<double> x = numbers(samples * client.features());
    return client.encrypt({x.data(), x.size()});
}

std::string Sealed::update() {
    const std::vector<double> gradient = numbers(samples * client.outputs());
    const std::vector<double> w = numbers(client.features() * client.outputs()), b = numbers(client.outputs());
    return client.update({gradient.data(), gradient.size()}, {w.data(), w.size()}, {b.data(), b.size()});
}

const std::vector<std::unique_ptr<Sealed>>& sealed_layers() {
    static const std::vector<std::unique_ptr<Sealed>> layers = [] {
        std::vector<std::unique_ptr<Sealed>> made;
        // Weights that stay, so that replies fit later requests; and some that come with every update.
        const std::vector<std::pair<std::vector<int>, std::uint32_t>> kinds{
            {{50}, 1U << 15}, {{30, 30}, 1U << 15}, {{50}, 1}};
        for (const auto& [bits, updates] : kinds) {
            ParameterChoice sealed = choice(bits, 20, 10);
            sealed.updates = updates;
            made.push_back(std::make_unique<Sealed>(SecretKey::generate(Parameters(sealed)), 20, 3));
        }
        return made;
    }();
    return layers;
}

Frozen::Frozen(Precision precision)
    : agreement(FrozenAgreement::of(20, precision, "")),
      client(agreement, 3, true),
      server(agreement, {numbers(60).data(), 60}, 3),
      hash(agreement->parameters().hash()) {}

std::string Frozen::request(FrozenSecret& secret) {
    return client.encrypt(numbers(2 * client.inputs()).data(), 2, secret);
}

const std::vector<std::unique_ptr<Frozen>>& frozen_layers() {
    static const std::vector<std::unique_ptr<Frozen>> layers = [] {
        std::vector<std::unique_ptr<Frozen>> made;
        made.push_back(std::make_unique<Frozen>(Precision::single));
        made.push_back(std::make_unique<Frozen>(Precision::half));
        return made;
    }();
    return layers;
}

Tensors::Tensors() {
    const Parameters parameters(choice({40, 40}, 20, 1));
    ring = std::make_shared<const TensorRing>(parameters);
    key = SecretKey::generate(parameters);
    public_key = PublicKey::of(*key);
    coefficients.resize(2 * parameters.ring_degree());
    for (std::size_t i = 0; i < coefficients.size(); ++i) {
        coefficients[i] = static_cast<std::int64_t>(i) * 1000003;
    }
    const View<const std::int64_t> values{coefficients.data(), coefficients.size()};
    messages = {encrypt_polynomials(*ring, *key, values), encrypt_polynomials(*ring, *public_key, values)};
}

std::string Tensors::multiplied(const EncryptedPolynomials& polynomials) const {
    const std::size_t n = ring->ring().degree();
    std::vector<std::int64_t> weights(polynomials.count() * n);
    for (std::size_t j = 0; j < polynomials.count(); ++j) {
        weights[j * n] = 12345;
    }
    const std::vector<std::uint32_t> positions{0, 1, 5, static_cast<std::uint32_t>(n - 1)};
    const std::vector<double> constants{0, 1e6, -1e6, 0.0};
    return multiply_polynomials(*ring, {{&polynomials, {weights.data(), weights.size()}}},
                                {{{positions.data(), positions.size()}, {constants.data(), constants.size()}}}, 40, 1);
}

const Tensors& tensors() {
    static const Tensors made;
    return made;
}

}  // namespace hesplit::fuzz
