// Sums of residues, and of their products in two limbs of 52 bits.
#include "kernels/shared/products.h"

#include "kernels/avx512ifma/lanes.h"
#include "kernels/tables.h"

namespace hesplit {

namespace {

namespace avx512ifma {

// Each product adds less than 2^52 to the low limb and, for primes of b bits, less than 2^(2b-52) to the high one.
// Products of residues below 2^26 have no high limb: half the work, and room for twice the outputs.
template <bool Narrow>
struct Sum {
    using Lanes = avx512ifma::Lanes;
    using Modulus = avx512ifma::Modulus;
    static constexpr std::size_t kTileOutputs = Narrow ? 12 : 6;
    static constexpr bool kPrefetch = true;

    // Keeps the high limb below 2^51, which Modulus::reduce takes.
    static std::size_t lazy_terms(const Prime& prime) { return vectorised::lazy_terms(103 - 2 * prime.bits); }
    void add(Vector a, Vector b) {
        words = _mm512_madd52lo_epu64(words, a, b);
        if (!Narrow) {
            high = _mm512_madd52hi_epu64(high, a, b);
        }
    }
    Vector residues(const Modulus& modulus) const { return modulus.reduce(high, words); }

    Vector words = Lanes::zero(), high = Lanes::zero();
};

// Of residues below 2^32.
struct HalfSum {
    using Lanes = avx512ifma::Lanes;
    using Modulus = avx512ifma::Modulus;

    void add(Vector a, Vector b) { words = Lanes::add(words, _mm512_mul_epu32(a, b)); }
    Vector residues(const Modulus& modulus) const { return modulus.reduce(Lanes::zero(), words); }

    Vector words = Lanes::zero();
};

}  // namespace avx512ifma

}  // namespace

const Products kAvx512IfmaProducts = {vectorised::dot<avx512ifma::Sum<false>>,
                                      vectorised::inner<avx512ifma::Sum<false>>,
                                      vectorised::combine<avx512ifma::Sum<false>>};
const Products kAvx512IfmaNarrowProducts = {vectorised::dot<avx512ifma::Sum<true>>,
                                            vectorised::inner<avx512ifma::Sum<true>>,
                                            vectorised::combine<avx512ifma::Sum<true>>};
const Sums kAvx512IfmaSums = {vectorised::add<avx512ifma::Lanes>, vectorised::subtract_from<avx512ifma::Lanes>,
                              vectorised::negate<avx512ifma::Lanes>, vectorised::add_small<avx512ifma::Lanes>};
const ShortProducts kAvx512IfmaShortProducts = {vectorised::dot_short<avx512ifma::HalfSum>};
const WordProducts kAvx512IfmaWordProducts = {vectorised::ternary_dot<avx512ifma::Lanes>};

}  // namespace hesplit
