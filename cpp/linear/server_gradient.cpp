// LinearServer's part in HESplit's weight update (Split Without a Leak): Enc(dW) from the request's own ciphertexts,
// under uniform masks, and back.
//
// The mask covers dW modulo 2^bits, after the modulus switch, so what the client decrypts is uniform and tells it
// nothing; masking W - eta dW, as the paper writes it, hides no more, and would round W anew in every step.
#include <algorithm>
#include <cmath>
#include <utility>

#include "base/error.h"
#include "base/parallel.h"
#include "linear/block_gradient.h"
#include "linear/kept.h"
#include "linear/precision.h"

namespace hesplit {

namespace {

// Precision of a gradient of slots: its rounding then stays below 2^-18 of the largest possible entry, where the noise
// is.
constexpr int kSlotGradientBits = 34;

// The largest scale of the gradient with which no sum of |x| <= B times G wraps around. Blocks round G * scale to
// 64-bit integers; slots take any scale (SlotRing::encode_ntt).
double gradient_scale(const ParameterChoice& choice, double modulus, View<const double> gradient, std::size_t outputs,
                      bool blocks) {
    double reach = 0, largest = 0;
    for (std::size_t o = 0; o < outputs; ++o) {
        double l1 = 0;
        for (std::size_t i = o; i < gradient.size; i += outputs) {
            l1 += std::abs(gradient[i]);
            largest = std::max(largest, std::abs(gradient[i]));
        }
        reach = std::max(reach, l1 * choice.activation_bound);
    }
    if (reach == 0) {
        return 1;
    }
    constexpr double kRoom = 1.01;  // for float32 clipping, rounding and noise
    // Gradients far below 2^-400 are 0 at this scale.
    const double most = std::min(blocks ? std::ldexp(1.0, 60) / largest : HUGE_VAL, std::ldexp(1.0, 400));
    return std::min(modulus / (2 * kRoom * reach * choice.scale), most);
}

double l1_of_a_product(View<const double> gradient, const BlockLayout& layout, double scale) {
    double largest = 0;
    for (std::size_t p = 0; p < layout.products(); ++p) {
        double l1 = 0;
        for (std::size_t i = 0; i < gradient.size; ++i) {
            const std::size_t output = i % layout.outputs;
            if (output / layout.per_product() == p) {
                l1 += std::abs(gradient[i]) * scale + 0.5;
            }
        }
        largest = std::max(largest, l1);
    }
    return largest;
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
    for (const double value : gradient) {
        if (!std::isfinite(value)) {
            throw RangeError("the gradient contains NaN or infinity");
        }
    }
    const double modulus = ring_->modulus_value();
    const int most_bits = static_cast<int>(std::floor(std::log2(modulus)));
    const double scale = gradient_scale(parameters_.choice(), modulus, gradient, outputs_, slot_ring_ == nullptr);
    const BlockLayout layout{ring_->degree(), features_, outputs_, kept.shape.group_size, kept.shape.width};

    auto masked = std::make_shared<Masked>();
    masked->header = kept.header;
    masked->shape = kept.shape;
    masked->runs = slot_ring_ ? weight_gradient_runs(slots_, ring_->degree()) : weight_gradient_runs(layout);
    masked->bits = std::min(
        most_bits, slot_ring_ ? kSlotGradientBits : flooded_bits(*ring_, l1_of_a_product(gradient, layout, scale)));
    masked->scale = parameters_.choice().scale * scale / modulus * std::ldexp(1.0, masked->bits);
    masked->masks.resize(masked->runs.size());

    const int bits = masked->bits;
    const std::size_t c1_bytes = packed_bytes(ring_->degree(), bits);
    std::vector<std::size_t> offsets;
    std::size_t total = 0;
    for (const GradientRun& run : masked->runs) {
        offsets.push_back(total);
        total += packed_bytes(run.coefficients, bits) + c1_bytes;
    }
    Header header = kept.header;
    header.type = MessageType::weight_gradient;
    WireWriter writer(header, kReplyPrefix + total);
    write_reply_head(writer, {kept.shape, bits, masked->scale});
    std::uint8_t* out = writer.reserve(total);

    SecretBuffer<std::uint8_t> mask_key(32);
    os_random(mask_key.data(), mask_key.size());
    const auto encoded = slot_ring_ ? nullptr : std::make_unique<BlockGradient>(*ring_, layout, gradient, scale);
    parallel_for(masked->runs.size(), [&](std::size_t r) {
        const GradientRun& run = masked->runs[r];
        std::vector<std::uint32_t> positions;
        Buffer<std::uint64_t> c0(ring_->size()), c1(ring_->size());
        Buffer<std::uint64_t> switched(ring_->degree());
        if (slot_ring_) {
            SlotCiphertext product =
                slot_gradient(*slot_ring_, slots_, kept.slots, rotation_keys_, gradient, scale, run.p, run.j);
            c0 = std::move(product.c0);
            c1 = std::move(product.c1);
            ring_->switch_to_bits(c0.data(), bits, switched.data());
        } else {
            encoded->product(kept.blocks, run.p, run.j, c0.data(), c1.data());
            positions = weight_gradient_positions(layout, run.p, run.j);
            ring_->switch_to_bits(c0.data(), {positions.data(), positions.size()}, bits, switched.data());
        }
        SecretBuffer<std::uint64_t>& mask = masked->masks[r];
        mask.resize(run.coefficients);
        ChaCha20 stream(mask_key.data(), Domain::mask, static_cast<std::uint32_t>(r), 0);
        sample_bits(stream, bits, mask.data(), mask.size());
        const std::uint64_t low = (std::uint64_t{1} << bits) - 1;
        for (std::size_t i = 0; i < run.coefficients; ++i) {
            switched[i] = (switched[i] + mask[i]) & low;
        }
        pack_bits({switched.data(), run.coefficients}, bits, out + offsets[r]);
        ring_->switch_to_bits(c1.data(), bits, switched.data());
        pack_bits({switched.data(), switched.size()}, bits, out + offsets[r] + packed_bytes(run.coefficients, bits));
    });
    masked_out = std::move(masked);
    return writer.finish();
}

void LinearServer::unmask(const Masked& masked, View<const std::uint8_t> opened, double* weight_gradient) const {
    WireReader reader(opened, MessageType::opened_gradient);
    reader.require(parameters_.hash(), masked.header.key);
    if (reader.header().message != masked.header.message) {
        throw KeyMismatchError("an opened weight gradient that belongs to another request");
    }
    const int bits = masked.bits;
    std::size_t total = 0;
    for (const GradientRun& run : masked.runs) {
        total += packed_bytes(run.coefficients, bits);
    }
    reader.require_remaining(total);
    const BlockLayout layout{ring_->degree(), features_, outputs_, masked.shape.group_size, masked.shape.width};
    for (std::size_t r = 0; r < masked.runs.size(); ++r) {
        const GradientRun& run = masked.runs[r];
        Buffer<std::uint64_t> values(run.coefficients);
        reader.packed({values.data(), values.size()}, bits, std::uint64_t{1} << bits);
        std::vector<std::int64_t> centered(run.coefficients);
        for (std::size_t i = 0; i < values.size(); ++i) {
            centered[i] = static_cast<std::int64_t>((values[i] - masked.masks[r][i]) << (64 - bits)) >> (64 - bits);
        }
        // [outputs of p, features of j] of dW
        std::vector<double> part;
        std::size_t first_output = 0, first_feature = 0, features = 0;
        if (slot_ring_) {
            const std::vector<double> slots = slot_ring_->decode({centered.data(), centered.size()}, masked.scale);
            for (const std::uint32_t slot : weight_gradient_slots(slots_, run.p, run.j)) {
                part.push_back(slots[slot]);
            }
            first_output = run.p * gradient_outputs(slots_);
            first_feature = run.j * slots_.width;
            features = slots_.features_of(run.j);
        } else {
            for (const std::int64_t value : centered) {
                part.push_back(static_cast<double>(value) / masked.scale);
            }
            first_output = run.p * layout.per_product();
            first_feature = run.j * layout.width;
            features = layout.features_of(run.j);
        }
        for (std::size_t i = 0; i < part.size(); ++i) {
            weight_gradient[(first_output + i / features) * features_ + first_feature + i % features] = part[i];
        }
    }
}

}  // namespace hesplit
