// FrozenClient::load_hint: what a server says about its weights, and decrypt() with it.
#include "fixtures.h"

namespace hesplit::fuzz {

std::vector<std::string> genuine() {
    std::vector<std::string> all;
    for (const std::unique_ptr<Frozen>& layer : frozen_layers()) {
        all.push_back(anonymous(layer->server.hint()));
    }
    return all;
}

void receive(const Bytes& bytes) {
    Frozen& layer = layer_of(frozen_layers(), bytes);
    layer.client.load_hint(view(addressed(bytes, layer.server.id(), Id{})));
    FrozenSecret secret;
    const std::string reply = layer.server.multiply(view(layer.request(secret)));
    std::vector<double> y(secret.norms.size() * layer.client.outputs());
    layer.client.decrypt(view(reply), secret, y.data());
}

}  // namespace hesplit::fuzz
