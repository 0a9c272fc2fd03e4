// Noise of differential privacy.
#include <string>

#include "bindings/bindings.h"
#include "privacy/noise.h"

namespace py = pybind11;

namespace hesplit {

namespace {

Mechanism mechanism_named(const std::string& name) {
    if (name != "gaussian" && name != "laplace" && name != "values") {
        throw ParameterError("mechanism must be gaussian, laplace or values");
    }
    return name == "gaussian" ? Mechanism::gaussian : name == "laplace" ? Mechanism::laplace : Mechanism::values;
}

Matrix<float> noised(const Matrix<float>& values, const std::string& mechanism, double grid, std::uint64_t bound,
                     std::uint64_t scale) {
    if (values.ndim() != 2) {
        throw ParameterError("values to be noised have the shape [rows, columns]");
    }
    const GridNoise noise{mechanism_named(mechanism), grid, bound, scale};
    Matrix<float> out({values.shape(0), values.shape(1)});
    float* to = out.mutable_data();
    const View<const float> from{values.data(), static_cast<std::size_t>(values.size())};
    const auto columns = static_cast<std::size_t>(values.shape(1));
    {
        py::gil_scoped_release release;
        add_noise(from, columns, noise, to);
    }
    return out;
}

}  // namespace

void register_privacy(py::module_& module) {
    module.def("add_noise", &noised, py::arg("values").noconvert(), py::arg("mechanism"), py::arg("grid"),
               py::arg("bound"), py::arg("scale"));
}

}  // namespace hesplit
