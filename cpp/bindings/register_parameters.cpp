#include <pybind11/stl.h>

#include <cmath>

#include "bindings/bindings.h"
#include "core/parameters.h"
#include "core/ring.h"
#include "core/slot_ring.h"
#include "linear/messages.h"
#include "linear/precision.h"

namespace py = pybind11;

namespace hesplit {

namespace {

Packing packing_of(const std::string& name) {
    if (name == "blocks" || name == "slots") {
        return name == "blocks" ? Packing::blocks : Packing::slots;
    }
    throw ParameterError("packing must be \"blocks\" or \"slots\", got \"" + name + "\"");
}

Security security_of(const std::string& name) {
    if (name == "standard" || name == "paper") {
        return name == "standard" ? Security::standard : Security::paper;
    }
    throw ParameterError("security must be \"standard\" or \"paper\", got \"" + name + "\"");
}

Parameters make(std::size_t ring_degree, std::vector<int> modulus_bits, double scale, const std::string& packing, const std::string& security,
                double activation_bound, double activation_norm, double error_bound, std::size_t batch_size) {
    return Parameters({ring_degree, std::move(modulus_bits), scale, packing_of(packing), security_of(security), activation_bound,
                       activation_norm, error_bound, batch_size});
}

// The bound that holds for a layer whose rows have this l2 norm (and at most reach |y|), or infinity: for planning.
py::dict estimate(const Parameters& parameters, std::size_t features, std::size_t outputs, std::size_t samples, double weight_norm) {
    const ParameterChoice& choice = parameters.choice();
    WeightNorms norms;
    norms.largest = weight_norm;
    norms.l2 = weight_norm;
    norms.reach = choice.activation_norm * weight_norm;
    py::dict result;
    Scaling scaling;
    std::size_t request = 0, reply = 0;
    if (parameters.packing() == Packing::blocks) {
        const Ring ring(parameters.ring_degree(), parameters.primes());
        const RequestCodec codec(ring, dropped_bits(parameters));
        const BlockLayout layout = plan_blocks(ring.degree(), features, outputs, samples, codec.bits_per_coefficient(), 30);
        norms.group_l2 = weight_norm * std::sqrt(static_cast<double>(layout.per_product()));
        scaling = scale_blocks(parameters, ring, norms, features);
        const std::size_t groups = (samples + layout.rows - 1) / layout.rows;
        request = groups * layout.inputs() * codec.bytes();
        reply = groups * layout.products() * packed_bytes(ring.degree() + layout.per_product() * layout.rows, scaling.reply_bits);
        result["layout"] = py::dict(py::arg("rows") = layout.rows, py::arg("width") = layout.width, py::arg("inputs") = layout.inputs(),
                                    py::arg("products") = layout.products());
    } else {
        const SlotRing ring(parameters);
        const RequestCodec codec(ring.data(), dropped_bits(parameters));
        const SlotLayout layout = plan_slots(ring.slots(), features, outputs, choice.batch_size, allow_babies(parameters, ring));
        norms.reach *= std::sqrt(2.0);
        scaling = scale_slots(parameters, ring, norms, layout);
        const std::size_t groups = (samples + layout.rows() - 1) / layout.rows();
        request = groups * layout.inputs() * codec.bytes();
        reply = groups * layout.products() * 2 * packed_bytes(parameters.ring_degree(), scaling.reply_bits);
        result["layout"] = py::dict(py::arg("rows") = layout.rows(), py::arg("width") = layout.width, py::arg("inputs") = layout.inputs(),
                                    py::arg("products") = layout.products(), py::arg("period") = layout.period,
                                    py::arg("folds") = layout.folds, py::arg("babies") = layout.babies,
                                    py::arg("giants") = layout.giants(), py::arg("rotations") = rotation_steps(layout).size());
    }
    result["error"] = scaling.error;
    result["reply_bits"] = scaling.reply_bits;
    result["weight_scale"] = scaling.weight_scale;
    result["request_bytes"] = request;
    result["reply_bytes"] = reply;
    return result;
}

py::bytes to_bytes(const std::vector<std::uint8_t>& bytes) { return {reinterpret_cast<const char*>(bytes.data()), bytes.size()}; }

}  // namespace

void register_parameters(py::module_& module) {
    module.def("max_modulus_bits", &max_modulus_bits, py::arg("ring_degree"));
    py::class_<Parameters>(module, "Parameters")
        .def(py::init(&make), py::kw_only(), py::arg("ring_degree"), py::arg("modulus_bits"), py::arg("scale"), py::arg("packing"),
             py::arg("security"), py::arg("activation_bound"), py::arg("activation_norm"), py::arg("error_bound"), py::arg("batch_size"))
        .def_property_readonly("ring_degree", &Parameters::ring_degree)
        .def_property_readonly("modulus_bits", [](const Parameters& p) { return p.choice().modulus_bits; })
        .def_property_readonly("scale", [](const Parameters& p) { return p.choice().scale; })
        .def_property_readonly("packing", [](const Parameters& p) { return p.packing() == Packing::blocks ? "blocks" : "slots"; })
        .def_property_readonly("security", [](const Parameters& p) { return p.choice().security == Security::standard ? "standard" : "paper"; })
        .def_property_readonly("activation_bound", [](const Parameters& p) { return p.choice().activation_bound; })
        .def_property_readonly("activation_norm", [](const Parameters& p) { return p.choice().activation_norm; })
        .def_property_readonly("error_bound", [](const Parameters& p) { return p.choice().error_bound; })
        .def_property_readonly("batch_size", [](const Parameters& p) { return p.choice().batch_size; })
        .def_property_readonly("primes", &Parameters::primes)
        .def_property_readonly("hash", [](const Parameters& p) { return py::bytes(reinterpret_cast<const char*>(p.hash().data()), p.hash().size()); })
        .def("to_bytes", [](const Parameters& p) { return to_bytes(p.bytes()); })
        .def_static("from_bytes", [](const py::buffer& bytes) { return Parameters::parse(Bytes(bytes).view()); })
        .def("estimate", &estimate, py::arg("features"), py::arg("outputs"), py::arg("samples"), py::arg("weight_norm"));
}

}  // namespace hesplit
