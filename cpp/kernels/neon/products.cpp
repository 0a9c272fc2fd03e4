// Sums of products of residues below 2^31 in 64-bit integers, and of words with ternary factors.
#include "kernels/neon/lanes.h"
#include "kernels/shared/doubles.h"
#include "kernels/tables.h"

namespace hesplit {

namespace {

namespace neon {

// Twenty-four sums.
using Sum = vectorised::HalfSum<Doubles, 6>;

}  // namespace neon

}  // namespace

const Products kNeonProducts = {vectorised::dot<neon::Sum>, vectorised::inner<neon::Sum>,
                                vectorised::combine<neon::Sum>};
const ShortProducts kNeonShortProducts = {vectorised::dot_short<neon::Sum>};
const WordProducts kNeonWordProducts = {vectorised::ternary_dot<neon::Lanes>};

}  // namespace hesplit
