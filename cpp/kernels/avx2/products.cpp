// Sums of residues, and sums of products of residues below 2^31 in 64-bit integers.
#include "kernels/shared/products.h"

#include "kernels/avx2/lanes.h"
#include "kernels/tables.h"

namespace hesplit {

namespace {

namespace avx2 {

struct Sum {
    using Lanes = avx2::Lanes;
    using Modulus = Prime;
    static constexpr std::size_t kTileOutputs = 4;
    static constexpr bool kPrefetch = false;

    // Products that a 64-bit sum holds on top of a residue.
    static std::size_t lazy_terms(const Prime& prime) { return vectorised::lazy_terms(63 - 2 * prime.bits); }
    void add(__m256i a, __m256i b) { words = Lanes::add(words, _mm256_mul_epu32(a, b)); }
    void reduce(const Prime& prime) {
        alignas(32) std::uint64_t lanes[Lanes::kLanes];
        Lanes::store(lanes, words);
        for (std::uint64_t& lane : lanes) {
            lane = vectorised::reduce_word(lane, prime);
        }
        words = Lanes::load(lanes);
    }

    __m256i words = Lanes::zero();
};

}  // namespace avx2

}  // namespace

const Products kAvx2Products = {vectorised::dot<avx2::Sum>, vectorised::inner<avx2::Sum>,
                                vectorised::combine<avx2::Sum>};
const Sums kAvx2Sums = {vectorised::add<avx2::Lanes>, vectorised::subtract_from<avx2::Lanes>,
                        vectorised::negate<avx2::Lanes>, vectorised::add_small<avx2::Lanes>};
const WordProducts kAvx2WordProducts = {vectorised::ternary_dot<avx2::Lanes>, vectorised::word_dot<avx2::Lanes>};

}  // namespace hesplit
