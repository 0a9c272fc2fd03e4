// PublicKey::parse: what a client tells others to encrypt with, and an encryption under it.
#include "fixtures.h"

namespace hesplit::fuzz {

std::vector<std::string> genuine() {
    return {anonymous(tensors().public_key->bytes())};
}

void receive(const Bytes& bytes) {
    const std::shared_ptr<const PublicKey> key = PublicKey::parse(view(addressed(bytes, tensors().key->id(), Id{})));
    const std::vector<std::int64_t>& values = tensors().coefficients;
    encrypt_polynomials(*tensors().ring, *key, {values.data(), values.size()});
}

}  // namespace hesplit::fuzz
