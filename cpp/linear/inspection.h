// What a server can read from the messages that it receives and sends, and how it could answer otherwise than the layer
// does: for attacks on a server's transcript. Nothing here is secret to a server, and nothing decrypts.
//
// On coefficient blocks only: everything here throws ParameterError for slots. Messages that are not well-formed are
// WireErrors, those under other parameters KeyMismatchErrors, as in the layer itself.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "linear/messages.h"
#include "linear/server.h"

namespace hesplit {

// c1 whole, and of c0 the coefficients at `positions`; one row of each for every modulus.
struct InspectedCiphertext {
    std::vector<std::uint64_t> c0;
    std::vector<std::uint64_t> c1;
    std::vector<std::uint32_t> positions;
};

// Ciphertexts in coefficient form, in the order of the message.
struct InspectedMessage {
    BatchShape shape;
    std::vector<std::uint64_t> primes;  // residues are modulo each of these, or, where there are none, modulo 2^bits
    int bits = 0;
    double scale = 1;  // a value v is encrypted as v * scale
    std::vector<InspectedCiphertext> ciphertexts;
};

// The input ciphertexts of a request, by input polynomial. `bits` is 0. One group of samples only, else ParameterError.
InspectedMessage inspect_request(const LinearServer& server, View<const std::uint8_t> request);

// What the layer computes from such a request with these weights, before the modulus switch: by product, residues
// modulo the primes; `bits` and `scale` are those of the reply. Weight and bias as in LinearServer::set_weight. Of
// private weights on slots c0 whole.
InspectedMessage inspect_products(const LinearServer& server, View<const std::uint8_t> request,
                                  View<const double> weight, View<const double> bias);

// The ciphertexts of a reply, by product. One group of samples only.
InspectedMessage inspect_reply(const LinearServer& server, View<const std::uint8_t> reply);

// The ciphertexts of a masked weight gradient, by product and input polynomial.
InspectedMessage inspect_masked_gradient(const LinearServer& server, View<const std::uint8_t> masked);

// What the client decrypted of each of them and sent back, modulo 2^bits, at the same positions. Throws
// KeyMismatchError when the two messages do not belong together.
std::vector<std::vector<std::uint64_t>> inspect_opened_gradient(const LinearServer& server,
                                                                View<const std::uint8_t> masked,
                                                                View<const std::uint8_t> opened);

// A well-formed reply to a request, with ciphertexts of the server's choice: as many, of as many coefficients below
// 2^bits, as the layer's own reply has (ParameterError else); their `positions` are not read.
std::string forge_reply(const LinearServer& server, View<const std::uint8_t> request, int bits, double scale,
                        const std::vector<InspectedCiphertext>& ciphertexts);

}  // namespace hesplit
