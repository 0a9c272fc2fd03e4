// How weights and replies are scaled so that nothing wraps around and every logit stays within the error bound
// (docs/precision.md derives the terms).
#pragma once

#include <cstddef>

#include "base/buffer.h"
#include "ckks/slot_ring.h"
#include "packing/blocks.h"
#include "packing/merged.h"
#include "packing/slots.h"
#include "packing/traces.h"
#include "rlwe/flooding.h"
#include "rlwe/parameters.h"

namespace hesplit {

// Standard deviations kept between a logit's error and its bound: a sub-Gaussian error is beyond it with probability
// below 2 exp(-kTail^2 / 2) = 2^-39.
inline constexpr double kTail = 7.5;
// The same probability for errors in slots that are products of two embedded noises (rounding times the secret, digits
// times the noise of a key): nearly Laplace distributed, exp(-sqrt(2) * kProductTail) = 2^-39.
inline constexpr double kProductTail = 19.2;

// Ranges get this much slack: for the rounding of float32 clipping, and so that a genuine logit never comes near the
// edge that the client takes for a wrap-around (0.999 of the range).
inline constexpr double kRangeSlack = 1.002;

// The longest replies.
inline constexpr int kMaxSlotReplyBits = SlotRing::kMaxReplyBits;
inline constexpr int kMaxBlockReplyBits = 62;

// What is dropped from the bottom of a request's c0 when q is small: its rounding hides below the noise.
int dropped_bits(const Ring& ring);

// The variance of a fresh ciphertext's noise, with that of the dropped bits: rounding to multiples of 2^k, half-way
// cases to the even side, has variance (4^k + 2) / 12.
double request_noise_variance(const Ring& ring);

// What scales depend on.
struct WeightNorms {
    double largest = 0;   // max |w|
    double l2 = 0;        // max over outputs of ||w_o||_2
    double group_l2 = 0;  // blocks: max over products of the Frobenius norm of the rows in it
    double reach = 0;     // max over outputs of (bound on |w_o . x|) + |b_o|, over all x within the agreed ranges
};

// `per_product`: rows of W that share a product.
WeightNorms weight_norms(const ParameterChoice& choice, View<const double> weight, View<const double> bias,
                         std::size_t features, std::size_t per_product);

// For planning: of weights of which only the largest l2 norm of a row is known.
WeightNorms planned_norms(const ParameterChoice& choice, double weight_norm, std::size_t per_product);

struct Scaling {
    double weight_scale = 1;  // weights are rounded at this scale,
    // then multiplied by 2^weight_shift (blocks with a large modulus: rounded weights are 64-bit).
    int weight_shift = 0;
    // Of y before the modulus switch: weight_scale * 2^weight_shift * scale of the activations.
    double product_scale = 1;
    int reply_bits = 0;
    double reply_scale = 1;  // of y in the reply: product_scale * 2^reply_bits / q
    // With private weights what floods y in a product: uniform in [-2^flood_bits, 2^flood_bits).
    int flood_bits = 0;
    int spread_bits = 0;       // and how far u of the encryption of zero is spread (PublicKey::encrypt_zero)
    int babies = 0;            // of merged blocks: levels that are taken to the inputs
    double error = 0;          // bound on |y - exact y| that results
    double rounding_norm = 0;  // the largest l2 norm of what rounding changes in a row, in units of the weight scale
};

// The largest weight scale that cannot wrap around, and the shortest reply that keeps the error bound. Throws
// RangeError when the parameters cannot hold these weights, and says what would. `weight` gives the exact rounding
// errors; empty while planning, when they are taken as uniform. With private weights everything follows from the agreed
// norms, so that it says nothing of the weights. `known`: of the same weights, whose rounding errors are the same at
// the same scale; or null.
Scaling scale_blocks(const ParameterChoice& choice, const Ring& ring, const WeightNorms& norms, std::size_t features,
                     std::size_t per_product, View<const double> weight, const Scaling* known = nullptr);
// That of merged blocks is the same for batches of every size. Levels that are taken to the inputs need more modulus;
// the second takes as many as the error bound allows, up to those that leave the fewest rotations.
Scaling scale_merged(const ParameterChoice& choice, const Ring& data, const Ring& key, WeightNorms norms,
                     std::size_t features, std::size_t outputs, View<const double> weight, std::size_t babies);
Scaling scale_merged_fast(const ParameterChoice& choice, const Ring& data, const Ring& key, const WeightNorms& norms,
                          std::size_t features, std::size_t outputs, View<const double> weight);
// How many that would be.
std::size_t most_useful_babies(const ParameterChoice& choice, const Ring& data, const Ring& key, std::size_t features,
                               std::size_t outputs);
Scaling scale_slots(const ParameterChoice& choice, const SlotRing& ring, const WeightNorms& norms,
                    const SlotLayout& layout);
// Of private weights on slots. `held` are the norms of the weights, for parts of one row: weight_norms(..., 1).
Scaling scale_traces(const ParameterChoice& choice, const Ring& ring, const WeightNorms& held,
                     const TraceLayout& layout);

// What a logit is off by where every one of the layout's M coefficients that say it is off by a number of deviation 1,
// independently: a logit is N/2M times the first of them and twice the others' sum, each times a cosine.
double trace_deviation(const TraceLayout& layout);

// What the rounding of a reply, in units of its last bit, adds to a logit on slots and on traces at most.
double slot_rounding_error(const SlotLayout& layout, std::size_t ring_degree);
double trace_rounding_error(const TraceLayout& layout, std::size_t ring_degree);

// The largest scale of a gradient, row-major [samples, outputs], with which no sum of |x| <= B times G wraps around.
double largest_gradient_scale(const ParameterChoice& choice, const Ring& ring, View<const double> gradient,
                              std::size_t outputs);
// Scaled values are rounded to 64-bit integers: with a larger modulus at a scale that is smaller by this power of two,
// which they are multiplied by in the ring.
int gradient_shift(View<const double> gradient, double scale);

// What the flooding of released decryptions has to hide (rlwe/flooding.h), in units of a reply's last bit.

// A bound on the noise of every coefficient of a product of fresh ciphertexts with plaintexts whose l1 norms (in units
// of the plaintexts' scale) sum to `plaintext_l1`, with that of the encryption of zero that private replies add, after
// its modulus was switched to `bits`.
double released_noise(const ParameterChoice& choice, const Ring& ring, double plaintext_l1, int bits);

// The fewest bits with which rounding adds no more than half of what the rest of that noise is.
int flooded_bits(const Ring& ring, double plaintext_l1);

// A bound on the l1 norm of what a product is multiplied by, encoded weights of `per_product` rows, that follows from
// the agreed ranges and the scale of a reply: it holds for every W that the server may hold.
double agreed_weight_l1(const ParameterChoice& choice, const Ring& ring, std::size_t features, std::size_t per_product,
                        double product_scale);

// What the flood of private replies has to hide, in units of a product before the switch: a bound on the noise of every
// coefficient of a product of fresh ciphertexts with such plaintexts and of the encryption of zero that is added.
double private_noise(const Ring& ring, double plaintext_l1, int spread_bits);
// As wide as u may be for its noise to be an eighth of that of the product: what hides both grows by a sixth of a bit.
int private_spread(const Ring& ring, double plaintext_l1);

// Activations are rounded to 64-bit integers: at a scale that is smaller by this power of two, which they are
// multiplied by in the ring.
int activation_shift(const ParameterChoice& choice);

// Babies rotate fresh ciphertexts: allowed when that does not make their noise much larger.
bool allow_babies(const SlotRing& ring);

}  // namespace hesplit
