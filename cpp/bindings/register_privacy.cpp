// Noise of differential privacy.
#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "privacy/noise.h"

namespace py = pybind11;

namespace hesplit {

namespace {

using Halves = py::array_t<std::uint64_t, py::array::c_style>;

Table table(const Halves& cumulative) {
    if (cumulative.ndim() != 2 || cumulative.shape(1) != 2) {
        throw ParameterError("cumulative probabilities have the shape [outcomes, 2]");
    }
    std::vector<std::uint64_t> high, low;
    for (py::ssize_t i = 0; i < cumulative.shape(0); ++i) {
        high.push_back(cumulative.at(i, 0));
        low.push_back(cumulative.at(i, 1));
    }
    return {{high.data(), high.size()}, {low.data(), low.size()}};
}

py::array_t<std::int64_t> drawn(const Distribution& distribution, std::size_t count) {
    std::vector<std::int64_t> values;
    {
        py::gil_scoped_release release;
        values = draw(distribution, count);
    }
    return py::array_t<std::int64_t>(static_cast<py::ssize_t>(values.size()), values.data());
}

Norm norm_named(const std::string& name) {
    if (name != "each" && name != "l1" && name != "l2") {
        throw ParameterError("norm must be each, l1 or l2");
    }
    return name == "each" ? Norm::each : name == "l1" ? Norm::l1 : Norm::l2;
}

Matrix<float> noised(const Matrix<float>& values, const Distribution& noise, double grid, std::uint64_t bound,
                     const std::string& norm) {
    if (values.ndim() != 2) {
        throw ParameterError("values to be noised have the shape [rows, columns]");
    }
    const Norm kind = norm_named(norm);
    Matrix<float> out({values.shape(0), values.shape(1)});
    float* to = out.mutable_data();
    const View<const float> from{values.data(), static_cast<std::size_t>(values.size())};
    const auto columns = static_cast<std::size_t>(values.shape(1));
    {
        py::gil_scoped_release release;
        add_noise(from, columns, noise, grid, bound, kind, to);
    }
    return out;
}

}  // namespace

void register_privacy(py::module_& module) {
    py::class_<Distribution>(module, "Distribution").def("draw", &drawn, py::arg("count"));
    py::class_<Table, Distribution>(module, "Table").def(py::init(&table), py::arg("cumulative").noconvert());
    py::class_<DiscreteGaussian, Distribution>(module, "DiscreteGaussian")
        .def(py::init<Table, int, double>(), py::arg("multiples"), py::arg("step_bits"), py::arg("variance"));
    py::class_<DiscreteLaplace, Distribution>(module, "DiscreteLaplace")
        .def(py::init<std::vector<Table>, int>(), py::arg("digits"), py::arg("digit_bits"));
    module.def("add_noise", &noised, py::arg("values").noconvert(), py::arg("noise"), py::arg("grid"),
               py::arg("bound"), py::arg("norm"));
}

}  // namespace hesplit
