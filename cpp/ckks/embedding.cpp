#include "ckks/embedding.h"

#include <cmath>
#include <complex>

namespace hesplit {

namespace {

constexpr double kPi = 3.14159265358979323846;

// exp(-2 pi i numerator / denominator), from an angle of at most a quarter turn: full precision for every root.
std::complex<double> root(std::size_t numerator, std::size_t denominator) {
    const std::size_t quarters = 4 * (numerator % denominator) / denominator;
    const auto rest = static_cast<double>(4 * (numerator % denominator) - quarters * denominator);
    const double angle = -kPi / 2 * rest / static_cast<double>(denominator);
    std::complex<double> value(std::cos(angle), std::sin(angle));
    for (std::size_t turn = 0; turn < quarters; ++turn) {
        value = {value.imag(), -value.real()};
    }
    return value;
}

}  // namespace

Embedding::Embedding(std::size_t degree)
    : half_(degree / 4), index_(degree / 2), reversed_(half_), roots_(2 * half_), twist_(degree / 2) {
    std::size_t exponent = 1;
    for (std::uint32_t& index : index_) {
        const std::size_t one_modulo_four = exponent % 4 == 1 ? exponent : 2 * degree - exponent;
        index = static_cast<std::uint32_t>((one_modulo_four - 1) / 4);
        exponent = exponent * 3 % (2 * degree);
    }
    reversed_[0] = 0;
    for (std::size_t length = 1; length < half_; length *= 2) {
        for (std::size_t k = 0; k < length; ++k) {
            const auto bit = static_cast<std::uint32_t>(half_ / (2 * length));
            reversed_[length + k] = reversed_[k] + bit;
        }
    }
    for (std::size_t length = 1; length <= half_; length *= 2) {
        for (std::size_t k = 0; k < length; ++k) {
            const std::complex<double> value = root(k, 2 * length);
            roots_.re[length + k] = value.real();
            roots_.im[length + k] = value.imag();
        }
    }
    for (std::size_t k = 0; k < 2 * half_; ++k) {
        const std::complex<double> value = root(k, 2 * degree);
        twist_.re[k] = value.real();
        twist_.im[k] = value.imag();
    }
}

void Embedding::transform(double* re, double* im) const {
    // Two stages at once where butterflies are too short for vectors.
    for (std::size_t at = 0; at < half_; at += 4) {
        double* const r = re + at;
        double* const i = im + at;
        const double sum0 = r[0] + r[1], difference0 = r[0] - r[1], sum1 = r[2] + r[3], difference1 = r[2] - r[3];
        const double isum0 = i[0] + i[1], idifference0 = i[0] - i[1], isum1 = i[2] + i[3], idifference1 = i[2] - i[3];
        r[0] = sum0 + sum1, r[2] = sum0 - sum1, r[1] = difference0 + idifference1, r[3] = difference0 - idifference1;
        i[0] = isum0 + isum1, i[2] = isum0 - isum1, i[1] = idifference0 - difference1,
        i[3] = idifference0 + difference1;
    }
    for (std::size_t length = 4; length < half_; length *= 2) {
        const double* __restrict const root_re = roots_.re.data() + length;
        const double* __restrict const root_im = roots_.im.data() + length;
        for (std::size_t at = 0; at < half_; at += 2 * length) {
            double* __restrict const r0 = re + at;
            double* __restrict const i0 = im + at;
            double* __restrict const r1 = re + at + length;
            double* __restrict const i1 = im + at + length;
            for (std::size_t k = 0; k < length; ++k) {
                const double r = r1[k] * root_re[k] - i1[k] * root_im[k];
                const double i = r1[k] * root_im[k] + i1[k] * root_re[k];
                r1[k] = r0[k] - r;
                i1[k] = i0[k] - i;
                r0[k] += r;
                i0[k] += i;
            }
        }
    }
}

void Embedding::to_coefficients(const double* slots, double* coefficients) const {
    // Even and odd values as real and imaginary parts.
    Complex z(half_);
    for (std::size_t slot = 0; slot < index_.size(); ++slot) {
        const std::uint32_t j = index_[slot];
        (j % 2 == 0 ? z.re : z.im)[reversed_[j / 2]] = slots[slot];
    }
    transform(z.re.data(), z.im.data());
    const double scale = 0.5 / static_cast<double>(2 * half_);
    double* const real = coefficients;
    double* const imaginary = coefficients + 2 * half_;
    for (std::size_t k = 0; k < half_; ++k) {
        const std::size_t mirror = (half_ - k) % half_;
        const double even_re = z.re[k] + z.re[mirror], even_im = z.im[k] - z.im[mirror];
        const double odd_re = z.im[k] + z.im[mirror], odd_im = z.re[mirror] - z.re[k];
        const double split_re = roots_.re[half_ + k], split_im = roots_.im[half_ + k];
        const double shifted_re = odd_re * split_re - odd_im * split_im;
        const double shifted_im = odd_re * split_im + odd_im * split_re;
        for (const std::size_t at : {k, k + half_}) {
            const double sign = at == k ? scale : -scale;
            const double re = scale * even_re + sign * shifted_re, im = scale * even_im + sign * shifted_im;
            real[at] = re * twist_.re[at] - im * twist_.im[at];
            imaginary[at] = re * twist_.im[at] + im * twist_.re[at];
        }
    }
}

void Embedding::to_slots(const double* coefficients, double* slots) const {
    const std::size_t n = 2 * half_;
    // Untwisted; the part that gives real slots; then even and odd slots as real and imaginary parts.
    Complex w(n);
    for (std::size_t k = 0; k < n; ++k) {
        w.re[k] = coefficients[k] * twist_.re[k] + coefficients[k + n] * twist_.im[k];
        w.im[k] = coefficients[k + n] * twist_.re[k] - coefficients[k] * twist_.im[k];
    }
    Complex a(half_);
    const auto real_part = [&](std::size_t k) {
        const std::size_t mirror = (n - k) % n;
        return std::complex<double>((w.re[k] + w.re[mirror]) / 2, (w.im[k] - w.im[mirror]) / 2);
    };
    for (std::size_t k = 0; k < half_; ++k) {
        const std::complex<double> low = real_part(k), high = real_part(k + half_);
        const double re = low.real() - high.real(), im = low.imag() - high.imag();
        const double split_re = roots_.re[half_ + k], split_im = roots_.im[half_ + k];
        const double odd_re = re * split_re + im * split_im, odd_im = im * split_re - re * split_im;
        a.re[reversed_[k]] = low.real() + high.real() - odd_im;
        a.im[reversed_[k]] = low.imag() + high.imag() + odd_re;
    }
    transform(a.im.data(), a.re.data());
    for (std::size_t slot = 0; slot < n; ++slot) {
        const std::uint32_t j = index_[slot];
        slots[slot] = (j % 2 == 0 ? a.re : a.im)[j / 2];
    }
}

}  // namespace hesplit
