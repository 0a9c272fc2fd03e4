#include "linear/slots/forward.h"

#include "base/parallel.h"
#include "rlwe/encryption.h"

namespace hesplit {

GroupInputs SlotLayerWeights::read_group(const ForwardRequest& request, std::size_t group) const {
    const Ring& ring = ring_.data();
    const std::size_t inputs = layout_.inputs();
    GroupInputs made{Buffer<std::uint64_t>(inputs * ring.size()), Buffer<std::uint64_t>(inputs * ring.size())};
    for (std::size_t j = 0; j < inputs; ++j) {
        const std::size_t index = group * inputs + j;
        std::uint64_t* c0 = made.c0.data() + j * ring.size();
        codec_.unpack(request.ciphertexts.data + index * codec_.bytes(), c0);
        ring.to_ntt(c0);
        expand_uniform(ring, request.head.seed, static_cast<std::uint32_t>(index), made.c1.data() + j * ring.size());
    }
    return made;
}

std::string SlotLayerWeights::forward(const ForwardRequest& request, std::vector<GroupInputs>* kept,
                                      LogitMasks*) const {
    const Ring& ring = ring_.data();
    const Scaling& scaling = weights_.scaling();
    const int bits = scaling.reply_bits;
    const std::size_t groups = request.head.shape.groups(), products = layout_.products();
    CiphertextRuns runs(ring.degree(), bits);
    for (std::size_t run = 0; run < groups * products; ++run) {
        runs.add(ring.degree());
    }
    WireWriter writer =
        begin_reply(request.header, MessageType::reply, {request.head.shape, bits, scaling.reply_scale}, runs.bytes());
    std::uint8_t* out = writer.reserve(runs.bytes());
    if (kept) {
        kept->resize(groups);
    }
    parallel_for(groups, [&](std::size_t group) {
        GroupInputs inputs = read_group(request, group);
        const std::vector<SlotCiphertext> results = weights_.products(inputs, keys_);
        for (std::size_t p = 0; p < products; ++p) {
            std::uint8_t* to = out + runs.offset(group * products + p);
            to = pack_switched(ring, results[p].c0.data(), bits, to);
            pack_switched(ring, results[p].c1.data(), bits, to);
        }
        if (kept) {
            (*kept)[group] = std::move(inputs);
        }
    });
    return writer.finish();
}

}  // namespace hesplit
