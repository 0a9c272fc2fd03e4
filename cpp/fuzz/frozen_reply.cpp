// FrozenClient::decrypt: products that a server sends back.
#include "fixtures.h"

namespace hesplit::fuzz {

std::vector<std::string> genuine() {
    std::vector<std::string> all;
    for (const std::unique_ptr<Frozen>& layer : frozen_layers()) {
        FrozenSecret secret;
        all.push_back(anonymous(layer->server.multiply(view(layer->request(secret)))));
    }
    return all;
}

void receive(const Bytes& bytes) {
    Frozen& layer = layer_of(frozen_layers(), bytes);
    if (!layer.client.has_hint()) {
        layer.client.load_hint(view(layer.server.hint()));
    }
    FrozenSecret secret;
    layer.request(secret);
    std::vector<double> y(secret.norms.size() * layer.client.outputs());
    layer.client.decrypt(view(addressed(bytes, layer.server.id(), secret.message)), secret, y.data());
}

}  // namespace hesplit::fuzz
