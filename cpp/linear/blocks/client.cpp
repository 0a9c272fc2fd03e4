#include "linear/blocks/client.h"

#include <cmath>

#include "linear/blocks/layout.h"
#include "linear/precision.h"
#include "rlwe/decryption.h"
#include "wire/codec.h"

namespace hesplit {

BlockClientPacking::BlockClientPacking(const Parameters& parameters, std::size_t features, std::size_t outputs,
                                       double byte_ns)
    : choice_(parameters.choice()),
      features_(features),
      outputs_(outputs),
      ring_(parameters.ring_degree(), parameters.data_primes()),
      medium_(block_medium(ring_, kTypicalReplyBits, byte_ns)) {}

BlockLayout BlockClientPacking::layout(const BatchShape& shape) const {
    return block_layout(ring_, features_, outputs_, shape);
}

BatchShape BlockClientPacking::shape_of(std::size_t samples) const {
    check_samples(samples);
    const BlockLayout planned = planned_layout(choice_, features_, outputs_, samples, medium_);
    return {static_cast<std::uint32_t>(samples), static_cast<std::uint32_t>(planned.group_size),
            static_cast<std::uint32_t>(planned.width)};
}

std::size_t BlockClientPacking::inputs(const BatchShape& shape) const {
    return layout(shape).inputs();
}

template <class T>
void BlockClientPacking::encode_values(const BatchShape& shape, const T* x, std::size_t samples, std::size_t input,
                                       std::uint64_t* coefficients) const {
    const int shift = activation_shift(choice_);
    SecretBuffer<std::int64_t> integers(ring_.degree());
    place_input(layout(shape), x, samples, input, std::ldexp(choice_.scale, -shift),
                {integers.data(), integers.size()});
    ring_.lift(View<const std::int64_t>{integers.data(), integers.size()}, coefficients);
    if (shift > 0) {
        ring_.multiply_power_of_two(coefficients, shift);
    }
}

void BlockClientPacking::encode(const BatchShape& shape, const float* x, std::size_t samples, std::size_t input,
                                std::uint64_t* coefficients) const {
    encode_values(shape, x, samples, input, coefficients);
}

void BlockClientPacking::encode(const BatchShape& shape, const double* x, std::size_t samples, std::size_t input,
                                std::uint64_t* coefficients) const {
    encode_values(shape, x, samples, input, coefficients);
}

template <class T>
void BlockClientPacking::encode_as_integers(const BatchShape& shape, const T* x, std::size_t samples, std::size_t input,
                                            std::uint64_t* integers) const {
    if (choice_.activation_bound * choice_.scale < 0.99 * ring_.modulus_value()) {
        place_input(layout(shape), x, samples, input, choice_.scale,
                    {reinterpret_cast<std::int64_t*>(integers), ring_.degree()},
                    static_cast<std::int64_t>(ring_.modulus()));
    } else {
        compose_encoded(shape, x, samples, input, integers);
    }
}

void BlockClientPacking::encode_integers(const BatchShape& shape, const float* x, std::size_t samples,
                                         std::size_t input, std::uint64_t* integers) const {
    encode_as_integers(shape, x, samples, input, integers);
}

void BlockClientPacking::encode_integers(const BatchShape& shape, const double* x, std::size_t samples,
                                         std::size_t input, std::uint64_t* integers) const {
    encode_as_integers(shape, x, samples, input, integers);
}

std::size_t BlockClientPacking::products(const BatchShape& shape) const {
    return layout(shape).products();
}

std::size_t BlockClientPacking::position_count(const BatchShape& shape, std::size_t product,
                                               std::size_t samples) const {
    return layout(shape).outputs_of(product) * samples;
}

std::vector<std::uint32_t> BlockClientPacking::positions(const BatchShape& shape, std::size_t product,
                                                         std::size_t samples) const {
    return output_positions(layout(shape), product, samples);
}

void BlockClientPacking::decode(const BatchShape& shape, std::size_t product, std::size_t samples,
                                View<const std::int64_t> values, double scale, double* y) const {
    decode_outputs(product * layout(shape).per_product(), samples, values, scale, y);
}

void BlockClientPacking::decode_outputs(std::size_t first, std::size_t samples, View<const std::int64_t> values,
                                        double scale, double* y) const {
    for (std::size_t i = 0; i < values.size; ++i) {
        y[(i % samples) * outputs_ + first + i / samples] = static_cast<double>(values[i]) / scale;
    }
}

double BlockClientPacking::rounding_error() const {
    return kTail * reply_rounding_deviation(ring_.degree());
}

std::vector<GradientRun> BlockClientPacking::gradient_runs(const BatchShape& shape) const {
    return weight_gradient_runs(layout(shape));
}

std::vector<std::uint32_t> BlockClientPacking::gradient_positions(const BatchShape& shape,
                                                                  const GradientRun& run) const {
    return weight_gradient_positions(layout(shape), run.p, run.j);
}

double BlockClientPacking::weight_l1(const BatchShape& shape, double product_scale) const {
    return agreed_weight_l1(choice_, ring_, features_, layout(shape).per_product(), product_scale);
}

double BlockClientPacking::gradient_l1(const BatchShape& shape, View<const double> gradient, double scale) const {
    return largest_gradient_l1(layout(shape), gradient, scale);
}

}  // namespace hesplit
