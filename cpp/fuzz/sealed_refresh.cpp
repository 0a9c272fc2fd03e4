// SealedLayerServer::refresh: newly sealed weights from a client; and a forward pass with them.
#include <map>

#include "fixtures.h"

namespace hesplit::fuzz {

std::vector<std::string> genuine() {
    std::vector<std::string> all;
    for (const std::unique_ptr<Sealed>& layer : sealed_layers()) {
        all.push_back(anonymous(layer->weight));
    }
    return all;
}

void receive(const Bytes& bytes) {
    static const std::map<const Sealed*, std::string> requests = [] {
        std::map<const Sealed*, std::string> made;
        for (const std::unique_ptr<Sealed>& layer : sealed_layers()) {
            made.emplace(layer.get(), layer->request());
        }
        return made;
    }();
    Sealed& layer = layer_of(sealed_layers(), bytes);
    layer.server.refresh(view(addressed(bytes, layer.key, Id{})));
    layer.server.forward(view(requests.at(&layer)));
}

}  // namespace hesplit::fuzz
