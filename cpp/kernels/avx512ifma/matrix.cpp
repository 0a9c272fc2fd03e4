#include "kernels/shared/matrix.h"

#include "kernels/avx512ifma/lanes.h"
#include "kernels/tables.h"

namespace hesplit {

namespace {

namespace avx512ifma {

struct Doubles {
    using Vector = __m512d;
    static constexpr std::size_t kLanes = 8;

    static Vector load(const double* in) { return _mm512_loadu_pd(in); }
    static void store(double* out, Vector x) { _mm512_storeu_pd(out, x); }
    static Vector all(double value) { return _mm512_set1_pd(value); }
    static Vector multiply_add(Vector a, Vector b, Vector c) { return _mm512_fmadd_pd(a, b, c); }
    static Vector multiply(Vector a, Vector b) { return _mm512_mul_pd(a, b); }
    static Vector round(Vector x) { return _mm512_roundscale_pd(x, _MM_FROUND_TO_NEAREST_INT); }
    static Vector subtract_product(Vector c, Vector a, Vector b) { return _mm512_fnmadd_pd(a, b, c); }
};

// Twenty-four sums, three columns and a factor of thirty-two registers.
constexpr std::size_t kRows = 8, kVectors = 3;

}  // namespace avx512ifma

}  // namespace

const Matrices kAvx512IfmaMatrices = {
    avx512ifma::kRows, avx512ifma::kVectors * avx512ifma::Doubles::kLanes,
    vectorised::multiply_tile<avx512ifma::Doubles, avx512ifma::kRows, avx512ifma::kVectors>};

}  // namespace hesplit
