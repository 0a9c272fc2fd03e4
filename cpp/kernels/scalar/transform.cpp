// Portable transforms: the reference that every other variant is tested against, as is all of this directory.
#include <algorithm>

#include "kernels/scalar/arithmetic.h"
#include "kernels/tables.h"

namespace hesplit {

namespace scalar {

namespace {

void prepare(NttTable& table) {
    for (std::size_t i = 0; i < table.degree; ++i) {
        table.quotients[i] = shoup(table.roots[i], table.prime.value);
        table.inverse_quotients[i] = shoup(table.inverse_roots[i], table.prime.value);
    }
}

// Cooley-Tukey butterflies on values below 4q (Harvey 2014, algorithm 4); q < 2^62.
void forward(const NttTable& table, std::uint64_t* a, Support support) {
    const std::uint64_t q = table.prime.value, twice = 2 * q;
    for (std::size_t at = 0; at < table.degree; at += support.period) {
        std::fill(a + at + support.used, a + at + support.period, std::uint64_t{0});
    }
    for (std::size_t groups = 1, gap = table.degree / 2; gap > 0; groups *= 2, gap /= 2) {
        for (std::size_t g = 0; g < groups; ++g) {
            const std::uint64_t root = table.roots[groups + g], quotient = table.quotients[groups + g];
            std::uint64_t* x = a + 2 * g * gap;
            std::uint64_t* y = x + gap;
            for (std::size_t i = 0; i < gap; ++i) {
                const std::uint64_t u = subtract_once(x[i], twice);
                const std::uint64_t v = multiply_lazy(y[i], root, quotient, q);
                x[i] = u + v;
                y[i] = u + twice - v;
            }
        }
    }
    for (std::size_t i = 0; i < table.degree; ++i) {
        a[i] = subtract_once(subtract_once(a[i], twice), q);
    }
}

// Gentleman-Sande butterflies on values below 2q; the last ones also divide by N.
void inverse(const NttTable& table, std::uint64_t* a) {
    const std::uint64_t q = table.prime.value, twice = 2 * q;
    for (std::size_t groups = table.degree / 2, gap = 1; groups > 1; groups /= 2, gap *= 2) {
        for (std::size_t g = 0; g < groups; ++g) {
            const std::uint64_t root = table.inverse_roots[groups + g], quotient = table.inverse_quotients[groups + g];
            std::uint64_t* x = a + 2 * g * gap;
            std::uint64_t* y = x + gap;
            for (std::size_t i = 0; i < gap; ++i) {
                const std::uint64_t u = x[i], v = y[i];
                x[i] = subtract_once(u + v, twice);
                y[i] = multiply_lazy(u + twice - v, root, quotient, q);
            }
        }
    }
    const std::size_t half = table.degree / 2;
    for (std::size_t i = 0; i < half; ++i) {
        const std::uint64_t u = a[i], v = a[i + half];
        a[i] = subtract_once(multiply_lazy(u + v, table.inverse_roots[0], table.inverse_quotients[0], q), q);
        a[i + half] =
            subtract_once(multiply_lazy(u + twice - v, table.inverse_roots[1], table.inverse_quotients[1], q), q);
    }
}

void multiply(const Prime& q, const std::uint64_t* a, const std::uint64_t* b, std::uint64_t* out, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) {
        out[i] = reduce(Wide{a[i]} * b[i], q);
    }
}

}  // namespace

}  // namespace scalar

const Transforms kScalarTransforms = {scalar::prepare, scalar::forward, scalar::inverse, scalar::multiply};

}  // namespace hesplit
