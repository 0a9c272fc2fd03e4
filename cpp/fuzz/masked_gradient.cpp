// LinearClient::open_weight_gradient: the encrypted, masked weight gradient that a server sends.
#include <map>

#include "fixtures.h"

namespace hesplit::fuzz {

namespace {

// One backward pass of a layer up to where the server sends its gradient.
struct Pass {
    Id key{}, message{};
    std::string masked;

    explicit Pass(Linear& layer) {
        const std::string request = layer.request();
        key = key_id(request);
        message = message_id(request);
        std::shared_ptr<const LinearServer::Kept> kept;
        const std::string reply = layer.server.forward(view(request), nullptr, &kept);
        std::vector<double> y(layer.samples * layer.client.outputs());
        layer.client.decrypt(WireReader(view(reply), MessageType::reply), Purpose::local, true, y.data());
        const std::vector<double> gradient = layer.gradient();
        std::shared_ptr<const LinearServer::Masked> unused;
        masked = layer.server.weight_gradient(*kept, {gradient.data(), gradient.size()}, unused);
    }
};

std::unique_ptr<Pass>& pass_of(Linear& layer) {
    static std::map<const Linear*, std::unique_ptr<Pass>> passes;
    std::unique_ptr<Pass>& pass = passes[&layer];
    if (!pass) {
        pass = std::make_unique<Pass>(layer);
    }
    return pass;
}

}  // namespace

std::vector<std::string> genuine() {
    std::vector<std::string> all;
    for (const std::unique_ptr<Linear>& layer : linears()) {
        all.push_back(anonymous(pass_of(*layer)->masked));
    }
    return all;
}

void receive(const Bytes& bytes) {
    Linear& layer = layer_of(linears(), bytes);
    std::unique_ptr<Pass>& pass = pass_of(layer);
    const std::vector<double> shown = layer.shown_gradient();
    layer.client.open_weight_gradient(view(addressed(bytes, pass->key, pass->message)), {shown.data(), shown.size()});
    pass.reset();  // it has been answered
}

}  // namespace hesplit::fuzz
