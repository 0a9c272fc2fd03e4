// Transforms of residues below 2^50 in double precision with fused multiply-add, and of residues below 2^27 in 32 bits.
#include "kernels/neon/lanes.h"
#include "kernels/shared/doubles.h"
#include "kernels/tables.h"

namespace hesplit {

namespace {

namespace neon {

// Residues modulo a prime below 2^27, as signed numbers.
struct ShortModulus {
    using Vector = int32x4_t;
    static constexpr std::size_t kLanes = 4;

    struct Root {
        int32x4_t value, quotient;  // |value| <= q / 2, quotient = value * 2^31 / q to the nearest integer

        // Tables hold each number in both halves of a word.
        static Root broadcast(const std::uint64_t* roots, const std::uint64_t* quotients, std::size_t i) {
            return {vreinterpretq_s32_u64(vdupq_n_u64(roots[i])), vreinterpretq_s32_u64(vdupq_n_u64(quotients[i]))};
        }
        // For butterflies with gap 2 within four lanes, and with gap 1.
        static Root two(const std::uint64_t* roots, const std::uint64_t* quotients, std::size_t i) {
            return {load_as<int32x4_t>(roots + i), load_as<int32x4_t>(quotients + i)};
        }
        static Root four(const std::uint64_t* roots, const std::uint64_t* quotients, std::size_t i) {
            return {vreinterpretq_s32_u32(narrow(Lanes::load(roots + i))),
                    vreinterpretq_s32_u32(narrow(Lanes::load(quotients + i)))};
        }
    };

    explicit ShortModulus(const Prime& prime)
        : q(vdupq_n_s32(static_cast<std::int32_t>(prime.value))),
          inverse(vdupq_n_s32(static_cast<std::int32_t>(((std::uint64_t{1} << 32) / prime.value + 1) / 2))) {}

    static int32x4_t load(const std::uint32_t* in) { return load_as<int32x4_t>(in); }
    static void store(std::uint32_t* out, int32x4_t x) { store_as(out, x); }

    // y * root mod q: the difference of two products modulo 2^32. The quotient is off by at most 1/2 for its rounding
    // and |y| / 2^32 for that of root.quotient, so that |result| <= (1/2 + |y| / 2^32) q, below q for any y.
    int32x4_t multiply(int32x4_t y, Root root) const {
        return rest(vmulq_u32(vreinterpretq_u32_s32(y), vreinterpretq_u32_s32(root.value)), y, root.quotient);
    }
    // x mod q, within the same bounds.
    int32x4_t reduce(int32x4_t x) const { return rest(vreinterpretq_u32_s32(x), x, inverse); }
    // x in (-q, q) to [0, q): a negative number is a huge one here.
    int32x4_t canonical(int32x4_t x) const {
        const uint32x4_t word = vreinterpretq_u32_s32(x);
        return vreinterpretq_s32_u32(vminq_u32(word, vaddq_u32(word, vreinterpretq_u32_s32(q))));
    }

    // Sort eight numbers into the two sides of butterflies with gap 2, then 1. Each undoes itself.
    static void sort2(int32x4_t& x, int32x4_t& y) {
        const int64x2_t u = vreinterpretq_s64_s32(x), v = vreinterpretq_s64_s32(y);
        x = vreinterpretq_s32_s64(vtrn1q_s64(u, v));
        y = vreinterpretq_s32_s64(vtrn2q_s64(u, v));
    }
    static void sort1(int32x4_t& x, int32x4_t& y) {
        const int32x4_t even = vtrn1q_s32(x, y);
        y = vtrn2q_s32(x, y);
        x = even;
    }

    int32x4_t q, inverse;  // inverse = 2^31 / q to the nearest integer

  private:
    int32x4_t rest(uint32x4_t product, int32x4_t y, int32x4_t quotient) const {
        const uint32x4_t whole = vreinterpretq_u32_s32(vqrdmulhq_s32(y, quotient));
        return vreinterpretq_s32_u32(vmlsq_u32(product, whole, vreinterpretq_u32_s32(q)));
    }
};

// Values grow from c q by at most (1/2 + c/32) q a level, from c = 1 to below 12 after 16 levels: 16 q < 2^31.
struct ShortForward : ShortModulus {
    using ShortModulus::ShortModulus;

