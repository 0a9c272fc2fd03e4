// SealedLayerClient::decrypt and decrypt_input_gradient: encrypted logits and
// dJ/da from a server.
#include <array>
#include <map>

#include "base/error.h"
#include "fixtures.h"

namespace hesplit::fuzz {

namespace {

// Requests that wait for their replies: a forward pass, and an update.
std::string& waiting(Sealed& layer, bool input_gradient) {
    static std::map<const Sealed*, std::array<std::string, 2>> requests;
    std::string& request = requests[&layer][input_gradient ? 1 : 0];
    if (request.empty()) {
        request = input_gradient ? layer.update() : layer.request();
    }
    return request;
}

void decrypt(Sealed& layer, const Bytes& bytes, bool input_gradient) {
    std::string& request = waiting(layer, input_gradient);
    const Bytes reply = addressed(bytes, layer.key, message_id(request));
    SealedLayerClient& client = layer.client;
    // As the bindings do: room for as many samples as the request had.
    const WireReader opened(view(reply), MessageType::sealed_reply);
    std::vector<double> values(client.samples_of(opened) * (input_gradient ? client.features() : client.outputs()));
    if (input_gradient) {
        client.decrypt_input_gradient(opened, values.data());
    } else {
        client.decrypt(opened, values.data());
    }
    request.clear();  // it has been answered
}

}  // namespace

std::vector<std::string> genuine() {
    std::vector<std::string> all;
    for (const std::unique_ptr<Sealed>& layer : sealed_layers()) {
        // To those that wait: what a reply lacks the client adds, and that differs
        // from request to request.
        all.push_back(anonymous(layer->server.forward(view(waiting(*layer, false)))));
        all.push_back(anonymous(layer->server.update(view(waiting(*layer, true)))));
    }
    return all;
}

void receive(const Bytes& bytes) {
    Sealed& layer = layer_of(sealed_layers(), bytes);
    try {
        decrypt(layer, bytes, false);
    } catch (const Error&) {
        // Of another length, and perhaps made with other weights: what one refuses
        // may be meant for the other.
        decrypt(layer, bytes, true);
    }
}

}  // namespace hesplit::fuzz
