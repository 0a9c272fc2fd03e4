// LinearServer's part in logits that both sides share: masked replies, and what the client returns of them.
#include <string>
#include <utility>

#include "base/error.h"
#include "linear/private_replies.h"
#include "linear/server.h"

namespace hesplit {

template <class To, class Made>
void LinearServer::place(const Share& share, To* out, const Made& made) const {
    const BatchShape& shape = share.head.shape;
    const std::size_t products = share.masks.size() / shape.groups();
    for (std::size_t group = 0; group < shape.groups(); ++group) {
        const std::size_t samples = shape.samples_of(group);
        std::size_t first = 0;
        for (std::size_t p = 0; p < products; ++p) {
            const auto values = made(share.masks[group * products + p]);
            place_logits(values, samples, first, outputs_, out + group * shape.group_size * outputs_);
            first += values.size() / samples;
        }
    }
}

std::string LinearServer::share(View<const std::uint8_t> request, std::shared_ptr<const Share>& share,
                                std::shared_ptr<const Kept>* kept) const {
    if (!public_key_) {
        throw ParameterError(
            "shares of logits are for private weights: without private_bits their c1 says the weights");
    }
    auto made = std::make_shared<Share>();
    std::string message = reply(request, nullptr, kept, &made->masks);
    WireReader reader({reinterpret_cast<const std::uint8_t*>(message.data()), message.size()}, MessageType::share);
    made->header = reader.header();
    made->head = read_reply_head(reader, packing_->ring());
    share = std::move(made);
    return message;
}

void LinearServer::join(const Share& share, View<const std::uint8_t> opened, double* y) const {
    WireReader reader = read_opened(opened, MessageType::opened_share, share.header, share.masks, share.head.bits);
    place(share, y, [&](const SecretBuffer<std::uint64_t>& mask) {
        SecretBuffer<double> logits;
        for (const std::int64_t value : take_masked(reader, mask, share.head.bits)) {
            logits.push_back(static_cast<double>(value) / share.head.scale);
        }
        return logits;
    });
}

void LinearServer::own_share(const Share& share, std::uint64_t* values) const {
    const std::uint64_t low = (std::uint64_t{1} << share.head.bits) - 1;
    place(share, values, [&](const SecretBuffer<std::uint64_t>& mask) {
        SecretBuffer<std::uint64_t> negative(mask.size());
        for (std::size_t i = 0; i < mask.size(); ++i) {
            negative[i] = (0 - mask[i]) & low;
        }
        return negative;
    });
}

}  // namespace hesplit
