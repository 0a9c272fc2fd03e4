// One pool of threads for the whole process, over which ciphertexts and outputs are spread.
#pragma once

#include <cstddef>
#include <functional>

namespace hesplit {

// How many threads a loop may use, the caller's included; at least 1. Initially OMP_NUM_THREADS when it is set to a
// positive number, otherwise the number of hardware threads. Throws ParameterError for 0 and above 1024.
void set_num_threads(std::size_t count);
std::size_t num_threads();

// Calls body(i) for every i in [0, count), in any order and possibly at the same time; returns when all are done. The
// first exception is rethrown. A loop inside a loop, or a second loop started while the pool is busy, runs in its own
// thread, so calls from several threads are safe.
void parallel_for(std::size_t count, const std::function<void(std::size_t)>& body);

}  // namespace hesplit
