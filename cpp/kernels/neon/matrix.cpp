#include "kernels/shared/matrix.h"

#include "kernels/neon/lanes.h"
#include "kernels/tables.h"

namespace hesplit {

namespace {

namespace neon {

// Twenty-four sums, six columns and two factors: all thirty-two registers.
constexpr std::size_t kRows = 4, kVectors = 3;

}  // namespace neon

}  // namespace

const Matrices kNeonMatrices = {neon::kRows, neon::kVectors * neon::Doubles::kLanes,
                                vectorised::multiply_tile<neon::Doubles, neon::kRows, neon::kVectors>};

}  // namespace hesplit
