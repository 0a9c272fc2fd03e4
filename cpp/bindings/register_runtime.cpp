// Threads, CPU features, versions.
#include <pybind11/stl.h>
#include <seal/util/config.h>

#include "base/ahead.h"
#include "base/parallel.h"
#include "bindings/bindings.h"
#include "kernels/kernels.h"

namespace py = pybind11;

namespace hesplit {

namespace {

py::dict cpu_features() {
    py::dict features;
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
    __builtin_cpu_init();
    features["avx2"] = static_cast<bool>(__builtin_cpu_supports("avx2"));
    features["fma"] = static_cast<bool>(__builtin_cpu_supports("fma"));
    features["avx512f"] = static_cast<bool>(__builtin_cpu_supports("avx512f"));
    features["avx512dq"] = static_cast<bool>(__builtin_cpu_supports("avx512dq"));
    features["avx512ifma"] = static_cast<bool>(__builtin_cpu_supports("avx512ifma"));
#endif
#ifdef __aarch64__
    features["neon"] = true;  // every such processor has it
#endif
    return features;
}

}  // namespace

void register_runtime(py::module_& module) {
    module.attr("SEAL_VERSION") = SEAL_VERSION;
    module.def("cpu_features", &cpu_features);
    module.def("kernels", [] { return std::string(kernels().name); });
    module.def("usable_kernels", &usable_kernels);
    module.def("set_num_threads", &set_num_threads, py::arg("count"));
    module.def("num_threads", &num_threads);
    module.def("set_work_ahead", &set_work_ahead, py::arg("wanted"));
    module.def("work_ahead", &work_ahead);
}

}  // namespace hesplit
