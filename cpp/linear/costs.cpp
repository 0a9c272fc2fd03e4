#include "linear/costs.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "base/error.h"
#include "linear/blocks/gradient.h"
#include "linear/blocks/layout.h"
#include "linear/blocks/strands.h"
#include "linear/blocks/weights.h"
#include "linear/merged/forward.h"
#include "linear/merged/merging.h"
#include "linear/precision.h"
#include "linear/sealed/messages.h"
#include "linear/slots/gradient.h"
#include "linear/slots/layout.h"
#include "linear/traces/refusal.h"
#include "rlwe/galois.h"
#include "rlwe/public_key.h"
#include "wire/codec.h"

namespace hesplit {

namespace {

constexpr std::size_t kFrame = kHeaderBytes + kFooterBytes;
constexpr std::size_t kResidue = sizeof(std::uint64_t);
constexpr std::size_t kEntry = 128;  // of a list with buffers, headers and offsets, in bytes

// What reading a ciphertext (and expanding its c1) and finishing a product (switching its modulus, packing it)
// take, in multiplications for each residue; from the constants of block_cost.
constexpr double kReceive = 45, kFinish = 15;

// size(last row?, last column?) summed over a grid whose last row and last column may be smaller.
template <class Size>
std::size_t sum_over(std::size_t rows, std::size_t columns, const Size& size) {
    return (rows - 1) * ((columns - 1) * size(false, false) + size(false, true)) + (columns - 1) * size(true, false) +
           size(true, true);
}

double real(std::size_t value) {
    return static_cast<double>(value);
}

// Of one polynomial over the ring: transforms, other passes over its residues, bytes in memory.
struct Polynomial {
    explicit Polynomial(const Ring& ring)
        : residues(real(ring.size())),
          transform(residues / 2 * std::log2(real(ring.degree()))),
          bytes(ring.size() * kResidue) {}

