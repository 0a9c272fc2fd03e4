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
#include "linear/private_replies.h"
#include "linear/ranges.h"
#include "linear/server.h"

namespace hesplit {

namespace {

// One ciphertext of the message: c0 at its positions with the mask added, and c1. With a public key an encryption of
// zero hides what c1 says of dJ/dY.
void write_masked_run(const Ring& ring, const PublicKey* key, Buffer<std::uint64_t>& c0, Buffer<std::uint64_t>& c1,
                      const std::vector<std::uint32_t>& positions, const SecretBuffer<std::uint64_t>& mask, int bits,
                      std::uint8_t* out) {
    if (key) {
        SecretBuffer<std::uint64_t> zero_c0(ring.size()), zero_c1(ring.size());
        key->encrypt_zero(zero_c0.data(), zero_c1.data());
        ring.add(c0.data(), zero_c0.data());
        ring.add(c1.data(), zero_c1.data());
    }
    Buffer<std::uint64_t> switched(ring.degree());
    ring.switch_to_bits(c0.data(), {positions.data(), positions.size()}, bits, switched.data());
    add_mask(mask, bits, switched.data());
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
    std::vector<double> agreed;
    if (public_key_) {
        check_agreed_gradient(gradient, outputs_);
        agreed = agreed_gradient(kept.shape.samples, outputs_);
    }
    const View<const double> known = public_key_ ? View<const double>{agreed.data(), agreed.size()} : gradient;
    const Ring& ring = packing_->ring();
    const double scale = packing_->gradient_scale(known), modulus = ring.modulus_value();
    const int most_bits = static_cast<int>(std::floor(std::log2(modulus)));
    const int bits = std::min(most_bits, packing_->gradient_bits(kept.shape, known, scale));

    check(packing_->cost(Served::weight_gradient, kept.shape, bits), limits_);

    auto masked = std::make_shared<Masked>();
    masked->header = kept.header;
    masked->head = {kept.shape, bits, parameters_.choice().scale * scale / modulus * std::ldexp(1.0, bits)};
    masked->runs = packing_->gradient_runs(kept.shape);
    CiphertextRuns layout(ring.degree(), bits);
    std::vector<std::size_t> counts;
    for (const GradientRun& run : masked->runs) {
        layout.add(run.coefficients);
        counts.push_back(run.coefficients);
    }
    masked->masks = uniform_masks(counts, bits);
    WireWriter writer = begin_reply(kept.header, MessageType::weight_gradient, masked->head, layout.bytes());
    std::uint8_t* out = writer.reserve(layout.bytes());

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
            write_masked_run(ring, public_key_.get(), c0, c1, packing_->gradient_positions(kept.shape, runs[r]),
                             masked->masks[r], bits, out + layout.offset(r));
        });
    }
    masked_out = std::move(masked);
    return writer.finish();
}

void LinearServer::unmask(const Masked& masked, View<const std::uint8_t> opened, double* weight_gradient) const {
    WireReader reader =
        read_opened(opened, MessageType::opened_gradient, masked.header, masked.masks, masked.head.bits);
    for (std::size_t r = 0; r < masked.runs.size(); ++r) {
        const GradientRun& run = masked.runs[r];
        const SecretBuffer<std::int64_t> centred = take_masked(reader, masked.masks[r], masked.head.bits);
        const std::vector<double> part =
            packing_->decode_gradient(run, {centred.data(), centred.size()}, masked.head.scale);
        for (std::size_t i = 0; i < part.size(); ++i) {
            weight_gradient[(run.first_output + i / run.features) * features_ + run.first_feature + i % run.features] =
                part[i];
        }
    }
}

}  // namespace hesplit
