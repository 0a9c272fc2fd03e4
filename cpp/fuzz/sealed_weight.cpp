// The bytes from which a SealedLayerServer is made: sealed weights from a client, or what another server saved.
#include "fixtures.h"

namespace hesplit::fuzz {

std::vector<std::string> genuine() {
    std::vector<std::string> all;
    for (const std::unique_ptr<Sealed>& layer : sealed_layers()) {
        all.push_back(layer->weight);
        all.push_back(layer->server.saved());
    }
    return all;
}

void receive(const Bytes& bytes) {
    SealedLayerServer server(view(bytes), 16);
}

}  // namespace hesplit::fuzz
