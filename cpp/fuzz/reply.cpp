// LinearClient::decrypt: the logits that a server sends back.
#include "fixtures.h"

namespace hesplit::fuzz {

std::vector<std::string> genuine() {
    std::vector<std::string> all;
    for (const std::unique_ptr<Linear>& layer : linears()) {
        all.push_back(anonymous(layer->server.forward(view(layer->request()))));
    }
    return all;
}

void receive(const Bytes& bytes) {
    Linear& layer = layer_of(linears(), bytes);
    const std::string& request = layer.waiting();
    const Bytes reply = addressed(bytes, key_id(request), message_id(request));
    // As the bindings do: room for as many samples as the request had.
    const WireReader opened(view(reply), MessageType::reply);
    std::vector<double> y(layer.client.samples_of(opened) * layer.client.outputs());
    const bool release = layer.server.parameters().choice().releases != 0;
    layer.client.decrypt(opened, release ? Purpose::release : Purpose::local, false, y.data());
    layer.answered();
}

}  // namespace hesplit::fuzz
