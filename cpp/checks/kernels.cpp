// Does every variant of every kernel that this processor can run give the bits of the portable one? Without Python, so
// that variants for other processors can be tried in an emulator:
//
//   cmake -S . -B build/checks -DHESPLIT_PYTHON=OFF -DHESPLIT_CHECKS=ON && cmake --build build/checks --target kernels
//   build/checks/cpp/kernels                               every case; 1 where a result differs
//   build/checks/cpp/kernels VARIANT KERNEL BITS N TERMS   one of them: what instructions.py counts
#include "kernels/kernels.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>
#include <vector>

#include "checks/kernel_inputs.h"

using namespace hesplit;

namespace {

using Bytes = std::vector<std::uint8_t>;

template <class T>
Bytes bytes_of(Inputs::Run<T>& run) {
    const auto* first = reinterpret_cast<const std::uint8_t*>(run.data());
    return {first, first + (run.memory.size() - run.offset) * sizeof(T)};
}

// What a kernel makes of the inputs of a setting.
using Call = Bytes (*)(const Kernels&, const Setting&);

template <bool Inverse>
Bytes transform(const Kernels& kernels, const Setting& s) {
    const ModularKernels modular = kernels.modulo(s.bits);
    const Roots roots(modular, s.prime, s.n);
    auto a = Inputs(s).residues(s.prime, s.n);
    if (Inverse) {
        modular.inverse(roots.table, a.data());
    } else {
        modular.forward(roots.table, a.data(), {s.n, s.n});
    }
    return bytes_of(a);
}

// Of polynomials with every support that there is; what lies beside it is no residue.
Bytes forward_sparse(const Kernels& kernels, const Setting& s) {
    const ModularKernels modular = kernels.modulo(s.bits);
    const Roots roots(modular, s.prime, s.n);
    Bytes all;
    for (std::size_t period = s.n; 16 * period >= s.n; period /= 2) {
        for (std::size_t used = 32; used <= period; used *= 2) {
            auto a = Inputs(s).residues(s.prime, s.n);
            for (std::size_t i = 0; i < s.n; ++i) {
                a.data()[i] = i % period < used ? a.data()[i] : ~std::uint64_t{0};
            }
            modular.forward(roots.table, a.data(), {period, used});
            const Bytes one = bytes_of(a);
            all.insert(all.end(), one.begin(), one.end());
        }
    }
    return all;
}

// For kernels modulo any prime: the inputs, the prime's kernels, two runs and one for the result.
struct Modular {
    Modular(const Kernels& kernels, const Setting& s, std::size_t rows)
        : inputs(s),
          q(Prime::make(s.prime)),
          modulo(kernels.modulo(s.bits)),
          a(inputs.residues(q.value, rows * s.n)),
          b(inputs.residues(q.value, rows * s.n)),
          out(inputs.empty<std::uint64_t>(s.n)) {}
    Inputs inputs;
    Prime q;
    ModularKernels modulo;
    Inputs::Run<std::uint64_t> a, b, out;
};

Bytes multiply(const Kernels& kernels, const Setting& s) {
    Modular m(kernels, s, 1);
    m.modulo.multiply(m.q, m.a.data(), m.b.data(), m.a.data(), s.n);
    return bytes_of(m.a);
}

Bytes dot(const Kernels& kernels, const Setting& s) {
    Modular m(kernels, s, s.terms);
    const auto a = rows_of(m.a, s.terms, s.n), b = rows_of(m.b, s.terms, s.n);
    m.modulo.dot(m.q, {a.data(), 0}, {b.data(), 0}, s.terms, m.out.data(), s.n);
    return bytes_of(m.out);
}

Bytes inner(const Kernels& kernels, const Setting& s) {
    Modular m(kernels, s, s.terms);
    const auto a = rows_of(m.a, s.terms, s.n), b = rows_of(m.b, s.terms, s.n);
    *m.out.data() = m.modulo.inner(m.q, a.data(), b.data(), s.terms, s.n);
    return bytes_of(m.out);
}

Bytes combine(const Kernels& kernels, const Setting& s) {
    constexpr std::size_t kOutputs = 13;
    Modular m(kernels, s, s.terms);
    auto scalars = m.inputs.residues(m.q.value, kOutputs * s.terms);
    auto out = m.inputs.empty<std::uint64_t>(kOutputs * s.n);
    const auto a = rows_of(m.a, s.terms, s.n);
    std::array<std::uint64_t*, kOutputs> to;
    for (std::size_t o = 0; o < kOutputs; ++o) {
        to[o] = out.data() + o * s.n;
    }
    m.modulo.combine(m.q, {a.data(), 0}, s.terms, scalars.data(), kOutputs, to.data(), s.n);
    return bytes_of(out);
}

Bytes add(const Kernels& kernels, const Setting& s) {
    Modular m(kernels, s, 1);
    m.modulo.add(m.q.value, m.a.data(), m.b.data(), s.n);
    return bytes_of(m.a);
}

Bytes subtract_from(const Kernels& kernels, const Setting& s) {
    Modular m(kernels, s, 1);
    m.modulo.subtract_from(m.q.value, m.a.data(), m.b.data(), s.n);
    return bytes_of(m.a);
}

Bytes negate(const Kernels& kernels, const Setting& s) {
    Modular m(kernels, s, 1);
    m.modulo.negate(m.q.value, m.a.data(), m.a.data(), s.n);
    return bytes_of(m.a);
}

Bytes add_small(const Kernels& kernels, const Setting& s) {
    Modular m(kernels, s, 1);
    auto small = m.inputs.run<std::int8_t>(s.n, [&] { return static_cast<int>(m.inputs.below(255)) - 127; });
    m.modulo.add_small(m.q.value, m.a.data(), small.data(), s.n);
    return bytes_of(m.a);
}

Bytes lift(const Kernels& kernels, const Setting& s) {
    Modular m(kernels, s, 1);
    constexpr std::int64_t kLimit = (std::int64_t{1} << 62) - 1;
    auto values = m.inputs.run<std::int64_t>(
        s.n, [&] { return static_cast<std::int64_t>(m.inputs.below((std::uint64_t{1} << 63) - 1)) - kLimit; });
    m.modulo.lift(m.q, values.data(), m.out.data(), s.n);
    return bytes_of(m.out);
}

Bytes add_fraction(const Kernels& kernels, const Setting& s) {
    Modular m(kernels, s, 1);
    const std::uint64_t factor = m.inputs.below(m.q.value);
    const std::uint64_t added = m.inputs.below(std::uint64_t{1} << 62);
    const auto shift = static_cast<int>(m.inputs.below(64));
    m.modulo.add_fraction(m.q, factor, m.a.data(), shift % 2 == 0 ? nullptr : m.b.data(), added, shift, m.out.data(),
                          s.n);
    return bytes_of(m.out);
}

Bytes dot_short(const Kernels& kernels, const Setting& s) {
    Modular m(kernels, s, s.terms);
    std::vector<std::uint32_t> a(s.terms * s.n);
    std::transform(m.a.data(), m.a.data() + a.size(), a.begin(), [](auto x) { return static_cast<std::uint32_t>(x); });
    kernels.dot_short(m.q, a.data(), m.b.data(), s.terms, m.out.data(), s.n);
    return bytes_of(m.out);
}

Bytes ternary_dot(const Kernels& kernels, const Setting& s) {
    Inputs inputs(s);
    auto windows = inputs.words(s.terms * s.n), out = inputs.empty<std::uint64_t>(s.terms);
    const auto rows = rows_of(windows, s.terms, s.n);
    auto nonzero = inputs.run<std::uint64_t>(s.n, [&] { return std::uint64_t{0} - inputs.below(2); });
    auto sign = inputs.run<std::uint64_t>(s.n, [&] { return std::uint64_t{0} - inputs.below(2); });
    for (std::size_t i = 0; i < s.n; ++i) {
        sign.data()[i] &= nonzero.data()[i];
    }
    kernels.ternary_dot(sign.data(), nonzero.data(), rows.data(), s.terms, out.data(), s.n);
    return bytes_of(out);
}

Bytes chacha20(const Kernels& kernels, const Setting& s) {
    Inputs inputs(s);
    std::array<std::uint32_t, 16> state;
    std::generate(state.begin(), state.end(), [&] { return static_cast<std::uint32_t>(inputs.word()); });
    state[12] = 0xfffffffd;  // the counter wraps around
    auto out = inputs.empty<std::uint8_t>(64 * s.terms);
    kernels.chacha20(state.data(), out.data(), s.terms);
    return bytes_of(out);
}

Bytes noise(const Kernels& kernels, const Setting& s) {
    Inputs inputs(s);
    auto coins = inputs.bytes(6 * s.n);
    auto out = inputs.empty<std::int8_t>(s.n);
    kernels.noise(coins.data(), out.data(), s.n);
    return bytes_of(out);
}

// Of any number of words, `terms` more than n here.
Bytes accept(const Kernels& kernels, const Setting& s) {
    Inputs inputs(s);
    const bool narrow = s.bits <= 32;
    const std::size_t count = s.n + s.terms;
    const std::uint64_t mask = (std::uint64_t{1} << s.bits) - 1;
    auto words = inputs.bytes((narrow ? 4 : 8) * count);
    auto out = inputs.empty<std::uint64_t>(count);
    std::size_t kept = 0;
    kept = kernels.accept(words.data(), narrow, mask, s.prime, out.data(), count);
    out.memory.resize(s.offset + kept);  // what lies beyond is anything
    return bytes_of(out);
}

Bytes pack(const Kernels& kernels, const Setting& s) {
    Inputs inputs(s);
    auto values = inputs.residues(std::uint64_t{1} << s.bits, s.n);
    auto out = inputs.empty<std::uint8_t>(s.n / 8 * static_cast<std::size_t>(s.bits));
    kernels.pack(values.data(), s.bits, out.data(), s.n);
    return bytes_of(out);
}

Bytes unpack(const Kernels& kernels, const Setting& s) {
    Inputs inputs(s);
    auto packed = inputs.bytes(s.n / 8 * static_cast<std::size_t>(s.bits));
    auto out = inputs.empty<std::uint64_t>(s.n + 1);
    out.data()[s.n] = kernels.unpack(packed.data(), s.bits, out.data(), s.n);
    return bytes_of(out);
}

// [6, terms] by [terms, 24] integers, cut into the variant's tiles.
Bytes multiply_tile(const Kernels& kernels, const Setting& s) {
    constexpr std::size_t kRows = 6, kColumns = 24;
    Inputs inputs(s);
    const std::size_t height = kernels.tile_rows, width = kernels.tile_columns;
    const auto q = static_cast<double>(s.prime);
    const auto integer = [&](std::uint64_t limit) {
        return static_cast<double>(inputs.below(2 * limit)) - static_cast<double>(limit);
    };
    std::vector<double> a(kRows * s.terms), b(s.terms * kColumns);
    std::generate(a.begin(), a.end(), [&] { return integer(1 << 24); });
    std::generate(b.begin(), b.end(), [&] { return integer((std::uint64_t{1} << 28) / s.terms); });
    auto out = inputs.empty<double>(kRows * kColumns);
    const std::vector<double> moduli(height, q), inverses(height, 1 / q);
    for (std::size_t row = 0; row < kRows; row += height) {
        const std::size_t rows = std::min(height, kRows - row);
        std::vector<double> left(height * s.terms);
        for (std::size_t i = 0; i < s.terms * rows; ++i) {
            left[i / rows * height + i % rows] = a[(row + i % rows) * s.terms + i / rows];
        }
        for (std::size_t column = 0; column < kColumns; column += width) {
            std::vector<double> right(s.terms * width), sums(height * width);
            for (std::size_t i = 0; i < right.size(); ++i) {
                right[i] = b[i / width * kColumns + column + i % width];
            }
            kernels.multiply_tile(left.data(), right.data(), s.terms, rows, moduli.data(), inverses.data(),
                                  sums.data());
            for (std::size_t i = 0; i < rows * width; ++i) {
                out.data()[(row + i / width) * kColumns + column + i % width] = sums[i];
            }
        }
    }
    return bytes_of(out);
}

struct Kernel {
    const char* name;
    Call call;
    int least_bits, most_bits;
    bool degrees;            // n is a power of two
    std::size_t most_terms;  // 1 where there are no sums
};

constexpr std::size_t kMany = 2500;  // more than any variant sums up without a reduction
const Kernel kAll[] = {
    {"forward", transform<false>, 14, kMaxPrimeBits, true, 1},
    {"forward_sparse", forward_sparse, 14, kMaxPrimeBits, true, 1},
    {"inverse", transform<true>, 14, kMaxPrimeBits, true, 1},
    {"multiply", multiply, 14, kMaxPrimeBits, false, 1},
    {"dot", dot, 14, kMaxPrimeBits, false, kMany},
    {"inner", inner, 14, kMaxPrimeBits, false, kMany},
    {"combine", combine, 14, kMaxPrimeBits, false, kMany},
    {"add", add, 14, kMaxPrimeBits, false, 1},
    {"subtract_from", subtract_from, 14, kMaxPrimeBits, false, 1},
    {"negate", negate, 14, kMaxPrimeBits, false, 1},
    {"add_small", add_small, 14, kMaxPrimeBits, false, 1},
    {"lift", lift, 14, kMaxPrimeBits, false, 1},
    {"add_fraction", add_fraction, 14, kMaxPrimeBits, false, 1},
    {"dot_short", dot_short, 14, kShortPrimeBits, false, kShortTerms},
    {"ternary_dot", ternary_dot, 64, 64, false, 9},
    {"chacha20", chacha20, 32, 32, false, 67},
    {"noise", noise, 48, 48, false, 1},
    {"accept", accept, 14, kMaxPrimeBits, false, 7},
    {"pack", pack, 8, 62, false, 1},
    {"unpack", unpack, 8, 62, false, 1},
    {"multiply_tile", multiply_tile, 25, 25, false, 67},
};

std::vector<Setting> settings_of(const Kernel& kernel) {
    std::vector<Setting> list;
    const auto add = [&](int bits, std::uint64_t prime, std::size_t n, std::size_t terms) {
        for (const Values values : {Values::uniform, Values::largest, Values::zero}) {
            list.push_back({bits, prime, n, terms, values, (n / 16 + terms) % 2});
        }
    };
    for (int bits = kernel.least_bits; bits <= kernel.most_bits; ++bits) {
        if (kernel.degrees) {
            for (const std::size_t n : {32U, 64U, 1024U, 2048U, 16384U, 32768U}) {
                if (const std::uint64_t prime = prime_of(bits, n); prime != 0) {
                    add(bits, prime, n, 1);
                }
            }
            continue;
        }
        const std::uint64_t prime = prime_of(std::min(bits, kMaxPrimeBits), 1024);
        for (const std::size_t terms : {1U, 2U, 3U, 4U, 8U, 9U, 16U, 65U, 1025U, 2500U}) {
            if (terms <= kernel.most_terms) {
                add(bits, prime, 16, terms);
                add(bits, prime, terms < 100 ? 272 : 48, terms);
            }
        }
    }
    return list;
}

int check() {
    const std::vector<std::string> names = usable_kernels();
    std::size_t cases = 0, wrong = 0;
    for (const Kernel& kernel : kAll) {
        for (const Setting& s : settings_of(kernel)) {
            const Bytes expected = kernel.call(kernels("scalar"), s);
            for (const std::string& name : names) {
                if (name == "scalar") {
                    continue;
                }
                ++cases;
                if (kernel.call(kernels(name.c_str()), s) != expected) {
                    ++wrong;
                    std::printf("%s: %s differs for %d bits, n = %zu, terms = %zu, values %d, offset %zu\n",
                                name.c_str(), kernel.name, s.bits, s.n, s.terms, static_cast<int>(s.values), s.offset);
                }
            }
        }
    }
    std::string all;
    for (const std::string& name : names) {
        all += " " + name;
    }
    std::printf("%zu cases of%s, %zu wrong\n", cases, all.c_str(), wrong);
    return wrong == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) try {
    if (argc == 1) {
        return check();
    }
    if (argc != 6) {
        std::fprintf(stderr, "usage: kernels [VARIANT KERNEL BITS N TERMS]\n");
        return 2;
    }
    for (const Kernel& kernel : kAll) {
        if (std::strcmp(kernel.name, argv[2]) == 0) {
            const auto number = [&](int i) { return static_cast<std::size_t>(std::atoll(argv[i])); };
            const int bits = std::atoi(argv[3]);
            const std::uint64_t prime = prime_of(std::min(bits, kMaxPrimeBits), std::max<std::size_t>(number(4), 1024));
            const Setting setting{bits, prime, number(4), number(5), Values::uniform, 0};
            kernel.call(kernels(argv[1]), setting);
            return 0;
        }
    }
    std::fprintf(stderr, "no kernel called %s\n", argv[2]);
    return 2;
} catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
}
