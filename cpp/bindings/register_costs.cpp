// What serving takes, for Python's budgets.
#include <string>
#include <utility>

#include "bindings/bindings.h"
#include "linear/costs.h"

namespace py = pybind11;

namespace hesplit {

namespace {

constexpr std::pair<const char*, Served> kNames[] = {
    {"public_material", Served::public_material},
    {"forward", Served::forward},
    {"training", Served::training},
    {"weight_gradient", Served::weight_gradient},
    {"opened_gradient", Served::opened_gradient},
    {"sealed_weight", Served::sealed_weight},
    {"sealed_forward", Served::sealed_forward},
    {"sealed_gradient", Served::sealed_gradient},
    {"sealed_update", Served::sealed_update},
};

py::dict cost_of(const Parameters& parameters, const std::string& kind, std::size_t features, std::size_t outputs,
                 std::size_t samples, double byte_ns, bool weight_gradients) {
    for (const auto& [name, served] : kNames) {
        if (kind == name) {
            ServingCost cost;
            {
                py::gil_scoped_release release;  // a large ring's tables take a tenth of a second
                cost = serving_cost(served, parameters, {features, outputs, samples, byte_ns, weight_gradients});
            }
            return as_dict(cost);
        }
    }
    throw ParameterError("there is no message \"" + kind + "\"");
}

}  // namespace

py::dict as_dict(const ServingCost& cost) {
    py::dict result;
    result["request_bytes"] = cost.request_bytes;
    result["reply_bytes"] = cost.reply_bytes;
    result["held_bytes"] = cost.held_bytes;
    result["layer_bytes"] = cost.layer_bytes;
    result["working_bytes"] = cost.working_bytes;
    result["multiplications"] = cost.multiplications;
    return result;
}

void register_costs(py::module_& module) {
    module.attr("MAX_REPLY_BYTES") = ServingLimits{}.reply_bytes;
    module.attr("MAX_MULTIPLICATIONS") = ServingLimits{}.multiplications;
    module.attr("MAX_MEMORY_BYTES") = ServingLimits{}.memory_bytes;
    module.def("serving_cost", &cost_of, py::arg("parameters"), py::arg("kind"), py::arg("features"),
               py::arg("outputs"), py::arg("samples"), py::arg("byte_ns"), py::arg("weight_gradients"));
}

}  // namespace hesplit
