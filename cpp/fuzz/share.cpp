// LinearClient::open_share and decrypt_share: logits that a server has masked.
#include "fixtures.h"

namespace hesplit::fuzz {

std::vector<std::string> genuine() {
    std::vector<std::string> all;
    for (Linear* layer : private_linears()) {
        std::shared_ptr<const LinearServer::Share> unused;
        all.push_back(anonymous(layer->server.share(view(layer->request()), unused)));
    }
    return all;
}

void receive(const Bytes& bytes) {
    Linear& layer = layer_of(linears(), bytes);  // clients without private weights are asked too
    const std::string& request = layer.waiting();
    const Bytes message = addressed(bytes, key_id(request), message_id(request));
    // One of the two, by a byte of the checksum, which is as good as random.
    if (!message.empty() && message.back() % 2 == 0) {
        double deviation = 0;
        layer.client.open_share(view(message), false, deviation);
    } else {
        // As the bindings do: room for as many samples as the request had.
        const WireReader opened(view(message), MessageType::share);
        std::vector<std::uint64_t> share(layer.client.samples_of(opened) * layer.client.outputs());
        layer.client.decrypt_share(opened, share.data());
    }
    layer.answered();
}

}  // namespace hesplit::fuzz
