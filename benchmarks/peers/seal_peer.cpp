// The encrypted linear layer on coefficient blocks, the same algorithm as ours, from SEAL's own primitives: its
// symmetric encryption (Blake2, 53-bit prime), transforms, plain multiplication and serialisation. For comparison only.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <seal/seal.h>
#include <seal/util/polyarithsmallmod.h>

#include <cmath>
#include <sstream>
#include <vector>

namespace py = pybind11;

namespace {

using Matrix = py::array_t<double, py::array::c_style | py::array::forcecast>;

seal::EncryptionParameters make_parameters(std::size_t degree, int bits) {
    seal::EncryptionParameters parameters(seal::scheme_type::ckks);
    parameters.set_poly_modulus_degree(degree);
    parameters.set_coeff_modulus(seal::CoeffModulus::Create(degree, {bits}));
    return parameters;
}

class SealLayer {
  public:
    SealLayer(std::size_t degree, int bits, std::size_t rows, std::size_t features, std::size_t outputs, double scale_x,
              double scale_w)
        : context_(make_parameters(degree, bits), true, seal::sec_level_type::none),
          keygen_(context_),
          encryptor_(context_, keygen_.secret_key()),
          decryptor_(context_, keygen_.secret_key()),
          evaluator_(context_),
          n_(degree),
          rows_(rows),
          features_(features),
          outputs_(outputs),
          per_product_(std::min(outputs, degree / (rows * features))),
          scale_x_(scale_x),
          scale_w_(scale_w) {
        if (rows * features > degree) {
            throw std::invalid_argument("rows * features must fit the ring degree");
        }
    }

    // One ciphertext of all samples, c1 as a seed.
    py::bytes encrypt(const Matrix& x) const {
        std::vector<std::int64_t> coefficients(n_, 0);
        for (std::size_t i = 0; i < rows_ * features_; ++i) {
            coefficients[i] = std::llrint(x.data()[i] * scale_x_);
        }
        std::stringstream stream;
        encryptor_.encrypt_symmetric(encode(coefficients, scale_x_)).save(stream, seal::compr_mode_type::none);
        return {stream.str()};
    }

    void set_weight(const Matrix& weight, const Matrix& bias) {
        weights_.clear();
        bias_.assign(bias.data(), bias.data() + outputs_);
        for (std::size_t p = 0; p * per_product_ < outputs_; ++p) {
            std::vector<std::int64_t> coefficients(n_, 0);
            for (std::size_t u = 0; u < per_product_ && p * per_product_ + u < outputs_; ++u) {
                for (std::size_t i = 0; i < features_; ++i) {
                    const auto value = std::llrint(weight.data()[(p * per_product_ + u) * features_ + i] * scale_w_);
                    const std::size_t origin = u * rows_ * features_;
                    if (i <= origin) {
                        coefficients[origin - i] = value;
                    } else {
                        coefficients[n_ + origin - i] = -value;
                    }
                }
            }
            weights_.push_back(encode(coefficients, scale_w_));
        }
    }

    // Products in coefficient form; SEAL's format has no shorter one for a single prime.
    py::bytes forward(const std::string& request) const {
        std::stringstream in(request), out;
        seal::Ciphertext input;
        input.load(context_, in);
        for (const seal::Plaintext& weight : weights_) {
            seal::Ciphertext product = input;
            for (std::size_t part = 0; part < 2; ++part) {
                seal::util::dyadic_product_coeffmod(product.data(part), weight.data(), n_, modulus(),
                                                    product.data(part));
                seal::util::inverse_ntt_negacyclic_harvey(seal::util::CoeffIter(product.data(part)), tables());
            }
            product.is_ntt_form() = false;
            product.save(out, seal::compr_mode_type::none);
        }
        return {out.str()};
    }

    Matrix decrypt(const std::string& reply) const {
        std::stringstream in(reply);
        Matrix y({static_cast<py::ssize_t>(rows_), static_cast<py::ssize_t>(outputs_)});
        const std::uint64_t q = modulus().value();
        for (std::size_t p = 0; p * per_product_ < outputs_; ++p) {
            seal::Ciphertext product;
            product.load(context_, in);
            for (std::size_t part = 0; part < 2; ++part) {
                seal::util::ntt_negacyclic_harvey(seal::util::CoeffIter(product.data(part)), tables());
            }
            product.is_ntt_form() = true;
            seal::Plaintext plain;
            decryptor_.decrypt(product, plain);
            seal::util::inverse_ntt_negacyclic_harvey(seal::util::CoeffIter(plain.data()), tables());
            for (std::size_t u = 0; u < per_product_ && p * per_product_ + u < outputs_; ++u) {
                for (std::size_t s = 0; s < rows_; ++s) {
                    const std::uint64_t v = plain.data()[(u * rows_ + s) * features_];
                    const double value = v > q / 2 ? -static_cast<double>(q - v) : static_cast<double>(v);
                    const std::size_t o = p * per_product_ + u;
                    y.mutable_data()[s * outputs_ + o] = value / (scale_x_ * scale_w_) + bias_[o];
                }
            }
        }
        return y;
    }

  private:
    const seal::Modulus& modulus() const { return context_.first_context_data()->parms().coeff_modulus()[0]; }
    const seal::util::NTTTables& tables() const { return context_.first_context_data()->small_ntt_tables()[0]; }

    seal::Plaintext encode(const std::vector<std::int64_t>& coefficients, double scale) const {
        seal::Plaintext plain(n_);
        const std::uint64_t q = modulus().value();
        for (std::size_t i = 0; i < n_; ++i) {
            const std::int64_t c = coefficients[i];
            plain[i] = c < 0 ? q - static_cast<std::uint64_t>(-c) : static_cast<std::uint64_t>(c);
        }
        seal::util::ntt_negacyclic_harvey(seal::util::CoeffIter(plain.data()), tables());
        plain.parms_id() = context_.first_parms_id();
        plain.scale() = scale;
        return plain;
    }

    seal::SEALContext context_;
    seal::KeyGenerator keygen_;
    seal::Encryptor encryptor_;
    mutable seal::Decryptor decryptor_;
    seal::Evaluator evaluator_;
    std::size_t n_, rows_, features_, outputs_, per_product_;
    double scale_x_, scale_w_;
    std::vector<seal::Plaintext> weights_;
    std::vector<double> bias_;
};

}  // namespace

PYBIND11_MODULE(_seal_peer, module) {
    py::class_<SealLayer>(module, "SealLayer")
        .def(py::init<std::size_t, int, std::size_t, std::size_t, std::size_t, double, double>(), py::arg("degree"),
             py::arg("bits"), py::arg("rows"), py::arg("features"), py::arg("outputs"), py::arg("scale_x"),
             py::arg("scale_w"))
        .def("encrypt", &SealLayer::encrypt)
        .def("set_weight", &SealLayer::set_weight)
        .def("forward", &SealLayer::forward)
        .def("decrypt", &SealLayer::decrypt);
}
