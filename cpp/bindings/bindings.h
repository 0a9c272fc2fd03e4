// What the register_*.cpp files share.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "base/buffer.h"
#include "base/error.h"

namespace hesplit {

void register_errors(pybind11::module_& module);
void register_runtime(pybind11::module_& module);
void register_parameters(pybind11::module_& module);
void register_keys(pybind11::module_& module);
void register_costs(pybind11::module_& module);
void register_linear(pybind11::module_& module);
void register_sealed(pybind11::module_& module);
void register_frozen(pybind11::module_& module);
void register_tensor(pybind11::module_& module);
void register_inspection(pybind11::module_& module);
void register_privacy(pybind11::module_& module);

// [rows, columns] float64 or float32 in row-major order; anything else is refused, not converted.
template <class T>
using Matrix = pybind11::array_t<T, pybind11::array::c_style>;

inline View<const double> view(const Matrix<double>& values) {
    return {values.data(), static_cast<std::size_t>(values.size())};
}

struct ServingCost;
pybind11::dict as_dict(const ServingCost& cost);

// What `work` gives, without the GIL.
template <class Work>
auto unlocked(const Work& work) {
    pybind11::gil_scoped_release release;
    return work();
}

// Calls `work`, which returns a std::string, without the GIL.
template <class Work>
pybind11::bytes released(const Work& work) {
    return {unlocked(work)};
}

// The bytes of anything with a contiguous buffer (bytes, bytearray, memoryview), for as long as this lives: messages
// are checked, then read without the GIL, while other threads may write to whatever is not `bytes`. So that is copied.
class Bytes {
  public:
    explicit Bytes(const pybind11::buffer& object) : info_(object.request()) {
        pybind11::ssize_t expected = info_.itemsize;
        for (pybind11::ssize_t axis = info_.ndim; axis-- > 0;) {
            if (info_.shape[static_cast<std::size_t>(axis)] > 1 &&
                info_.strides[static_cast<std::size_t>(axis)] != expected) {
                throw WireError("the bytes of a message must be contiguous");
            }
            expected *= info_.shape[static_cast<std::size_t>(axis)];
        }
        const auto* bytes = static_cast<const std::uint8_t*>(info_.ptr);
        const auto size = static_cast<std::size_t>(info_.size * info_.itemsize);
        view_ = {bytes, size};
        if (!immutable(object.ptr())) {
            copy_.assign(bytes, bytes + size);  // of a key, perhaps
            view_ = {copy_.data(), size};
        }
    }
    Bytes(const Bytes&) = delete;
    Bytes& operator=(const Bytes&) = delete;

    View<const std::uint8_t> view() const { return view_; }

  private:
    static bool immutable(PyObject* object) {
        if (PyMemoryView_Check(object)) {
            object = PyMemoryView_GET_BASE(object);
        }
        return object != nullptr && PyBytes_Check(object);
    }

    pybind11::buffer_info info_;
    SecretBuffer<std::uint8_t> copy_;
    View<const std::uint8_t> view_;
};

}  // namespace hesplit
