#include "linear/server_packing.h"

#include "base/parallel.h"
#include "rlwe/encryption.h"

namespace hesplit {

GroupInputs read_group(const Ring& ring, const PolynomialCodec& codec, const ForwardRequest& request, std::size_t group,
                       std::size_t inputs) {
    GroupInputs made{Buffer<std::uint64_t>(inputs * ring.size()), Buffer<std::uint64_t>(inputs * ring.size())};
    parallel_for(inputs, [&](std::size_t j) {
        const std::size_t index = group * inputs + j;
        std::uint64_t* c0 = made.c0.data() + j * ring.size();
        codec.unpack(request.ciphertexts.data + index * codec.bytes(), c0);
        ring.to_ntt(c0);
        expand_uniform(ring, request.head.seed, static_cast<std::uint32_t>(index), made.c1.data() + j * ring.size());
    });
    return made;
}

}  // namespace hesplit
