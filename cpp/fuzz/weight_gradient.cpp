// LinearServer::weight_gradient: a request, then dJ/dY, both from a client. The last bytes of the input are the
// gradient's numbers, whatever they are as doubles.
#include <algorithm>
#include <cmath>
#include <cstring>

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
    std::shared_ptr<const LinearServer::Kept> kept;
    std::size_t samples = 0;
    layer.server.forward(view(addressed(bytes, key_id(layer.material), Id{})), &samples, &kept);
    std::vector<double> gradient(samples * layer.server.outputs());
    const std::size_t taken = std::min(bytes.size(), gradient.size() * sizeof(double));
    std::memcpy(gradient.data(), bytes.data() + bytes.size() - taken, taken);
    if (layer.hides_weights()) {  // most doubles are beyond the agreed sums
        for (double& value : gradient) {
            value = std::remainder(value, 2.0 / static_cast<double>(samples));
        }
    }
    std::shared_ptr<const LinearServer::Masked> masked;
    layer.server.weight_gradient(*kept, {gradient.data(), gradient.size()}, masked);
}

}  // namespace hesplit::fuzz
