#include "linear/sealed/plan.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "base/error.h"
#include "linear/messages.h"
#include "linear/precision.h"
#include "ring/rounding.h"
#include "rlwe/decryption.h"
#include "wire/codec.h"

namespace hesplit {

namespace {

// Of a coefficient of dJ/dY, before what is dropped of it: for planning a layout alone.
constexpr double kTypicalDropped = 6;

int modulus_bits(const Ring& ring) {
    return static_cast<int>(std::floor(std::log2(ring.modulus_value()))) + 1;
}

}  // namespace

int most_sealed_bits(int modulus_bits) {
    return std::min(kMaxBlockReplyBits, modulus_bits - 1);
}

bool possible_gradient_dropped(const Ring& ring, int dropped) {
    const int least = dropped_bits(ring);
    return dropped >= least && dropped <= (ring.composable() ? std::max(least, modulus_bits(ring) - 8) : least);
}

std::size_t bias_polynomials(const BlockLayout& layout) {
    return (layout.outputs + layout.degree - 1) / layout.degree;
}

std::size_t bias_coefficients(const BlockLayout& layout) {
    return std::min(layout.outputs, layout.degree);
}

void check_sealed(const Parameters& parameters) {
    if (parameters.packing() != Packing::blocks || parameters.choice().updates == 0) {
        throw ParameterError("sealed weights need packing=\"blocks\" and updates >= 1");
    }
    if (kInputGradientBits > most_sealed_bits(parameters.total_bits())) {
        throw ParameterError("sealed weights need a modulus of more than " + std::to_string(kInputGradientBits) +
                             " bits, for the gradients that come back; these parameters have " +
                             std::to_string(parameters.total_bits()));
    }
}

BlockLayout plan_sealed(const ParameterChoice& choice, std::size_t features, std::size_t outputs, double request_bits,
                        double reply_bits) {
    BlockLayout best{choice.ring_degree, features, outputs, 0, 0};
    double best_cost = std::numeric_limits<double>::infinity();
    BlockLayout candidate = best;
    for (std::size_t groups = 1; groups <= choice.batch_size; groups = next_division(choice.batch_size, groups)) {
        candidate.group_size = (choice.batch_size + groups - 1) / groups;
        for (std::size_t inputs = 1; inputs <= features; inputs = next_division(features, inputs)) {
            candidate.width = (features + inputs - 1) / inputs;
            if (candidate.group_size * candidate.width > candidate.degree) {
                continue;
            }
            const auto g = static_cast<double>(groups);
            const auto j = static_cast<double>(inputs);
            const auto p = static_cast<double>(candidate.products());
            // Up: activations, gradients, and every so often weights. Down: a polynomial for every product and input.
            const double up = g * (j * request_bits + p * (request_bits - kTypicalDropped)) +
                              p * j * request_bits / std::max<double>(1, choice.updates);
            const double cost = up + g * (j + p) * reply_bits;
            if (cost < best_cost) {
                best_cost = cost;
                best = candidate;
            }
        }
    }
    check(best);
    return best;
}

namespace {

// As scale_sealed, but with an error above the bound where no number of bits is enough.
SealedScaling sealed_scaling(const ParameterChoice& choice, const Ring& ring, const BlockLayout& layout,
                             double weight_norm) {
    constexpr double kLargestScale = 1ULL << 45;
    const double v = request_noise_variance(ring);
    const double norm = std::sqrt(choice.activation_norm * choice.activation_norm + 1);  // weight_norm is of (W, b)
    const auto n = static_cast<double>(ring.degree());
    const auto group = static_cast<double>(layout.group_size);
    const auto per_product = static_cast<double>(layout.per_product());

    SealedScaling scaling;
    scaling.reach = norm * weight_norm;
    const double product_scale = ring.modulus_value() / (2 * (scaling.reach * kRangeSlack + 2 * choice.error_bound));
    scaling.weight_scale = std::min(product_scale / choice.scale, kLargestScale);
    const double used_scale = scaling.weight_scale * choice.scale;
    // The noise of the request meets all weights of a product; that of the weights all samples of a group.
    const double request = std::sqrt(v * per_product + kRoundingVariance) * weight_norm / choice.scale;
    const double weights = std::sqrt(v * group) * norm / scaling.weight_scale;
    const double both = std::sqrt(n * static_cast<double>(layout.inputs())) * v / used_scale;
    const double bias = std::ldexp(1.0, dropped_bits(ring)) / used_scale;
    const double fixed = kTail * std::sqrt(request * request + weights * weights + both * both) + bias;
    // That of the reply, and of what the client adds to it.
    const double deviation = reply_rounding_deviation(ring.degree());
    const double reply = kTail * std::sqrt(deviation * deviation + 1.0 / 12);
    const int most = most_sealed_bits(modulus_bits(ring));
    for (int bits = std::min(8, most); bits <= most; ++bits) {
        scaling.bits.logits = bits;
        scaling.error = fixed + reply * ring.modulus_value() / std::ldexp(used_scale, bits);
        if (scaling.error <= choice.error_bound) {
            break;
        }
    }
    scaling.bits.input_gradient = kInputGradientBits;
    // A rounding of dJ/dY meets all weights.
    const double met = std::sqrt(static_cast<double>(layout.outputs)) * weight_norm * scaling.weight_scale;
    const double allowed = kGradientError * ring.modulus_value() / (2 * kGradientRoom) / (kTail * met);
    int dropped = dropped_bits(ring);
    while (possible_gradient_dropped(ring, dropped + 1) &&
           (std::ldexp(1.0, 2 * (dropped + 1)) + 2) / 12 <= allowed * allowed) {
        ++dropped;
    }
    scaling.bits.gradient_dropped = dropped;
    return scaling;
}

}  // namespace

SealedScaling widest_sealed(const ParameterChoice& choice, const Ring& ring, const BlockLayout& layout,
                            double weight_norm) {
    const auto holds = [&](double norm) {
        return sealed_scaling(choice, ring, layout, norm).error <= choice.error_bound;
    };
    double low = weight_norm, factor = 2;
    for (int i = 0; i < 60 && holds(low * factor); ++i) {
        low *= factor;
    }
    for (int i = 0; i < 10; ++i) {
        factor = std::sqrt(factor);
        low *= holds(low * factor) ? factor : 1;
    }
    return sealed_scaling(choice, ring, layout, low);
}

SealedScaling scale_sealed(const ParameterChoice& choice, const Ring& ring, const BlockLayout& layout,
                           double weight_norm) {
    const SealedScaling scaling = sealed_scaling(choice, ring, layout, weight_norm);
    if (scaling.error <= choice.error_bound) {
        return scaling;
    }
    throw RangeError("sealed weights with rows of l2 norm up to " + std::to_string(weight_norm) +
                     " keep logits only to +-" + std::to_string(scaling.error) + ", not to the agreed error bound of " +
                     std::to_string(choice.error_bound) +
                     ". Choose a larger modulus or error_bound, or smaller ranges");
}

std::optional<SealedEstimate> estimate_sealed(const Parameters& parameters, std::size_t features, std::size_t outputs,
                                              double weight_norm) {
    const Ring ring(parameters.ring_degree(), parameters.primes());
    const PolynomialCodec codec(ring, dropped_bits(ring));
    const ParameterChoice& choice = parameters.choice();
    SealedEstimate estimate;
    try {
        check_sealed(parameters);
    } catch (const ParameterError&) {
        return std::nullopt;
    }
    estimate.layout = plan_sealed(choice, features, outputs, codec.bits_per_coefficient(), kTypicalReplyBits);
    SealedScaling scaling;
    try {
        scaling = scale_sealed(choice, ring, estimate.layout, weight_norm);
    } catch (const RangeError&) {
        return std::nullopt;
    }
    estimate.error = scaling.error;
    estimate.reply_bits = scaling.bits.logits;
    const BlockLayout& layout = estimate.layout;
    const std::size_t inputs = layout.inputs(), products = layout.products();
    const std::size_t groups = (choice.batch_size + layout.group_size - 1) / layout.group_size;
    const std::size_t gradient_bytes = PolynomialCodec(ring, scaling.bits.gradient_dropped).bytes();
    const std::size_t weight_bytes = products * inputs * codec.bytes();
    estimate.request_bytes = groups * inputs * codec.bytes();
    estimate.update_bytes = groups * products * gradient_bytes + weight_bytes / choice.updates;
    estimate.reply_bytes = groups * (products * packed_bytes(ring.degree(), scaling.bits.logits) +
                                     inputs * packed_bytes(ring.degree(), scaling.bits.input_gradient)) +
                           packed_bytes(choice.batch_size * outputs, scaling.bits.logits) +
                           packed_bytes(choice.batch_size * features, scaling.bits.input_gradient);
    return estimate;
}

}  // namespace hesplit
