// LinearServer::unmask: the weight gradient that a client has decrypted, still masked.
#include <map>

#include "fixtures.h"

namespace hesplit::fuzz {

namespace {

// One backward pass of a layer up to where its client answers.
struct Pass {
    std::shared_ptr<const LinearServer::Masked> masked;
    std::string opened;
    Id key{}, message{};

    explicit Pass(Linear& layer) {
        const std::string request = layer.request();
        std::shared_ptr<const LinearServer::Kept> kept;
        const std::string reply = layer.server.forward(view(request), nullptr, &kept);
        std::vector<double> y(layer.samples * layer.client.outputs());
        layer.client.decrypt(WireReader(view(reply), MessageType::reply), Purpose::local, true, y.data());
        const std::vector<double> gradient = layer.gradient(), shown = layer.shown_gradient();
        const std::string message_bytes =
            layer.server.weight_gradient(*kept, {gradient.data(), gradient.size()}, masked);
        opened = layer.client.open_weight_gradient(view(message_bytes), {shown.data(), shown.size()});
        key = key_id(opened);
        message = message_id(opened);
    }
};

const Pass& pass_of(Linear& layer) {
    static std::map<const Linear*, Pass> passes;
    return passes.try_emplace(&layer, layer).first->second;
}

}  // namespace

std::vector<std::string> genuine() {
    std::vector<std::string> all;
    for (const std::unique_ptr<Linear>& layer : linears()) {
        all.push_back(anonymous(pass_of(*layer).opened));
    }
    return all;
}

void receive(const Bytes& bytes) {
    Linear& layer = layer_of(linears(), bytes);
    const Pass& pass = pass_of(layer);
    std::vector<double> weight_gradient(layer.client.features() * layer.client.outputs());
    layer.server.unmask(*pass.masked, view(addressed(bytes, pass.key, pass.message)), weight_gradient.data());
}

}  // namespace hesplit::fuzz
