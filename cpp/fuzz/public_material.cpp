// The public material from which a LinearServer is made: parameters, shape, rotation keys.
#include "fixtures.h"

namespace hesplit::fuzz {

std::vector<std::string> genuine() {
    std::vector<std::string> all;
    for (const std::unique_ptr<Linear>& layer : linears()) {
        all.push_back(layer->material);
    }
    return all;
}

void receive(const Bytes& bytes) {
    LinearServer server(view(bytes), 16);
}

}  // namespace hesplit::fuzz
