// Products of two ciphertexts, and replies that hold them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "linear/messages.h"
#include "ring/ring.h"
#include "wire/format.h"

namespace hesplit {

// A product without its c2, which whoever has the secret adds itself: c0 + c1 s, in coefficient form.
struct SealedProduct {
    Buffer<std::uint64_t> c0, c1;
};

// Ciphertexts in NTT form: where c0 and c1 of each are.
struct CiphertextList {
    std::vector<const std::uint64_t*> c0, c1;

    // `count` polynomials of each buffer, from the `first` on, `step` apart.
    CiphertextList(const Ring& ring, const Buffer<std::uint64_t>& all0, const Buffer<std::uint64_t>& all1,
                   std::size_t first, std::size_t count, std::size_t step = 1);
};

// The sum of (a.c0 + a.c1 s)(b.c0 + b.c1 s) over pairs.
SealedProduct multiply(const Ring& ring, const CiphertextList& a, const CiphertextList& b);

// A reply of such products, each with c0 at its positions and c1 in full. `weights` names those that it was made with.
class SealedReply {
  public:
    SealedReply(const Ring& ring, Header header, const BatchShape& shape, const Id& weights, int bits,
                std::vector<std::vector<std::uint32_t>> positions);

    const std::vector<std::uint32_t>& positions(std::size_t index) const { return positions_[index]; }
    // May be called from several threads for different indices.
    void write(std::size_t index, const SealedProduct& product) const;
    std::string finish() { return writer_.finish(); }

  private:
    const Ring& ring_;
    int bits_;
    std::vector<std::vector<std::uint32_t>> positions_;
    CiphertextRuns runs_;
    WireWriter writer_;
    std::uint8_t* out_ = nullptr;
};

}  // namespace hesplit
