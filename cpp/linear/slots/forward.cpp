#include "linear/slots/forward.h"

#include "base/parallel.h"

namespace hesplit {

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
        GroupInputs inputs = read_group(ring, codec_, request, group, layout_.inputs());
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
