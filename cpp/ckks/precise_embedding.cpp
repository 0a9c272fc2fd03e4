#include "ckks/precise_embedding.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace hesplit {

PreciseEmbedding::Sum PreciseEmbedding::quick(double large, double small) {
    const double high = large + small;
    return {high, small - (high - large)};
}

PreciseEmbedding::Sum PreciseEmbedding::sum(double a, double b) {
    const double high = a + b, part = high - a;
    return {high, (a - (high - part)) + (b - part)};
}

// Dekker's: not every processor multiplies and adds in one rounding.
PreciseEmbedding::Sum PreciseEmbedding::product(double a, double b) {
    constexpr double kSplit = 0x1p27 + 1;
    const double at = kSplit * a, bt = kSplit * b;
    const double a1 = at - (at - a), a2 = a - a1, b1 = bt - (bt - b), b2 = b - b1, high = a * b;
    return {high, ((a1 * b1 - high) + a1 * b2 + a2 * b1) + a2 * b2};
}

PreciseEmbedding::Sum PreciseEmbedding::add(Sum a, Sum b) {
    const Sum high = sum(a.high, b.high), low = sum(a.low, b.low);
    const Sum first = quick(high.high, high.low + low.high);
    return quick(first.high, first.low + low.low);
}

PreciseEmbedding::Sum PreciseEmbedding::multiply(Sum a, Sum b) {
    const Sum high = product(a.high, b.high);
    return quick(high.high, high.low + (a.high * b.low + a.low * b.high));
}

PreciseEmbedding::Complex PreciseEmbedding::rotate(const Complex& a, const Complex& root) {
    const Sum other = multiply(a.im, root.im);
    return {add(multiply(a.re, root.re), {-other.high, -other.low}),
            add(multiply(a.re, root.im), multiply(a.im, root.re))};
}

PreciseEmbedding::Sum PreciseEmbedding::square_root(Sum a) {
    const double root = std::sqrt(a.high);
    const Sum square = product(root, root);
    const Sum rest = add(a, {-square.high, -square.low});
    return quick(root, rest.high / (2 * root));
}

PreciseEmbedding::PreciseEmbedding(std::size_t degree) : slots_(degree / 2), place_(slots_), roots_(degree) {
    // Slot i is the value at zeta^e, e = 3^i, or at its conjugate's odd exponent 2 r + 1 below N, and coefficient k is
    //   2/N sum_r u_r cos(pi (2 r + 1) k / N),
    // which is the real part of zeta^-k times a Fourier transform of N/2 points, u's even entries first and its odd
    // ones backwards behind them (Makhoul 1980). Its input is in bit-reversed order.
    std::size_t exponent = 1;
    for (std::uint32_t& place : place_) {
        const std::size_t r = (std::min(exponent, 2 * degree - exponent) - 1) / 2;
        const std::size_t index = r % 2 == 0 ? r / 2 : slots_ - 1 - r / 2;
        std::size_t reversed = 0;
        for (std::size_t bit = 1, mirror = slots_ / 2; bit < slots_; bit *= 2, mirror /= 2) {
            reversed |= index & bit ? mirror : 0;
        }
        place = static_cast<std::uint32_t>(reversed);
        exponent = exponent * 3 % (2 * degree);
    }
    fill_roots();
}

void PreciseEmbedding::fill_roots() {
    // exp(-pi i / 2), halved down to exp(-pi i / N); every other root is the product of at most log2(N) of these.
    const std::size_t degree = 2 * slots_;
    roots_[0] = {{1, 0}, {0, 0}};
    roots_[degree / 2] = {{0, 0}, {-1, 0}};
    for (std::size_t k = degree / 4; k > 0; k /= 2) {
        const Sum cosine = roots_[2 * k].re, sine = roots_[2 * k].im;
        const Sum doubled = add({1, 0}, cosine);
        const Sum re = square_root({doubled.high / 2, doubled.low / 2});
        // sin = sin(2 x) / (2 cos x), by one step of Newton's.
        const double first = sine.high / (2 * re.high);
        const Sum back = multiply({2 * re.high, 2 * re.low}, {first, 0});
        const Sum rest = add(sine, {-back.high, -back.low});
        roots_[k] = {re, quick(first, rest.high / (2 * re.high))};
    }
    for (std::size_t top = 2; top < degree; top *= 2) {
        for (std::size_t k = 1; k < top; ++k) {
            roots_[top + k] = rotate(roots_[top], roots_[k]);
        }
    }
}

