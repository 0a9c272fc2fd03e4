// decrypt_products and add_to_products: what somebody made of a tensor.
#include "fixtures.h"

namespace hesplit::fuzz {

std::vector<std::string> genuine() {
    const Tensors& own = tensors();
    return {anonymous(own.multiplied(EncryptedPolynomials(own.ring, view(own.messages.front()))))};
}

void receive(const Bytes& bytes) {
    const Tensors& own = tensors();
    const Bytes message = addressed(bytes, own.key->id(), message_id(own.messages.front()));
    const SecretBuffer<double> values = decrypt_products(*own.ring, *own.key, view(message));
    const std::vector<double> constants(values.size(), 1.0);
    add_to_products(*own.ring, view(message), {constants.data(), constants.size()});
}

}  // namespace hesplit::fuzz
