// What the register_*.cpp files share.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "core/buffer.h"
#include "core/error.h"

namespace hesplit {

void register_errors(pybind11::module_& module);
void register_runtime(pybind11::module_& module);
void register_parameters(pybind11::module_& module);
void register_keys(pybind11::module_& module);
void register_linear(pybind11::module_& module);
void register_testing(pybind11::module_& module);

// The bytes of anything with a contiguous buffer (bytes, bytearray, memoryview), held for as long as this lives.
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
    }
    View<const std::uint8_t> view() const {
        return {static_cast<const std::uint8_t*>(info_.ptr), static_cast<std::size_t>(info_.size * info_.itemsize)};
    }

  private:
    pybind11::buffer_info info_;
};

}  // namespace hesplit
