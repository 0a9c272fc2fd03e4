// Parameters::parse: what a peer or a file says about ring, moduli and ranges.
#include "fixtures.h"

namespace hesplit::fuzz {

std::vector<std::string> genuine() {
    std::vector<std::string> all;
    for (const std::unique_ptr<Linear>& layer : linears()) {
        const std::vector<std::uint8_t> bytes = layer->server.parameters().bytes();
        all.emplace_back(bytes.begin(), bytes.end());
    }
    return all;
}

void receive(const Bytes& bytes) {
    Parameters::parse(view(bytes));
}

}  // namespace hesplit::fuzz
