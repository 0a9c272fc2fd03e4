// Sums of products of residues below 2^31 in 64-bit integers, and of words with ternary factors.
#include "kernels/neon/lanes.h"
#include "kernels/shared/doubles.h"
#include "kernels/tables.h"

namespace hesplit {

namespace {

namespace neon {

// Twenty-four sums.
using Sum = vectorised::HalfSum<Doubles, 6>;

// The processor multiplies 64-bit words one at a time.
void word_dot(const std::uint64_t* a, const std::uint64_t* const* windows, std::size_t count, std::uint64_t* out,
              std::size_t n) {
    for (std::size_t p = 0; p < count; ++p) {
        const std::uint64_t* window = windows[p];
        std::uint64_t sums[4] = {0, 0, 0, 0};
        for (std::size_t i = 0; i < n; i += 4) {
            for (std::size_t lane = 0; lane < 4; ++lane) {
                sums[lane] += a[i + lane] * window[i + lane];
            }
        }
        out[p] = sums[0] + sums[1] + sums[2] + sums[3];
    }
}

}  // namespace neon

}  // namespace

const Products kNeonProducts = {vectorised::dot<neon::Sum>, vectorised::inner<neon::Sum>,
                                vectorised::combine<neon::Sum>};
const ShortProducts kNeonShortProducts = {vectorised::dot_short<neon::Sum>};
const WordProducts kNeonWordProducts = {vectorised::ternary_dot<neon::Lanes>, neon::word_dot};

}  // namespace hesplit
