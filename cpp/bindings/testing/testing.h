#pragma once

#include <pybind11/pybind11.h>

namespace hesplit {

void register_testing(pybind11::module_& module);
void register_measuring(pybind11::module_& module);
void register_seal(pybind11::module_& module);

}  // namespace hesplit
