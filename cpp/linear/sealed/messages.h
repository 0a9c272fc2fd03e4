// What messages of a sealed layer have in common (framing: wire/format.h).
//
// clang-format off
//   weights         parameters, layer, shape, seed, ciphertexts
//   saved state     parameters, layer, number of updates, both polynomials of every weight ciphertext
//   request, update shape, seed, ciphertexts
//   reply           shape, ciphertexts of degree 2
// clang-format on
#pragma once

#include <cstddef>

#include "linear/sealed/plan.h"
#include "rlwe/parameters.h"
#include "wire/format.h"

namespace hesplit {

// A layer as its client announces it.
struct SealedLayer {
    std::size_t features = 0;  // without the bias
    std::size_t outputs = 0;
    SealedBits bits;
};

std::size_t sealed_layer_bytes(const Parameters& parameters);
void write_sealed_layer(WireWriter& writer, const Parameters& parameters, const SealedLayer& layer);
// Throws WireError for parameters that are not for sealed weights, and for an impossible layer.
Parameters read_sealed_parameters(WireReader& reader);
SealedLayer read_sealed_layer(WireReader& reader, const Parameters& parameters);

}  // namespace hesplit
