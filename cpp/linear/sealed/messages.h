// What messages of a sealed layer have in common (framing: wire/format.h).
//
// clang-format off
//   weights  parameters, layer, shape, seed, ciphertexts of W, of b
//   request  shape, seed, ciphertexts
//   update   shape, whether weights come with it and then the bits of replies to them, seed,
//            then ciphertexts of W, of b; ciphertexts of dJ/dY
//   reply    shape, which weights it was made with, ciphertexts of degree 1
// clang-format on
#pragma once

#include <cstddef>

#include "linear/sealed/plan.h"
#include "rlwe/parameters.h"
#include "wire/format.h"

namespace hesplit {

// A layer as its client announces it.
struct SealedLayer {
    std::size_t features = 0;
    std::size_t outputs = 0;
    SealedBits bits;
};

inline constexpr std::size_t kSealedBitsBytes = 3;
void write_sealed_bits(WireWriter& writer, const SealedBits& bits);
// Throws WireError for bits that these parameters have no room for.
SealedBits read_sealed_bits(WireReader& reader, const Parameters& parameters);

std::size_t sealed_layer_bytes(const Parameters& parameters);
void write_sealed_layer(WireWriter& writer, const Parameters& parameters, const SealedLayer& layer);
// Throws WireError for parameters that are not for sealed weights, and for an impossible layer.
Parameters read_sealed_parameters(WireReader& reader);
SealedLayer read_sealed_layer(WireReader& reader, const Parameters& parameters);

}  // namespace hesplit
