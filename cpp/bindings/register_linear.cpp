#include <memory>

#include "bindings/bindings.h"
#include "linear/client.h"
#include "linear/server.h"

namespace py = pybind11;

namespace hesplit {

namespace {

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

py::tuple decrypt(const LinearClient& client, const py::buffer& object, bool release, bool weight_gradient_follows) {
    const Bytes reply(object);
    const std::size_t samples = client.samples_of(reply.view());
    Matrix<double> y({static_cast<py::ssize_t>(samples), static_cast<py::ssize_t>(client.outputs())});
    double* out = y.mutable_data();
    double flood = 0;
    {
        py::gil_scoped_release unlock;
        flood = client.decrypt(reply.view(), release ? Purpose::release : Purpose::local, weight_gradient_follows, out);
    }
    return py::make_tuple(y, flood);
}

void set_weight(LinearServer& server, const Matrix<double>& weight, const Matrix<double>& bias) {
    const View<const double> weights = view(weight), biases = view(bias);
    py::gil_scoped_release release;
    server.set_weight(weights, biases);
}

// shared_ptrs to const, which pybind11 does not hold by themselves.
struct KeptRequest {
    std::shared_ptr<const LinearServer::Kept> kept;
};
struct MaskedGradient {
    std::shared_ptr<const LinearServer::Masked> masked;
};

py::tuple forward_keeping(const LinearServer& server, const py::buffer& object) {
    const Bytes request(object);
    KeptRequest kept;
    py::bytes reply = released([&] { return server.forward(request.view(), &kept.kept); });
    return py::make_tuple(reply, kept);
}

py::tuple weight_gradient(const LinearServer& server, const KeptRequest& kept, const Matrix<double>& gradient) {
    const View<const double> values = view(gradient);
    MaskedGradient masked;
    py::bytes message = released([&] { return server.weight_gradient(*kept.kept, values, masked.masked); });
    return py::make_tuple(message, masked);
}

Matrix<double> unmask(const LinearServer& server, const MaskedGradient& masked, const py::buffer& object) {
    const Bytes opened(object);
    Matrix<double> gradient({static_cast<py::ssize_t>(server.outputs()), static_cast<py::ssize_t>(server.features())});
    double* out = gradient.mutable_data();
    py::gil_scoped_release release;
    server.unmask(*masked.masked, opened.view(), out);
    return gradient;
}

}  // namespace

void register_linear(py::module_& module) {
    py::class_<LinearClient>(module, "LinearClient")
        .def(py::init([](const std::shared_ptr<SecretKey>& key, std::size_t features, std::size_t outputs,
                         bool fresh_keys, std::uint32_t released, bool weight_gradients) {
                 py::gil_scoped_release release;
                 return std::make_unique<LinearClient>(key, features, outputs, fresh_keys, released, weight_gradients);
             }),
             py::arg("key"), py::arg("features"), py::arg("outputs"), py::arg("fresh_keys"), py::arg("released"),
             py::arg("weight_gradients"))
        .def("public_material",
             [](const LinearClient& client) { return released([&] { return client.public_material(); }); })
        .def("encrypt", &encrypt<float>, py::arg("x").noconvert(), py::arg("clip"))
        .def("encrypt", &encrypt<double>, py::arg("x").noconvert(), py::arg("clip"))
        .def("decrypt", &decrypt, py::arg("reply"), py::arg("release"), py::arg("weight_gradient_follows"))
        .def(
            "open_weight_gradient",
            [](const LinearClient& client, const py::buffer& object, const Matrix<double>& gradient) {
                const Bytes message(object);
                const View<const double> values = view(gradient);
                return released([&] { return client.open_weight_gradient(message.view(), values); });
            },
            py::arg("message"), py::arg("gradient"))
        .def("destroy", &LinearClient::destroy);

    py::class_<KeptRequest>(module, "KeptRequest").def_property_readonly("samples", [](const KeptRequest& kept) {
        return kept_samples(*kept.kept);
    });
    py::class_<MaskedGradient>(module, "MaskedGradient");
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
        .def(
            "forward",
            [](const LinearServer& server, const py::buffer& object) {
                const Bytes request(object);
                return released([&] { return server.forward(request.view()); });
            },
            py::arg("request"))
        .def("forward_keeping", &forward_keeping, py::arg("request"))
        .def("weight_gradient", &weight_gradient, py::arg("kept"), py::arg("gradient"))
        .def("unmask", &unmask, py::arg("masked"), py::arg("opened"));
}

}  // namespace hesplit
