// What both sides of a sealed layer know before anything is sent: its layout, and how its values are scaled.
//
// The server of a sealed layer holds W and b only as ciphertexts under the client's key, and adds encrypted updates to
// them. Products are of degree 2 and are decrypted with s^2: no relinearisation, no evaluation keys. The bias is the
// weight of one more feature, which is always 1. Both sides plan the same layout.
#pragma once

#include <cstddef>
#include <optional>

#include "packing/blocks.h"
#include "ring/ring.h"
#include "rlwe/parameters.h"

namespace hesplit {

// Bits per coefficient of a reply with logits, and of one with dJ/da, whose range the client fits to each step.
struct SealedBits {
    int logits = 0;
    int input_gradient = 0;
};
inline constexpr int kInputGradientBits = 26;
// The most that either may be, of which there is no more in a modulus of so many bits, nor in what the client decrypts.
int most_sealed_bits(std::size_t ring_degree, int modulus_bits);

// Throws ParameterError unless a layer can be sealed under these parameters: what a client may send, and a server
// takes.
void check_sealed(const Parameters& parameters);

// The layout with the fewest bytes per training step of choice.batch_size samples; features includes the bias.
BlockLayout plan_sealed(const ParameterChoice& choice, std::size_t features, std::size_t outputs, double request_bits,
                        double reply_bits);

// How a client that can hold weights up to a reach scales them, and what precision results (docs/precision.md).
struct SealedScaling {
    double reach = 0;         // every |w_o . x| + |b_o| stays below it
    double weight_scale = 1;  // integers are w * weight_scale
    int logit_bits = 0;
    double error = 0;  // bound on |y - exact y| after choice.updates updates
};

// Throws RangeError when the parameters cannot keep their error bound with such weights.
SealedScaling scale_sealed(const ParameterChoice& choice, const Ring& ring, const BlockLayout& layout,
                           double weight_norm);
// The scaling of the largest weights that these parameters can hold at all, to which weights that outgrow `weight_norm`
// are sealed anew. It does not depend on them, nor do the bits of its replies.
SealedScaling widest_sealed(const ParameterChoice& choice, const Ring& ring, const BlockLayout& layout,
                            double weight_norm);

// One training step of a sealed layer.
struct SealedEstimate {
    BlockLayout layout;
    double error = 0;
    int reply_bits = 0;  // of logits
    std::size_t request_bytes = 0;
    std::size_t update_bytes = 0;
    std::size_t reply_bytes = 0;  // of both replies
};

// Nothing when the parameters cannot keep their error bound. features are those without the bias.
std::optional<SealedEstimate> estimate_sealed(const Parameters& parameters, std::size_t features, std::size_t outputs,
                                              double weight_norm);

}  // namespace hesplit
