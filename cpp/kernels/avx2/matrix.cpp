#include "kernels/shared/matrix.h"

#include "kernels/avx2/lanes.h"
#include "kernels/tables.h"

namespace hesplit {

namespace {

namespace avx2 {

struct Doubles {
    using Vector = __m256d;
    static constexpr std::size_t kLanes = 4;

    static Vector load(const double* in) { return _mm256_loadu_pd(in); }
    static void store(double* out, Vector x) { _mm256_storeu_pd(out, x); }
    static Vector all(double value) { return _mm256_set1_pd(value); }
    static Vector multiply_add(Vector a, Vector b, Vector c) { return _mm256_fmadd_pd(a, b, c); }
    static Vector fold(Vector x, Vector q, Vector inverse) {
        return _mm256_fnmadd_pd(round(_mm256_mul_pd(x, inverse)), q, x);
    }
};

// Twelve sums, three columns and a factor: all sixteen registers.
constexpr std::size_t kRows = 4, kVectors = 3;

}  // namespace avx2

}  // namespace

const Matrices kAvx2Matrices = {avx2::kRows, avx2::kVectors * avx2::Doubles::kLanes,
                                vectorised::multiply_tile<avx2::Doubles, avx2::kRows, avx2::kVectors>};

}  // namespace hesplit
