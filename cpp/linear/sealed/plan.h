// What both sides of a sealed layer know before anything is sent: its layout, and how its values are scaled.
//
// The server of a sealed layer holds W and b only as ciphertexts under the client's key. Products are of degree 2, but
// c2 follows from the public seeds of their factors: the client, which expanded these when it encrypted, adds c2 * s^2
// itself, and a reply has c0 and c1. No relinearisation, no evaluation keys. Of b there is one coefficient an output,
// in the scale of products, which the server adds to these. Both sides plan the same layout.
#pragma once

#include <cstddef>
#include <optional>

#include "packing/blocks.h"
#include "ring/ring.h"
#include "rlwe/parameters.h"

namespace hesplit {

// Bits per coefficient of a reply with logits, and of one with dJ/da, whose range the client fits to each step; and
// what is dropped from the bottom of an encrypted dJ/dY, which is finer than dJ/da has to be.
struct SealedBits {
    int logits = 0;
    int input_gradient = 0;
    int gradient_dropped = 0;
};
// Of the range of dJ/da, 2^-11 goes to the rounding of the reply, and as much to that of dJ/dY.
inline constexpr int kInputGradientBits = 19;
inline constexpr double kGradientError = 0x1p-11;
// What the client leaves free between the largest dJ/da and a wrap-around.
inline constexpr double kGradientRoom = 1.05;
// The most that replies may have: no more than there is in a modulus of so many bits.
int most_sealed_bits(int modulus_bits);
// Whether dJ/dY may be rounded so.
bool possible_gradient_dropped(const Ring& ring, int dropped);

// Throws ParameterError unless a layer can be sealed under these parameters: what a client may send, and a server
// takes.
void check_sealed(const Parameters& parameters);

// The layout with the fewest bytes per training step of choice.batch_size samples.
BlockLayout plan_sealed(const ParameterChoice& choice, std::size_t features, std::size_t outputs, double request_bits,
                        double reply_bits);

// Coefficients of one polynomial that carries biases, and how many such polynomials there are.
std::size_t bias_coefficients(const BlockLayout& layout);
std::size_t bias_polynomials(const BlockLayout& layout);

// How a client that can hold weights up to a reach scales them, and what precision results (docs/precision.md).
struct SealedScaling {
    double reach = 0;         // every |w_o . x| + |b_o| stays below it
    double weight_scale = 1;  // integers are w * weight_scale
    SealedBits bits;
    double error = 0;  // bound on |y - exact y|
};

// Throws RangeError when the parameters cannot keep their error bound with such weights.
SealedScaling scale_sealed(const ParameterChoice& choice, const Ring& ring, const BlockLayout& layout,
                           double weight_norm);
// The scaling of the largest weights that these parameters can hold at all, to which weights that outgrow `weight_norm`
// are sealed anew. It does not depend on them, nor do the bits of its replies.
SealedScaling widest_sealed(const ParameterChoice& choice, const Ring& ring, const BlockLayout& layout,
                            double weight_norm);

// One training step of a sealed layer, with its share of the weights that are sent every choice.updates steps.
struct SealedEstimate {
    BlockLayout layout;
    double error = 0;
    int reply_bits = 0;  // of logits
    std::size_t request_bytes = 0;
    std::size_t update_bytes = 0;
    std::size_t reply_bytes = 0;  // of both replies
};

// Nothing when the parameters cannot keep their error bound.
std::optional<SealedEstimate> estimate_sealed(const Parameters& parameters, std::size_t features, std::size_t outputs,
                                              double weight_norm);

}  // namespace hesplit
