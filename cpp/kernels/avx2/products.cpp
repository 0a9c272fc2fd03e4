// Sums of residues, and sums of products of residues below 2^31 in 64-bit integers.
#include "kernels/avx2/lanes.h"
#include "kernels/shared/doubles.h"
#include "kernels/tables.h"

namespace hesplit {

namespace {

namespace avx2 {

using Sum = vectorised::HalfSum<Doubles, 4>;

}  // namespace avx2

}  // namespace

const Products kAvx2Products = {vectorised::dot<avx2::Sum>, vectorised::inner<avx2::Sum>,
                                vectorised::combine<avx2::Sum>};
const Sums kAvx2Sums = {vectorised::add<avx2::Lanes>, vectorised::subtract_from<avx2::Lanes>,
                        vectorised::negate<avx2::Lanes>, vectorised::add_small<avx2::Lanes>};
const ShortProducts kAvx2ShortProducts = {vectorised::dot_short<avx2::Sum>};
const WordProducts kAvx2WordProducts = {vectorised::ternary_dot<avx2::Lanes>};

}  // namespace hesplit
