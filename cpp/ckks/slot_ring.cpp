#include "ckks/slot_ring.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "ring/rounding.h"
#include "rlwe/decryption.h"
#include "rlwe/encryption.h"

namespace hesplit {

SlotRing::SlotRing(const Parameters& parameters)
    : embedding_(parameters.ring_degree()),
      data_(parameters.ring_degree(), parameters.data_primes()),
      key_(parameters.ring_degree(), parameters.primes()),
      digits_(choose_digits()),
      inverse_special_(inverse_special(switching())),
      cofactors_(key_.prime_count() * data_.prime_count(), 1) {
    for (std::size_t digit = 0; digit < digits_; ++digit) {
        const std::size_t begin = switching().first_row(digit), end = switching().first_row(digit + 1);
        for (std::size_t q = begin; q < end; ++q) {
            for (std::size_t row = 0; row < key_.prime_count(); ++row) {
                std::uint64_t& cofactor = cofactors_[row * data_.prime_count() + q];
                for (std::size_t other = begin; other < end; ++other) {
                    if (other != q) {
                        const auto prime = static_cast<std::int64_t>(data_.prime(other));
                        cofactor = key_.product(cofactor, key_.residue(prime, row), row);
                    }
                }
            }
            const std::uint64_t prime = data_.prime(q);
            inverse_cofactors_.push_back(key_.power(cofactors_[q * data_.prime_count() + q], prime - 2, q));
        }
    }
}

std::size_t SlotRing::choose_digits() const {
    constexpr double kQuiet = 8, kShare = 0.125;
    const std::size_t most = data_.prime_count();
    if (switching_deviation({key_, most}) <= kQuiet * std::sqrt(kNoiseVariance)) {
        return most;
    }
    const double last_bit = std::ldexp(data_.modulus_value(), -kMaxReplyBits);
    std::size_t digits = 1;
    while (digits < most &&
           switching_deviation({key_, digits}) > kShare * last_bit * reply_rounding_deviation(data_.degree())) {
        ++digits;
    }
    return digits;
}

void SlotRing::encode(View<const double> values, double scale, std::uint64_t* coefficients) const {
    encode(values, scale, data_, coefficients);
}

void SlotRing::encode(View<const double> values, double scale, const Ring& ring, std::uint64_t* coefficients) const {
    const std::size_t n = data_.degree();
    SecretBuffer<double> real(n);
    embedding_.to_coefficients(values.data, real.data());
    double largest = 0;
    for (const double value : real) {
        largest = std::max(largest, std::abs(value));
    }
    if (!(largest * scale < data_.modulus_value() / 2)) {
        throw RangeError("values do not fit the modulus at scale 2^" + std::to_string(std::log2(scale)));
    }
    // What 64-bit integers do not hold is a power of two, below the precision of the doubles.
    const int shift = largest * scale < 0x1p62 ? 0 : std::ilogb(largest * scale) - 61;
    const double factor = std::ldexp(scale, -shift);
    SecretBuffer<std::int64_t> integers(n);
    RandomRounding rounded;
    for (std::size_t i = 0; i < n; ++i) {
        integers[i] = rounded(real[i] * factor);
    }
    ring.lift(View<const std::int64_t>{integers.data(), n}, coefficients);
    if (shift > 0) {
        ring.multiply_power_of_two(coefficients, shift);
    }
}

void SlotRing::encode_ntt(View<const double> values, double scale, const Ring& ring, std::uint64_t* poly) const {
    encode(values, scale, ring, poly);
    ring.to_ntt(poly);
}

SecretBuffer<double> SlotRing::decode(View<const std::int64_t> coefficients, double scale) const {
    SecretBuffer<double> real(coefficients.size);
    for (std::size_t i = 0; i < coefficients.size; ++i) {
        real[i] = static_cast<double>(coefficients[i]) / scale;
    }
    SecretBuffer<double> values(slots());
    embedding_.to_slots(real.data(), values.data());
    return values;
}

// The automorphism x -> x^element moves slot i + step to slot i (ckks/embedding.h).
std::uint64_t SlotRing::galois_element(int step) const {
    std::uint64_t element = 1;
    for (int i = 0; i < step; ++i) {
        element = element * 3 % (2 * data_.degree());
    }
    return element;
}

Buffer<std::int64_t> SlotRing::centred_terms(const SlotCiphertext& in) const {
    const std::size_t n = data_.degree();
    Buffer<std::int64_t> terms(data_.size());
    Buffer<std::uint64_t> coefficients(n);
    for (std::size_t q = 0; q < data_.prime_count(); ++q) {
        std::copy_n(in.c1.data() + q * n, n, coefficients.data());
        data_.to_coefficients_row(coefficients.data(), q);
        if (inverse_cofactors_[q] != 1) {
            data_.scale_row({coefficients.data(), n}, inverse_cofactors_[q], q);
        }
        centre(coefficients.data(), data_.prime(q), n, terms.data() + q * n);
    }
    return terms;
}

const std::uint64_t* SlotRing::digit_row(const SlotCiphertext& in, const Buffer<std::int64_t>& terms, std::size_t digit,
                                         std::size_t row, std::uint64_t* out) const {
    const std::size_t n = data_.degree();
    const std::size_t begin = switching().first_row(digit), end = switching().first_row(digit + 1);
    if (begin <= row && row < end) {
        return in.c1.data() + row * n;
    }
    if (end - begin == 1) {
        key_.lift_row({terms.data() + begin * n, n}, row, out);
    } else {
        Buffer<std::uint64_t> lifted((end - begin) * n);
        for (std::size_t q = begin; q < end; ++q) {
            key_.lift_row({terms.data() + q * n, n}, row, lifted.data() + (q - begin) * n);
        }
        const auto from = pointers<std::uint64_t>(lifted.data(), end - begin, n);
        key_.combine({from.data(), from.size()}, cofactors_.data() + row * data_.prime_count() + begin, {&out, 1}, n,
                     row);
    }
    key_.to_ntt_row(out, row);
    return out;
}

void SlotRing::switch_row(const SlotCiphertext& in, View<const std::uint64_t* const> digits, const GaloisKey& key,
                          std::size_t row, SwitchedCiphertext& out) const {
    const std::size_t n = key_.degree();
    Buffer<std::uint64_t> product(n);
    for (const auto& [part, to] : {std::pair{&key.c0, &out.k0}, std::pair{&key.c1, &out.k1}}) {
        const auto rows = pointers(part->data() + row * n, digits_, key_.size());
        key_.dot_row(digits, {rows.data(), rows.size()}, row, product.data());
        permute(key.permutation, product.data(), to->data() + row * n);
    }
    if (row < data_.prime_count()) {
        permute(key.permutation, in.c0.data() + row * n, out.c0.data() + row * n);
    }
}

SwitchedCiphertext SlotRing::rotate(const SlotCiphertext& in, const GaloisKey& key) const {
    const std::size_t n = key_.degree();
    const Buffer<std::int64_t> terms = centred_terms(in);
    SwitchedCiphertext out{Buffer<std::uint64_t>(key_.size()), Buffer<std::uint64_t>(key_.size()),
                           Buffer<std::uint64_t>(data_.size())};
    // Row by row, so that the digits stay in the cache.
    Buffer<std::uint64_t> digits(digits_ * n);
    std::vector<const std::uint64_t*> rows(digits_);
    for (std::size_t row = 0; row < key_.prime_count(); ++row) {
        for (std::size_t digit = 0; digit < digits_; ++digit) {
            rows[digit] = digit_row(in, terms, digit, row, digits.data() + digit * n);
        }
        switch_row(in, {rows.data(), rows.size()}, key, row, out);
    }
    return out;
}

Buffer<std::uint64_t> SlotRing::decompose(const SlotCiphertext& in) const {
    const Buffer<std::int64_t> terms = centred_terms(in);
    const std::size_t n = key_.degree();
    Buffer<std::uint64_t> digits(digits_ * key_.size());
    for (std::size_t digit = 0; digit < digits_; ++digit) {
        for (std::size_t row = 0; row < key_.prime_count(); ++row) {
            std::uint64_t* out = digits.data() + digit * key_.size() + row * n;
            if (const std::uint64_t* found = digit_row(in, terms, digit, row, out); found != out) {
                std::copy_n(found, n, out);
            }
        }
    }
    return digits;
}

SwitchedCiphertext SlotRing::rotate(const SlotCiphertext& in, const Buffer<std::uint64_t>& digits,
                                    const GaloisKey& key) const {
    SwitchedCiphertext out{Buffer<std::uint64_t>(key_.size()), Buffer<std::uint64_t>(key_.size()),
                           Buffer<std::uint64_t>(data_.size())};
    for (std::size_t row = 0; row < key_.prime_count(); ++row) {
        const auto rows = pointers(digits.data() + row * key_.degree(), digits_, key_.size());
        switch_row(in, {rows.data(), rows.size()}, key, row, out);
    }
    return out;
}

void SlotRing::multiply(SwitchedCiphertext& in, const std::uint64_t* plaintext) const {
    key_.multiply(in.k0.data(), plaintext, in.k0.data());
    key_.multiply(in.k1.data(), plaintext, in.k1.data());
    data_.multiply(in.c0.data(), plaintext, in.c0.data());
}

void SlotRing::add_divided(SwitchedCiphertext& in, SlotCiphertext& out) const {
    // (x - centred remainder) / special, for each data prime; the remainder is the special row.
    const std::size_t n = data_.degree();
    const std::size_t special = data_.prime_count();
    Buffer<std::int64_t> centred(n);
    Buffer<std::uint64_t> remainder(n);
    for (Buffer<std::uint64_t>* part : {&in.k0, &in.k1}) {
        Buffer<std::uint64_t>& sum = part == &in.k0 ? out.c0 : out.c1;
        key_.to_coefficients_row(part->data() + special * n, special);
        centre(part->data() + special * n, key_.prime(special), n, centred.data());
        for (std::size_t row = 0; row < data_.prime_count(); ++row) {
            data_.lift_row({centred.data(), n}, row, remainder.data());
            data_.to_ntt_row(remainder.data(), row);
            data_.subtract_from_row(remainder.data(), part->data() + row * n, row);
            data_.scale_row({remainder.data(), n}, inverse_special_[row], row);
            data_.add_row(sum.data() + row * n, remainder.data(), row);
        }
    }
    data_.add(out.c0.data(), in.c0.data());
}

void SlotRing::add_divided(std::vector<SwitchedCiphertext>& terms, SlotCiphertext& out) const {
    SwitchedCiphertext* total = nullptr;
    for (SwitchedCiphertext& term : terms) {
        if (term.k0.empty()) {
            continue;
        }
        if (total == nullptr) {
            total = &term;
        } else {
            key_.add(total->k0.data(), term.k0.data());
            key_.add(total->k1.data(), term.k1.data());
            data_.add(total->c0.data(), term.c0.data());
        }
    }
    if (total != nullptr) {
        add_divided(*total, out);
    }
}

}  // namespace hesplit
