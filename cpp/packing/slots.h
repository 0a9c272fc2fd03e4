// SIMD slots: where activations, weights and outputs sit among the N/2 slots of CKKS ciphertexts (docs/packing.md).
//
// Each sample owns `copies` blocks of `stride` consecutive slots. With period o' >= outputs, D = o' * parts >= width
// features of a sample lie in the first D slots of a block. Slot r of a block collects, over all offsets, terms of row
// r mod o' of W; output t is the sum of slots t, t + o', t + 2 o', ... of all copies, which is the client's to take: it
// costs it nothing, and the server rotations. Terms come from the slots at offsets
//   repeated      0 .. A-1, A = ceil(o' / copies), with the first A-1 features repeated behind the block (stride
//                 D + A-1); copy c begins with feature c * A, so that all copies together have the offsets 0 .. o'-1,
//                 or
//   two-sided     -(o'-1) .. o'-1 within aligned groups of o' slots (stride D, one copy),
// so no term ever comes from the neighbouring block. A copy costs the client nothing either, and saves the server
// rotations. Offsets are split baby-step giant-step: babies rotate the inputs, giants the sums of products.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/buffer.h"

namespace hesplit {

struct SlotLayout {
    std::size_t slots = 0;     // N / 2
    std::size_t features = 0;  // d
    std::size_t outputs = 0;   // o
    std::size_t width = 0;     // features of a sample in one input ciphertext
    std::size_t period = 0;    // o'
    std::size_t parts = 1;     // slots of a block that an output is the sum of
    std::size_t copies = 1;    // blocks of a sample
    bool repeated = false;
    std::size_t babies = 1;

    std::size_t inputs() const { return (features + width - 1) / width; }
    std::size_t outputs_per_product() const { return outputs < slots ? outputs : slots; }
    std::size_t products() const { return (outputs + outputs_per_product() - 1) / outputs_per_product(); }
    std::size_t outputs_of(std::size_t p) const;
    std::size_t features_of(std::size_t j) const;
    std::size_t block() const { return period * parts; }  // D
    std::size_t stride() const { return block() + (repeated ? offsets() - 1 : 0); }
    std::size_t span() const { return copies * stride(); }     // of a sample
    std::size_t group_size() const { return slots / span(); }  // samples of one group
    std::size_t offsets() const { return repeated ? (period + copies - 1) / copies : 2 * period - 1; }
    std::size_t terms() const { return parts * copies; }  // slots that an output is the sum of
    // How often an output, with all its terms, multiplies a feature by an encoded weight, its own 0s included: at most
    // so many times. Two-sided offsets meet those of the samples beside it, too.
    double most_reads() const {
        return repeated ? (copies * offsets() == period ? 1 : 2) : (group_size() == 1 ? 2 : 4);
    }
    std::int64_t first_offset() const { return repeated ? 0 : 1 - static_cast<std::int64_t>(period); }
    std::size_t giants() const { return (offsets() + babies - 1) / babies; }
    // The rotation of giant step g: first_offset() + g * babies.
    std::int64_t giant_step(std::size_t g) const { return first_offset() + static_cast<std::int64_t>(g * babies); }
};

// The layout with the fewest estimated milliseconds for batches of `samples`; depends on nothing but its arguments, so
// client and server find the same one. Babies rotate fresh ciphertexts, whose noise then counts; `allow_babies` says
// whether it may. `weight_gradients`: their rotations count too.
SlotLayout plan_slots(std::size_t slots, std::size_t features, std::size_t outputs, std::size_t samples,
                      bool allow_babies, bool weight_gradients);

// Every rotation that the server makes, each once, none 0: what Galois keys are made for.
std::vector<int> rotation_steps(const SlotLayout& layout);

// The slots of input ciphertext j for `count` <= group_size() samples. `x` is row-major [count, features].
template <class T>
SecretBuffer<double> place_slot_input(const SlotLayout& layout, const T* x, std::size_t count, std::size_t j);

// The diagonal of giant step g and baby step b for product p and input j, rotated back by the giant step; empty when it
// is all zero. `weight` is row-major [outputs, features].
std::vector<double> place_slot_weight(const SlotLayout& layout, const double* weight, std::size_t p, std::size_t j,
                                      std::size_t g, std::size_t b);

// The gradient of W from the same input ciphertexts: with G[s, t] in a block of sample s, rotated by (s - k) spans, row
// t of dW gathers in that block of span k. Blocks of one ciphertext hold up to gradient_outputs() rows of it, those of
// one copy gradient_rows().
std::size_t gradient_outputs(const SlotLayout& layout);
std::size_t gradient_rows(const SlotLayout& layout);
std::size_t gradient_products(const SlotLayout& layout);
// The shifts r = s - k that batches of `samples` need, and their rotations (each once, none 0).
std::vector<std::int64_t> gradient_shifts(const SlotLayout& layout, std::size_t samples);
int gradient_step(const SlotLayout& layout, std::int64_t shift);
std::vector<int> gradient_steps(const SlotLayout& layout, std::size_t samples);
// All rotations of a server: rotation_steps and, if it computes weight gradients, theirs.
std::vector<int> server_rotations(const SlotLayout& layout, std::size_t samples, bool weight_gradients);
// What a group's inputs are multiplied by before the rotation of that shift, or after it (`rotated`); empty when all
// zero. `gradient` is row-major [count, outputs].
std::vector<double> place_slot_gradient(const SlotLayout& layout, const double* gradient, std::size_t count,
                                        std::size_t p, std::int64_t shift, bool rotated);
// The slots that hold dW of product p and input j, ordered by output, then feature.
std::vector<std::uint32_t> weight_gradient_slots(const SlotLayout& layout, std::size_t p, std::size_t j);

// The first slots of the outputs of product p for the first `count` samples, ordered by output, then sample; an output
// is the sum over `parts` slots, one every `period`, in `copies` blocks, one every stride().
std::vector<std::uint32_t> output_slots(const SlotLayout& layout, std::size_t p, std::size_t count);

}  // namespace hesplit
