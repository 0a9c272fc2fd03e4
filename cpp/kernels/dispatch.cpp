#include "kernels/kernels.h"

#include <cstdlib>
#include <cstring>
#include <string>

#include "base/error.h"

namespace hesplit {

namespace {

__extension__ typedef unsigned __int128 Wide;

struct Variant {
    const Kernels* kernels;
    bool available;
};

// Best first.
const Variant* variants(std::size_t& count) {
#ifdef HESPLIT_X86_KERNELS
    static const bool initialised = (__builtin_cpu_init(), true);
    (void)initialised;
    static const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    static const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
                               __builtin_cpu_supports("avx512ifma") && __builtin_cpu_supports("avx512vbmi");
    static const Variant all[] = {{&kAvx512IfmaKernels, avx512}, {&kAvx2Kernels, avx2}, {&kScalarKernels, true}};
#else
    static const Variant all[] = {{&kScalarKernels, true}};
#endif
    count = sizeof(all) / sizeof(all[0]);
    return all;
}

const Kernels& choose() {
    if (const char* name = std::getenv("HESPLIT_CPU"); name != nullptr && *name != '\0') {
        return kernels(name);
    }
    std::size_t count = 0;
    const Variant* variant = variants(count);
    while (!variant->available) {
        ++variant;
    }
    return *variant->kernels;
}

}  // namespace

Prime Prime::make(std::uint64_t value) {
    Prime prime;
    prime.value = value;
    for (std::uint64_t rest = value; rest != 0; rest >>= 1) {
        ++prime.bits;
    }
    if (prime.bits < 14 || prime.bits > kMaxPrimeBits + 1) {
        throw ParameterError("a prime must have 14 to 60 bits, got " + std::to_string(value));
    }
    const Wide ratio = ~Wide{0} / value;  // 2^128 / value: an odd prime does not divide 2^128
    prime.ratio_low = static_cast<std::uint64_t>(ratio);
    prime.ratio_high = static_cast<std::uint64_t>(ratio >> 64);
    if (prime.bits <= kVectorPrimeBits) {
        const Wide fraction = (Wide{1} << 116) / value;
        prime.fraction_low = static_cast<std::uint64_t>(fraction) & ((std::uint64_t{1} << 52) - 1);
        prime.fraction_high = static_cast<std::uint64_t>(fraction >> 52);
        prime.ratio52 = (std::uint64_t{1} << 52) / value;
        prime.power52 = (std::uint64_t{1} << 52) % value;
        prime.power52_quotient = static_cast<std::uint64_t>((Wide{prime.power52} << 52) / value);
    }
    return prime;
}

const Kernels& kernels(const char* name) {
    std::size_t count = 0;
    const Variant* all = variants(count);
    std::string usable;
    for (std::size_t i = 0; i < count; ++i) {
        if (std::strcmp(all[i].kernels->name, name) == 0) {
            if (!all[i].available) {
                throw ParameterError(std::string("this processor cannot run the ") + name + " kernels");
            }
            return *all[i].kernels;
        }
        usable += (i ? ", " : "") + std::string(all[i].kernels->name);
    }
    throw ParameterError(std::string("no kernels called '") + name + "' (HESPLIT_CPU); this build has " + usable);
}

std::vector<std::string> usable_kernels() {
    std::size_t count = 0;
    const Variant* all = variants(count);
    std::vector<std::string> names;
    for (std::size_t i = 0; i < count; ++i) {
        if (all[i].available) {
            names.emplace_back(all[i].kernels->name);
        }
    }
    return names;
}

const Kernels& kernels() {
    static const Kernels& chosen = choose();
    return chosen;
}

}  // namespace hesplit
