// SecretKey::parse: the content of a key file.
#include "rlwe/secret_key.h"

#include "fixtures.h"

namespace hesplit::fuzz {

std::vector<std::string> genuine() {
    std::vector<std::string> all;
    for (const std::unique_ptr<Linear>& layer : linears()) {
        const SecretBuffer<std::uint8_t> bytes = SecretKey::generate(layer->server.parameters())->bytes();
        all.emplace_back(bytes.begin(), bytes.end());
    }
    return all;
}

void receive(const Bytes& bytes) {
    SecretKey::parse(view(bytes))->bytes();
}

}  // namespace hesplit::fuzz
