// A client's values on merged blocks. Requests and weight gradients are those of blocks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "linear/blocks/client.h"
#include "packing/merged.h"

namespace hesplit {

class MergedClientPacking final : public BlockClientPacking {
  public:
    MergedClientPacking(const Parameters& parameters, std::size_t features, std::size_t outputs, double byte_ns);

    std::size_t evaluation_key_bytes() const override;
    void write_evaluation_keys(const SecretKey& key, WireWriter& writer) const override;

    BatchShape shape_of(std::size_t samples) const override;
    std::size_t products(const BatchShape& shape) const override;
    std::size_t position_count(const BatchShape& shape, std::size_t product, std::size_t samples) const override;
    std::vector<std::uint32_t> positions(const BatchShape& shape, std::size_t product,
                                         std::size_t samples) const override;
    void decode(const BatchShape& shape, std::size_t product, std::size_t samples, View<const std::int64_t> values,
                double scale, double* y) const override;

    double weight_l1(const BatchShape& shape, double product_scale) const override;

  private:
    MergedLayout merged(const BatchShape& shape) const;

    Ring key_;
    std::vector<std::uint64_t> elements_;  // that the server merges with
};

}  // namespace hesplit
