// Transforms of residues below 2^50 in double precision with fused multiply-add.
#include "kernels/avx2/lanes.h"
#include "kernels/shared/doubles.h"
#include "kernels/tables.h"

namespace hesplit {

const Transforms kAvx2Transforms = {vectorised::prepare_doubles, vectorised::forward_in_doubles<avx2::Doubles>,
                                    vectorised::inverse_in_doubles<avx2::Doubles>,
                                    vectorised::multiply<vectorised::DoubleModulus<avx2::Doubles>>};

}  // namespace hesplit
