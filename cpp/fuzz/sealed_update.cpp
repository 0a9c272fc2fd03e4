// SealedLayerServer::update: an encrypted gradient from a client, with weights or without; and saved().
#include "fixtures.h"

namespace hesplit::fuzz {

std::vector<std::string> genuine() {
    std::vector<std::string> all;
    for (const std::unique_ptr<Sealed>& layer : sealed_layers()) {
        all.push_back(anonymous(layer->update()));
    }
    return all;
}

void receive(const Bytes& bytes) {
    static std::uint32_t updates = 0;
    Sealed& layer = layer_of(sealed_layers(), bytes);
    layer.server.update(view(addressed(bytes, layer.key, Id{})));
    // Before the weights have taken all the updates that they may.
    if (++updates % 500 == 0) {
        for (const std::unique_ptr<Sealed>& any : sealed_layers()) {
            SealedLayerServer(view(any->server.saved()), 16);
            any->server.refresh(view(any->weight));
        }
    }
}

}  // namespace hesplit::fuzz
