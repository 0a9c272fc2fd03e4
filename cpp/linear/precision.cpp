#include "linear/precision.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>

#include "base/error.h"
#include "ckks/precise_embedding.h"
#include "linear/merged/merging.h"
#include "ring/rounding.h"
#include "rlwe/decryption.h"
#include "rlwe/galois.h"
#include "rlwe/public_key.h"

namespace hesplit {

namespace {

std::string number(double value) {
    char text[32];
    std::snprintf(text, sizeof(text), "%.3g", value);
    return text;
}

// Scales and errors of one kind of layout, apart from how it is packed.
struct Budget {
    double modulus = 0;
    double weight_scale = 0;
    int weight_shift = 0;
    int gain_bits = 0;       // what logits are multiplied by otherwise
    double fixed_error = 0;  // everything but the rounding of the reply
    double reply_error = 0;  // the bound of that, in units of the reply's last bit
    int least_reply_bits = 1;
    int max_reply_bits = 0;
};

// The weight scale that fills the modulus: reach * product_scale = q / 2.
double filling_weight_scale(const ParameterChoice& choice, double modulus, const WeightNorms& norms) {
    const double reach = norms.reach * kRangeSlack + 2 * choice.error_bound;
    return modulus / (2 * reach * choice.scale);
}

Scaling finish(const ParameterChoice& choice, const WeightNorms& norms, const Budget& budget) {
    const double target = choice.error_bound;
    Scaling scaling;
    scaling.weight_scale = budget.weight_scale;
    scaling.weight_shift = budget.weight_shift;
    scaling.product_scale = std::ldexp(budget.weight_scale * choice.scale, budget.weight_shift + budget.gain_bits);
    const int most = std::min(budget.max_reply_bits, static_cast<int>(std::floor(std::log2(budget.modulus))));
    for (scaling.reply_bits = std::min(budget.least_reply_bits, most); scaling.reply_bits <= most;
         ++scaling.reply_bits) {
        scaling.reply_scale = scaling.product_scale / budget.modulus * std::ldexp(1.0, scaling.reply_bits);
        scaling.error = budget.fixed_error + budget.reply_error / scaling.reply_scale;
        if (scaling.error <= target) {
            return scaling;
        }
    }
    throw RangeError(
        "these weights reach |y| = " + number(norms.reach) + " (largest row norm " + number(norms.l2) +
        "), and the parameters then hold logits only to +-" + number(scaling.error) +
        ", not to the agreed error bound of " + number(target) +
        ". Choose parameters with a larger weight_norm (Parameters.recommend) or modulus, or a larger error_bound");
}

// Several sums take turns: additions to one would wait for one another.
constexpr std::size_t kSums = 4;

template <class Add>
void take_turns(std::size_t count, const Add& add) {
    std::size_t i = 0;
    for (; i + kSums <= count; i += kSums) {
        for (std::size_t sum = 0; sum < kSums; ++sum) {
            add(i + sum, sum);
        }
    }
    for (; i < count; ++i) {
        add(i, 0);
    }
}

double sum_of(const double (&sums)[kSums]) {
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

}  // namespace

int dropped_bits(const Ring& ring) {
    return ring.composable() ? 2 : 0;
}

double request_noise_variance(const Ring& ring) {
    const int dropped = dropped_bits(ring);
    return kNoiseVariance + (dropped ? (std::ldexp(1.0, 2 * dropped) + 2) / 12 : 0);
}

WeightNorms weight_norms(const ParameterChoice& choice, View<const double> weight, View<const double> bias,
                         std::size_t features, std::size_t per_product) {
    WeightNorms norms;
    double group = 0;
    const std::size_t outputs = weight.size / features;
    for (std::size_t o = 0; o < outputs; ++o) {
        double l1s[kSums] = {}, squares[kSums] = {}, largest[kSums] = {};
        take_turns(features, [&](std::size_t i, std::size_t sum) {
            const double magnitude = std::abs(weight[o * features + i]);
            l1s[sum] += magnitude;
            squares[sum] += magnitude * magnitude;
            largest[sum] = std::max(largest[sum], magnitude);
        });
        const double l1 = sum_of(l1s), square = sum_of(squares);
        norms.largest = std::max(norms.largest, *std::max_element(largest, largest + kSums));
        group = o % per_product == 0 ? square : group + square;
        norms.group_l2 = std::max(norms.group_l2, std::sqrt(group));
        norms.l2 = std::max(norms.l2, std::sqrt(square));
        const double by_norm = choice.activation_norm * std::sqrt(square);
        const double reach = std::min(choice.activation_bound * l1, by_norm) + (bias.size ? std::abs(bias[o]) : 0.0);
        norms.reach = std::max(norms.reach, reach);
    }
    return norms;
}

WeightNorms planned_norms(const ParameterChoice& choice, double weight_norm, std::size_t per_product) {
    WeightNorms norms;
    norms.largest = norms.l2 = weight_norm;
    norms.group_l2 = weight_norm * std::sqrt(static_cast<double>(per_product));
    norms.reach = choice.activation_norm * weight_norm;
    return norms;
}

namespace {

// The norms that the scales of private replies follow from. Throws RangeError when the weights are larger.
WeightNorms agreed_norms(const ParameterChoice& choice, const WeightNorms& norms, std::size_t per_product) {
    const WeightNorms agreed = planned_norms(choice, choice.weight_norm, per_product);
    const double needed = std::max(norms.l2, norms.reach / choice.activation_norm);
    if (needed > choice.weight_norm) {
        throw RangeError("these weights need an agreed weight_norm of " + number(needed * 1.001) +
                         " (largest row norm " + number(norms.l2) + ", largest |y| " + number(norms.reach) +
                         "), but it is " + number(choice.weight_norm) +
                         ". Agree on parameters with that weight_norm (Parameters.recommend), or scale the weights");
    }
    return agreed;
}

// The largest l2 norm of a row of W * scale - round(W * scale).
double rounding_norm(View<const double> weight, std::size_t features, double scale) {
    if (weight.size == 0) {
        return std::sqrt(static_cast<double>(features) / 12);
    }
    double largest = 0;
    for (std::size_t row = 0; row < weight.size; row += features) {
        double squares[kSums] = {};
        take_turns(features, [&](std::size_t i, std::size_t sum) {
            const double scaled = weight[row + i] * scale;  // below 2^62, as what is encoded
            const double error = scaled - static_cast<double>(std::llrint(scaled));
            squares[sum] += error * error;
        });
        largest = std::max(largest, sum_of(squares));
    }
    return std::sqrt(largest);
}

// The worst case of a fresh ciphertext's noise, with the dropped bits of its c0.
double request_noise_bound(const Ring& ring) {
    return kNoiseBound + std::ldexp(1.0, dropped_bits(ring)) / 2;
}

}  // namespace

double released_noise(const ParameterChoice& choice, const Ring& ring, double plaintext_l1, int bits) {
    const double unit = ring.modulus_value() / std::ldexp(1.0, bits);
    // Its u is spread as private_spread() says, or less.
    const double zero = choice.private_bits != 0 ? kNoiseBound * plaintext_l1 + public_noise_bound(ring.degree()) : 0;
    return (request_noise_bound(ring) * plaintext_l1 + zero) / unit +
           reply_rounding_bound(ring.degree(), ring.prime_count(), bits);
}

int flooded_bits(const Ring& ring, double plaintext_l1) {
    int bits = 1;
    while (bits < kMaxBlockReplyBits &&
           reply_rounding_bound(ring.degree(), ring.prime_count(), bits) >
               0.5 * request_noise_bound(ring) * plaintext_l1 / (ring.modulus_value() / std::ldexp(1.0, bits))) {
        ++bits;
    }
    return bits;
}

double agreed_weight_l1(const ParameterChoice& choice, const Ring& ring, std::size_t features, std::size_t per_product,
                        double product_scale) {
    // Either B ||W_o||_1 or X ||W_o||_2 fits half the modulus, and ||W_o||_1 <= sqrt(d) ||W_o||_2. The rounding of
    // encoded weights adds at most 1/2 each, or 2^-60 of the largest where they are shifted (scale_blocks); of small
    // private ones, whose largest is taken as 1 there, the error bound in the reach covers it.
    const auto d = static_cast<double>(features);
    const double reach = ring.modulus_value() / (2 * product_scale);
    const double weight_scale = product_scale / choice.scale;
    const double l1 = reach * std::max(1 / choice.activation_bound, std::sqrt(d) / choice.activation_norm);
    const double rounding = d * (0.5 + std::ldexp(l1 * weight_scale, -60));
    return static_cast<double>(per_product) * (l1 * weight_scale + rounding);
}

double private_noise(const Ring& ring, double plaintext_l1, int spread_bits) {
    return request_noise_bound(ring) * plaintext_l1 + public_noise_bound(ring.degree(), spread_bits);
}

int private_spread(const Ring& ring, double plaintext_l1) {
    constexpr int kMost = 40;
    return std::clamp(std::ilogb(plaintext_l1 / static_cast<double>(ring.degree())) - 3, 0, kMost);
}

int activation_shift(const ParameterChoice& choice) {
    return std::max(0, std::ilogb(choice.activation_bound * choice.scale) - 61);
}

namespace {

// What merging does to products. The rounding of weights is then taken at its worst, so that what was planned holds for
// all weights.
struct Merges {
    bool any = false;
    int levels = 0;              // so many times weights are added up before they are encoded
    int babies = 0;              // and logits are multiplied by 2
    double input_variance = 0;   // joins the noise of inputs
    double output_variance = 0;  // and that of a product, in its units
};

Scaling scale_products(const ParameterChoice& choice, const Ring& ring, const WeightNorms& held, std::size_t features,
                       std::size_t per_product, View<const double> weight, const Merges& merges,
                       const Scaling* known = nullptr) {
    const bool hidden = choice.private_bits != 0;
    const WeightNorms norms = hidden ? agreed_norms(choice, held, per_product) : held;
    Budget budget;
    budget.modulus = ring.modulus_value();
    // Rounded weights are 64-bit integers; what the modulus holds beyond that is a power of two.
    const double filling = std::ldexp(filling_weight_scale(choice, budget.modulus, norms), -merges.babies);
    const double largest = std::ldexp(1.0, 61 - merges.levels) / std::max(norms.largest, 1.0);
    budget.weight_shift = std::max(0, static_cast<int>(std::ceil(std::log2(filling / largest))));
    budget.weight_scale = std::ldexp(filling, -budget.weight_shift);
    // The noise meets every weight of a product, the rounding of x only those of its own row.
    const double rounding = std::ldexp(norms.l2, activation_shift(choice));
    const double product_scale = std::ldexp(budget.weight_scale * choice.scale, budget.weight_shift + merges.babies);
    const double merging = choice.scale / product_scale;
    const double noise =
        std::sqrt((request_noise_variance(ring) + merges.input_variance) * norms.group_l2 * norms.group_l2 +
                  kRoundingVariance * rounding * rounding + merges.output_variance * merging * merging);
    // Cauchy-Schwarz, no statistics: activations may be correlated with how their weights were rounded. Of private
    // weights it is taken at its worst, since nothing may follow from what they are.
    double rounded = std::sqrt(static_cast<double>(features)) / 2;
    if (known && known->weight_scale == budget.weight_scale) {
        rounded = known->rounding_norm;
    } else if (!merges.any && !hidden) {
        rounded = rounding_norm(weight, features, budget.weight_scale);
    }
    const double weights = rounded * choice.activation_norm * kRangeSlack / budget.weight_scale;
    budget.fixed_error = kTail * noise / choice.scale + weights + 1 / (budget.weight_scale * choice.scale);
    budget.reply_error = kTail * reply_rounding_deviation(ring.degree());
    budget.max_reply_bits = kMaxBlockReplyBits;
    const double l1 = agreed_weight_l1(choice, ring, features, per_product, product_scale);
    if (choice.releases > 0) {
        budget.least_reply_bits = flooded_bits(ring, l1);
    }
    int flood_bits = 0, spread_bits = 0;
    if (hidden) {
        spread_bits = private_spread(ring, l1);
        // A number uniform in an interval of length 2^(flood_bits + 1), shifted by the noise, is within statistical
        // distance noise / 2^(flood_bits + 1) <= 2^-(private_bits + 1) of itself.
        flood_bits = static_cast<int>(std::ceil(choice.private_bits + std::log2(private_noise(ring, l1, spread_bits))));
        budget.fixed_error +=
            (std::ldexp(1.0, flood_bits) + public_noise_bound(ring.degree(), spread_bits)) / product_scale;
    }
    budget.gain_bits = merges.babies;
    Scaling scaling = finish(choice, norms, budget);
    scaling.rounding_norm = rounded;
    scaling.babies = merges.babies;
    scaling.flood_bits = flood_bits;
    scaling.spread_bits = spread_bits;
    return scaling;
}

}  // namespace

Scaling scale_blocks(const ParameterChoice& choice, const Ring& ring, const WeightNorms& norms, std::size_t features,
                     std::size_t per_product, View<const double> weight, const Scaling* known) {
    return scale_products(choice, ring, norms, features, per_product, weight, {}, known);
}

Scaling scale_merged(const ParameterChoice& choice, const Ring& data, const Ring& key, WeightNorms norms,
                     std::size_t features, std::size_t outputs, View<const double> weight, std::size_t babies) {
    // Small groups have the most outputs to a product, large ones the most levels.
    const std::size_t per_product = merged_layout(data.degree(), features, outputs, 1).blocks.per_product();
    norms.group_l2 = norms.l2 * std::sqrt(static_cast<double>(per_product));
    const auto levels = static_cast<int>(merging_elements(data.degree(), features, outputs, choice.batch_size).size());
    const MergingKeys keys(key, static_cast<std::size_t>(levels));
    const auto taken = static_cast<int>(babies);
    // Every level of babies joins fresh noise, which meets the weights as that of the request does: sums over the sets
    // of levels are orthogonal (docs/precision.md). Giants join theirs once each. Divisions round c0.
    const double joined = taken * (std::pow(switching_deviation(keys.of_babies()), 2) + 1.0 / 12);
    const double giants = std::ldexp(1.0, levels - taken) - 1;
    return scale_products(
        choice, data, norms, features, per_product, weight,
        {true, levels, taken, joined, giants * std::pow(switching_deviation(keys.of_giants()), 2) + 1.0 / 12});
}

std::size_t most_useful_babies(const ParameterChoice& choice, const Ring& data, const Ring& key, std::size_t features,
                               std::size_t outputs) {
    const std::size_t levels = merging_elements(data.degree(), features, outputs, choice.batch_size).size();
    return best_babies(merged_layout(data.degree(), features, outputs, 1), MergingKeys(key, levels).most_babies());
}

Scaling scale_merged_fast(const ParameterChoice& choice, const Ring& data, const Ring& key, const WeightNorms& norms,
                          std::size_t features, std::size_t outputs, View<const double> weight) {
    for (std::size_t babies = most_useful_babies(choice, data, key, features, outputs); babies > 0; --babies) {
        try {
            return scale_merged(choice, data, key, norms, features, outputs, weight, babies);
        } catch (const RangeError&) {
            continue;  // fewer may do
        }
    }
    return scale_merged(choice, data, key, norms, features, outputs, weight, 0);
}

Scaling scale_slots(const ParameterChoice& choice, const SlotRing& ring, const WeightNorms& norms,
                    const SlotLayout& layout) {
    Budget budget;
    budget.modulus = ring.data().modulus_value();
    budget.weight_scale = filling_weight_scale(choice, budget.modulus, norms);
    const double product_scale = budget.weight_scale * choice.scale;
    // Independent errors of variance v in all coefficients have variance v * N / 2 in the real part of a slot, and
    // those of different slots are uncorrelated.
    const double embedding = std::sqrt(static_cast<double>(ring.data().degree()) / 2);
    const double rotation = ring.rotation_deviation();

    // Of an activation and of a weight, in their slots.
    const double input = embedding * std::sqrt(request_noise_variance(ring.data()) + kRoundingVariance) / choice.scale;
    const double rotated = layout.babies > 1 ? embedding * rotation / choice.scale : 0;
    const double encoded_scale = std::min(budget.weight_scale, std::ldexp(1.0, SlotRing::kEncodedBits - 1));
    const double rounded = embedding * std::sqrt(kRoundingVariance) / encoded_scale;
    // An output is the sum of several slots, each of which collects its offsets of all inputs.
    const auto terms = static_cast<double>(layout.terms());
    const double pairs = terms * static_cast<double>(layout.offsets() * layout.inputs());
    const double inputs = input * norms.l2, babies = rotated * norms.l2;
    const double weights = rounded * choice.activation_norm * kRangeSlack * std::sqrt(layout.most_reads());
    const double both = std::sqrt(2 * pairs * (input * input + rotated * rotated)) * rounded;
    const double sums = static_cast<double>(layout.giants()) * terms;
    const double rotations = embedding * rotation * std::sqrt(sums) / product_scale;
    const double bias = embedding * std::sqrt(kRoundingVariance * terms) / product_scale;
    budget.fixed_error = kTail * std::sqrt(inputs * inputs + weights * weights + bias * bias) +
                         kProductTail * std::sqrt(babies * babies + both * both + rotations * rotations);
    budget.reply_error = slot_rounding_error(layout, ring.data().degree());
    budget.max_reply_bits = kMaxSlotReplyBits;
    return finish(choice, norms, budget);
}

double slot_rounding_error(const SlotLayout& layout, std::size_t ring_degree) {
    const double embedding = std::sqrt(static_cast<double>(ring_degree) / 2);
    return kProductTail * embedding * std::sqrt(static_cast<double>(layout.terms())) *
           reply_rounding_deviation(ring_degree);
}

double trace_rounding_error(const TraceLayout& layout, std::size_t ring_degree) {
    return kProductTail * trace_deviation(layout) * reply_rounding_deviation(ring_degree);
}

double trace_deviation(const TraceLayout& layout) {
    // The squares of the cosines of odd multiples of j pi / 2M sum to (M - 1) / 2.
    return static_cast<double>(layout.width()) * std::sqrt(2 * static_cast<double>(layout.classes()) - 1);
}

namespace {

// Of a product on traces, apart from the encryption of zero: how far each of its coefficients may be from that of the
// product of the exact activations and weights. That is x (w' - w) + (x' - x) w', with x' the client's phase, its noise
// and roundings included, and w' the encoded weights. Both l1 norms follow from the agreed ranges: of a polynomial it
// is at most sqrt(N) times its l2 norm, which is sqrt(2 / N) times that of its slots.
struct TraceNoise {
    double weights_l1;  // of the encoded weights of a product
    double bound;
};

TraceNoise trace_noise(const ParameterChoice& choice, const Ring& ring, const TraceLayout& layout,
                       double product_scale) {
    const auto inputs = static_cast<double>(layout.inputs()), degree = static_cast<double>(ring.degree());
    const double weight_scale = product_scale / choice.scale;
    const double copies = std::sqrt(static_cast<double>(layout.group_size * layout.outputs_per_product())),
                 most = kRangeSlack;
    const auto l1 = [&](double scale, double norm) { return std::sqrt(2 * inputs) * scale * norm * copies * most; };
    // What rounding adds to a coefficient: every weight is at most weight_norm, every activation its bound.
    const double weight_rounding = 0.5 + PreciseEmbedding::kRelativeError * weight_scale * choice.weight_norm;
    const double input_rounding = 0.5 + PreciseEmbedding::kRelativeError * choice.scale * choice.activation_bound;
    TraceNoise noise{};
    noise.weights_l1 = l1(weight_scale, choice.weight_norm) + inputs * degree * weight_rounding;
    noise.bound = (request_noise_bound(ring) + input_rounding) * noise.weights_l1 +
                  weight_rounding * l1(choice.scale, choice.activation_norm) +
                  (1 + PreciseEmbedding::kRelativeError * ring.modulus_value());  // of the bias, and of the whole
    return noise;
}

}  // namespace

Scaling scale_traces(const ParameterChoice& choice, const Ring& ring, const WeightNorms& held,
                     const TraceLayout& layout) {
    const WeightNorms norms = agreed_norms(choice, held, 1);
    const double deviation = trace_deviation(layout);
    Budget budget;
    budget.modulus = ring.modulus_value();
    // No coefficient is larger than the mean of the logits, over N/2M.
    const auto width = static_cast<double>(layout.width());
    budget.weight_scale = filling_weight_scale(choice, budget.modulus, norms) * width;
    const double product_scale = budget.weight_scale * choice.scale;
    if (!(product_scale < 0x1p900)) {  // double-double arithmetic needs some room below what doubles hold
        throw RangeError("private weights on slots whose scale would be 2^900 or more: choose a smaller modulus");
    }
    const TraceNoise noise = trace_noise(choice, ring, layout, product_scale);
    const int spread_bits = private_spread(ring, noise.weights_l1);
    const double bound = noise.bound + public_noise_bound(ring.degree(), spread_bits);
    // As for blocks: a uniform flood of this length, shifted by the noise, is within 2^-(private_bits + 1) of itself.
    const int flood_bits = static_cast<int>(std::ceil(choice.private_bits + std::log2(bound)));
    // Uniform numbers are sub-Gaussian with the variance that they have; the noise is taken at its worst.
    const double flood = kTail * std::ldexp(deviation / std::sqrt(3.0), flood_bits);
    budget.fixed_error = (flood + deviation * deviation / width * bound) / product_scale;
    budget.reply_error = trace_rounding_error(layout, ring.degree());
    budget.max_reply_bits = kMaxBlockReplyBits;
    Scaling scaling = finish(choice, norms, budget);
    scaling.flood_bits = flood_bits;
    scaling.spread_bits = spread_bits;
    return scaling;
}

double largest_gradient_scale(const ParameterChoice& choice, const Ring& ring, View<const double> gradient,
                              std::size_t outputs) {
    double reach = 0;
    for (std::size_t o = 0; o < outputs; ++o) {
        double l1 = 0;
        for (std::size_t i = o; i < gradient.size; i += outputs) {
            l1 += std::abs(gradient[i]);
        }
        reach = std::max(reach, l1 * choice.activation_bound);
    }
    if (reach == 0) {
        return 1;
    }
    constexpr double kRoom = 1.01;  // for float32 clipping, rounding and noise
    // Gradients far below 2^-400 are 0 at this scale.
    return std::min(ring.modulus_value() / (2 * kRoom * reach * choice.scale), 0x1p400);
}

int gradient_shift(View<const double> gradient, double scale) {
    double largest = 0;
    for (const double value : gradient) {
        largest = std::max(largest, std::abs(value));
    }
    return largest * scale < 0x1p60 ? 0 : std::ilogb(largest * scale) - 59;
}

bool allow_babies(const SlotRing& ring) {
    return ring.rotation_deviation() <= 8 * std::sqrt(request_noise_variance(ring.data()));
}

}  // namespace hesplit
