// A second extension module for tests and benchmarks, which wheels do not carry (HESPLIT_TESTING). It has a copy of the
// core of its own: what is set for the process in _core (the number of threads, working ahead) is not set here, and
// helpers that depend on such a setting take it as an argument.
#include "bindings/bindings.h"
#include "bindings/testing/testing.h"

PYBIND11_MODULE(_testing, module) {
    module.doc() = "Inner parts of the C++ core, for the tests and benchmarks of hesplit_native; not part of the API.";
    hesplit::register_errors(module);
    hesplit::register_testing(module);
    hesplit::register_measuring(module);
    hesplit::register_seal(module);
}
