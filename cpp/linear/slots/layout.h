// What client and server of SIMD slots both know about a batch: the ciphertexts of its weight gradient, and how
// rotation keys travel.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "ckks/slot_ring.h"
#include "linear/messages.h"
#include "packing/slots.h"
#include "rlwe/secret_key.h"
#include "wire/format.h"

namespace hesplit {

// Every coefficient of a polynomial: each slot depends on all of them.
std::vector<std::uint32_t> all_positions(std::size_t ring_degree);

std::vector<GradientRun> weight_gradient_runs(const SlotLayout& layout, std::size_t ring_degree);

// Rotation keys for these steps in a message: one public seed, then c0 of each key, digit by digit. Nothing without
// steps.
std::size_t rotation_key_bytes(const SlotRing& ring, const std::vector<int>& steps);
void write_rotation_keys(const SlotRing& ring, const std::vector<int>& steps, const SecretKey& key, WireWriter& writer);
RotationKeys read_rotation_keys(const SlotRing& ring, const std::vector<int>& steps, WireReader& reader);

}  // namespace hesplit
