#include "linear/slots/layout.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "rlwe/galois.h"

namespace hesplit {

std::vector<std::uint32_t> all_positions(std::size_t ring_degree) {
    std::vector<std::uint32_t> positions(ring_degree);
    std::iota(positions.begin(), positions.end(), 0U);
    return positions;
}

std::vector<GradientRun> weight_gradient_runs(const SlotLayout& layout, std::size_t ring_degree) {
    std::vector<GradientRun> runs;
    for (std::size_t p = 0; p < gradient_products(layout); ++p) {
        for (std::size_t j = 0; j < layout.inputs(); ++j) {
            runs.push_back({p, j, ring_degree, p * gradient_outputs(layout), j * layout.width, layout.features_of(j)});
        }
    }
    return runs;
}

namespace {

std::vector<std::uint64_t> elements_of(const SlotRing& ring, const std::vector<int>& steps) {
    std::vector<std::uint64_t> elements;
    for (const int step : steps) {
        elements.push_back(ring.galois_element(step));
    }
    return elements;
}

}  // namespace

std::size_t rotation_key_bytes(const SlotRing& ring, const std::vector<int>& steps) {
    return galois_key_bytes(ring.switching(), steps.size());
}

void write_rotation_keys(const SlotRing& ring, const std::vector<int>& steps, const SecretKey& key,
                         WireWriter& writer) {
    write_galois_keys(ring.switching(), elements_of(ring, steps), key, writer);
}

RotationKeys read_rotation_keys(const SlotRing& ring, const std::vector<int>& steps, WireReader& reader) {
    reader.require_remaining(rotation_key_bytes(ring, steps));
    std::vector<GaloisKey> read = read_galois_keys(ring.switching(), elements_of(ring, steps), reader);
    RotationKeys keys;
    for (std::size_t k = 0; k < steps.size(); ++k) {
        keys.emplace(steps[k], std::move(read[k]));
    }
    return keys;
}

}  // namespace hesplit
