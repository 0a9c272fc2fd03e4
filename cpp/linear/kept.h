// What LinearServer keeps between a forward pass and the weight gradient of the same request.
#pragma once

#include <cstdint>
#include <vector>

#include "linear/block_gradient.h"
#include "linear/server.h"
#include "linear/slot_gradient.h"

namespace hesplit {

struct LinearServer::Kept {
    Header header;
    BatchShape shape;
    std::vector<GroupInputs> blocks;     // by group, in NTT form
    std::vector<SlotGroupInputs> slots;  // by group
};

struct LinearServer::Masked {
    Header header;
    BatchShape shape;
    int bits = 0;
    double scale = 1;
    std::vector<GradientRun> runs;
    std::vector<SecretBuffer<std::uint64_t>> masks;  // by run, uniform in [0, 2^bits)
};

}  // namespace hesplit
