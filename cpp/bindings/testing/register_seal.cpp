// Our keys and ciphertexts as stock SEAL objects, serialised by SEAL, and back: so that anybody can check with
// Microsoft's library alone what we encrypt and compute. Ciphertexts and residues are [primes, coefficients].
#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <seal/seal.h>
#include <seal/util/ntt.h>

#include <algorithm>
#include <cstdint>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/testing/testing.h"

namespace py = pybind11;

namespace hesplit {

namespace {

using Residues = py::array_t<std::uint64_t, py::array::c_style>;
using Ternary = py::array_t<std::int8_t, py::array::c_style>;

template <class Object>
py::bytes saved(const Object& object) {
    std::ostringstream stream;
    object.save(stream, seal::compr_mode_type::none);
    return stream.str();
}

template <class Object>
Object loaded(const seal::SEALContext& context, const std::string& bytes) {
    std::istringstream stream(bytes);
    Object object;
    object.load(context, stream);
    return object;
}

// SEAL keeps the last prime of its parameters for keys that switch others, of which there are none here: it is one
// more than ours, and no ciphertext is modulo it. So SEAL is not asked about security, which is that of our primes.
py::bytes seal_parameters(std::size_t degree, const std::vector<std::uint64_t>& primes) {
    std::vector<seal::Modulus> moduli(primes.begin(), primes.end());
    for (const seal::Modulus& candidate : seal::CoeffModulus::Create(degree, {60, 60, 60})) {
        if (std::find(primes.begin(), primes.end(), candidate.value()) == primes.end()) {
            moduli.push_back(candidate);
            break;
        }
    }
    seal::EncryptionParameters parameters(seal::scheme_type::ckks);
    parameters.set_poly_modulus_degree(degree);
    parameters.set_coeff_modulus(moduli);
    return saved(parameters);
}

seal::SEALContext context_of(const std::string& bytes) {
    std::istringstream stream(bytes);
    seal::EncryptionParameters parameters;
    parameters.load(stream);
    return {parameters, true, seal::sec_level_type::none};
}

using Data = seal::SEALContext::ContextData;

void to_ntt(const Data& data, std::uint64_t* residues) {
    const std::size_t n = data.parms().poly_modulus_degree();
    for (std::size_t row = 0; row < data.parms().coeff_modulus().size(); ++row) {
        seal::util::ntt_negacyclic_harvey(seal::util::CoeffIter(residues + row * n), data.small_ntt_tables()[row]);
    }
}

void to_coefficients(const Data& data, std::uint64_t* residues) {
    const std::size_t n = data.parms().poly_modulus_degree();
    for (std::size_t row = 0; row < data.parms().coeff_modulus().size(); ++row) {
        seal::util::inverse_ntt_negacyclic_harvey(seal::util::CoeffIter(residues + row * n),
                                                  data.small_ntt_tables()[row]);
    }
}

Residues residues_of(const Data& data, const std::uint64_t* in) {
    const std::size_t n = data.parms().poly_modulus_degree(), rows = data.parms().coeff_modulus().size();
    Residues out({static_cast<py::ssize_t>(rows), static_cast<py::ssize_t>(n)});
    std::copy_n(in, rows * n, out.mutable_data());
    to_coefficients(data, out.mutable_data());
    return out;
}

py::bytes seal_secret_key(const std::string& parameters, const Ternary& coefficients) {
    const seal::SEALContext context = context_of(parameters);
    const auto data = context.key_context_data();
    const std::size_t n = data->parms().poly_modulus_degree();
    const auto& moduli = data->parms().coeff_modulus();
    seal::SecretKey key;
    key.data().resize(n * moduli.size());
    for (std::size_t row = 0; row < moduli.size(); ++row) {
        for (std::size_t i = 0; i < n; ++i) {
            const int value = coefficients.data()[i];
            key.data()[row * n + i] = value < 0 ? moduli[row].value() - 1 : static_cast<std::uint64_t>(value);
        }
    }
    to_ntt(*data, key.data().data());
    key.parms_id() = context.key_parms_id();
    return saved(key);
}

Ternary from_seal_secret_key(const std::string& parameters, const std::string& bytes) {
    const seal::SEALContext context = context_of(parameters);
    const auto data = context.key_context_data();
    const auto key = loaded<seal::SecretKey>(context, bytes);
    const std::size_t n = data->parms().poly_modulus_degree();
    const Residues residues = residues_of(*data, key.data().data());
    Ternary out(static_cast<py::ssize_t>(n));
    for (std::size_t i = 0; i < n; ++i) {
        const std::uint64_t value = residues.data()[i];
        out.mutable_data()[i] = value > 1 ? std::int8_t{-1} : static_cast<std::int8_t>(value);
    }
    return out;
}

py::bytes seal_ciphertext(const std::string& parameters, const Residues& c0, const Residues& c1, double scale) {
    const seal::SEALContext context = context_of(parameters);
    const auto data = context.first_context_data();
    seal::Ciphertext ciphertext(context, context.first_parms_id());
    ciphertext.resize(2);
    ciphertext.is_ntt_form() = true;
    ciphertext.scale() = scale;
    for (const auto& [part, residues] : {std::pair<std::size_t, const Residues&>{0, c0}, {1, c1}}) {
        std::copy_n(residues.data(), residues.size(), ciphertext.data(part));
        to_ntt(*data, ciphertext.data(part));
    }
    return saved(ciphertext);
}

std::pair<Residues, Residues> from_seal_ciphertext(const std::string& parameters, const std::string& bytes) {
    const seal::SEALContext context = context_of(parameters);
    const auto ciphertext = loaded<seal::Ciphertext>(context, bytes);
    const auto data = context.first_context_data();
    return {residues_of(*data, ciphertext.data(0)), residues_of(*data, ciphertext.data(1))};
}

Residues seal_decrypt(const std::string& parameters, const std::string& key, const std::string& bytes) {
    const seal::SEALContext context = context_of(parameters);
    seal::Decryptor decryptor(context, loaded<seal::SecretKey>(context, key));
    seal::Plaintext plain;
    decryptor.decrypt(loaded<seal::Ciphertext>(context, bytes), plain);
    return residues_of(*context.first_context_data(), plain.data());
}

py::bytes seal_encrypt(const std::string& parameters, const std::string& key, const Residues& message, double scale) {
    const seal::SEALContext context = context_of(parameters);
    seal::Plaintext plain(static_cast<std::size_t>(message.size()));
    std::copy_n(message.data(), message.size(), plain.data());
    to_ntt(*context.first_context_data(), plain.data());
    plain.parms_id() = context.first_parms_id();
    plain.scale() = scale;
    seal::Encryptor encryptor(context, loaded<seal::SecretKey>(context, key));
    seal::Ciphertext ciphertext;
    encryptor.encrypt_symmetric(plain, ciphertext);
    return saved(ciphertext);
}

}  // namespace

void register_seal(py::module_& module) {
    module.def("seal_parameters", &seal_parameters, py::arg("degree"), py::arg("primes"));
    module.def("seal_secret_key", &seal_secret_key, py::arg("parameters"), py::arg("coefficients"));
    module.def("from_seal_secret_key", &from_seal_secret_key, py::arg("parameters"), py::arg("key"));
    module.def("seal_ciphertext", &seal_ciphertext, py::arg("parameters"), py::arg("c0"), py::arg("c1"),
               py::arg("scale"));
    module.def("from_seal_ciphertext", &from_seal_ciphertext, py::arg("parameters"), py::arg("ciphertext"));
    module.def("seal_decrypt", &seal_decrypt, py::arg("parameters"), py::arg("key"), py::arg("ciphertext"));
    module.def("seal_encrypt", &seal_encrypt, py::arg("parameters"), py::arg("key"), py::arg("message"),
               py::arg("scale"));
}

}  // namespace hesplit
