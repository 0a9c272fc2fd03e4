// A client's values on SIMD slots.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "ckks/slot_ring.h"
#include "linear/client_packing.h"
#include "packing/slots.h"

namespace hesplit {

class SlotClientPacking final : public ClientPacking {
  public:
    SlotClientPacking(const Parameters& parameters, std::size_t features, std::size_t outputs, bool weight_gradients);

    const Ring& ring() const override { return ring_.data(); }
    std::size_t evaluation_key_bytes() const override;
    void write_evaluation_keys(const SecretKey& key, WireWriter& writer) const override;

    BatchShape shape_of(std::size_t samples) const override;
    std::size_t inputs(const BatchShape&) const override { return layout_.inputs(); }
    void encode(const BatchShape& shape, const float* x, std::size_t samples, std::size_t input,
                std::uint64_t* coefficients) const override;
    void encode(const BatchShape& shape, const double* x, std::size_t samples, std::size_t input,
                std::uint64_t* coefficients) const override;

    std::size_t products(const BatchShape&) const override { return layout_.products(); }
    std::size_t position_count(const BatchShape&, std::size_t, std::size_t) const override { return ring().degree(); }
    std::vector<std::uint32_t> positions(const BatchShape& shape, std::size_t product,
                                         std::size_t samples) const override;
    void decode(const BatchShape& shape, std::size_t product, std::size_t samples, View<const std::int64_t> values,
                double scale, double* y) const override;
    double rounding_error() const override;

    std::vector<GradientRun> gradient_runs(const BatchShape& shape) const override;
    std::vector<std::uint32_t> gradient_positions(const BatchShape& shape, const GradientRun& run) const override;

    double weight_l1(const BatchShape& shape, double product_scale) const override;
    double gradient_l1(const BatchShape& shape, View<const double> gradient, double scale) const override;

  private:
    double scale_;
    SlotRing ring_;
    SlotLayout layout_;
    std::vector<int> rotations_;  // that the server makes
};

}  // namespace hesplit
