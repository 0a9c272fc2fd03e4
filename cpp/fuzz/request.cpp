// LinearServer::forward: encrypted activations from a client.
#include "fixtures.h"

namespace hesplit::fuzz {

std::vector<std::string> genuine() {
    std::vector<std::string> all;
    for (const std::unique_ptr<Linear>& layer : linears()) {
        all.push_back(anonymous(layer->request()));
    }
    return all;
}

void receive(const Bytes& bytes) {
    Linear& layer = layer_of(linears(), bytes);
    layer.server.forward(view(addressed(bytes, key_id(layer.material), Id{})));
}

}  // namespace hesplit::fuzz
