#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <string>

#include "base/error.h"
#include "kernels/kernels.h"
#include "kernels/tables.h"

namespace hesplit {

namespace {

__extension__ typedef unsigned __int128 Wide;

struct Variant {
    Kernels kernels;
    bool available;
};

ModularKernels modulo_scalar(int) {
    return {kScalarTransforms, kScalarProducts, kScalarSums, kScalarConversions};
}

#ifdef HESPLIT_X86_KERNELS
ModularKernels modulo_avx2(int prime_bits) {
    ModularKernels kernels = modulo_scalar(prime_bits);
    static_cast<Sums&>(kernels) = kAvx2Sums;
    if (prime_bits <= kVectorPrimeBits) {
        static_cast<Transforms&>(kernels) = prime_bits <= kX86ShortBits ? kAvx2ShortTransforms : kAvx2Transforms;
        static_cast<Products&>(kernels) = prime_bits <= kAvx2ProductBits ? kAvx2Products : kAvx2LimbProducts;
        kernels.lift = kAvx2Lift;
    }
    if (prime_bits <= kAvx2ProductBits) {
        kernels.add_fraction = kAvx2AddFraction;
    }
    return kernels;
}

ModularKernels modulo_avx512ifma(int prime_bits) {
    if (prime_bits > kVectorPrimeBits) {
        return {kScalarTransforms, kScalarProducts, kAvx512IfmaSums, kScalarConversions};
    }
    ModularKernels kernels = {kAvx512IfmaTransforms,
                              prime_bits <= kAvx512IfmaNarrowBits ? kAvx512IfmaNarrowProducts : kAvx512IfmaProducts,
                              kAvx512IfmaSums, kAvx512IfmaConversions};
    if (prime_bits <= kX86ShortBits) {
        kernels.multiply = kAvx2ShortTransforms.multiply;  // a quarter of the instructions, for half the lanes
    }
    return kernels;
}

bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

bool has_avx512ifma() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512ifma") && __builtin_cpu_supports("avx512vbmi");
}
#endif

#ifdef HESPLIT_NEON_KERNELS
// Compilers make as good sums of the portable code, and there are no vectors of products of 64-bit words.
ModularKernels modulo_neon(int prime_bits) {
    ModularKernels kernels = modulo_scalar(prime_bits);
    if (prime_bits <= kVectorPrimeBits) {
        static_cast<Transforms&>(kernels) = prime_bits <= kNeonShortBits ? kNeonShortTransforms : kNeonTransforms;
        kernels.lift = kNeonLift;
    }
    if (prime_bits <= kNeonProductBits) {
        static_cast<Products&>(kernels) = kNeonProducts;
    }
    return kernels;
}
#endif

// Best first.
View<const Variant> variants() {
#ifdef HESPLIT_X86_KERNELS
    static const bool initialised = (__builtin_cpu_init(), true);
    (void)initialised;
#endif
    static const Variant all[] = {
#ifdef HESPLIT_X86_KERNELS
        {{kAvx512IfmaWordProducts, kAvx512IfmaShortProducts, kAvx512IfmaStreams, kAvx512IfmaBitPacking,
          kAvx512IfmaMatrices, "avx512ifma", modulo_avx512ifma},
         has_avx512ifma()},
        {{kAvx2WordProducts, kAvx2ShortProducts, kAvx2Streams, kAvx2BitPacking, kAvx2Matrices, "avx2", modulo_avx2},
         has_avx2()},
#endif
#ifdef HESPLIT_NEON_KERNELS
        {{kNeonWordProducts, kNeonShortProducts, kNeonStreams, kNeonBitPacking, kNeonMatrices, "neon", modulo_neon},
         true},
#endif
        {{kScalarWordProducts, kScalarShortProducts, kScalarStreams, kScalarBitPacking, kScalarMatrices, "scalar",
          modulo_scalar},
         true},
    };
    return {all, std::size(all)};
}

const Kernels& choose() {
    if (const char* name = std::getenv("HESPLIT_CPU"); name != nullptr && *name != '\0') {
        return kernels(name);
    }
    const View<const Variant> all = variants();
    return std::find_if(all.begin(), all.end(), [](const Variant& variant) { return variant.available; })->kernels;
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
    std::string known;
    for (const Variant& variant : variants()) {
        if (std::strcmp(variant.kernels.name, name) == 0) {
            if (!variant.available) {
                throw ParameterError(std::string("this processor cannot run the ") + name + " kernels");
            }
            return variant.kernels;
        }
        known += (known.empty() ? "" : ", ") + std::string(variant.kernels.name);
    }
    throw ParameterError(std::string("no kernels called '") + name + "' (HESPLIT_CPU); this build has " + known);
}

std::vector<std::string> usable_kernels() {
    std::vector<std::string> names;
    for (const Variant& variant : variants()) {
        if (variant.available) {
            names.emplace_back(variant.kernels.name);
        }
    }
    return names;
}

const Kernels& kernels() {
    static const Kernels& chosen = choose();
    return chosen;
}

}  // namespace hesplit
