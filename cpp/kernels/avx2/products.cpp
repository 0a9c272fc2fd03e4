// Sums of residues, and sums of products: of residues below 2^31 in 64-bit integers, of larger ones by limbs.
#include "kernels/avx2/lanes.h"
#include "kernels/shared/doubles.h"
#include "kernels/tables.h"

namespace hesplit {

namespace {

namespace avx2 {

using Sum = vectorised::HalfSum<Doubles, 4>;

// Of residues below 2^50, each two limbs of 25 bits: three sums of products below 2^51.
struct LimbSum {
    using Lanes = avx2::Lanes;
    using Vector = Lanes::Vector;
    static constexpr std::size_t kTileOutputs = 2;
    static constexpr bool kPrefetch = false;
    static constexpr int kLimb = 25;

    struct Modulus : vectorised::DoubleModulus<Doubles> {
        explicit Modulus(const Prime& prime)
            : DoubleModulus(prime), power50(power(prime, 50)), power63(power(prime, 63)) {}

        static Root power(const Prime& prime, int exponent) {
            const auto residue = static_cast<double>(vectorised::reduce_word(std::uint64_t{1} << exponent, prime));
            return {Doubles::all(residue), Doubles::all(residue / static_cast<double>(prime.value))};
        }
        // high * 2^63 + middle * 2^50 + low mod q, for high below 2^49, middle below 2^13 and low below 2^51.
        Lanes::Vector residue(Doubles::Vector high, Doubles::Vector middle, Doubles::Vector low) const {
            const Doubles::Vector sum = Doubles::add(multiply(high, power63), multiply(middle, power50));
            return canonical(reduce(Doubles::add(sum, low)));
        }
        Root power50, power63;
    };

    static std::size_t lazy_terms(const Prime&) { return vectorised::lazy_terms(kLazyBits); }
    static Vector low(Vector x) { return Lanes::both(x, Lanes::all((std::uint64_t{1} << kLimb) - 1)); }
    static Vector rest(Vector x) { return Lanes::shift_right<kLimb>(x); }
    void add(Vector a, Vector b) {
        const Vector a0 = low(a), a1 = rest(a), b0 = low(b), b1 = rest(b);
        words = Lanes::add_product(words, a0, b0);
        middle = Lanes::add_product(Lanes::add_product(middle, a0, b1), a1, b0);
        high = Lanes::add_product(high, a1, b1);
    }
    Vector residues(const Modulus& modulus) const {
        const Vector carried = Lanes::add(middle, rest(words)), top = Lanes::add(high, rest(carried));
        const Doubles::Vector limb = Doubles::all(static_cast<double>(std::uint64_t{1} << kLimb));
        const Doubles::Vector fifty =
            Doubles::multiply_add(Doubles::to_double(low(carried)), limb, Doubles::to_double(low(words)));
        return modulus.residue(Doubles::to_double(Lanes::shift_right<13>(top)),
                               Doubles::to_double(Lanes::both(top, Lanes::all((std::uint64_t{1} << 13) - 1))), fifty);
    }

    Vector words = Lanes::zero(), middle = Lanes::zero(), high = Lanes::zero();
};

}  // namespace avx2

}  // namespace

const Products kAvx2Products = {vectorised::dot<avx2::Sum>, vectorised::inner<avx2::Sum>,
                                vectorised::combine<avx2::Sum>};
const Products kAvx2LimbProducts = {vectorised::dot<avx2::LimbSum>, vectorised::inner<avx2::LimbSum>,
                                    vectorised::combine<avx2::LimbSum>};
const Sums kAvx2Sums = {vectorised::add<avx2::Lanes>, vectorised::subtract_from<avx2::Lanes>,
                        vectorised::negate<avx2::Lanes>, vectorised::add_small<avx2::Lanes>};
const ShortProducts kAvx2ShortProducts = {vectorised::dot_short<avx2::Sum>};
const WordProducts kAvx2WordProducts = {vectorised::ternary_dot<avx2::Lanes>};

}  // namespace hesplit
