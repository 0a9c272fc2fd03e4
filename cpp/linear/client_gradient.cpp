// LinearClient's part in HESplit's weight update: decrypt the server's masked gradient, flood it, send it back.
#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/parallel.h"
#include "linear/client.h"
#include "linear/precision.h"
#include "linear/private_replies.h"
#include "rlwe/flooding.h"

namespace hesplit {

std::string LinearClient::open_weight_gradient(View<const std::uint8_t> bytes, View<const double> gradient) {
    WireReader reader(bytes, MessageType::weight_gradient);
    reader.require(parameters_.hash(), reader.header().key);
    ClientSession::Answer answer = session_.answer(reader.header(), Awaited::weight_gradient);
    ClientKey& key = *answer.request().key;
    const ReplyHead message = read_reply(reader, answer.request());
    const bool agreed = parameters_.choice().private_bits != 0;  // whatever dJ/dY is
    if (agreed ? gradient.size != 0 : gradient.size != message.shape.samples * outputs_) {
        throw ParameterError(agreed
                                 ? "with private weights dJ/dY is the server's alone"
                                 : "expected the gradient of the logits as [" + std::to_string(message.shape.samples) +
                                       ", " + std::to_string(outputs_) + "]");
    }
    const std::vector<GradientRun> runs = packing_->gradient_runs(message.shape);
    std::vector<std::size_t> counts;
    for (const GradientRun& run : runs) {
        counts.push_back(run.coefficients);
    }
    const auto positions = [&](std::size_t r) { return packing_->gradient_positions(message.shape, runs[r]); };
    std::vector<double> bound;
    if (agreed) {
        bound = agreed_gradient(message.shape.samples, outputs_);
    }
    const SecretBuffer<std::int64_t> noise =
        gradient_noise(message, key, agreed ? View<const double>{bound.data(), bound.size()} : gradient,
                       std::accumulate(counts.begin(), counts.end(), std::size_t{0}));
    std::string opened = open_runs(MessageType::opened_gradient, message, key, reader, counts, positions, noise);
    answer.done();
    return opened;
}

std::string LinearClient::open_runs(MessageType opened, const ReplyHead& message, const ClientKey& key,
                                    WireReader& reader, const std::vector<std::size_t>& counts,
                                    const Positions& positions, const SecretBuffer<std::int64_t>& noise) {
    const int bits = message.bits;
    CiphertextRuns in(ring_.degree(), bits);
    std::vector<std::size_t> out_offset, noise_offset;
    std::size_t out_bytes = 0, coefficients = 0;
    for (const std::size_t count : counts) {
        in.add(count);
        out_offset.push_back(out_bytes);
        noise_offset.push_back(coefficients);
        out_bytes += packed_bytes(count, bits);
        coefficients += count;
    }
    reader.require_remaining(in.bytes());
    const View<const std::uint8_t> payload = reader.raw(in.bytes());

    Header header = reader.header();
    header.type = opened;
    WireWriter writer(header, out_bytes);
    std::uint8_t* out = writer.reserve(out_bytes);
    const std::uint64_t mask = (std::uint64_t{1} << bits) - 1;
    parallel_for(counts.size(), [&](std::size_t r) {
        const SecretBuffer<std::int64_t> values = key.open(payload.data + in.offset(r), positions(r), bits);
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
