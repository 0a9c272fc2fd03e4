#include "bindings/bindings.h"

PYBIND11_MODULE(_core, module) {
    module.doc() = "The C++ core of hesplit_native: CKKS encryption and the encrypted linear layer.";
    module.attr("__version__") = HESPLIT_VERSION;
    hesplit::register_errors(module);
    hesplit::register_runtime(module);
    hesplit::register_parameters(module);
    hesplit::register_keys(module);
    hesplit::register_costs(module);
    hesplit::register_linear(module);
    hesplit::register_sealed(module);
    hesplit::register_frozen(module);
    hesplit::register_tensor(module);
    hesplit::register_inspection(module);
    hesplit::register_privacy(module);
}
