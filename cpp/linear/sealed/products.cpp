#include "linear/sealed/products.h"

#include <utility>

namespace hesplit {

namespace {

CiphertextRuns runs_of(const Ring& ring, int bits, const std::vector<std::vector<std::uint32_t>>& positions) {
    CiphertextRuns runs(ring.degree(), bits);
    for (const std::vector<std::uint32_t>& list : positions) {
        runs.add(list.size());
    }
    return runs;
}

Header reply_to(Header header) {
    header.type = MessageType::sealed_reply;
    return header;
}

}  // namespace

CiphertextList::CiphertextList(const Ring& ring, const Buffer<std::uint64_t>& all0, const Buffer<std::uint64_t>& all1,
                               std::size_t first, std::size_t count, std::size_t step)
    : c0(pointers(all0.data() + first * ring.size(), count, step * ring.size())),
      c1(pointers(all1.data() + first * ring.size(), count, step * ring.size())) {}

SealedProduct multiply(const Ring& ring, const CiphertextList& a, const CiphertextList& b) {
    using Pointers = std::vector<const std::uint64_t*>;
    const auto view = [](const Pointers& list) { return View<const std::uint64_t* const>{list.data(), list.size()}; };
    SealedProduct product{Buffer<std::uint64_t>(ring.size()), Buffer<std::uint64_t>(ring.size())};
    ring.dot(view(a.c0), view(b.c0), product.c0.data());
    Pointers left = a.c0, right = b.c1;
    left.insert(left.end(), a.c1.begin(), a.c1.end());
    right.insert(right.end(), b.c0.begin(), b.c0.end());
    ring.dot(view(left), view(right), product.c1.data());
    ring.to_coefficients(product.c0.data());
    ring.to_coefficients(product.c1.data());
    return product;
}

SealedReply::SealedReply(const Ring& ring, Header header, const BatchShape& shape, const Id& weights, int bits,
                         std::vector<std::vector<std::uint32_t>> positions)
    : ring_(ring),
      bits_(bits),
      positions_(std::move(positions)),
      runs_(runs_of(ring, bits, positions_)),
      writer_(reply_to(header), kSealedReplyPrefix + runs_.bytes()) {
    write_shape(writer_, shape);
    writer_.raw({weights.data(), weights.size()});
    out_ = writer_.reserve(runs_.bytes());
}

void SealedReply::write(std::size_t index, const SealedProduct& product) const {
    const std::vector<std::uint32_t>& positions = positions_[index];
    std::uint8_t* out = out_ + runs_.offset(index);
    out = pack_switched(ring_, product.c0.data(), {positions.data(), positions.size()}, bits_, out);
    pack_switched(ring_, product.c1.data(), bits_, out);
}

}  // namespace hesplit
