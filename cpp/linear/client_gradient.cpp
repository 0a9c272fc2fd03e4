// LinearClient's part in HESplit's weight update: decrypt the server's masked gradient, flood it, send it back.
#include <cmath>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/parallel.h"
#include "linear/client.h"
#include "linear/precision.h"
#include "rlwe/flooding.h"

namespace hesplit {

std::string LinearClient::open_weight_gradient(View<const std::uint8_t> bytes, View<const double> gradient) {
    WireReader reader(bytes, MessageType::weight_gradient);
    reader.require(parameters_.hash(), reader.header().key);
    ClientSession::Answer answer = session_.answer(reader.header(), Awaited::weight_gradient);
    ClientKey& key = *answer.request().key;
    const ReplyHead message = read_reply(reader, answer.request());
    if (gradient.size != message.shape.samples * outputs_) {
        throw ParameterError("expected the gradient of the logits as [" + std::to_string(message.shape.samples) + ", " +
                             std::to_string(outputs_) + "]");
    }
    std::string opened = open_runs(message, key, reader, gradient);
    answer.done();
    return opened;
}

std::string LinearClient::open_runs(const ReplyHead& message, ClientKey& key, WireReader& reader,
                                    View<const double> gradient) {
    const int bits = message.bits;
    const std::vector<GradientRun> runs = packing_->gradient_runs(message.shape);
    CiphertextRuns in(ring_.degree(), bits);
    std::vector<std::size_t> out_offset, noise_offset;
    std::size_t out_bytes = 0, coefficients = 0;
    for (const GradientRun& run : runs) {
        in.add(run.coefficients);
        out_offset.push_back(out_bytes);
        noise_offset.push_back(coefficients);
        out_bytes += packed_bytes(run.coefficients, bits);
        coefficients += run.coefficients;
    }
    reader.require_remaining(in.bytes());
    const View<const std::uint8_t> payload = reader.raw(in.bytes());
    const SecretBuffer<std::int64_t> noise = gradient_noise(message, key, gradient, coefficients);

    Header header = reader.header();
    header.type = MessageType::opened_gradient;
    WireWriter writer(header, out_bytes);
    std::uint8_t* out = writer.reserve(out_bytes);
    const std::uint64_t mask = (std::uint64_t{1} << bits) - 1;
    parallel_for(runs.size(), [&](std::size_t r) {
        const SecretBuffer<std::int64_t> values =
            key.open(payload.data + in.offset(r), packing_->gradient_positions(message.shape, runs[r]), bits);
        // The server's mask is uniform, so there is no range to check; sums wrap around as the mask does.
        Buffer<std::uint64_t> flooded(values.size());
        for (std::size_t i = 0; i < values.size(); ++i) {
            flooded[i] = static_cast<std::uint64_t>(values[i] + noise[noise_offset[r] + i]) & mask;
        }
        pack_bits({flooded.data(), flooded.size()}, bits, out + out_offset[r]);
    });
    return writer.finish();
}

// The noise that floods the opened gradient, one value for each coefficient; zeros where the parameters ask for none.
SecretBuffer<std::int64_t> LinearClient::gradient_noise(const ReplyHead& message, ClientKey& key,
                                                        View<const double> gradient, std::size_t coefficients) {
    const ParameterChoice& choice = parameters_.choice();
    if (choice.releases == 0) {
        return SecretBuffer<std::int64_t>(coefficients, 0);
    }
    key.key->count_release();
    const double scale = message.scale * std::ldexp(ring_.modulus_value(), -message.bits) / choice.scale;
    const double l1 = packing_->gradient_l1(message.shape, gradient, scale);
    return flooding_noise(
        flood_deviation(choice, features_ * outputs_, released_noise(choice, ring_, l1, message.bits)), coefficients);
}

}  // namespace hesplit
