// LinearClient's part in HESplit's weight update: decrypt the server's masked gradient, flood it, send it back.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "base/parallel.h"
#include "linear/client.h"
#include "linear/precision.h"

namespace hesplit {

std::vector<GradientRun> LinearClient::gradient_runs(const BatchShape& shape) const {
    if (slot_ring_) {
        return weight_gradient_runs(slots_, ring_.degree());
    }
    return weight_gradient_runs(block_layout(ring_, features_, outputs_, shape));
}

double LinearClient::gradient_flood(const BatchShape& shape, View<const double> gradient, int bits,
                                    double scale) const {
    // Every sample's noise meets the entries of G that share a product: the exact l1 norm, and 1/2 of rounding each.
    const BlockLayout layout = block_layout(ring_, features_, outputs_, shape);
    const double gradient_scale = scale * std::ldexp(ring_.modulus_value(), -bits) / parameters_.choice().scale;
    double largest = 0;
    for (std::size_t p = 0; p < layout.products(); ++p) {
        double l1 = 0;
        for (std::size_t s = 0; s < shape.samples; ++s) {
            for (std::size_t u = 0; u < layout.outputs_of(p); ++u) {
                l1 += std::abs(gradient[s * outputs_ + p * layout.per_product() + u]) * gradient_scale + 0.5;
            }
        }
        largest = std::max(largest, l1);
    }
    return flood_deviation(parameters_.choice().releases, features_ * outputs_, released_noise(ring_, largest, bits));
}

std::string LinearClient::open_weight_gradient(View<const std::uint8_t> bytes, View<const double> gradient) const {
    WireReader reader(bytes, MessageType::weight_gradient);
    reader.require(parameters_.hash(), reader.header().key);
    const Outstanding entry = outstanding(reader.header());
    const BatchShape& shape = entry.shape;
    const ReplyHead head = read_reply_head(reader, ring_);
    if (!entry.logits_decrypted || !(head.shape == shape)) {
        throw WireError("a weight gradient that was not asked for, or of another shape");
    }
    if (gradient.size != shape.samples * outputs_) {
        throw ParameterError("expected the gradient of the logits as [" + std::to_string(shape.samples) + ", " +
                             std::to_string(outputs_) + "]");
    }
    const int bits = head.bits;
    const double scale = head.scale;
    const std::vector<GradientRun> runs = gradient_runs(shape);
    const std::size_t c1_bytes = packed_bytes(ring_.degree(), bits);
    std::size_t in_bytes = 0, out_bytes = 0, coefficients = 0;
    std::vector<std::size_t> in_offset, out_offset, noise_offset;
    for (const GradientRun& run : runs) {
        in_offset.push_back(in_bytes);
        out_offset.push_back(out_bytes);
        noise_offset.push_back(coefficients);
        in_bytes += packed_bytes(run.coefficients, bits) + c1_bytes;
        out_bytes += packed_bytes(run.coefficients, bits);
        coefficients += run.coefficients;
    }
    reader.require_remaining(in_bytes);
    const View<const std::uint8_t> payload = reader.raw(in_bytes);

    SecretBuffer<std::int64_t> noise(coefficients, 0);
    if (parameters_.choice().releases > 0) {
        count_release(*entry.key);
        noise = flooding_noise(gradient_flood(shape, gradient, bits, scale), coefficients);
    }
    WireWriter writer({MessageType::opened_gradient, parameters_.hash(), reader.header().key, reader.header().message},
                      out_bytes);
    std::uint8_t* out = writer.reserve(out_bytes);
    const std::uint64_t limit = std::uint64_t{1} << bits;
    parallel_for(runs.size(), [&](std::size_t r) {
        const GradientRun& run = runs[r];
        const std::uint8_t* in = payload.data + in_offset[r];
        Buffer<std::uint64_t> c0(run.coefficients), c1(ring_.degree());
        unpack_bits(in, {c0.data(), c0.size()}, bits, limit);
        unpack_bits(in + packed_bytes(c0.size(), bits), {c1.data(), c1.size()}, bits, limit);
        std::vector<std::uint32_t> positions(run.coefficients);
        if (slot_ring_) {
            std::iota(positions.begin(), positions.end(), 0U);
        } else {
            positions = weight_gradient_positions(block_layout(ring_, features_, outputs_, shape), run.p, run.j);
        }
        SecretBuffer<std::int64_t> values(run.coefficients);
        entry.key->phase.phase({c1.data(), c1.size()}, {c0.data(), c0.size()}, {positions.data(), positions.size()},
                               bits, values.data());
        // The mask is uniform, so there is no range to check; sums wrap around as the mask does.
        for (std::size_t i = 0; i < values.size(); ++i) {
            const std::int64_t flooded = values[i] + noise[noise_offset[r] + i];
            c0[i] = static_cast<std::uint64_t>(flooded) & (limit - 1);
        }
        pack_bits({c0.data(), c0.size()}, bits, out + out_offset[r]);
    });
    forget(reader.header().message);
    return writer.finish();
}

}  // namespace hesplit