    static void enter(std::uint32_t*, std::size_t, std::size_t, std::size_t) {}
    void operator()(int32x4_t& x, int32x4_t& y, Root root) const {
        const int32x4_t v = multiply(y, root);
        y = vsubq_s32(x, v);
        x = vaddq_s32(x, v);
    }
    static void begin(int32x4_t, int32x4_t, int32x4_t, int32x4_t) {}
    static void next() {}
    void finish(const std::uint64_t* roots, const std::uint64_t* quotients, std::size_t n, std::size_t k,
                std::uint32_t* a) const {
        int32x4_t x = load(a), y = load(a + kLanes);
        sort2(x, y);
        (*this)(x, y, Root::two(roots, quotients, n / 4 + 2 * k));
        sort1(x, y);
        (*this)(x, y, Root::four(roots, quotients, n / 2 + 4 * k));
        sort1(x, y);
        sort2(x, y);
        store(a, canonical(reduce(x)));
        store(a + kLanes, canonical(reduce(y)));
    }
};

// Sums double with each level. They are reduced below q after every fourth one, when they have become 16 q.
struct ShortInverse : ShortModulus {
    using ShortModulus::ShortModulus;
    static constexpr int kStartLevels = 2;

    void first(int32x4_t& x, int32x4_t& y, Root root) const {
        const int32x4_t sum = vaddq_s32(x, y);
        y = multiply(vsubq_s32(x, y), root);
        x = sum;
    }
    void second(int32x4_t& x, int32x4_t& y, Root root) const {
        first(x, y, root);
        x = due ? reduce(x) : x;
    }
    void alone(int32x4_t& x, int32x4_t& y, Root root) const { first(x, y, root); }
    void next(int) { due = !due; }
    void start(const std::uint64_t* roots, const std::uint64_t* quotients, std::size_t n, std::size_t k,
               std::uint32_t* a) const {
        int32x4_t x = load(a), y = load(a + kLanes);
        sort2(x, y);
        sort1(x, y);
        first(x, y, Root::four(roots, quotients, n / 2 + 4 * k));
        sort1(x, y);
        first(x, y, Root::two(roots, quotients, n / 4 + 2 * k));
        sort2(x, y);
        store(a, x);
        store(a + kLanes, y);
    }
    void last(std::uint32_t* x, std::uint32_t* y, Root sum_root, Root difference_root) const {
        const int32x4_t u = load(x), v = load(y);
        store(x, canonical(multiply(vaddq_s32(u, v), sum_root)));
        store(y, canonical(multiply(vsubq_s32(u, v), difference_root)));
    }

    bool due = false;
};

void prepare_short(std::uint64_t* roots, std::uint64_t* quotients, std::size_t n, std::uint64_t q) {
    const auto twice = [](std::uint64_t magnitude, bool negative) {
        return std::uint64_t{static_cast<std::uint32_t>(negative ? 0 - magnitude : magnitude)} * 0x100000001u;
    };
    for (std::size_t i = 0; i < n; ++i) {
        const bool negative = roots[i] > q / 2;
        const std::uint64_t magnitude = negative ? q - roots[i] : roots[i];
        roots[i] = twice(magnitude, negative);
        quotients[i] = twice(((magnitude << 32) / q + 1) / 2, negative);
    }
}

void prepare_short(NttTable& table) {
    prepare_short(table.roots, table.quotients, table.degree, table.prime.value);
    prepare_short(table.inverse_roots, table.inverse_quotients, table.degree, table.prime.value);
}

// In between the residues lie in the first half of their memory.
std::uint32_t* to_halves(std::uint64_t* residues, std::size_t n) {
    auto* halves = reinterpret_cast<std::uint32_t*>(residues);
    for (std::size_t i = 0; i < n; i += Lanes::kLanes) {
        store_as(halves + i, narrow(Lanes::load(residues + i)));
    }
    return halves;
}

void from_halves(std::uint64_t* residues, std::size_t n) {
    const auto* halves = reinterpret_cast<const std::uint32_t*>(residues);
    for (std::size_t i = n; i > 0;) {
        i -= Lanes::kLanes;
        Lanes::store(residues + i, widen(Lanes::load_halves(halves + i)));
    }
}

void forward_short(const NttTable& table, std::uint64_t* residues, Support support) {
    vectorised::forward<ShortForward>(table, to_halves(residues, table.degree), support);
    from_halves(residues, table.degree);
}

void inverse_short(const NttTable& table, std::uint64_t* residues) {
    vectorised::inverse<ShortInverse>(table, to_halves(residues, table.degree));
    from_halves(residues, table.degree);
}

}  // namespace neon

}  // namespace

const Transforms kNeonTransforms = {vectorised::prepare_doubles, vectorised::forward_in_doubles<neon::Doubles>,
                                    vectorised::inverse_in_doubles<neon::Doubles>,
                                    vectorised::multiply<vectorised::DoubleModulus<neon::Doubles>>};
const Transforms kNeonShortTransforms = {neon::prepare_short, neon::forward_short, neon::inverse_short,
                                         vectorised::multiply<vectorised::DoubleModulus<neon::Doubles>>};

}  // namespace hesplit
