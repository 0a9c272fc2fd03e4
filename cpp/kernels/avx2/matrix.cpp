#include "kernels/shared/matrix.h"

#include "kernels/avx2/lanes.h"
#include "kernels/tables.h"

namespace hesplit {

namespace {

namespace avx2 {

// Twelve sums, three columns and a factor: all sixteen registers.
constexpr std::size_t kRows = 4, kVectors = 3;

}  // namespace avx2

}  // namespace

const Matrices kAvx2Matrices = {avx2::kRows, avx2::kVectors * avx2::Doubles::kLanes,
                                vectorised::multiply_tile<avx2::Doubles, avx2::kRows, avx2::kVectors>};

}  // namespace hesplit
