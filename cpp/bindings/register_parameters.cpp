#include <pybind11/stl.h>

#include <memory>
#include <optional>

#include "bindings/bindings.h"
#include "linear/planning.h"
#include "linear/sealed/plan.h"
#include "rlwe/parameters.h"

namespace py = pybind11;

namespace hesplit {

namespace {

std::string name_of(Packing packing) {
    return packing == Packing::blocks ? "blocks" : packing == Packing::slots ? "slots" : "merged";
}

Packing packing_of(const std::string& name) {
    for (const Packing packing : {Packing::blocks, Packing::slots, Packing::merged}) {
        if (name == name_of(packing)) {
            return packing;
        }
    }
    throw ParameterError("packing must be \"blocks\", \"slots\" or \"merged\", got \"" + name + "\"");
}

std::string name_of(Security security) {
    switch (security) {
        case Security::paper:
            return "paper";
        case Security::quantum:
            return "quantum";
        default:
            return "standard";
    }
}

Security security_of(const std::string& name) {
    for (const Security security : {Security::standard, Security::paper, Security::quantum}) {
        if (name == name_of(security)) {
            return security;
        }
    }
    throw ParameterError("security must be \"standard\", \"quantum\" or \"paper\", got \"" + name + "\"");
}

Parameters make(std::size_t ring_degree, std::vector<int> modulus_bits, double scale, const std::string& packing,
                const std::string& security, double activation_bound, double activation_norm, double error_bound,
                std::size_t batch_size, std::uint32_t releases, std::uint32_t updates, std::uint32_t statistical_bits,
                std::uint32_t private_bits, double weight_norm) {
    return Parameters({ring_degree, std::move(modulus_bits), scale, packing_of(packing), security_of(security),
                       activation_bound, activation_norm, error_bound, batch_size, releases, updates, statistical_bits,
                       private_bits, weight_norm});
}

std::unique_ptr<const LayerPlan> plan(const Parameters& parameters, std::size_t features, std::size_t outputs,
                                      std::size_t samples, double weight_norm, double byte_ns) {
    return plan_layer(parameters, {features, outputs, samples, weight_norm, byte_ns});
}

py::dict estimate(const Parameters& parameters, std::size_t features, std::size_t outputs, std::size_t samples,
                  double weight_norm, double byte_ns) {
    const LayerEstimate found = plan(parameters, features, outputs, samples, weight_norm, byte_ns)->estimate();
    py::dict result, layout;
    layout["rows"] = found.group_size;
    layout["width"] = found.width;
    layout["inputs"] = found.inputs;
    layout["products"] = found.products;
    if (found.rotations) {
        layout["period"] = found.rotations->period;
        layout["babies"] = found.rotations->babies;
        layout["giants"] = found.rotations->giants;
        layout["rotations"] = found.rotations->steps;
    }
    result["layout"] = layout;
    result["error"] = found.error;
    result["reply_bits"] = found.reply_bits;
    result["flooding_deviation"] = found.flooding_deviation;
    result["logit_noise"] = found.logit_noise;
    result["spread_bits"] = found.spread_bits;
    result["key_bytes"] = found.key_bytes;
    result["request_bytes"] = found.request_bytes;
    result["reply_bytes"] = found.reply_bytes;
    if (found.cost) {
        result["client_seconds"] = found.cost->client * 1e-9;
        result["server_seconds"] = found.cost->server * 1e-9;
        result["link_seconds"] = found.cost->link * 1e-9;
    }
    return result;
}

double scale_of(const Parameters& parameters, std::size_t features, std::size_t outputs, std::size_t samples,
                double weight_norm, double byte_ns) {
    return best_scale(*plan(parameters, features, outputs, samples, weight_norm, byte_ns), parameters.choice());
}

// One training step of sealed weights; None when the parameters cannot keep their error bound.
py::object sealed_estimate(const Parameters& parameters, std::size_t features, std::size_t outputs,
                           double weight_norm) {
    const std::optional<SealedEstimate> found = estimate_sealed(parameters, features, outputs, weight_norm);
    if (!found) {
        return py::none();
    }
    py::dict result;
    result["error"] = found->error;
    result["reply_bits"] = found->reply_bits;
    result["rows"] = found->layout.group_size;
    result["width"] = found->layout.width;
    result["inputs"] = found->layout.inputs();
    result["products"] = found->layout.products();
    result["request_bytes"] = found->request_bytes;
    result["update_bytes"] = found->update_bytes;
    result["reply_bytes"] = found->reply_bytes;
    return std::move(result);
}

py::bytes to_bytes(const std::vector<std::uint8_t>& bytes) {
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace

void register_parameters(py::module_& module) {
    module.def(
        "max_modulus_bits",
        [](std::size_t ring_degree, const std::string& security) {
            return max_modulus_bits(ring_degree, security_of(security));
        },
        py::arg("ring_degree"), py::arg("security") = "standard");
    py::class_<Parameters>(module, "Parameters")
        .def(py::init(&make), py::kw_only(), py::arg("ring_degree"), py::arg("modulus_bits"), py::arg("scale"),
             py::arg("packing"), py::arg("security"), py::arg("activation_bound"), py::arg("activation_norm"),
             py::arg("error_bound"), py::arg("batch_size"), py::arg("releases"), py::arg("updates"),
             py::arg("statistical_bits"), py::arg("private_bits"), py::arg("weight_norm"))
        .def_property_readonly("ring_degree", &Parameters::ring_degree)
        .def_property_readonly("modulus_bits", [](const Parameters& p) { return p.choice().modulus_bits; })
        .def_property_readonly("scale", [](const Parameters& p) { return p.choice().scale; })
        .def_property_readonly("packing", [](const Parameters& p) { return name_of(p.packing()); })
        .def_property_readonly("security", [](const Parameters& p) { return name_of(p.choice().security); })
        .def_property_readonly("activation_bound", [](const Parameters& p) { return p.choice().activation_bound; })
        .def_property_readonly("activation_norm", [](const Parameters& p) { return p.choice().activation_norm; })
        .def_property_readonly("error_bound", [](const Parameters& p) { return p.choice().error_bound; })
        .def_property_readonly("batch_size", [](const Parameters& p) { return p.choice().batch_size; })
        .def_property_readonly("releases", [](const Parameters& p) { return p.choice().releases; })
        .def_property_readonly("updates", [](const Parameters& p) { return p.choice().updates; })
        .def_property_readonly("statistical_bits", [](const Parameters& p) { return p.choice().statistical_bits; })
        .def_property_readonly("private_bits", [](const Parameters& p) { return p.choice().private_bits; })
        .def_property_readonly("weight_norm", [](const Parameters& p) { return p.choice().weight_norm; })
        .def_property_readonly("primes", &Parameters::primes)
        .def_property_readonly("hash",
                               [](const Parameters& p) {
                                   return py::bytes(reinterpret_cast<const char*>(p.hash().data()), p.hash().size());
                               })
        .def("to_bytes", [](const Parameters& p) { return to_bytes(p.bytes()); })
        .def_static("from_bytes", [](const py::buffer& bytes) { return Parameters::parse(Bytes(bytes).view()); })
        .def("best_scale", &scale_of, py::arg("features"), py::arg("outputs"), py::arg("samples"),
             py::arg("weight_norm"), py::arg("byte_ns"))
        .def("estimate", &estimate, py::arg("features"), py::arg("outputs"), py::arg("samples"), py::arg("weight_norm"),
             py::arg("byte_ns"))
        .def("estimate_sealed", &sealed_estimate, py::arg("features"), py::arg("outputs"), py::arg("weight_norm"));
}

}  // namespace hesplit
