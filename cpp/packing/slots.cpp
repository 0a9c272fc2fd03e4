#include "packing/slots.h"

#include <algorithm>
#include <limits>
#include <string>

#include "core/error.h"

namespace hesplit {

namespace {

// Relative costs of a rotation, a multiplication by a plaintext, an input and a product (encryption, transport,
// decryption).
constexpr double kRotate = 10, kMultiply = 0.5, kInput = 6, kProduct = 6;

double cost(const SlotLayout& layout, std::size_t samples) {
    const auto groups = static_cast<double>((samples + layout.rows() - 1) / layout.rows());
    const auto j = static_cast<double>(layout.inputs());
    const auto p = static_cast<double>(layout.products());
    const auto giants = static_cast<double>(layout.giants());
    const double rotations =
        j * static_cast<double>(layout.babies - 1) + p * (giants - 1 + static_cast<double>(layout.folds));
    return groups * (rotations * kRotate + j * p * static_cast<double>(layout.offsets()) * kMultiply + j * kInput +
                     p * kProduct);
}

std::int64_t modulo(std::int64_t value, std::size_t size) {
    const auto m = static_cast<std::int64_t>(size);
    return ((value % m) + m) % m;
}

}  // namespace

std::size_t SlotLayout::outputs_of(std::size_t p) const {
    return std::min(outputs_per_product(), outputs - p * outputs_per_product());
}

SlotLayout plan_slots(std::size_t slots, std::size_t features, std::size_t outputs, std::size_t samples,
                      bool allow_babies) {
    SlotLayout best;
    double best_cost = std::numeric_limits<double>::infinity();
    SlotLayout candidate;
    candidate.slots = slots, candidate.features = features, candidate.outputs = outputs;
    for (std::size_t inputs = 1; inputs <= features; ++inputs) {
        candidate.width = (features + inputs - 1) / inputs;
        if (candidate.inputs() != inputs) {
            continue;
        }
        for (candidate.folds = 0; (std::size_t{1} << candidate.folds) <= candidate.width; ++candidate.folds) {
            const std::size_t parts = std::size_t{1} << candidate.folds;
            candidate.period = std::max(candidate.outputs_per_product(), (candidate.width + parts - 1) / parts);
            for (const bool repeated : {true, false}) {
                candidate.repeated = repeated;
                if (candidate.stride() > slots) {
                    continue;
                }
                const std::size_t most_babies = allow_babies ? std::min<std::size_t>(candidate.offsets(), 64) : 1;
                for (candidate.babies = 1; candidate.babies <= most_babies; ++candidate.babies) {
                    const double found = cost(candidate, samples);
                    if (found < best_cost) {
                        best_cost = found;
                        best = candidate;
                    }
                }
            }
        }
        // More inputs than this cannot win any more: they alone cost more than the best layout.
        if (static_cast<double>(inputs) * kInput * static_cast<double>((samples + slots - 1) / slots) > best_cost) {
            break;
        }
    }
    if (best.slots == 0) {
        throw ParameterError("no slot layout for " + std::to_string(features) + " features and " +
                             std::to_string(outputs) + " outputs in " + std::to_string(slots) + " slots");
    }
    return best;
}

std::vector<int> rotation_steps(const SlotLayout& layout) {
    std::vector<int> steps;
    for (std::size_t b = 1; b < layout.babies; ++b) {
        steps.push_back(static_cast<int>(b));
    }
    for (std::size_t g = 0; g < layout.giants(); ++g) {
        steps.push_back(static_cast<int>(modulo(layout.giant_step(g), layout.slots)));
    }
    for (std::size_t f = 0; f < layout.folds; ++f) {
        steps.push_back(static_cast<int>(layout.period << f));
    }
    std::sort(steps.begin(), steps.end());
    steps.erase(std::unique(steps.begin(), steps.end()), steps.end());
    steps.erase(std::remove(steps.begin(), steps.end(), 0), steps.end());
    return steps;
}

template <class T>
std::vector<double> place_slot_input(const SlotLayout& layout, const T* x, std::size_t count, std::size_t j) {
    std::vector<double> values(layout.slots, 0.0);
    const std::size_t first = j * layout.width;
    const std::size_t used = std::min(layout.width, layout.features - first);
    for (std::size_t s = 0; s < count; ++s) {
        double* block = values.data() + s * layout.stride();
        const T* row = x + s * layout.features + first;
        std::copy(row, row + used, block);
        for (std::size_t i = layout.block(); i < layout.stride(); ++i) {
            block[i] = block[i - layout.block()];
        }
    }
    return values;
}

template std::vector<double> place_slot_input<float>(const SlotLayout&, const float*, std::size_t, std::size_t);
template std::vector<double> place_slot_input<double>(const SlotLayout&, const double*, std::size_t, std::size_t);

std::vector<double> place_slot_weight(const SlotLayout& layout, const double* weight, std::size_t p, std::size_t j,
                                      std::size_t g, std::size_t b) {
    const std::size_t index = g * layout.babies + b;
    if (index >= layout.offsets()) {
        return {};
    }
    const std::int64_t offset = layout.first_offset() + static_cast<std::int64_t>(index);
    const auto block = static_cast<std::int64_t>(layout.block());
    const auto period = static_cast<std::int64_t>(layout.period);
    const std::size_t first = j * layout.width;
    const std::size_t used = std::min(layout.width, layout.features - first);

    std::vector<double> values(layout.slots, 0.0);
    bool zero = true;
    for (std::int64_t r = 0; r < block; ++r) {
        const std::int64_t output = r % period;
        std::int64_t column = r + offset;
        if (layout.repeated) {
            column %= block;
        } else if (column < r - output || column >= r - output + period) {
            continue;  // outside the aligned group of r
        }
        if (output >= static_cast<std::int64_t>(layout.outputs_of(p)) || column >= static_cast<std::int64_t>(used)) {
            continue;
        }
        const std::size_t row = p * layout.outputs_per_product() + static_cast<std::size_t>(output);
        const double value = weight[row * layout.features + first + static_cast<std::size_t>(column)];
        zero = zero && value == 0;
        for (std::size_t s = 0; s < layout.rows(); ++s) {
            const std::int64_t slot = static_cast<std::int64_t>(s * layout.stride()) + r + layout.giant_step(g);
            values[static_cast<std::size_t>(modulo(slot, layout.slots))] = value;
        }
    }
    return zero ? std::vector<double>{} : values;
}

std::vector<std::uint32_t> output_slots(const SlotLayout& layout, std::size_t p, std::size_t count) {
    std::vector<std::uint32_t> positions;
    positions.reserve(layout.outputs_of(p) * count);
    for (std::size_t t = 0; t < layout.outputs_of(p); ++t) {
        for (std::size_t s = 0; s < count; ++s) {
            positions.push_back(static_cast<std::uint32_t>(s * layout.stride() + t));
        }
    }
    return positions;
}

}  // namespace hesplit
