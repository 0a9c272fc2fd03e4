// A client's values on coefficient blocks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "linear/client_packing.h"
#include "packing/blocks.h"

namespace hesplit {

class BlockClientPacking : public ClientPacking {
  public:
    // `byte_ns`: what a byte to the server costs; layouts are planned for it.
    BlockClientPacking(const Parameters& parameters, std::size_t features, std::size_t outputs, double byte_ns);

    const Ring& ring() const override { return ring_; }
    std::size_t evaluation_key_bytes() const override { return 0; }  // blocks need no rotations
    void write_evaluation_keys(const SecretKey&, WireWriter&) const override {}

    BatchShape shape_of(std::size_t samples) const override;
    std::size_t inputs(const BatchShape& shape) const override;
    void encode(const BatchShape& shape, const float* x, std::size_t samples, std::size_t input,
                std::uint64_t* coefficients) const override;
    void encode(const BatchShape& shape, const double* x, std::size_t samples, std::size_t input,
                std::uint64_t* coefficients) const override;

    void encode_integers(const BatchShape& shape, const float* x, std::size_t samples, std::size_t input,
                         std::uint64_t* integers) const override;
    void encode_integers(const BatchShape& shape, const double* x, std::size_t samples, std::size_t input,
                         std::uint64_t* integers) const override;

    std::size_t products(const BatchShape& shape) const override;
    std::size_t position_count(const BatchShape& shape, std::size_t product, std::size_t samples) const override;
    std::vector<std::uint32_t> positions(const BatchShape& shape, std::size_t product,
                                         std::size_t samples) const override;
    void decode(const BatchShape& shape, std::size_t product, std::size_t samples, View<const std::int64_t> values,
                double scale, double* y) const override;
    double rounding_error() const override;

    std::vector<GradientRun> gradient_runs(const BatchShape& shape) const override;
    std::vector<std::uint32_t> gradient_positions(const BatchShape& shape, const GradientRun& run) const override;

    double weight_l1(const BatchShape& shape, double product_scale) const override;
    double gradient_l1(const BatchShape& shape, View<const double> gradient, double scale) const override;

  protected:
    // Logits of the outputs from `first` on, ordered by output, then sample; y as in decode().
    void decode_outputs(std::size_t first, std::size_t samples, View<const std::int64_t> values, double scale,
                        double* y) const;

    const ParameterChoice choice_;
    const std::size_t features_;
    const std::size_t outputs_;
    const Ring ring_;

  private:
    BlockLayout layout(const BatchShape& shape) const;
    template <class T>
    void encode_values(const BatchShape& shape, const T* x, std::size_t samples, std::size_t input,
                       std::uint64_t* coefficients) const;
    template <class T>
    void encode_as_integers(const BatchShape& shape, const T* x, std::size_t samples, std::size_t input,
                            std::uint64_t* integers) const;

    BlockMedium medium_;
};

}  // namespace hesplit
