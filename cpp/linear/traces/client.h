// A client's values on slots whose logits are traces: of private weights.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "ckks/embedding.h"
#include "ckks/precise_embedding.h"
#include "linear/client_packing.h"
#include "packing/traces.h"

namespace hesplit {

class TraceClientPacking final : public ClientPacking {
  public:
    TraceClientPacking(const Parameters& parameters, std::size_t features, std::size_t outputs);

    const Ring& ring() const override { return ring_; }
    std::size_t evaluation_key_bytes() const override { return 0; }
    void write_evaluation_keys(const SecretKey&, WireWriter&) const override {}

    BatchShape shape_of(std::size_t samples) const override;
    std::size_t inputs(const BatchShape&) const override { return layout_.inputs(); }
    void encode(const BatchShape& shape, const float* x, std::size_t samples, std::size_t input,
                std::uint64_t* coefficients) const override;
    void encode(const BatchShape& shape, const double* x, std::size_t samples, std::size_t input,
                std::uint64_t* coefficients) const override;

    std::size_t products(const BatchShape&) const override { return layout_.products(); }
    std::size_t position_count(const BatchShape&, std::size_t, std::size_t) const override { return layout_.classes(); }
    std::vector<std::uint32_t> positions(const BatchShape&, std::size_t, std::size_t) const override {
        return trace_positions(layout_);
    }
    void decode(const BatchShape& shape, std::size_t product, std::size_t samples, View<const std::int64_t> values,
                double scale, double* y) const override;
    double rounding_error() const override;
    double largest(int bits) const override;

    std::vector<GradientRun> gradient_runs(const BatchShape& shape) const override;
    std::vector<std::uint32_t> gradient_positions(const BatchShape& shape, const GradientRun& run) const override;

    double weight_l1(const BatchShape& shape, double product_scale) const override;
    double gradient_l1(const BatchShape& shape, View<const double> gradient, double scale) const override;

  private:
    template <class T>
    void encode_input(const T* x, std::size_t samples, std::size_t input, std::uint64_t* coefficients) const;

    double scale_, bound_;
    Ring ring_;
    TraceLayout layout_;
    PreciseEmbedding embedding_;
    Embedding traces_;  // of the subfield
};

}  // namespace hesplit
