// Sums of residues, and sums of products of residues below 2^31 in 64-bit integers.
#include "kernels/shared/products.h"

#include "kernels/avx2/lanes.h"
#include "kernels/tables.h"

namespace hesplit {

namespace {

namespace avx2 {

struct Sum {
    using Lanes = avx2::Lanes;
    static constexpr std::size_t kTileOutputs = 4;
    static constexpr bool kPrefetch = false;

    struct Modulus : avx2::Modulus {
        explicit Modulus(const Prime& prime)
            : avx2::Modulus(prime), power(of(vectorised::reduce_word(std::uint64_t{1} << 31, prime))) {}

        Root of(std::uint64_t residue) const {
            const __m256d value = _mm256_set1_pd(static_cast<double>(residue));
            return {value, _mm256_mul_pd(value, inverse)};
        }
        Root power;  // 2^31
    };

    // Products that a 64-bit sum holds on top of a residue.
    static std::size_t lazy_terms(const Prime& prime) { return vectorised::lazy_terms(63 - 2 * prime.bits); }
    void add(__m256i a, __m256i b) { words = Lanes::add(words, _mm256_mul_epu32(a, b)); }
    // high * 2^31 + low, both exact as doubles.
    __m256i residues(const Modulus& modulus) const {
        const __m256d high = to_double(_mm256_srli_epi64(words, 31));
        const __m256d low = to_double(Lanes::both(words, Lanes::all((std::uint64_t{1} << 31) - 1)));
        return modulus.canonical(modulus.reduce(_mm256_add_pd(modulus.multiply(high, modulus.power), low)));
    }

    __m256i words = Lanes::zero();
};

}  // namespace avx2

}  // namespace

const Products kAvx2Products = {vectorised::dot<avx2::Sum>, vectorised::inner<avx2::Sum>,
                                vectorised::combine<avx2::Sum>};
const Sums kAvx2Sums = {vectorised::add<avx2::Lanes>, vectorised::subtract_from<avx2::Lanes>,
                        vectorised::negate<avx2::Lanes>, vectorised::add_small<avx2::Lanes>};
const ShortProducts kAvx2ShortProducts = {vectorised::dot_short<avx2::Sum>};
const WordProducts kAvx2WordProducts = {vectorised::ternary_dot<avx2::Lanes>, vectorised::word_dot<avx2::Lanes>};

}  // namespace hesplit
