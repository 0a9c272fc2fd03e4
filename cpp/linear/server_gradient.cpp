// LinearServer's part in HESplit's weight update (Split Without a Leak): Enc(dW) from the request's own ciphertexts,
// under uniform masks, and back.
//
// The mask covers dW modulo 2^bits, after the modulus switch, so what the client decrypts is uniform and tells it
// nothing; masking W - eta dW, as the paper writes it, hides no more, and would round W anew in every step.
#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "base/error.h"
#include "base/parallel.h"
#include "linear/ranges.h"
#include "linear/server.h"

namespace hesplit {

namespace {

// One ciphertext of the message: c0 at its positions with the mask added, and c1.
void write_masked_run(const Ring& ring, const Buffer<std::uint64_t>& c0, const Buffer<std::uint64_t>& c1,
                      const std::vector<std::uint32_t>& positions, const SecretBuffer<std::uint64_t>& mask, int bits,
                      std::uint8_t* out) {
    Buffer<std::uint64_t> switched(ring.degree());
    ring.switch_to_bits(c0.data(), {positions.data(), positions.size()}, bits, switched.data());
    const std::uint64_t low = (std::uint64_t{1} << bits) - 1;
    for (std::size_t i = 0; i < positions.size(); ++i) {
        switched[i] = (switched[i] + mask[i]) & low;
    }
    pack_bits({switched.data(), positions.size()}, bits, out);
    pack_switched(ring, c1.data(), bits, out + packed_bytes(positions.size(), bits));
}

}  // namespace

std::string LinearServer::weight_gradient(const Kept& kept, View<const double> gradient,
                                          std::shared_ptr<const Masked>& masked_out) const {
    if (!weight_gradients_) {
        throw ParameterError("the client's public material is not for weight gradients");
    }
    if (gradient.size != kept.shape.samples * outputs_) {
        throw WireError("expected the gradient of the logits of " + std::to_string(kept.shape.samples) + " samples");
    }
    check_finite(gradient, "gradient contains");
    packing_->check_gradient(kept.shape);
    const Ring& ring = packing_->ring();
    const double scale = packing_->gradient_scale(gradient), modulus = ring.modulus_value();
    const int most_bits = static_cast<int>(std::floor(std::log2(modulus)));
    const int bits = std::min(most_bits, packing_->gradient_bits(kept.shape, gradient, scale));

    check(packing_->cost(Served::weight_gradient, kept.shape, bits), limits_);

    auto masked = std::make_shared<Masked>();
    masked->header = kept.header;
    masked->head = {kept.shape, bits, parameters_.choice().scale * scale / modulus * std::ldexp(1.0, bits)};
    masked->runs = packing_->gradient_runs(kept.shape);
    masked->masks.resize(masked->runs.size());
    CiphertextRuns layout(ring.degree(), bits);
    for (const GradientRun& run : masked->runs) {
        layout.add(run.coefficients);
    }
    WireWriter writer = begin_reply(kept.header, MessageType::weight_gradient, masked->head, layout.bytes());
    std::uint8_t* out = writer.reserve(layout.bytes());

    SecretBuffer<std::uint8_t> mask_key(32);
    os_random(mask_key.data(), mask_key.size());
    const std::vector<GradientRun>& runs = masked->runs;  // product by product
    const std::size_t at_once = packing_->gradient_products_at_once(kept.shape);
    for (std::size_t first = 0, end = 0; first < runs.size(); first = end) {
        while (end < runs.size() && runs[end].p < runs[first].p + at_once) {
            ++end;
        }
        const std::unique_ptr<const LayerGradient> encoded =
            packing_->make_gradient(kept.shape, gradient, scale, runs[first].p, runs[end - 1].p + 1 - runs[first].p);
        parallel_for(end - first, [&](std::size_t i) {
            const std::size_t r = first + i;
            Buffer<std::uint64_t> c0(ring.size()), c1(ring.size());
            encoded->product(kept.groups, runs[r], c0.data(), c1.data());
            SecretBuffer<std::uint64_t>& mask = masked->masks[r];
            mask.resize(runs[r].coefficients);
            ChaCha20 stream(mask_key.data(), Domain::mask, static_cast<std::uint32_t>(r), 0);
            sample_bits(stream, bits, mask.data(), mask.size());
            write_masked_run(ring, c0, c1, packing_->gradient_positions(kept.shape, runs[r]), mask, bits,
                             out + layout.offset(r));
        });
    }
    masked_out = std::move(masked);
    return writer.finish();
}

void LinearServer::unmask(const Masked& masked, View<const std::uint8_t> opened, double* weight_gradient) const {
    WireReader reader(opened, MessageType::opened_gradient);
    reader.require(parameters_.hash(), masked.header.key);
    if (reader.header().message != masked.header.message) {
        throw KeyMismatchError("an opened weight gradient that belongs to another request");
    }
    const int bits = masked.head.bits;
    std::size_t total = 0;
    for (const GradientRun& run : masked.runs) {
        total += packed_bytes(run.coefficients, bits);
    }
    reader.require_remaining(total);
    for (std::size_t r = 0; r < masked.runs.size(); ++r) {
        const GradientRun& run = masked.runs[r];
        Buffer<std::uint64_t> values(run.coefficients);
        reader.packed({values.data(), values.size()}, bits, std::uint64_t{1} << bits);
        std::vector<std::int64_t> centred(run.coefficients);
        for (std::size_t i = 0; i < values.size(); ++i) {
            centred[i] = static_cast<std::int64_t>((values[i] - masked.masks[r][i]) << (64 - bits)) >> (64 - bits);
        }
        const std::vector<double> part =
            packing_->decode_gradient(run, {centred.data(), centred.size()}, masked.head.scale);
        for (std::size_t i = 0; i < part.size(); ++i) {
            weight_gradient[(run.first_output + i / run.features) * features_ + run.first_feature + i % run.features] =
                part[i];
        }
    }
}

}  // namespace hesplit
