#include "packing/slots.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include "base/error.h"
#include "packing/blocks.h"

namespace hesplit {

namespace {

// Relative costs of a rotation, a multiplication by a plaintext, an input and a product (encryption, transport,
// decryption), and of encoding a plaintext.
constexpr double kRotate = 10, kMultiply = 0.5, kInput = 40, kProduct = 40, kEncode = 4;

std::size_t groups_of(const SlotLayout& layout, std::size_t samples) {
    return (samples + layout.group_size() - 1) / layout.group_size();
}

double cost(const SlotLayout& layout, std::size_t samples, bool weight_gradients) {
    const auto groups = static_cast<double>(groups_of(layout, samples));
    const auto j = static_cast<double>(layout.inputs());
    const auto p = static_cast<double>(layout.products());
    const auto giants = static_cast<double>(layout.giants());
    const double rotations = j * static_cast<double>(layout.babies - 1) + p * (giants - 1);
    // Weights change in every training step: each diagonal is encoded once for all groups.
    const double diagonals = j * p * static_cast<double>(layout.offsets());
    const double forward =
        groups * (rotations * kRotate + diagonals * kMultiply + j * kInput + p * kProduct) + diagonals * kEncode;
    if (!weight_gradients) {
        return forward;
    }
    const auto shifts = static_cast<double>(std::min(layout.group_size(), samples) + gradient_rows(layout) - 1);
    const auto products = static_cast<double>(gradient_products(layout));
    // G is encoded once for all inputs.
    return forward + products * (shifts * (j * (kRotate + groups * kMultiply) + groups * kEncode) + j * kProduct);
}

std::int64_t modulo(std::int64_t value, std::size_t size) {
    const auto m = static_cast<std::int64_t>(size);
    return ((value % m) + m) % m;
}

// Each step once, none 0.
std::vector<int> distinct(std::vector<int> steps) {
    std::sort(steps.begin(), steps.end());
    steps.erase(std::unique(steps.begin(), steps.end()), steps.end());
    steps.erase(std::remove(steps.begin(), steps.end(), 0), steps.end());
    return steps;
}

// Into how many parts a block may be divided: powers of two, and as many as leave the period at the outputs.
std::vector<std::size_t> part_counts(const SlotLayout& layout) {
    const std::size_t outputs = layout.outputs_per_product();
    std::vector<std::size_t> counts{(layout.width + outputs - 1) / outputs};
    for (std::size_t parts = 1; parts <= layout.width; parts *= 2) {
        counts.push_back(parts);
    }
    return counts;
}

struct Blocks {
    bool repeated;
    std::size_t copies;
};

// The kinds of blocks that fit the slots, each with every number of copies that has no empty ones. Copies fill what the
// samples leave of the slots, and take no more groups than one would.
std::vector<Blocks> block_counts(SlotLayout layout, std::size_t samples) {
    constexpr std::size_t kMostCopies = 64;
    std::vector<Blocks> found;
    layout.repeated = true, layout.copies = 1;
    if (layout.span() <= layout.slots) {
        found.push_back({true, 1});
        const std::size_t groups = groups_of(layout, samples), most = std::min(layout.period, kMostCopies);
        while (++layout.copies <= most && layout.copies * layout.block() <= layout.slots) {
            const std::size_t needed = (layout.period + layout.offsets() - 1) / layout.offsets();
            if (needed == layout.copies && layout.span() <= layout.slots && groups_of(layout, samples) == groups) {
                found.push_back({true, layout.copies});
            }
        }
    }
    if (layout.block() <= layout.slots) {
        found.push_back({false, 1});
    }
    return found;
}

}  // namespace

std::size_t SlotLayout::features_of(std::size_t j) const {
    return std::min(width, features - j * width);
}

std::size_t SlotLayout::outputs_of(std::size_t p) const {
    return std::min(outputs_per_product(), outputs - p * outputs_per_product());
}

SlotLayout plan_slots(std::size_t slots, std::size_t features, std::size_t outputs, std::size_t samples,
                      bool allow_babies, bool weight_gradients) {
    SlotLayout best;
    double best_cost = std::numeric_limits<double>::infinity();
    SlotLayout candidate;
    candidate.slots = slots, candidate.features = features, candidate.outputs = outputs;
    for (std::size_t inputs = 1; inputs <= features; inputs = next_division(features, inputs)) {
        candidate.width = (features + inputs - 1) / inputs;
        for (const std::size_t parts : part_counts(candidate)) {
            candidate.parts = parts;
            candidate.period = std::max(candidate.outputs_per_product(), (candidate.width + parts - 1) / parts);
            for (const auto& [repeated, copies] : block_counts(candidate, samples)) {
                candidate.repeated = repeated, candidate.copies = copies;
                const std::size_t most_babies = allow_babies ? std::min<std::size_t>(candidate.offsets(), 64) : 1;
                for (candidate.babies = 1; candidate.babies <= most_babies; ++candidate.babies) {
                    const double found = cost(candidate, samples, weight_gradients);
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
    return distinct(std::move(steps));
}

template <class T>
SecretBuffer<double> place_slot_input(const SlotLayout& layout, const T* x, std::size_t count, std::size_t j) {
    SecretBuffer<double> values(layout.slots, 0.0);
    const std::size_t first = j * layout.width;
    const std::size_t used = layout.features_of(j);
    for (std::size_t s = 0; s < count; ++s) {
        const T* row = x + s * layout.features + first;
        for (std::size_t c = 0; c < layout.copies; ++c) {
            double* block = values.data() + s * layout.span() + c * layout.stride();
            for (std::size_t i = 0, feature = c * layout.offsets() % layout.block(); i < layout.stride(); ++i) {
                block[i] = feature < used ? static_cast<double>(row[feature]) : 0.0;
                feature = feature + 1 < layout.block() ? feature + 1 : 0;
            }
        }
    }
    return values;
}

template SecretBuffer<double> place_slot_input<float>(const SlotLayout&, const float*, std::size_t, std::size_t);
template SecretBuffer<double> place_slot_input<double>(const SlotLayout&, const double*, std::size_t, std::size_t);

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
    const std::size_t used = layout.features_of(j);

    std::vector<double> values(layout.slots, 0.0);
    bool zero = true;
    for (std::int64_t at = 0; at < static_cast<std::int64_t>(layout.copies) * block; ++at) {
        const std::int64_t copy = at / block, r = at % block;
        const std::int64_t output = r % period;
        const std::int64_t own = offset + copy * static_cast<std::int64_t>(layout.offsets());
        std::int64_t column = r + own;
        if (layout.repeated) {
            if (own >= period) {
                break;  // the last copy may have fewer offsets
            }
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
        for (std::size_t s = 0; s < layout.group_size(); ++s) {
            const auto first_slot =
                static_cast<std::int64_t>(s * layout.span()) + copy * static_cast<std::int64_t>(layout.stride());
            const std::int64_t slot = first_slot + r + layout.giant_step(g);
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
            positions.push_back(static_cast<std::uint32_t>(s * layout.span() + t));
        }
    }
    return positions;
}

std::size_t gradient_outputs(const SlotLayout& layout) {
    return std::min(layout.outputs, layout.group_size() * layout.copies);
}

std::size_t gradient_rows(const SlotLayout& layout) {
    return (gradient_outputs(layout) + layout.copies - 1) / layout.copies;
}

std::size_t gradient_products(const SlotLayout& layout) {
    return (layout.outputs + gradient_outputs(layout) - 1) / gradient_outputs(layout);
}

std::vector<std::int64_t> gradient_shifts(const SlotLayout& layout, std::size_t samples) {
    const auto group = static_cast<std::int64_t>(std::min(layout.group_size(), samples));
    std::vector<std::int64_t> shifts;
    for (std::int64_t shift = 1 - static_cast<std::int64_t>(gradient_rows(layout)); shift < group; ++shift) {
        shifts.push_back(shift);
    }
    return shifts;
}

int gradient_step(const SlotLayout& layout, std::int64_t shift) {
    return static_cast<int>(modulo(shift * static_cast<std::int64_t>(layout.span()), layout.slots));
}

std::vector<int> gradient_steps(const SlotLayout& layout, std::size_t samples) {
    std::vector<int> steps;
    for (const std::int64_t shift : gradient_shifts(layout, samples)) {
        steps.push_back(gradient_step(layout, shift));
    }
    return distinct(std::move(steps));
}

std::vector<int> server_rotations(const SlotLayout& layout, std::size_t samples, bool weight_gradients) {
    std::vector<int> steps = rotation_steps(layout);
    if (weight_gradients) {
        const std::vector<int> more = gradient_steps(layout, samples);
        steps.insert(steps.end(), more.begin(), more.end());
    }
    return distinct(std::move(steps));
}

std::vector<double> place_slot_gradient(const SlotLayout& layout, const double* gradient, std::size_t count,
                                        std::size_t p, std::int64_t shift, bool rotated) {
    std::vector<double> values;
    const std::size_t per_product = gradient_outputs(layout);
    const std::size_t here = std::min(per_product, layout.outputs - p * per_product);
    const std::size_t rows = gradient_rows(layout);
    for (std::size_t s = 0; s < count; ++s) {
        const std::int64_t row = static_cast<std::int64_t>(s) - shift;
        if (row < 0 || row >= static_cast<std::int64_t>(rows)) {
            continue;
        }
        for (std::size_t c = 0; c < layout.copies; ++c) {
            const std::size_t output = c * rows + static_cast<std::size_t>(row);
            const double value = output < here ? gradient[s * layout.outputs + p * per_product + output] : 0.0;
            if (value != 0) {
                values.resize(layout.slots, 0.0);
                const std::size_t span = rotated ? static_cast<std::size_t>(row) : s;
                const std::size_t block = span * layout.span() + c * layout.stride();
                std::fill_n(values.begin() + static_cast<std::ptrdiff_t>(block), layout.block(), value);
            }
        }
    }
    return values;
}

std::vector<std::uint32_t> weight_gradient_slots(const SlotLayout& layout, std::size_t p, std::size_t j) {
    std::vector<std::uint32_t> positions;
    const std::size_t per_product = gradient_outputs(layout);
    const std::size_t here = std::min(per_product, layout.outputs - p * per_product);
    const std::size_t rows = gradient_rows(layout), block = layout.block();
    for (std::size_t t = 0; t < here; ++t) {
        const std::size_t copy = t / rows, first = t % rows * layout.span() + copy * layout.stride();
        const std::size_t shift = layout.repeated ? copy * layout.offsets() % block : 0;
        for (std::size_t i = 0; i < layout.features_of(j); ++i) {
            positions.push_back(static_cast<std::uint32_t>(first + (i + block - shift) % block));
        }
    }
    return positions;
}

}  // namespace hesplit
