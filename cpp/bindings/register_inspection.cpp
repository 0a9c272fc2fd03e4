#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "linear/inspection.h"

namespace py = pybind11;

namespace hesplit {

namespace {

using Residues = py::array_t<std::uint64_t, py::array::c_style>;

// [primes, coefficients], or [coefficients] where residues are modulo a power of two.
Residues residues(const std::vector<std::uint64_t>& values, std::size_t primes) {
    const auto size = static_cast<py::ssize_t>(values.size()), rows = static_cast<py::ssize_t>(primes);
    const std::vector<py::ssize_t> shape = primes == 0 ? std::vector{size} : std::vector{rows, size / rows};
    return Residues(shape, values.data());
}

py::dict as_dict(const InspectedMessage& message) {
    py::list ciphertexts;
    for (const InspectedCiphertext& found : message.ciphertexts) {
        const std::size_t primes = message.primes.size();
        py::array_t<std::int64_t> positions(static_cast<py::ssize_t>(found.positions.size()));
        std::copy(found.positions.begin(), found.positions.end(), positions.mutable_data());
        py::dict ciphertext;
        ciphertext["c0"] = residues(found.c0, primes);
        ciphertext["c1"] = residues(found.c1, primes);
        ciphertext["positions"] = positions;
        ciphertexts.append(ciphertext);
    }
    py::dict result;
    result["samples"] = message.shape.samples;
    result["rows"] = message.shape.group_size;
    result["width"] = message.shape.width;
    result["primes"] = message.primes;
    result["bits"] = message.bits;
    result["scale"] = message.scale;
    result["ciphertexts"] = ciphertexts;
    return result;
}

template <class Inspect, class... Arguments>
auto unlocked(const Inspect& inspect, const Arguments&... arguments) {
    py::gil_scoped_release release;
    return inspect(arguments...);
}

template <InspectedMessage (*Inspect)(const LinearServer&, View<const std::uint8_t>)>
py::dict message(const LinearServer& server, const py::buffer& object) {
    const Bytes bytes(object);
    return as_dict(unlocked(Inspect, server, bytes.view()));
}

py::dict products(const LinearServer& server, const py::buffer& object, const Matrix<double>& weight,
                  const Matrix<double>& bias) {
    const Bytes request(object);
    return as_dict(unlocked(inspect_products, server, request.view(), view(weight), view(bias)));
}

py::list opened_gradient(const LinearServer& server, const py::buffer& masked_object, const py::buffer& opened_object) {
    const Bytes masked(masked_object), opened(opened_object);
    py::list values;
    for (const std::vector<std::uint64_t>& part :
         unlocked(inspect_opened_gradient, server, masked.view(), opened.view())) {
        values.append(residues(part, 0));
    }
    return values;
}

py::bytes forged(const LinearServer& server, const py::buffer& object, int bits, double scale,
                 const std::vector<std::pair<Residues, Residues>>& ciphertexts) {
    const Bytes request(object);
    std::vector<InspectedCiphertext> chosen;
    for (const auto& [c0, c1] : ciphertexts) {
        chosen.push_back({{c0.data(), c0.data() + c0.size()}, {c1.data(), c1.data() + c1.size()}, {}});
    }
    return released([&] { return forge_reply(server, request.view(), bits, scale, chosen); });
}

}  // namespace

void register_inspection(py::module_& module) {
    module.def("inspect_request", &message<inspect_request>, py::arg("server"), py::arg("request"));
    module.def("inspect_products", &products, py::arg("server"), py::arg("request"), py::arg("weight"),
               py::arg("bias"));
    module.def("inspect_reply", &message<inspect_reply>, py::arg("server"), py::arg("reply"));
    module.def("inspect_masked_gradient", &message<inspect_masked_gradient>, py::arg("server"), py::arg("masked"));
    module.def("inspect_opened_gradient", &opened_gradient, py::arg("server"), py::arg("masked"), py::arg("opened"));
    module.def("forge_reply", &forged, py::arg("server"), py::arg("request"), py::arg("bits"), py::arg("scale"),
               py::arg("ciphertexts"));
}

}  // namespace hesplit
