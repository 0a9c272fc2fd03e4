// C++ exceptions become the classes of hesplit_native.errors.
#include "bindings/bindings.h"

namespace py = pybind11;

namespace hesplit {

namespace {

void raise(const char* name, const std::exception& error) {
    const py::object type = py::module_::import("hesplit_native.errors").attr(name);
    PyErr_SetString(type.ptr(), error.what());
}

}  // namespace

void register_errors(py::module_&) {
    py::register_local_exception_translator([](std::exception_ptr pointer) {
        try {
            if (pointer) {
                std::rethrow_exception(pointer);
            }
        } catch (const ParameterError& error) {
            raise("ParameterError", error);
        } catch (const RangeError& error) {
            raise("RangeError", error);
        } catch (const WireError& error) {
            raise("WireError", error);
        } catch (const KeyMismatchError& error) {
            raise("KeyMismatchError", error);
        } catch (const Error& error) {
            raise("HESplitError", error);
        }
    });
}

}  // namespace hesplit
