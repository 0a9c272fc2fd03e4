#include <pybind11/stl.h>

#include <memory>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "tensor/products.h"

namespace py = pybind11;

namespace hesplit {

namespace {

template <class T>
View<const T> run(const Matrix<T>& values) {
    return {values.data(), static_cast<std::size_t>(values.size())};
}

// None is an element of any list.
const EncryptedPolynomials* there(const std::shared_ptr<EncryptedPolynomials>& polynomials) {
    if (!polynomials) {
        throw ParameterError("expected encrypted polynomials, not None");
    }
    return polynomials.get();
}

template <class Key>
py::bytes encrypt(const TensorRing& ring, const Key& key, const Matrix<std::int64_t>& coefficients) {
    const View<const std::int64_t> values = run(coefficients);
    return released([&] {
        check_coefficients(values);
        return encrypt_polynomials(ring, key, values);
    });
}

Matrix<double> decrypt(const EncryptedPolynomials& polynomials, const SecretKey& key) {
    Matrix<double> out(
        {static_cast<py::ssize_t>(polynomials.count()), static_cast<py::ssize_t>(polynomials.ring().ring().degree())});
    double* values = out.mutable_data();
    py::gil_scoped_release release;
    polynomials.decrypt(key, values);
    return out;
}

py::bytes multiply(const TensorRing& ring,
                   const std::vector<std::pair<std::shared_ptr<EncryptedPolynomials>, Matrix<std::int64_t>>>& operands,
                   const std::vector<std::pair<Matrix<std::uint32_t>, Matrix<double>>>& products, int bits,
                   double unit) {
    std::vector<Operand> terms;
    for (const auto& [polynomials, weights] : operands) {
        terms.push_back({there(polynomials), run(weights)});
    }
    std::vector<Wanted> wanted;
    for (const auto& [positions, constants] : products) {
        wanted.push_back({run(positions), run(constants)});
    }
    return released([&] { return multiply_polynomials(ring, terms, wanted, bits, unit); });
}

Matrix<double> decrypt_all(const TensorRing& ring, const SecretKey& key, const py::buffer& object) {
    const Bytes message(object);
    const SecretBuffer<double> values = unlocked([&] { return decrypt_products(ring, key, message.view()); });
    return Matrix<double>(static_cast<py::ssize_t>(values.size()), values.data());
}

}  // namespace

void register_tensor(py::module_& module) {
    module.attr("MOST_PRODUCT_BITS") = kMostProductBits;
    module.attr("MOST_SUMMANDS") = kMostSummands;

    py::class_<TensorRing, std::shared_ptr<TensorRing>>(module, "TensorRing")
        .def(py::init<Parameters>(), py::arg("parameters"))
        .def_property_readonly("degree", [](const TensorRing& ring) { return ring.ring().degree(); })
        .def_property_readonly("modulus", [](const TensorRing& ring) { return ring.ring().modulus_value(); })
        .def_property_readonly("public_noise_bound",
                               [](const TensorRing& ring) { return public_noise_bound(ring.ring().degree()); })
        .def("rounding_deviation", &product_rounding_deviation, py::arg("bits"));

    py::class_<EncryptedPolynomials, std::shared_ptr<EncryptedPolynomials>>(module, "EncryptedPolynomials")
        .def(py::init([](const std::shared_ptr<TensorRing>& ring, const py::buffer& object) {
                 const Bytes message(object);
                 py::gil_scoped_release release;
                 return std::make_shared<EncryptedPolynomials>(ring, message.view());
             }),
             py::arg("ring").none(false), py::arg("message"))
        .def_property_readonly("key",
                               [](const EncryptedPolynomials& polynomials) {
                                   return py::bytes(reinterpret_cast<const char*>(polynomials.key().data()),
                                                    polynomials.key().size());
                               })
        .def_property_readonly("count", &EncryptedPolynomials::count)
        .def("decrypt", &decrypt, py::arg("key"));

    module.def("encrypt_polynomials", &encrypt<SecretKey>, py::arg("ring"), py::arg("key"),
               py::arg("coefficients").noconvert());
    module.def("encrypt_polynomials", &encrypt<PublicKey>, py::arg("ring"), py::arg("key"),
               py::arg("coefficients").noconvert());
    module.def(
        "add_to_polynomials",
        [](const TensorRing& ring, const py::buffer& object, const Matrix<std::int64_t>& coefficients) {
            const Bytes message(object);
            const View<const std::int64_t> values = run(coefficients);
            return released([&] {
                check_coefficients(values);
                return add_to_polynomials(ring, message.view(), values);
            });
        },
        py::arg("ring"), py::arg("message"), py::arg("coefficients").noconvert());
    module.def(
        "sum_polynomials",
        [](const std::vector<std::shared_ptr<EncryptedPolynomials>>& terms) {
            std::vector<const EncryptedPolynomials*> pointers;
            for (const std::shared_ptr<EncryptedPolynomials>& term : terms) {
                pointers.push_back(there(term));
            }
            return released([&] { return sum_polynomials(pointers); });
        },
        py::arg("terms"));
    module.def("multiply_polynomials", &multiply, py::arg("ring"), py::arg("operands"), py::arg("products"),
               py::arg("bits"), py::arg("unit"));
    module.def(
        "count_products",
        [](const TensorRing& ring, const py::buffer& object) {
            const Bytes message(object);
            return count_products(ring, message.view());
        },
        py::arg("ring"), py::arg("message"));
    module.def("decrypt_products", &decrypt_all, py::arg("ring"), py::arg("key"), py::arg("message"));
    module.def(
        "add_to_products",
        [](const TensorRing& ring, const py::buffer& object, const Matrix<double>& constants) {
            const Bytes message(object);
            return released([&] { return add_to_products(ring, message.view(), run(constants)); });
        },
        py::arg("ring"), py::arg("message"), py::arg("constants").noconvert());
}

}  // namespace hesplit
