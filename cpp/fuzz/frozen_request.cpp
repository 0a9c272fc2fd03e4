// FrozenServer::multiply: encrypted rows from a client.
#include "fixtures.h"

namespace hesplit::fuzz {

std::vector<std::string> genuine() {
    std::vector<std::string> all;
    for (const std::unique_ptr<Frozen>& layer : frozen_layers()) {
        FrozenSecret secret;
        all.push_back(anonymous(layer->request(secret)));
    }
    return all;
}

void receive(const Bytes& bytes) {
    Frozen& layer = layer_of(frozen_layers(), bytes);
    layer.server.multiply(view(addressed(bytes, layer.agreement->id(), Id{})));
}

}  // namespace hesplit::fuzz
