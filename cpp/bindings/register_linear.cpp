#include <memory>
#include <vector>

#include "bindings/bindings.h"
#include "linear/client.h"
#include "linear/ranges.h"
#include "linear/server.h"

namespace py = pybind11;

namespace hesplit {

namespace {

template <class T>
py::tuple encrypt(LinearClient& client, const Matrix<T>& x, bool clip) {
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

// Whether all are finite, and how many rows are beyond the ranges.
template <class T>
py::tuple inspect_rows(const Matrix<T>& x, double bound, double norm) {
    if (x.ndim() != 2) {
        throw ParameterError("expected x of shape [n, features]");
    }
    ParameterChoice ranges;
    ranges.activation_bound = bound;
    ranges.activation_norm = norm;
    const Inspection found =
        inspect(x.data(), static_cast<std::size_t>(x.shape(0)), static_cast<std::size_t>(x.shape(1)), ranges);
    return py::make_tuple(found.finite, found.beyond.size());
}

py::tuple decrypt(LinearClient& client, const py::buffer& object, bool release, bool weight_gradient_follows) {
    const Bytes bytes(object);
    const WireReader reply = unlocked([&] { return WireReader(bytes.view(), MessageType::reply); });
    const std::size_t samples = client.samples_of(reply);
    Matrix<double> y({static_cast<py::ssize_t>(samples), static_cast<py::ssize_t>(client.outputs())});
    double* out = y.mutable_data();
    double flood = 0;
    {
        py::gil_scoped_release unlock;
        flood = client.decrypt(reply, release ? Purpose::release : Purpose::local, weight_gradient_follows, out);
    }
    return py::make_tuple(y, flood);
}

void set_weight(LinearServer& server, const Matrix<double>& weight, const Matrix<double>& bias) {
    const View<const double> weights = view(weight), biases = view(bias);
    py::gil_scoped_release release;
    server.set_weight(weights, biases);
}

void set_weight_float(LinearServer& server, const Matrix<float>& weight, const Matrix<double>& bias) {
    const std::vector<double> widened(weight.data(), weight.data() + weight.size());
    const View<const double> biases = view(bias);
    py::gil_scoped_release release;
    server.set_weight({widened.data(), widened.size()}, biases);
}

// shared_ptrs to const, which pybind11 does not hold by themselves.
struct KeptRequest {
    std::shared_ptr<const LinearServer::Kept> kept;
};
struct MaskedGradient {
    std::shared_ptr<const LinearServer::Masked> masked;
};

// The reply, the samples of the request, and the request itself for its weight gradient if that is wanted.
py::tuple forward_training(const LinearServer& server, const py::buffer& object, bool keep) {
    const Bytes request(object);
    KeptRequest kept;
    std::size_t samples = 0;
    py::bytes reply = released([&] { return server.forward(request.view(), &samples, keep ? &kept.kept : nullptr); });
    return py::make_tuple(reply, samples, keep ? py::cast(kept) : py::none());
}

struct Share {
    std::shared_ptr<const LinearServer::Share> share;
};

// The masked reply, what the server keeps of it, the samples, and the request for its weight gradient if that is
// wanted.
py::tuple forward_share(const LinearServer& server, const py::buffer& object, bool keep) {
    const Bytes request(object);
    KeptRequest kept;
    Share share;
    py::bytes reply = released([&] { return server.share(request.view(), share.share, keep ? &kept.kept : nullptr); });
    return py::make_tuple(reply, share, share.share->head.shape.samples, keep ? py::cast(kept) : py::none());
}

Matrix<double> join(const LinearServer& server, const Share& share, const py::buffer& object) {
    const Bytes opened(object);
    Matrix<double> y(
        {static_cast<py::ssize_t>(share.share->head.shape.samples), static_cast<py::ssize_t>(server.outputs())});
    double* out = y.mutable_data();
    py::gil_scoped_release release;
    server.join(*share.share, opened.view(), out);
    return y;
}

py::array_t<std::uint64_t> own_share(const LinearServer& server, const Share& share) {
    py::array_t<std::uint64_t> values(
        {static_cast<py::ssize_t>(share.share->head.shape.samples), static_cast<py::ssize_t>(server.outputs())});
    server.own_share(*share.share, values.mutable_data());
    return values;
}

py::tuple open_share(LinearClient& client, const py::buffer& object, bool weight_gradient_follows) {
    const Bytes message(object);
    double flood = 0;
    py::bytes opened = released([&] { return client.open_share(message.view(), weight_gradient_follows, flood); });
    return py::make_tuple(opened, flood);
}

py::tuple decrypt_share(LinearClient& client, const py::buffer& object) {
    const Bytes bytes(object);
    const WireReader message = unlocked([&] { return WireReader(bytes.view(), MessageType::share); });
    const std::size_t samples = client.samples_of(message);
    py::array_t<std::uint64_t> values({static_cast<py::ssize_t>(samples), static_cast<py::ssize_t>(client.outputs())});
    std::uint64_t* out = values.mutable_data();
    ReplyHead head;
    {
        py::gil_scoped_release release;
        head = client.decrypt_share(message, out);
    }
    return py::make_tuple(values, head.bits, head.scale);
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
    module.def("inspect", &inspect_rows<float>, py::arg("x").noconvert(), py::arg("bound"), py::arg("norm"));
    module.def("inspect", &inspect_rows<double>, py::arg("x").noconvert(), py::arg("bound"), py::arg("norm"));
    py::class_<LinearClient>(module, "LinearClient")
        .def(py::init([](const std::shared_ptr<SecretKey>& key, std::size_t features, std::size_t outputs,
                         bool fresh_keys, bool weight_gradients, double byte_ns) {
                 py::gil_scoped_release release;
                 return std::make_unique<LinearClient>(key, features, outputs, fresh_keys, weight_gradients, byte_ns);
             }),
             py::arg("key").none(false), py::arg("features"), py::arg("outputs"), py::arg("fresh_keys"),
             py::arg("weight_gradients"), py::arg("byte_ns"))
        .def("public_material",
             [](const LinearClient& client) { return released([&] { return client.public_material(); }); })
        .def("encrypt", &encrypt<float>, py::arg("x").noconvert(), py::arg("clip"))
        .def("encrypt", &encrypt<double>, py::arg("x").noconvert(), py::arg("clip"))
        .def("decrypt", &decrypt, py::arg("reply"), py::arg("release"), py::arg("weight_gradient_follows"))
        .def(
            "open_weight_gradient",
            [](LinearClient& client, const py::buffer& object, const Matrix<double>& gradient) {
                const Bytes message(object);
                const View<const double> values = view(gradient);
                return released([&] { return client.open_weight_gradient(message.view(), values); });
            },
            py::arg("message"), py::arg("gradient"))
        .def("open_share", &open_share, py::arg("message"), py::arg("weight_gradient_follows"))
        .def("decrypt_share", &decrypt_share, py::arg("message"))
        .def("destroy", &LinearClient::destroy);

    py::class_<KeptRequest>(module, "KeptRequest");
    py::class_<MaskedGradient>(module, "MaskedGradient");
    py::class_<Share>(module, "Share")
        .def_property_readonly("bits", [](const Share& s) { return s.share->head.bits; })
        .def_property_readonly("scale", [](const Share& s) { return s.share->head.scale; });
    py::class_<LinearServer>(module, "LinearServer")
        .def(py::init([](const py::buffer& object, std::size_t max_samples, std::size_t max_reply_bytes,
                         double max_multiplications, std::size_t max_memory_bytes) {
                 const Bytes public_material(object);
                 py::gil_scoped_release release;
                 return std::make_unique<LinearServer>(
                     public_material.view(), max_samples,
                     ServingLimits{max_reply_bytes, max_multiplications, max_memory_bytes});
             }),
             py::arg("public_material"), py::arg("max_samples"),
             py::arg("max_reply_bytes") = ServingLimits{}.reply_bytes,
             py::arg("max_multiplications") = ServingLimits{}.multiplications,
             py::arg("max_memory_bytes") = ServingLimits{}.memory_bytes)
        .def_property_readonly("features", &LinearServer::features)
        .def_property_readonly("outputs", &LinearServer::outputs)
        .def_property_readonly("parameters", &LinearServer::parameters)
        .def(
            "cost",
            [](const LinearServer& server, const py::buffer& object, bool keep) {
                const Bytes request(object);
                return as_dict(unlocked([&] { return server.cost(request.view(), keep); }));
            },
            py::arg("request"), py::arg("keep"))
        .def(
            "gradient_cost",
            [](const LinearServer& server, const KeptRequest& kept) {
                return as_dict(server.gradient_cost(*kept.kept));
            },
            py::arg("kept"))
        .def("set_weight", &set_weight_float, py::arg("weight").noconvert(), py::arg("bias"))
        .def("set_weight", &set_weight, py::arg("weight").noconvert(), py::arg("bias"))
        .def(
            "forward",
            [](const LinearServer& server, const py::buffer& object) {
                const Bytes request(object);
                return released([&] { return server.forward(request.view()); });
            },
            py::arg("request"))
        .def("forward_share", &forward_share, py::arg("request"), py::arg("keep"))
        .def("own_share", &own_share, py::arg("share"))
        .def("join", &join, py::arg("share"), py::arg("opened"))
        .def(
            "for_client",
            [](const LinearServer& server, const py::buffer& object) {
                const Bytes public_material(object);
                py::gil_scoped_release release;
                return server.for_client(public_material.view());
            },
            py::arg("public_material"))
        .def("forward_training", &forward_training, py::arg("request"), py::arg("keep"))
        .def("weight_gradient", &weight_gradient, py::arg("kept"), py::arg("gradient"))
        .def("unmask", &unmask, py::arg("masked"), py::arg("opened"));
}

}  // namespace hesplit
