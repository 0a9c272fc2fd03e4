#include <pybind11/numpy.h>

#include <memory>

#include "bindings/bindings.h"
#include "linear/client.h"
#include "linear/server.h"

namespace py = pybind11;

namespace hesplit {

namespace {

template <class T>
using Matrix = py::array_t<T, py::array::c_style>;

template <class T>
py::tuple encrypt(const LinearClient& client, const Matrix<T>& x, bool clip) {
    if (x.ndim() != 2 || static_cast<std::size_t>(x.shape(1)) != client.features()) {
        throw ParameterError("expected x of shape [n, " + std::to_string(client.features()) + "]");
    }
    LinearClient::Request request;
    {
        const T* data = x.data();
        const auto samples = static_cast<std::size_t>(x.shape(0));
        py::gil_scoped_release release;
        request = client.encrypt(data, samples, clip);
    }
    return py::make_tuple(py::bytes(request.bytes), request.clipped);
}

Matrix<double> decrypt(const LinearClient& client, const py::buffer& object) {
    const Bytes reply(object);
    const std::size_t samples = client.samples_of(reply.view());
    Matrix<double> y({static_cast<py::ssize_t>(samples), static_cast<py::ssize_t>(client.outputs())});
    double* out = y.mutable_data();
    py::gil_scoped_release release;
    client.decrypt(reply.view(), out);
    return y;
}

void set_weight(LinearServer& server, const Matrix<double>& weight, const Matrix<double>& bias) {
    const View<const double> weights{weight.data(), static_cast<std::size_t>(weight.size())};
    const View<const double> biases{bias.data(), static_cast<std::size_t>(bias.size())};
    py::gil_scoped_release release;
    server.set_weight(weights, biases);
}

py::bytes forward(const LinearServer& server, const py::buffer& object) {
    const Bytes request(object);
    std::string reply;
    {
        py::gil_scoped_release release;
        reply = server.forward(request.view());
    }
    return {reply};
}

py::bytes public_material(const LinearClient& client) {
    std::string bytes;
    {
        py::gil_scoped_release release;
        bytes = client.public_material();
    }
    return {bytes};
}

}  // namespace

void register_linear(py::module_& module) {
    py::class_<LinearClient>(module, "LinearClient")
        .def(py::init([](const std::shared_ptr<SecretKey>& key, std::size_t features, std::size_t outputs) {
                 py::gil_scoped_release release;
                 return std::make_unique<LinearClient>(key, features, outputs);
             }),
             py::arg("key"), py::arg("features"), py::arg("outputs"))
        .def("public_material", &public_material)
        .def("encrypt", &encrypt<float>, py::arg("x").noconvert(), py::arg("clip"))
        .def("encrypt", &encrypt<double>, py::arg("x").noconvert(), py::arg("clip"))
        .def("decrypt", &decrypt, py::arg("reply"));

    py::class_<LinearServer>(module, "LinearServer")
        .def(py::init([](const py::buffer& object, std::size_t max_samples) {
                 const Bytes public_material(object);
                 py::gil_scoped_release release;
                 return std::make_unique<LinearServer>(public_material.view(), max_samples);
             }),
             py::arg("public_material"), py::arg("max_samples"))
        .def_property_readonly("features", &LinearServer::features)
        .def_property_readonly("outputs", &LinearServer::outputs)
        .def_property_readonly("parameters", &LinearServer::parameters)
        .def("set_weight", &set_weight, py::arg("weight"), py::arg("bias"))
        .def("forward", &forward, py::arg("request"));
}

}  // namespace hesplit
