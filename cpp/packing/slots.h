// SIMD slots: where activations, weights and outputs sit among the N/2 slots of CKKS ciphertexts (docs/packing.md).
//
// Each sample owns `stride` consecutive slots. With period o' >= outputs and f halvings, D = o' * 2^f >= width features
// of a sample lie in its first D slots. Slot r of a block collects, over all offsets, terms of row r mod o' of W;
// output t is the sum of slots t, t + o', t + 2 o', ..., which is the client's to take: it costs it nothing, and the
// server f rotations. Offsets are
//   repeated      0 .. o'-1, with the first o'-1 features repeated behind the block (stride D + o' - 1), or
//   two-sided     -(o'-1) .. o'-1 within aligned groups of o' slots (stride D),
// so no term ever comes from the neighbouring sample. Offsets are split baby-step giant-step: babies rotate the inputs,
// giants the sums of products.
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
    std::size_t halvings = 0;  // f
    bool repeated = false;
    std::size_t babies = 1;

    std::size_t inputs() const { return (features + width - 1) / width; }
    std::size_t outputs_per_product() const { return outputs < slots ? outputs : slots; }
    std::size_t products() const { return (outputs + outputs_per_product() - 1) / outputs_per_product(); }
    std::size_t outputs_of(std::size_t p) const;
    std::size_t features_of(std::size_t j) const;
    std::size_t block() const { return period << halvings; }  // D
    std::size_t parts() const { return std::size_t{1} << halvings; }
    std::size_t stride() const { return block() + (repeated ? period - 1 : 0); }
    std::size_t group_size() const { return slots / stride(); }  // samples of one group
    std::size_t offsets() const { return repeated ? period : 2 * period - 1; }
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
std::vector<double> place_slot_input(const SlotLayout& layout, const T* x, std::size_t count, std::size_t j);

// The diagonal of giant step g and baby step b for product p and input j, rotated back by the giant step; empty when it
// is all zero. `weight` is row-major [outputs, features].
std::vector<double> place_slot_weight(const SlotLayout& layout, const double* weight, std::size_t p, std::size_t j,
                                      std::size_t g, std::size_t b);

// The gradient of W from the same input ciphertexts: with G[s, t] in the slots of sample s, rotated by (s - t) strides,
// row t of dW gathers in block t. Blocks of one ciphertext hold up to gradient_outputs() rows of it.
std::size_t gradient_outputs(const SlotLayout& layout);
std::size_t gradient_products(const SlotLayout& layout);
// The shifts r = s - t that batches of `samples` need, and their rotations (each once, none 0).
std::vector<std::int64_t> gradient_shifts(const SlotLayout& layout, std::size_t samples);
int gradient_step(const SlotLayout& layout, std::int64_t shift);
std::vector<int> gradient_steps(const SlotLayout& layout, std::size_t samples);
// All rotations of a server: rotation_steps and, if it computes weight gradients, theirs.
std::vector<int> server_rotations(const SlotLayout& layout, std::size_t samples, bool weight_gradients);
// What a group's inputs are multiplied by before the rotation of that shift; empty when all zero. `gradient` is
// row-major [count, outputs].
std::vector<double> place_slot_gradient(const SlotLayout& layout, const double* gradient, std::size_t count,
                                        std::size_t p, std::int64_t shift);
// The slots that hold dW of product p and input j, ordered by output, then feature.
std::vector<std::uint32_t> weight_gradient_slots(const SlotLayout& layout, std::size_t p, std::size_t j);

// The first slots of the outputs of product p for the first `count` samples, ordered by output, then sample; an output
// is the sum over parts() slots, one every `period`.
std::vector<std::uint32_t> output_slots(const SlotLayout& layout, std::size_t p, std::size_t count);

}  // namespace hesplit
