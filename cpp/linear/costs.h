// What serving one message takes: bytes in, out and held, and work. Known from a layer and a batch alone, or from the
// head of a message, before anything is allocated or done for it.
//
// A client lays out its requests itself, so what a message leads to has no bound in its length: a server compares the
// cost with its limits first.
#pragma once

#include <cstddef>

#include "ckks/slot_ring.h"
#include "linear/messages.h"
#include "linear/sealed/plan.h"
#include "packing/blocks.h"
#include "packing/merged.h"
#include "packing/slots.h"
#include "packing/traces.h"
#include "ring/ring.h"
#include "rlwe/parameters.h"

namespace hesplit {

// What a server is asked for. `training` is `forward` with the ciphertexts kept for a weight gradient, `sealed_update`
// is `sealed_gradient` with new weights.
enum class Served {
    public_material,
    forward,
    training,
    weight_gradient,
    opened_gradient,
    sealed_weight,
    sealed_forward,
    sealed_gradient,
    sealed_update,
};

struct ServingCost {
    std::size_t request_bytes = 0;  // of the client's message; 0 for a gradient, which comes in the clear
    std::size_t reply_bytes = 0;    // of the answer
    std::size_t held_bytes = 0;     // kept after it: rotation keys, sealed weights, ciphertexts and masks of a batch
    std::size_t layer_bytes = 0;    // of the weights, made ready for this layout: shared by all requests that have it
    std::size_t working_bytes = 0;  // beyond all that while one thread works on it
    double multiplications = 0;     // of residues, with everything else in units of them (0.1 to 0.8 ns each)
};

// Refused beyond. The largest message that the transport carries, some minutes of one core, and all the memory that one
// message may lead to.
struct ServingLimits {
    std::size_t reply_bytes = std::size_t{1} << 28;
    double multiplications = 0x1p40;
    std::size_t memory_bytes = std::size_t{1} << 31;
};

// Throws WireError for a cost beyond the limits.
void check(const ServingCost& cost, const ServingLimits& limits);

// The largest number of bits that a reply's coefficients may have.
int most_reply_bits(const Ring& ring);

// A batch of a known shape. `bits`: of the coefficients of its reply; `ciphertext_bytes`: of a ciphertext of its
// request; `private_weights`: replies hide them.
ServingCost block_serving_cost(Served served, const Ring& ring, std::size_t ciphertext_bytes, const BlockLayout& layout,
                               const BatchShape& shape, int bits, bool private_weights);
ServingCost merged_serving_cost(Served served, const Ring& data, std::size_t ciphertext_bytes,
                                const MergedLayout& layout, const BatchShape& shape, int bits);
ServingCost slot_serving_cost(Served served, const SlotRing& ring, std::size_t ciphertext_bytes,
                              const SlotLayout& layout, const BatchShape& shape, int bits);
// Of private weights on slots, which have no weight gradients.
ServingCost trace_serving_cost(Served served, const Ring& ring, std::size_t ciphertext_bytes, const TraceLayout& layout,
                               const BatchShape& shape, int bits);
// Of sealed weights.
ServingCost sealed_serving_cost(Served served, const Ring& ring, std::size_t layer_head_bytes,
                                const BlockLayout& layout, const BatchShape& shape, const SealedBits& bits);

// A layer to be served: of batches that its client lays out for a link on which a byte takes so many nanoseconds.
struct ServedLayer {
    std::size_t features = 0;
    std::size_t outputs = 0;
    std::size_t samples = 1;
    double byte_ns = 8;
    bool weight_gradients = false;  // the server computes them too, for which slots have another layout and more keys
};

// At most, whatever the weights are. Throws ParameterError for a layer or a kind that these parameters cannot serve.
ServingCost serving_cost(Served served, const Parameters& parameters, const ServedLayer& layer);

}  // namespace hesplit
