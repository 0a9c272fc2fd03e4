#include "linear/slots/client.h"

#include <cmath>

#include "base/error.h"
#include "linear/precision.h"
#include "linear/slots/layout.h"
#include "rlwe/decryption.h"

namespace hesplit {

namespace {

[[noreturn]] void refuse_flooding() {
    throw ParameterError("flooded releases need packing=\"blocks\"");
}

}  // namespace

SlotClientPacking::SlotClientPacking(const Parameters& parameters, std::size_t features, std::size_t outputs,
                                     bool weight_gradients)
    : scale_(parameters.choice().scale),
      ring_(parameters),
      layout_(plan_slots(ring_.slots(), features, outputs, parameters.choice().batch_size, allow_babies(ring_),
                         weight_gradients)),
      rotations_(server_rotations(layout_, parameters.choice().batch_size, weight_gradients)) {}

std::size_t SlotClientPacking::evaluation_key_bytes() const {
    return rotation_key_bytes(ring_, rotations_);
}

void SlotClientPacking::write_evaluation_keys(const SecretKey& key, WireWriter& writer) const {
    write_rotation_keys(ring_, rotations_, key, writer);
}

BatchShape SlotClientPacking::shape_of(std::size_t samples) const {
    check_samples(samples);
    return {static_cast<std::uint32_t>(samples), static_cast<std::uint32_t>(layout_.group_size()), 0};
}

void SlotClientPacking::encode(const BatchShape&, const float* x, std::size_t samples, std::size_t input,
                               std::uint64_t* coefficients) const {
    const SecretBuffer<double> slots = place_slot_input(layout_, x, samples, input);
    ring_.encode({slots.data(), slots.size()}, scale_, coefficients);
}

void SlotClientPacking::encode(const BatchShape&, const double* x, std::size_t samples, std::size_t input,
                               std::uint64_t* coefficients) const {
    const SecretBuffer<double> slots = place_slot_input(layout_, x, samples, input);
    ring_.encode({slots.data(), slots.size()}, scale_, coefficients);
}

std::vector<std::uint32_t> SlotClientPacking::positions(const BatchShape&, std::size_t, std::size_t) const {
    return all_positions(ring().degree());
}

void SlotClientPacking::decode(const BatchShape&, std::size_t product, std::size_t samples,
                               View<const std::int64_t> values, double scale, double* y) const {
    const SecretBuffer<double> decoded = ring_.decode(values, scale);
    const std::vector<std::uint32_t> slots = output_slots(layout_, product, samples);
    const std::size_t first = product * layout_.outputs_per_product();
    for (std::size_t i = 0; i < slots.size(); ++i) {
        double sum = 0;
        for (std::size_t copy = 0; copy < layout_.copies; ++copy) {
            for (std::size_t part = 0; part < layout_.parts; ++part) {
                sum += decoded[slots[i] + copy * layout_.stride() + part * layout_.period];
            }
        }
        y[(i % samples) * layout_.outputs + first + i / samples] = sum;
    }
}

double SlotClientPacking::rounding_error() const {
    return slot_rounding_error(layout_, ring().degree());
}

std::vector<GradientRun> SlotClientPacking::gradient_runs(const BatchShape&) const {
    return weight_gradient_runs(layout_, ring().degree());
}

std::vector<std::uint32_t> SlotClientPacking::gradient_positions(const BatchShape&, const GradientRun&) const {
    return all_positions(ring().degree());
}

double SlotClientPacking::weight_l1(const BatchShape&, double) const {
    refuse_flooding();
}

double SlotClientPacking::gradient_l1(const BatchShape&, View<const double>, double) const {
    refuse_flooding();
}

}  // namespace hesplit
