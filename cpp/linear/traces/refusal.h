// What traces do not have.
#pragma once

#include <string>

#include "base/error.h"

namespace hesplit {

[[noreturn]] inline void refuse_on_traces(const char* what) {
    throw ParameterError(std::string(what) + " need packing=\"blocks\" where weights are private");
}

}  // namespace hesplit
