// SealedLayerServer::forward: encrypted activations from a client.
#include "fixtures.h"

namespace hesplit::fuzz {

std::vector<std::string> genuine() {
    std::vector<std::string> all;
    for (const std::unique_ptr<Sealed>& layer : sealed_layers()) {
        all.push_back(anonymous(layer->request()));
    }
    return all;
}

void receive(const Bytes& bytes) {
    Sealed& layer = layer_of(sealed_layers(), bytes);
    layer.server.forward(view(addressed(bytes, layer.key, Id{})));
}

}  // namespace hesplit::fuzz
