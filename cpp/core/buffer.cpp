#include "core/buffer.h"

#include <cstring>

namespace hesplit {

void secure_zero(void* memory, std::size_t size) noexcept {
    std::memset(memory, 0, size);
#if defined(__GNUC__) || defined(__clang__)
    // The barrier makes the compiler believe that the zeros are read.
    __asm__ __volatile__("" : : "r"(memory) : "memory");
#else
    volatile unsigned char* bytes = static_cast<unsigned char*>(memory);
    for (std::size_t i = 0; i < size; ++i) {
        bytes[i] = 0;
    }
#endif
}

}  // namespace hesplit