SecretBuffer<PreciseEmbedding::Sum> PreciseEmbedding::cosine_sums(const double* slots) const {
    SecretBuffer<Complex> z(slots_);
    for (std::size_t i = 0; i < slots_; ++i) {
        z[place_[i]] = {{slots[i], 0}, {0, 0}};
    }
    for (std::size_t half = 1; half < slots_; half *= 2) {
        const std::size_t step = slots_ / half * 2;  // of exp(-pi i / half)
        for (std::size_t at = 0; at < slots_; at += 2 * half) {
            for (std::size_t j = 0; j < half; ++j) {
                Complex& a = z[at + j];
                Complex& b = z[at + half + j];
                const Complex t = rotate(b, roots_[j * step]), old = a;
                a = {add(old.re, t.re), add(old.im, t.im)};
                b = {add(old.re, {-t.re.high, -t.re.low}), add(old.im, {-t.im.high, -t.im.low})};
            }
        }
    }
    SecretBuffer<Sum> sums(slots_);
    for (std::size_t k = 0; k < slots_; ++k) {
        sums[k] = rotate(z[k], roots_[k]).re;
    }
    return sums;
}

void PreciseEmbedding::encode(const double* slots, double bound, double scale, const Ring& ring, std::size_t count,
                              std::uint64_t* residues) const {
    SecretBuffer<Sum> values = cosine_sums(slots);
    const double factor = scale / static_cast<double>(slots_);
    for (Sum& value : values) {
        value = multiply(value, {factor, 0});
    }
    // By digits of up to 60 bits from the top, as many as the largest coefficient may have.
    constexpr int kDigitBits = 60;
    int shift = std::max(0, std::ilogb(bound * scale) + 1 - kDigitBits);
    SecretBuffer<std::int64_t> digits(count);
    SecretBuffer<std::uint64_t> lifted(count);
    std::fill_n(residues, ring.prime_count() * count, 0);
    for (bool last = false; !last;) {
        last = shift == 0;
        const double unit = std::ldexp(1.0, shift), inverse = 1 / unit;
        for (std::size_t k = 0; k < slots_; ++k) {
            Sum& value = values[k];
            // Of both parts: where a value has more than 53 bits above the unit, the lower one is longer than a digit.
            std::int64_t number = 0;
            for (int part = 0; part < 2; ++part) {
                const std::int64_t whole = std::llrint(value.high * inverse);
                value = sum(value.high - static_cast<double>(whole) * unit, value.low);  // exact: it had 53 bits
                number += whole;
            }
            // Real slots are the same at conjugate roots: coefficient N - k is -m_k, and N/2 is 0.
            if (k < count) {
                digits[k] = number;
            }
            if (k > 0 && 2 * slots_ - k < count) {
                digits[2 * slots_ - k] = -number;
            }
        }
        if (slots_ < count) {
            digits[slots_] = 0;
        }
        const int next = std::max(0, shift - kDigitBits);
        for (std::size_t row = 0; row < ring.prime_count(); ++row) {
            std::uint64_t* out = residues + row * count;
            ring.lift_row({digits.data(), count}, row, lifted.data());
            ring.add_row({out, count}, lifted.data(), row);
            ring.scale_row({out, count}, ring.residue(std::ldexp(1.0, shift - next), row), row);
        }
        shift = next;
    }
}

}  // namespace hesplit
