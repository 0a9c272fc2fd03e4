// What client and server of coefficient blocks both know about a batch: its layout, and that of its weight gradient.
#pragma once

#include <cstddef>
#include <vector>

#include "base/buffer.h"
#include "linear/messages.h"
#include "packing/blocks.h"
#include "ring/ring.h"
#include "rlwe/parameters.h"

namespace hesplit {

BlockLayout block_layout(const Ring& ring, std::size_t features, std::size_t outputs, const BatchShape& shape);
// How ciphertexts over this ring are made and sent, with replies of so many bits a coefficient.
BlockMedium block_medium(const Ring& ring, double reply_bits, double byte_ns);
// How a batch is laid out. With private weights no more outputs share a product than in a batch of the agreed size,
// where that can be: its noise in the worst case, which the flood covers, is then no larger.
BlockLayout planned_layout(const ParameterChoice& choice, std::size_t features, std::size_t outputs,
                           std::size_t samples, const BlockMedium& medium);
// The layout of a message from the peer. Throws WireError when there is none of that shape.
BlockLayout checked_block_layout(const BatchShape& shape, std::size_t degree, std::size_t features,
                                 std::size_t outputs);

std::vector<GradientRun> weight_gradient_runs(const BlockLayout& layout);

// The largest l1 norm, over products, of the polynomials that a weight gradient is multiplied by: every sample's noise
// meets the entries of G that share a product, at `scale`, and the rounding of each. `gradient` is row-major
// [samples, outputs].
double largest_gradient_l1(const BlockLayout& layout, View<const double> gradient, double scale);

}  // namespace hesplit
