// What checks/kernels.cpp gives to kernels: primes, roots of unity, and the same inputs for every variant.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "kernels/kernels.h"

namespace hesplit {

namespace {

__extension__ typedef unsigned __int128 Wide;

std::uint64_t times(std::uint64_t a, std::uint64_t b, std::uint64_t q) {
    return static_cast<std::uint64_t>(Wide{a} * b % q);
}

std::uint64_t power(std::uint64_t base, std::uint64_t exponent, std::uint64_t q) {
    std::uint64_t result = 1;
    for (; exponent != 0; exponent >>= 1, base = times(base, base, q)) {
        if ((exponent & 1) != 0) {
            result = times(result, base, q);
        }
    }
    return result;
}

// Miller and Rabin's test with the bases that are enough for words.
bool is_prime(std::uint64_t q) {
    const int zeros = __builtin_ctzll(q - 1);
    for (const std::uint64_t base : {2U, 3U, 5U, 7U, 11U, 13U, 17U, 19U, 23U, 29U, 31U, 37U}) {
        std::uint64_t x = power(base, (q - 1) >> zeros, q);
        bool passes = x == 1;
        for (int i = 0; i < zeros && !passes; ++i, x = times(x, x, q)) {
            passes = x == q - 1;
        }
        if (!passes) {
            return false;
        }
    }
    return true;
}

// The largest prime of so many bits for transforms of this degree, 0 if there is none.
std::uint64_t prime_of(int bits, std::size_t degree) {
    const std::uint64_t step = 2 * degree, least = std::uint64_t{1} << (bits - 1);
    for (std::uint64_t q = 2 * least + 1 - step; q > least && q < 2 * least; q -= step) {
        if (is_prime(q)) {
            return q;
        }
    }
    return 0;
}

enum class Values { uniform, largest, zero };

// One call's parameters; `bits` are those of the prime, or of what is packed.
struct Setting {
    int bits;
    std::uint64_t prime;
    std::size_t n, terms;
    Values values;
    std::size_t offset;  // of all runs, from an aligned address
};

// Makes the same inputs for every variant.
class Inputs {
  public:
    explicit Inputs(const Setting& setting)
        : setting_(setting), random_(static_cast<std::uint64_t>(setting.bits) << 32 | setting.n << 8 | setting.terms) {}

    std::uint64_t below(std::uint64_t limit) {
        if (setting_.values != Values::uniform) {
            return setting_.values == Values::zero ? 0 : limit - 1;
        }
        const std::uint64_t drawn = random_(), place = random_() % 8;
        return place == 0 ? limit - 1 : place == 1 ? 0 : drawn % limit;  // often the ends of the range
    }
    std::uint64_t word() { return setting_.values == Values::largest ? ~std::uint64_t{0} : random_(); }
    // Runs that do not begin where a vector would.
    template <class T>
    struct Run {
        T* data() { return memory.data() + offset; }
        std::vector<T> memory;
        std::size_t offset;
    };
    template <class T>
    Run<T> empty(std::size_t count) {
        return {std::vector<T>(count + setting_.offset), setting_.offset};
    }
    template <class T, class Draw>
    Run<T> run(std::size_t count, Draw draw) {
        auto made = empty<T>(count);
        std::generate_n(made.data(), count, [&] { return static_cast<T>(draw()); });
        return made;
    }
    Run<std::uint64_t> residues(std::uint64_t q, std::size_t count) {
        return run<std::uint64_t>(count, [&] { return below(q); });
    }
    Run<std::uint64_t> words(std::size_t count) {
        return run<std::uint64_t>(count, [&] { return word(); });
    }
    Run<std::uint8_t> bytes(std::size_t count) {
        return run<std::uint8_t>(count, [&] { return word(); });
    }

  private:
    Setting setting_;
    std::mt19937_64 random_;
};

std::vector<const std::uint64_t*> rows_of(Inputs::Run<std::uint64_t>& run, std::size_t rows, std::size_t length) {
    std::vector<const std::uint64_t*> list;
    for (std::size_t row = 0; row < rows; ++row) {
        list.push_back(run.data() + row * length);
    }
    return list;
}

// Powers of a primitive root in bit-reversed order, as ring.cpp takes them from SEAL.
struct Roots {
    Roots(const ModularKernels& kernels, std::uint64_t q, std::size_t n) : memory(4 * n) {
        table.prime = Prime::make(q);
        table.degree = n;
        table.roots = memory.data(), table.quotients = table.roots + n;
        table.inverse_roots = table.quotients + n, table.inverse_quotients = table.inverse_roots + n;
        std::uint64_t root = 0;
        for (std::uint64_t base = 2; power(root, n, q) != q - 1; ++base) {
            root = power(base, (q - 1) / (2 * n), q);
        }
        const std::uint64_t inverse_root = power(root, 2 * n - 1, q), scale = power(n, q - 2, q);
        std::uint64_t forward = 1, inverse = 1;
        for (std::size_t i = 0; i < n; ++i) {
            std::size_t reversed = 0;
            for (std::size_t bit = 1; bit < n; bit *= 2) {
                reversed = 2 * reversed + ((i & bit) != 0 ? 1 : 0);
            }
            table.roots[reversed] = forward;
            table.inverse_roots[reversed] = inverse;
            forward = times(forward, root, q);
            inverse = times(inverse, inverse_root, q);
        }
        table.inverse_roots[0] = scale;
        table.inverse_roots[1] = times(table.inverse_roots[1], scale, q);
        kernels.prepare(table);
    }
    std::vector<std::uint64_t> memory;
    NttTable table;
};

}  // namespace

}  // namespace hesplit
