#include <memory>

#include "bindings/bindings.h"
#include "linear/frozen/client.h"
#include "linear/frozen/server.h"

namespace py = pybind11;

namespace hesplit {

namespace {

template <class T>
py::tuple encrypt(const FrozenClient& client, const Matrix<T>& x) {
    if (x.ndim() != 2 || static_cast<std::size_t>(x.shape(1)) != client.inputs()) {
        throw ParameterError("expected x of shape [n, " + std::to_string(client.inputs()) + "]");
    }
    const T* values = x.data();
    const auto rows = static_cast<std::size_t>(x.shape(0));
    auto secret = std::make_shared<FrozenSecret>();
    py::bytes request = released([&] { return client.encrypt(values, rows, *secret); });
    return py::make_tuple(std::move(request), std::move(secret));
}

Matrix<double> decrypt(const FrozenClient& client, const py::buffer& object, const FrozenSecret& secret) {
    const Bytes reply(object);
    Matrix<double> y({static_cast<py::ssize_t>(secret.norms.size()), static_cast<py::ssize_t>(client.outputs())});
    double* out = y.mutable_data();
    py::gil_scoped_release release;
    client.decrypt(reply.view(), secret, out);
    return y;
}

}  // namespace

void register_frozen(py::module_& module) {
    module.attr("MAX_FROZEN_ROWS") = kMaxFrozenRows;

    py::enum_<Precision>(module, "Precision").value("float32", Precision::single).value("bfloat16", Precision::half);

    py::class_<FrozenAgreement, std::shared_ptr<FrozenAgreement>>(module, "FrozenAgreement")
        .def(py::init([](std::size_t features, Precision precision, const std::string& epoch) {
                 return std::const_pointer_cast<FrozenAgreement>(FrozenAgreement::of(features, precision, epoch));
             }),
             py::arg("features"), py::arg("precision"), py::arg("epoch"))
        .def_property_readonly("error", [](const FrozenAgreement& agreement) { return agreement.scaling().error; })
        .def_property_readonly("matrix_bytes", &FrozenAgreement::matrix_bytes)
        .def("request_bytes", &frozen_request_bytes, py::arg("rows"))
        .def("reply_bytes", &frozen_reply_bytes, py::arg("outputs"), py::arg("rows"))
        .def("hint_bytes", &frozen_hint_bytes, py::arg("outputs"));

    py::class_<FrozenSecret, std::shared_ptr<FrozenSecret>>(module, "FrozenSecret");

    py::class_<FrozenClient>(module, "FrozenClient")
        .def(py::init([](const std::shared_ptr<FrozenAgreement>& agreement, std::size_t outputs, bool bias) {
                 return std::make_unique<FrozenClient>(agreement, outputs, bias);
             }),
             py::arg("agreement").none(false), py::arg("outputs"), py::arg("bias"))
        .def_property_readonly("has_hint", &FrozenClient::has_hint)
        .def_property_readonly("resident_bytes", &FrozenClient::resident_bytes)
        .def(
            "load_hint",
            [](FrozenClient& client, const py::buffer& object) {
                const Bytes hint(object);
                py::gil_scoped_release release;
                client.load_hint(hint.view());
            },
            py::arg("hint"))
        .def("encrypt", &encrypt<double>, py::arg("x").noconvert())
        .def("encrypt", &encrypt<float>, py::arg("x").noconvert())
        .def("decrypt", &decrypt, py::arg("reply"), py::arg("secret"));

    py::class_<FrozenServer>(module, "FrozenServer")
        .def(py::init([](const std::shared_ptr<FrozenAgreement>& agreement, const Matrix<double>& weight) {
                 if (weight.ndim() != 2) {
                     throw ParameterError("expected a weight of two dimensions");
                 }
                 const View<const double> values = view(weight);
                 const auto outputs = static_cast<std::size_t>(weight.shape(0));
                 py::gil_scoped_release release;
                 return std::make_unique<FrozenServer>(agreement, values, outputs);
             }),
             py::arg("agreement").none(false), py::arg("weight").noconvert())
        .def_property_readonly("resident_bytes", &FrozenServer::resident_bytes)
        .def("working_bytes", &FrozenServer::working_bytes, py::arg("rows"))
        .def_property_readonly("hint_working_bytes", &FrozenServer::hint_working_bytes)
        .def(
            "multiply",
            [](const FrozenServer& server, const py::buffer& object) {
                const Bytes request(object);
                return released([&] { return server.multiply(request.view()); });
            },
            py::arg("request"))
        .def("hint", [](const FrozenServer& server) { return released([&] { return server.hint(); }); });
}

}  // namespace hesplit