    double residues, transform;
    std::size_t bytes;
};

std::size_t kept_bytes(const BlockLayout& layout, const Polynomial& poly) {
    const std::size_t all = layout.products() * layout.inputs() * poly.bytes;
    return all <= kMaxKeptBytes ? all : 0;
}

// Weights in a layout: what they take, and what it takes to make them ready.
void add_block_weights(const Ring& ring, const BlockLayout& layout, std::size_t groups, ServingCost& cost) {
    const Polynomial poly(ring);
    const double pairs = real(layout.products()) * real(layout.inputs());
    if (prefers_strands(layout, ring.prime_count())) {
        const std::size_t strands = layout.degree / layout.block();
        const std::size_t padded = StrandWeights::padded_features(layout);
        cost.layer_bytes += ring.prime_count() * strands * layout.products() * layout.features * kResidue;
        cost.working_bytes += ring.prime_count() * layout.outputs * padded * kResidue;
        cost.multiplications += real(ring.prime_count()) * real(strands) * real(layout.outputs) * real(padded);
        return;
    }
    const bool direct = layout.outputs <= kMaxDirectOutputs;
    const std::size_t kept = kept_bytes(layout, poly);
    if (direct) {
        cost.layer_bytes +=
            ring.prime_count() * layout.outputs * layout.inputs() * ((layout.width + 7) / 8 * 8) * kResidue;
    }
    cost.layer_bytes += kept + poly.bytes;  // and a power of x
    // Weights that are too many to keep are made anew for every group, for c1 and for c0.
    const double times = kept != 0 ? 1 : real(groups) * (direct ? 1 : 2);
    cost.working_bytes += kept != 0 ? 0 : layout.inputs() * poly.bytes;
    cost.multiplications += times * pairs * (poly.transform + kFinish * poly.residues);
}

double block_products(const Ring& ring, const BlockLayout& layout) {
    const Polynomial poly(ring);
    const double products = real(layout.products()), inputs = real(layout.inputs());
    const double finish = products * 2 * kFinish * poly.residues;
    if (prefers_strands(layout, ring.prime_count())) {
        const double strands = real(layout.degree / layout.block());
        const double split = (inputs * 2 + products * 2) * strands * poly.residues;
        const double outputs = real(ring.prime_count()) * products * real(layout.features) * strands *
                               real((layout.group_size + 15) / 16 * 16);
        return inputs * poly.transform + split + products * real(layout.features) * poly.residues + outputs + finish;
    }
    const double transformed = products * (inputs * poly.residues + poly.transform);  // of c1, and of c0
    if (layout.outputs <= kMaxDirectOutputs) {
        const double runs = real(layout.per_product() * layout.per_product()) * real(layout.group_size);
        return transformed + products * runs * inputs * real((layout.width + 7) / 8 * 8) * real(ring.prime_count()) +
               finish;
    }
    return 2 * transformed + inputs * poly.transform + finish;
}

// Memory of one group of a forward pass, beside its inputs' c1.
std::size_t block_group_bytes(const Ring& ring, const BlockLayout& layout) {
    const Polynomial poly(ring);
    const std::size_t inputs = layout.inputs() * poly.bytes;
    if (prefers_strands(layout, ring.prime_count())) {
        const std::size_t strands = layout.degree / layout.block(), group = (layout.group_size + 15) / 16 * 16;
        const std::size_t gathered = ring.prime_count() * strands * layout.features * group * kResidue;
        const std::size_t window = layout.block() + (layout.width + 14) / 16 * 16;
        const std::size_t windows = ring.prime_count() * strands * layout.inputs() * window * kResidue;
        const std::size_t at_once = std::max<std::size_t>(24, layout.products() / 8);
        return inputs + std::max(gathered, windows) + std::min(layout.products(), at_once) * 2 * poly.bytes;
    }
    return 3 * inputs + 4 * poly.bytes;
}

ServingCost block_forward(Served served, const Ring& ring, std::size_t ciphertext_bytes, const BlockLayout& layout,
                          const BatchShape& shape, int bits) {
    const Polynomial poly(ring);
    const std::size_t groups = shape.groups(), products = layout.products(), inputs = groups * layout.inputs();
    ServingCost cost;
    cost.request_bytes = kFrame + kRequestPrefix + inputs * ciphertext_bytes;
    cost.reply_bytes = kFrame + kReplyPrefix + sum_over(groups, products, [&](bool last_group, bool last_product) {
                           const std::size_t samples = shape.samples_of(last_group ? groups - 1 : 0);
                           return packed_bytes(layout.outputs_of(last_product ? products - 1 : 0) * samples, bits) +
                                  packed_bytes(layout.degree, bits);
                       });
    cost.held_bytes = served == Served::training ? 2 * inputs * poly.bytes + groups * kEntry : 0;
    // The reply as it is made, its c1 packed before that, and its copy for Python.
    cost.working_bytes = 2 * cost.reply_bytes + groups * products * kEntry + layout.inputs() * poly.bytes +
                         block_group_bytes(ring, layout);
    cost.multiplications = real(inputs) * kReceive * poly.residues + real(groups) * block_products(ring, layout) +
                           (served == Served::training ? real(inputs) * poly.transform : 0);
    add_block_weights(ring, layout, groups, cost);
    return cost;
}

// An encryption of zero for each of `count` ciphertexts: three transforms, and noise as long as two that are
// received.
void add_hiding(const Ring& ring, std::size_t count, ServingCost& cost) {
    const Polynomial poly(ring);
    cost.working_bytes += 4 * poly.bytes;
    cost.multiplications += real(count) * (3 * poly.transform + 2 * kReceive * poly.residues);
}

ServingCost block_gradient(Served served, const Ring& ring, const BlockLayout& layout, const BatchShape& shape,
                           int bits) {
    const Polynomial poly(ring);
    const std::size_t groups = shape.groups(), products = layout.products(), inputs = layout.inputs();
    const std::size_t runs = products * inputs;
    const auto coefficients = [&](bool last_product, bool last_input) {
        return layout.outputs_of(last_product ? products - 1 : 0) * layout.features_of(last_input ? inputs - 1 : 0);
    };
    const std::size_t c0 = sum_over(products, inputs, [&](bool last_product, bool last_input) {
        return packed_bytes(coefficients(last_product, last_input), bits);
    });
    ServingCost cost;
    if (served == Served::opened_gradient) {
        cost.request_bytes = kFrame + c0;
        cost.working_bytes = 3 * layout.features * layout.outputs * kResidue;
        cost.multiplications = real(layout.features) * real(layout.outputs);
        return cost;
    }
    cost.reply_bytes = kFrame + kReplyPrefix + c0 + runs * packed_bytes(layout.degree, bits);
    cost.held_bytes = layout.features * layout.outputs * kResidue + runs * kEntry;
    cost.working_bytes =
        cost.reply_bytes +
        (std::min(products, gradient_products_at_once(groups, poly.bytes)) * groups * (poly.bytes + kEntry)) +
        4 * poly.bytes;
    const double encoded = real(products) * real(groups) * (poly.transform + 2 * poly.residues);
    cost.multiplications =
        encoded + real(runs) * 2 * (real(groups) * poly.residues + poly.transform + kFinish * poly.residues);
    return cost;
}

// Of slots: what rotations take (ckks/slot_ring.h).
struct Rotation {
    explicit Rotation(const SlotRing& ring) {
        const double primes = real(ring.data().prime_count()), rows = real(ring.key().prime_count());
        const double digits = real(ring.switching().digits);
        const double row = real(ring.data().degree()), transform = row / 2 * std::log2(row);
        decompose = (primes + digits * rows) * transform + rows * primes * row;
        apply = 2 * digits * rows * row;
        divide = 2 * (1 + primes) * transform + 2 * primes * row;
    }
    double decompose, apply, divide;
};

ServingCost slot_forward(Served served, const SlotRing& slots, std::size_t ciphertext_bytes, const SlotLayout& layout,
                         const BatchShape& shape, int bits) {
    const Ring& ring = slots.data();
    const Polynomial poly(ring), key(slots.key());
    const Rotation rotation(slots);
    const std::size_t groups = shape.groups(), inputs = layout.inputs(), products = layout.products();
    const std::size_t babies = layout.babies, giants = layout.giants();
    const std::size_t diagonals = products * giants * inputs * babies;
    ServingCost cost;
    cost.request_bytes = kFrame + kRequestPrefix + groups * inputs * ciphertext_bytes;
    cost.reply_bytes = kFrame + kReplyPrefix + groups * products * 2 * packed_bytes(ring.degree(), bits);
    cost.held_bytes = served == Served::training ? groups * (2 * inputs * poly.bytes + kEntry) : 0;
    cost.layer_bytes = diagonals * (poly.bytes + kEntry) + products * poly.bytes;
    cost.working_bytes = cost.reply_bytes + groups * products * kEntry + 2 * inputs * poly.bytes +
                         inputs * (babies * 2 * poly.bytes + slots.switching().digits * key.bytes) +
                         giants * (2 * key.bytes + poly.bytes) + products * 2 * poly.bytes;
    const double rotated = real(inputs) * (babies > 1 ? rotation.decompose : 0) +
                           real(inputs) * real(babies - 1) * (rotation.apply + rotation.divide);
    const double each = real(giants) * (rotation.decompose + rotation.apply) + rotation.divide + 2 * poly.transform +
                        2 * kFinish * poly.residues;
    const double group = real(inputs) * (kReceive * poly.residues + poly.transform) + rotated + real(products) * each +
                         2 * real(diagonals) * poly.residues;
    cost.multiplications = real(groups) * group + real(diagonals) * (2 * poly.transform + kFinish * poly.residues);
    return cost;
}

ServingCost slot_gradient(Served served, const SlotRing& slots, const SlotLayout& layout, const BatchShape& shape,
                          int bits) {
    const Ring& ring = slots.data();
    const Polynomial poly(ring), key(slots.key());
    const Rotation rotation(slots);
    const SlotGradientPlan plan(slots, layout, shape.samples);
    const Polynomial plain(plan.ring);
    const std::size_t products = gradient_products(layout), runs = products * layout.inputs(), groups = plan.groups;
    const std::size_t shifts = plan.shifts.size();
    ServingCost cost;
    if (served == Served::opened_gradient) {
        cost.request_bytes = kFrame + runs * packed_bytes(ring.degree(), bits);
        cost.working_bytes = 4 * ring.degree() * kResidue;
        cost.multiplications = real(runs) * 2 * poly.transform;
        return cost;
    }
    cost.reply_bytes = kFrame + kReplyPrefix + runs * 2 * packed_bytes(ring.degree(), bits);
    cost.held_bytes = runs * (ring.degree() * kResidue + kEntry);
    const std::size_t encoded = plan.shared ? plan.polynomials() : groups;
    cost.working_bytes = cost.reply_bytes + shifts * (2 * key.bytes + poly.bytes) +
                         encoded * (plain.bytes + 4 * kEntry) + 8 * poly.bytes +
                         (plan.rotates_inputs ? slots.switching().digits * key.bytes : 0);
    const double encodings = real(plan.shared ? products : runs) * real(plan.polynomials());
    const double multiply = 2 * plain.residues + (plan.rotates_inputs ? poly.residues : 0);
    const double decompositions = plan.rotates_inputs ? 1 : real(shifts);
    const double run = real(plan.polynomials()) * multiply + decompositions * rotation.decompose +
                       real(shifts) * rotation.apply + rotation.divide + 2 * poly.transform +
                       2 * kFinish * poly.residues;
    cost.multiplications = encodings * (poly.transform + plain.transform) + real(runs) * run;
    return cost;
}

ServingCost merged_forward(Served served, const Ring& ring, std::size_t ciphertext_bytes, const MergedLayout& layout,
                           const BatchShape& shape, int bits) {
    const Polynomial poly(ring);
    const std::size_t groups = shape.groups(), inputs = layout.blocks.inputs();
    const std::size_t replies = layout.replies(), pairs = merged_polynomials(layout) * inputs;
    ServingCost cost;
    cost.request_bytes = kFrame + kRequestPrefix + groups * inputs * ciphertext_bytes;
    cost.reply_bytes = kFrame + kReplyPrefix + sum_over(groups, replies, [&](bool last_group, bool last_reply) {
                           const std::size_t samples = shape.samples_of(last_group ? groups - 1 : 0);
                           return packed_bytes(layout.outputs_of(last_reply ? replies - 1 : 0) * samples, bits) +
                                  packed_bytes(ring.degree(), bits);
                       });
    cost.held_bytes = served == Served::training ? groups * (2 * inputs * poly.bytes + kEntry) : 0;
    const bool kept = pairs * poly.bytes <= kMaxMergedBytes;
    cost.layer_bytes = kept ? pairs * poly.bytes + replies * kEntry : 0;
    // Inputs rotated by babies; of each level a pair that is being merged, above that the subtrees; weights on the
    // way.
    const std::size_t ciphertext = 3 * poly.bytes, sets = std::size_t{1} << best_babies(layout, layout.levels);
    const std::size_t placed = layout.most_merged() * (ring.degree() * kResidue + (kept ? 0 : inputs * poly.bytes));
    cost.working_bytes = 2 * cost.reply_bytes + groups * replies * kEntry + (sets + 1) * 2 * inputs * poly.bytes +
                         (2 * layout.levels + 11) * ciphertext + 8 * poly.bytes + placed;
    // As many rotations as there can be, with weights that leave no room for babies.
    const double merge = 5 * poly.transform + 16 * poly.residues;
    const double group = real(inputs) * (kReceive * poly.residues + poly.transform) + 2 * real(pairs) * poly.residues +
                         real(merging_rotations(layout, 0)) * merge +
                         real(replies) * (4 * poly.transform + 2 * kFinish * poly.residues);
    const double encode = real(pairs) * (poly.transform + kFinish * poly.residues);
    cost.multiplications = real(groups) * group + encode * (kept ? 1 : real(groups));
    return cost;
}

std::size_t product_bytes(std::size_t positions, std::size_t degree, int bits) {
    return packed_bytes(positions, bits) + packed_bytes(degree, bits);
}

bool is_sealed(Served served) {
    return served == Served::sealed_weight || served == Served::sealed_forward || served == Served::sealed_gradient ||
           served == Served::sealed_update;
}

ServingCost public_material_cost(const Parameters& parameters, const Ring& ring) {
    ServingCost cost;
    cost.request_bytes = kFrame + parameter_bytes(parameters) + 9;
    cost.held_bytes = 4 * Polynomial(ring).bytes;  // roots of unity
    return cost;
}

ServingCost of_sealed(Served served, const Parameters& parameters, const ServedLayer& layer) {
    const ParameterChoice& choice = parameters.choice();
    check_sealed(parameters);
    const Ring ring(parameters.ring_degree(), parameters.primes());
    const PolynomialCodec codec(ring, dropped_bits(ring));
    const BlockLayout layout =
        plan_sealed(choice, layer.features, layer.outputs, codec.bits_per_coefficient(), kTypicalReplyBits);
    const BatchShape shape{static_cast<std::uint32_t>(layer.samples), static_cast<std::uint32_t>(layout.group_size),
                           static_cast<std::uint32_t>(layout.width)};
    const SealedBits bits{most_sealed_bits(parameters.total_bits()), kInputGradientBits, dropped_bits(ring)};
    return sealed_serving_cost(served, ring, sealed_layer_bytes(parameters), layout, shape, bits);
}

// The client's public key, with a ring of its own.
void add_public_key(const Ring& ring, ServingCost& cost) {
    cost.request_bytes += PublicKey::body_bytes(ring);
    cost.held_bytes *= 2;
    cost.held_bytes += 2 * Polynomial(ring).bytes;
    cost.multiplications = 2 * kReceive * real(ring.size());
}

ServingCost of_blocks(Served served, const Parameters& parameters, const ServedLayer& layer) {
    const Ring ring(parameters.ring_degree(), parameters.primes());
    const bool private_weights = parameters.choice().private_bits != 0;
    if (served == Served::public_material) {
        ServingCost cost = public_material_cost(parameters, ring);
        if (private_weights) {
            add_public_key(ring, cost);
        }
        return cost;
    }
    const PolynomialCodec codec(ring, dropped_bits(ring));
    const BlockLayout layout = planned_layout(parameters.choice(), layer.features, layer.outputs, layer.samples,
                                              block_medium(ring, kTypicalReplyBits, layer.byte_ns));
    const BatchShape shape{static_cast<std::uint32_t>(layer.samples), static_cast<std::uint32_t>(layout.group_size),
                           static_cast<std::uint32_t>(layout.width)};
    return block_serving_cost(served, ring, codec.bytes(), layout, shape, most_reply_bits(ring), private_weights);
}

ServingCost of_merged(Served served, const Parameters& parameters, const ServedLayer& layer) {
    const Ring data(parameters.ring_degree(), parameters.data_primes());
    const std::size_t degree = data.degree(), planned = parameters.choice().batch_size;
    if (served == Served::public_material) {
        const Ring key(degree, parameters.primes());
        const std::size_t levels = merging_elements(degree, layer.features, layer.outputs, planned).size();
        const MergingKeys keys(key, levels);
        ServingCost cost = public_material_cost(parameters, key);
        cost.request_bytes += keys.bytes();
        // With the ring that keys are read with.
        cost.held_bytes = 2 * cost.held_bytes + 4 * Polynomial(data).bytes + keys.digits() * 2 * Polynomial(key).bytes +
                          levels * (degree * 4 + kEntry);
        cost.working_bytes = 3 * Polynomial(key).bytes + cost.held_bytes / 2;
        cost.multiplications = real(keys.digits()) * kReceive * real(key.size());
        return cost;
    }
    const PolynomialCodec codec(data, dropped_bits(data));
    const std::size_t group_size = merged_group_size(degree, layer.features, layer.samples, planned);
    const MergedLayout layout = merged_layout(degree, layer.features, layer.outputs, group_size);
    const BatchShape shape{static_cast<std::uint32_t>(layer.samples), static_cast<std::uint32_t>(group_size),
                           static_cast<std::uint32_t>(layout.blocks.width)};
    return merged_serving_cost(served, data, codec.bytes(), layout, shape, most_reply_bits(data));
}

ServingCost of_traces(Served served, const Parameters& parameters, const ServedLayer& layer) {
    const Ring ring(parameters.ring_degree(), parameters.data_primes());
    if (served == Served::public_material) {
        ServingCost cost = public_material_cost(parameters, ring);
        add_public_key(ring, cost);
        return cost;
    }
    const PolynomialCodec codec(ring, dropped_bits(ring));
    const TraceLayout layout =
        plan_traces(ring.degree() / 2, layer.features, layer.outputs, parameters.choice().batch_size);
    const BatchShape shape{static_cast<std::uint32_t>(layer.samples), static_cast<std::uint32_t>(layout.group_size), 0};
    return trace_serving_cost(served, ring, codec.bytes(), layout, shape, most_reply_bits(ring));
}

ServingCost of_slots(Served served, const Parameters& parameters, const ServedLayer& layer) {
    const SlotRing slots(parameters);
    const std::size_t planned = parameters.choice().batch_size;
    const SlotLayout layout =
        plan_slots(slots.slots(), layer.features, layer.outputs, planned, allow_babies(slots), layer.weight_gradients);
    if (served == Served::public_material) {
        const std::vector<int> steps = server_rotations(layout, planned, layer.weight_gradients);
        const std::size_t digits = slots.switching().digits, key = 2 * digits * slots.key().size() * kResidue;
        ServingCost cost = public_material_cost(parameters, slots.key());
        cost.request_bytes += rotation_key_bytes(slots, steps);
        cost.held_bytes = 2 * cost.held_bytes + steps.size() * (key + slots.data().degree() * 4 + kEntry);
        cost.working_bytes = key;
        cost.multiplications = real(steps.size() * digits) * kReceive * real(slots.key().size());
        return cost;
    }
    const PolynomialCodec codec(slots.data(), dropped_bits(slots.data()));
    const BatchShape shape{static_cast<std::uint32_t>(layer.samples), static_cast<std::uint32_t>(layout.group_size()),
                           0};
    return slot_serving_cost(served, slots, codec.bytes(), layout, shape, most_reply_bits(slots.data()));
}

std::string megabytes(std::size_t bytes) {
    return std::to_string((bytes + 999999) / 1000000) + " MB";
}

}  // namespace

void check(const ServingCost& cost, const ServingLimits& limits) {
    if (cost.reply_bytes > limits.reply_bytes) {
        throw WireError("the answer to this message would have " + megabytes(cost.reply_bytes) +
                        ", and this server sends up to " + megabytes(limits.reply_bytes) + "; send smaller batches");
    }
    const std::size_t memory = cost.reply_bytes + cost.held_bytes + cost.layer_bytes + cost.working_bytes;
    if (memory > limits.memory_bytes) {
        throw WireError("this message would take " + megabytes(memory) + " of memory, and this server gives it up to " +
                        megabytes(limits.memory_bytes) + "; send smaller batches or choose a smaller layer or ring");
    }
    if (cost.multiplications > limits.multiplications) {
        throw WireError("the answer to this message would take 2^" +
                        std::to_string(std::ilogb(cost.multiplications) + 1) +
                        " multiplications, and this server makes up to 2^" +
                        std::to_string(std::ilogb(limits.multiplications)) + "; send smaller batches");
    }
}

int most_reply_bits(const Ring& ring) {
    return std::min(kMaxBlockReplyBits, static_cast<int>(std::floor(std::log2(ring.modulus_value()))));
}

ServingCost block_serving_cost(Served served, const Ring& ring, std::size_t ciphertext_bytes, const BlockLayout& layout,
                               const BatchShape& shape, int bits, bool private_weights) {
    const bool forward = served == Served::forward || served == Served::training;
    ServingCost cost = forward ? block_forward(served, ring, ciphertext_bytes, layout, shape, bits)
                               : block_gradient(served, ring, layout, shape, bits);
    if (private_weights && forward) {
        const std::size_t products = shape.groups() * layout.products();
        // What hides c0, and masks, until the reply is written.
        cost.working_bytes +=
            products * 2 * (kEntry + ring.prime_count() * kResidue * (layout.per_product() * layout.group_size + 15));
        add_hiding(ring, products, cost);
    } else if (private_weights && served == Served::weight_gradient) {
        add_hiding(ring, layout.products() * layout.inputs(), cost);
    }
    return cost;
}

ServingCost merged_serving_cost(Served served, const Ring& data, std::size_t ciphertext_bytes,
                                const MergedLayout& layout, const BatchShape& shape, int bits) {
    const bool forward = served == Served::forward || served == Served::training;
    return forward ? merged_forward(served, data, ciphertext_bytes, layout, shape, bits)
                   : block_gradient(served, data, layout.blocks, shape, bits);
}

ServingCost slot_serving_cost(Served served, const SlotRing& ring, std::size_t ciphertext_bytes,
                              const SlotLayout& layout, const BatchShape& shape, int bits) {
    if (served == Served::weight_gradient || served == Served::opened_gradient) {
        return slot_gradient(served, ring, layout, shape, std::min(bits, kSlotGradientBits));
    }
    return slot_forward(served, ring, ciphertext_bytes, layout, shape, std::min(bits, kMaxSlotReplyBits));
}

ServingCost trace_serving_cost(Served served, const Ring& ring, std::size_t ciphertext_bytes, const TraceLayout& layout,
                               const BatchShape& shape, int bits) {
    if (served == Served::weight_gradient || served == Served::opened_gradient) {
        refuse_on_traces("weight gradients");
    }
    const Polynomial poly(ring);
    const std::size_t groups = shape.groups(), inputs = layout.inputs(), products = layout.products();
    const std::size_t pairs = products * inputs, n = ring.degree();
    ServingCost cost;
    cost.request_bytes = kFrame + kRequestPrefix + groups * inputs * ciphertext_bytes;
    cost.reply_bytes =
        kFrame + kReplyPrefix + groups * products * (packed_bytes(layout.classes(), bits) + packed_bytes(n, bits));
    cost.held_bytes = served == Served::training ? groups * (2 * inputs * poly.bytes + kEntry) : 0;
    cost.layer_bytes = pairs * (poly.bytes + kEntry) + products * layout.outputs_per_product() * sizeof(double);
    // Beside products a transform in double-double, with its roots.
    cost.working_bytes = 2 * cost.reply_bytes + 2 * inputs * poly.bytes + 4 * poly.bytes +
                         4 * ring.prime_count() * layout.classes() * kResidue + 16 * n * sizeof(double);
    constexpr double kDoubleDouble = 60;  // of a butterfly, against a multiplication of residues
    const double encoded = kDoubleDouble * real(n) / 4 * std::log2(real(n)) + poly.transform + kFinish * poly.residues;
    const double group = real(inputs) * (kReceive * poly.residues + poly.transform) + 2 * real(pairs) * poly.residues +
                         real(products) * 2 * (poly.transform + kFinish * poly.residues);
    cost.multiplications = real(groups) * group + real(pairs) * encoded;
    add_hiding(ring, groups * products, cost);
    return cost;
}

ServingCost sealed_serving_cost(Served served, const Ring& ring, std::size_t layer_head_bytes,
                                const BlockLayout& layout, const BatchShape& shape, const SealedBits& bits) {
    const Polynomial poly(ring);
    const std::size_t groups = shape.groups(), products = layout.products(), inputs = layout.inputs();
    const std::size_t weights = products * inputs, n = layout.degree, biases = bias_polynomials(layout);
    const std::size_t ciphertext_bytes = PolynomialCodec(ring, dropped_bits(ring)).bytes();
    const std::size_t weight_bytes =
        weights * ciphertext_bytes +
        biases * PolynomialCodec(ring, dropped_bits(ring), bias_coefficients(layout)).bytes();
    // Weights made ready, and as they came.
    const std::size_t weight_memory =
        2 * weights * poly.bytes + weight_bytes + ring.prime_count() * layout.outputs * kResidue + kEntry;
    const double received = kReceive * poly.residues + poly.transform;
    const double finished = 2 * (poly.transform + kFinish * poly.residues);
    ServingCost cost;
    if (served == Served::sealed_weight) {
        cost.request_bytes = kFrame + layer_head_bytes + kSealedRequestPrefix + weight_bytes;
        cost.held_bytes = weight_memory;
        cost.working_bytes = poly.bytes;
        cost.multiplications = real(weights + biases) * received;
        return cost;
    }
    if (served == Served::sealed_forward) {
        cost.request_bytes = kFrame + kSealedRequestPrefix + groups * inputs * ciphertext_bytes;
        cost.reply_bytes =
            kFrame + kSealedReplyPrefix + sum_over(groups, products, [&](bool last_group, bool last_product) {
                const std::size_t samples = shape.samples_of(last_group ? groups - 1 : 0);
                return product_bytes(layout.outputs_of(last_product ? products - 1 : 0) * samples, n, bits.logits);
            });
        cost.working_bytes = cost.reply_bytes + shape.samples * layout.outputs * 4 + groups * products * kEntry +
                             (2 * inputs + 4) * poly.bytes;
        cost.multiplications =
            real(groups) * (real(inputs) * received + real(products) * (3 * real(inputs) * poly.residues + finished));
        return cost;
    }
    const bool anew = served == Served::sealed_update;
    cost.request_bytes = kFrame + kSealedRequestPrefix + 1 + (anew ? kSealedBitsBytes + weight_bytes : 0) +
                         groups * products * PolynomialCodec(ring, bits.gradient_dropped).bytes();
    cost.reply_bytes =
        kFrame + kSealedReplyPrefix + sum_over(groups, inputs, [&](bool last_group, bool last_input) {
            const std::size_t samples = shape.samples_of(last_group ? groups - 1 : 0);
            return product_bytes(layout.features_of(last_input ? inputs - 1 : 0) * samples, n, bits.input_gradient);
        });
    cost.working_bytes = cost.reply_bytes + shape.samples * layout.features * 4 + groups * inputs * kEntry +
                         (2 * groups * products + 4) * poly.bytes + (anew ? weight_memory : 0);
    cost.multiplications = real(groups * products + (anew ? weights + biases : 0)) * received +
                           real(groups) * real(inputs) * (3 * real(products) * poly.residues + finished);
    return cost;
}

ServingCost serving_cost(Served served, const Parameters& parameters, const ServedLayer& layer) {
    check_samples(layer.samples);
    if (!possible_layer(layer.features, layer.outputs)) {
        throw ParameterError("in_features must be between 1 and " + std::to_string(kMaxFeatures) +
                             " and out_features between 1 and " + std::to_string(kMaxOutputs));
    }
    if (is_sealed(served)) {
        return of_sealed(served, parameters, layer);
    }
    ServedLayer wanted = layer;
    wanted.weight_gradients = layer.weight_gradients || served == Served::training ||
                              served == Served::weight_gradient || served == Served::opened_gradient;
    if (parameters.traced()) {
        return of_traces(served, parameters, wanted);
    }
    switch (parameters.packing()) {
        case Packing::blocks:
            return of_blocks(served, parameters, wanted);
        case Packing::merged:
            return of_merged(served, parameters, wanted);
        default:
            return of_slots(served, parameters, wanted);
    }
}

}  // namespace hesplit
