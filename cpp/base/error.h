// The library's exceptions. Each becomes the Python class of the same name in bindings/register_errors.cpp.
// Messages are written for the user: what was wrong, and what to do. They never carry secret values.
#pragma once

#include <stdexcept>

namespace hesplit {

struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Parameters, shapes or options that cannot work or are not secure.
struct ParameterError : Error {
    using Error::Error;
};

// Values that cannot be represented: NaN, infinities, or numbers beyond an agreed bound.
struct RangeError : Error {
    using Error::Error;
};

// Bytes that are malformed, truncated, extended or of another version.
struct WireError : Error {
    using Error::Error;
};

// Well-formed bytes made under another key, other parameters or for another request.
struct KeyMismatchError : Error {
    using Error::Error;
};

}  // namespace hesplit
