// EncryptedPolynomials: a tensor from a client or a server; then what is done with it.
#include "fixtures.h"

namespace hesplit::fuzz {

std::vector<std::string> genuine() {
    std::vector<std::string> all;
    for (const std::string& message : tensors().messages) {
        all.push_back(anonymous(message));
    }
    return all;
}

void receive(const Bytes& bytes) {
    const Tensors& own = tensors();
    const Bytes message = addressed(bytes, own.key->id(), message_id(own.messages.front()));
    const EncryptedPolynomials polynomials(own.ring, view(message));
    std::vector<double> out(polynomials.count() * own.ring->ring().degree());
    polynomials.decrypt(*own.key, out.data());
    sum_polynomials({&polynomials, &polynomials});
    own.multiplied(polynomials);
    add_to_polynomials(*own.ring, view(message), {own.coefficients.data(), own.coefficients.size()});
}

}  // namespace hesplit::fuzz
