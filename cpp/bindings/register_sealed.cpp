#include <memory>

#include "bindings/bindings.h"
#include "linear/sealed/client.h"
#include "linear/sealed/server.h"

namespace py = pybind11;

namespace hesplit {

namespace {

using Open = void (SealedLayerClient::*)(WireReader, double*);

template <Open open>
Matrix<double> decrypt(SealedLayerClient& client, const py::buffer& object) {
    const Bytes bytes(object);
    const WireReader reply = unlocked([&] { return WireReader(bytes.view(), MessageType::sealed_reply); });
    const std::size_t columns = open == &SealedLayerClient::decrypt ? client.outputs() : client.features();
    Matrix<double> values({static_cast<py::ssize_t>(client.samples_of(reply)), static_cast<py::ssize_t>(columns)});
    double* out = values.mutable_data();
    py::gil_scoped_release release;
    (client.*open)(reply, out);
    return values;
}

void check(const SealedLayerClient& client, const Matrix<double>& weight, const Matrix<double>& bias) {
    const auto size = static_cast<std::size_t>(weight.size());
    if (size != client.features() * client.outputs() || static_cast<std::size_t>(bias.size()) != client.outputs()) {
        throw ParameterError("expected weight [" + std::to_string(client.outputs()) + ", " +
                             std::to_string(client.features()) + "] and bias [" + std::to_string(client.outputs()) +
                             "]");
    }
}

}  // namespace

void register_sealed(py::module_& module) {
    py::class_<SealedLayerClient>(module, "SealedLayerClient")
        .def(py::init([](const std::shared_ptr<SecretKey>& key, std::size_t features, std::size_t outputs,
                         double weight_norm) {
                 py::gil_scoped_release release;
                 return std::make_unique<SealedLayerClient>(key, features, outputs, weight_norm);
             }),
             py::arg("key").none(false), py::arg("features"), py::arg("outputs"), py::arg("weight_norm"))
        .def_property_readonly("error", [](const SealedLayerClient& client) { return client.scaling().error; })
        .def_property_readonly("behind", &SealedLayerClient::behind)
        .def_property_readonly("weight_scale",
                               [](const SealedLayerClient& client) { return client.scaling().weight_scale; })
        .def(
            "seal",
            [](SealedLayerClient& client, const Matrix<double>& weight, const Matrix<double>& bias) {
                check(client, weight, bias);
                const View<const double> w = view(weight), b = view(bias);
                return released([&] { return client.seal(w, b); });
            },
            py::arg("weight"), py::arg("bias"))
        .def(
            "encrypt",
            [](SealedLayerClient& client, const Matrix<double>& x) {
                if (x.ndim() != 2 || static_cast<std::size_t>(x.shape(1)) != client.features()) {
                    throw ParameterError("expected x of shape [n, " + std::to_string(client.features()) + "]");
                }
                const View<const double> values = view(x);
                return released([&] { return client.encrypt(values); });
            },
            py::arg("x"))
        .def("decrypt", &decrypt<&SealedLayerClient::decrypt>, py::arg("reply"))
        .def(
            "update",
            [](SealedLayerClient& client, const Matrix<double>& gradient, const Matrix<double>& weight,
               const Matrix<double>& bias) {
                check(client, weight, bias);
                if (gradient.ndim() != 2 || static_cast<std::size_t>(gradient.shape(1)) != client.outputs()) {
                    throw ParameterError("expected the gradient of the logits as [n, " +
                                         std::to_string(client.outputs()) + "]");
                }
                const View<const double> g = view(gradient), w = view(weight), b = view(bias);
                return released([&] { return client.update(g, w, b); });
            },
            py::arg("gradient"), py::arg("weight"), py::arg("bias"))
        .def("decrypt_input_gradient", &decrypt<&SealedLayerClient::decrypt_input_gradient>, py::arg("reply"))
        .def("destroy", &SealedLayerClient::destroy);

    py::class_<SealedLayerServer>(module, "SealedLayerServer")
        .def(py::init([](const py::buffer& object, std::size_t max_samples, std::size_t max_reply_bytes,
                         double max_multiplications, std::size_t max_memory_bytes) {
                 const Bytes bytes(object);
                 py::gil_scoped_release release;
                 return std::make_unique<SealedLayerServer>(
                     bytes.view(), max_samples, ServingLimits{max_reply_bytes, max_multiplications, max_memory_bytes});
             }),
             py::arg("sealed"), py::arg("max_samples"), py::arg("max_reply_bytes") = ServingLimits{}.reply_bytes,
             py::arg("max_multiplications") = ServingLimits{}.multiplications,
             py::arg("max_memory_bytes") = ServingLimits{}.memory_bytes)
        .def(
            "cost",
            [](const SealedLayerServer& server, const py::buffer& object) {
                const Bytes message(object);
                return as_dict(unlocked([&] { return server.cost(message.view()); }));
            },
            py::arg("message"))
        .def_property_readonly("features", &SealedLayerServer::features)
        .def_property_readonly("outputs", &SealedLayerServer::outputs)
        .def_property_readonly("parameters", &SealedLayerServer::parameters)
        .def(
            "refresh",
            [](SealedLayerServer& server, const py::buffer& object) {
                const Bytes sealed(object);
                py::gil_scoped_release release;
                server.refresh(sealed.view());
            },
            py::arg("sealed"))
        .def(
            "forward",
            [](const SealedLayerServer& server, const py::buffer& object) {
                const Bytes request(object);
                return released([&] { return server.forward(request.view()); });
            },
            py::arg("request"))
        .def(
            "update",
            [](SealedLayerServer& server, const py::buffer& object) {
                const Bytes update(object);
                return released([&] { return server.update(update.view()); });
            },
            py::arg("update"))
        .def("saved", [](const SealedLayerServer& server) { return released([&] { return server.saved(); }); });
}

}  // namespace hesplit
