#include "linear/sealed/plan.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "base/error.h"
#include "linear/messages.h"
#include "linear/precision.h"
#include "rlwe/decryption.h"
#include "wire/codec.h"

namespace hesplit {

int most_sealed_bits(std::size_t ring_degree, int modulus_bits) {
    return std::min(max_degree_2_bits(ring_degree), modulus_bits - 1);
}

void check_sealed(const Parameters& parameters) {
    if (parameters.packing() != Packing::blocks || parameters.choice().updates == 0) {
        throw ParameterError("sealed weights need packing=\"blocks\" and updates >= 1");
    }
    if (kInputGradientBits > most_sealed_bits(parameters.ring_degree(), parameters.total_bits())) {
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
            // Up: activations, gradients, updates. Down: two polynomials for every product and input.
            const double cost = (g * (j + p) + p * j) * request_bits + g * (j + p) * 2 * reply_bits;
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
    const double norm = std::sqrt(choice.activation_norm * choice.activation_norm + 1);  // with the bias' 1
    const auto n = static_cast<double>(ring.degree());
    const auto group = static_cast<double>(layout.group_size);
    const auto per_product = static_cast<double>(layout.per_product());
    const double noise_of_weights = std::sqrt(v * (1.0 + choice.updates));

    SealedScaling scaling;
    scaling.reach = norm * weight_norm;
    const double product_scale = ring.modulus_value() / (2 * (scaling.reach * kRangeSlack + 2 * choice.error_bound));
    scaling.weight_scale = std::min(product_scale / choice.scale, kLargestScale);
    const double used_scale = scaling.weight_scale * choice.scale;
    // The noise of the request meets all weights of a product; that of the weights all samples of a group.
    const double request = std::sqrt(v * per_product + 1.0 / 12) * weight_norm / choice.scale;
    const double weights = noise_of_weights * norm * std::sqrt(group) / scaling.weight_scale;
    const double both = std::sqrt(n * static_cast<double>(layout.inputs()) * v) * noise_of_weights / used_scale;
    const double rounding = norm * std::sqrt(static_cast<double>(layout.features)) / (2 * scaling.weight_scale);
    const double fixed = kTail * std::sqrt(request * request + weights * weights + both * both) + rounding;
    const double reply = kTail * degree_2_rounding_deviation(ring.degree());
    const int most = most_sealed_bits(ring.degree(), static_cast<int>(std::floor(std::log2(ring.modulus_value()))) + 1);
    for (int bits = std::min(8, most); bits <= most; ++bits) {
        scaling.logit_bits = bits;
        scaling.error = fixed + reply * ring.modulus_value() / std::ldexp(used_scale, bits);
        if (scaling.error <= choice.error_bound) {
            break;
        }
    }
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
                     " keep logits only to +-" + std::to_string(scaling.error) + " over " +
                     std::to_string(choice.updates) + " updates, not to the agreed error bound of " +
                     std::to_string(choice.error_bound) +
                     ". Choose a larger modulus or error_bound, fewer updates between refreshes, or smaller ranges");
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
    estimate.layout = plan_sealed(choice, features + 1, outputs, codec.bits_per_coefficient(), kTypicalReplyBits);
    try {
        const SealedScaling scaling = scale_sealed(choice, ring, estimate.layout, weight_norm);
        estimate.error = scaling.error;
        estimate.reply_bits = scaling.logit_bits;
    } catch (const RangeError&) {
        return std::nullopt;
    }
    const std::size_t inputs = estimate.layout.inputs(), products = estimate.layout.products();
    const std::size_t groups = (choice.batch_size + estimate.layout.group_size - 1) / estimate.layout.group_size;
    estimate.request_bytes = groups * inputs * codec.bytes();
    estimate.update_bytes = (groups * products + products * inputs) * codec.bytes();
    estimate.reply_bytes = groups * (products * 2 * packed_bytes(ring.degree(), estimate.reply_bits) +
                                     inputs * 2 * packed_bytes(ring.degree(), kInputGradientBits)) +
                           packed_bytes(choice.batch_size * outputs, estimate.reply_bits) +
                           packed_bytes(choice.batch_size * features, kInputGradientBits);
    return estimate;
}

}  // namespace hesplit
