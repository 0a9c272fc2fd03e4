// LinearServer::join: the share of its logits that a client returns.
#include <map>

#include "fixtures.h"

namespace hesplit::fuzz {

namespace {

// One forward pass of a layer up to where its client answers.
struct Pass {
    std::shared_ptr<const LinearServer::Share> share;
    std::string opened;
    Id key{}, message{};

    explicit Pass(Linear& layer) {
        double deviation = 0;
        const std::string masked = layer.server.share(view(layer.request()), share);
        opened = layer.client.open_share(view(masked), false, deviation);
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
    for (Linear* layer : private_linears()) {
        all.push_back(anonymous(pass_of(*layer).opened));
    }
    return all;
}

void receive(const Bytes& bytes) {
    Linear& layer = layer_of(private_linears(), bytes);
    const Pass& pass = pass_of(layer);
    std::vector<double> y(layer.samples * layer.client.outputs());
    layer.server.join(*pass.share, view(addressed(bytes, pass.key, pass.message)), y.data());
}

}  // namespace hesplit::fuzz
