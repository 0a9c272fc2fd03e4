#include "linear/merged/client.h"

#include "base/error.h"
#include "linear/merged/merging.h"

namespace hesplit {

MergedClientPacking::MergedClientPacking(const Parameters& parameters, std::size_t features, std::size_t outputs,
                                         double byte_ns)
    : BlockClientPacking(parameters, features, outputs, byte_ns),
      key_(parameters.ring_degree(), parameters.primes()),
      elements_(merging_elements(parameters.ring_degree(), features, outputs, choice_.batch_size)) {}

std::size_t MergedClientPacking::evaluation_key_bytes() const {
    return MergingKeys(key_, elements_.size()).bytes();
}

void MergedClientPacking::write_evaluation_keys(const SecretKey& key, WireWriter& writer) const {
    MergingKeys(key_, elements_.size()).write(elements_, key, writer);
}

MergedLayout MergedClientPacking::merged(const BatchShape& shape) const {
    return merged_layout(ring_.degree(), features_, outputs_, shape.group_size);
}

BatchShape MergedClientPacking::shape_of(std::size_t samples) const {
    check_samples(samples);
    const std::size_t group_size = merged_group_size(ring_.degree(), features_, samples, choice_.batch_size);
    return {static_cast<std::uint32_t>(samples), static_cast<std::uint32_t>(group_size),
            static_cast<std::uint32_t>(merged_width(ring_.degree(), features_))};
}

std::size_t MergedClientPacking::products(const BatchShape& shape) const {
    return merged(shape).replies();
}

std::size_t MergedClientPacking::position_count(const BatchShape& shape, std::size_t product,
                                                std::size_t samples) const {
    return merged(shape).outputs_of(product) * samples;
}

std::vector<std::uint32_t> MergedClientPacking::positions(const BatchShape& shape, std::size_t product,
                                                          std::size_t samples) const {
    return merged_positions(merged(shape), product, samples);
}

void MergedClientPacking::decode(const BatchShape& shape, std::size_t product, std::size_t samples,
                                 View<const std::int64_t> values, double scale, double* y) const {
    const MergedLayout layout = merged(shape);
    decode_outputs(layout.first_product(product) * layout.blocks.per_product(), samples, values, scale, y);
}

double MergedClientPacking::weight_l1(const BatchShape&, double) const {
    throw ParameterError("flooded releases need packing=\"blocks\"");
}

}  // namespace hesplit
