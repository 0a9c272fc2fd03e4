#include "linear/frozen/agreement.h"

#include <seal/modulus.h>
#include <seal/util/hash.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/parallel.h"
#include "linear/frozen/matrix.h"
#include "linear/messages.h"
#include "linear/precision.h"
#include "rlwe/encryption.h"
#include "wire/codec.h"
#include "wire/format.h"

namespace hesplit {

namespace {

// Rounding away three bits adds as much again to the noise as half of it, and saves three of 51 bits.
constexpr int kDropped = 3;
// Integers up to this are kept as float32.
constexpr double kLargestWeight = 0x1p24 - 1;
// A reply's rounding adds at most this part to the error.
constexpr double kReplyShare = 0.125;

std::vector<int> prime_bits(Precision precision) {
    return precision == Precision::single ? std::vector<int>{25, 26} : std::vector<int>{35};
}

// The largest prime of so many bits modulo which a client transforms its parts of a hint. Single: what products in
// halves of words take (ShortProducts). Half: three bytes.
std::uint64_t hint_modulus_of(Precision precision, std::size_t degree) {
    static_assert(kShortPrimeBits >= 30);
    return seal::CoeffModulus::Create(degree, {precision == Precision::single ? 30 : 24}).front().value();
}

// Rounding errors of d numbers have an l2 norm of at most sqrt(d) / 2, whatever they are.
double rounding_norm(std::size_t features) {
    return std::sqrt(static_cast<double>(features)) / 2;
}

// Everything that follows from the primes and the scale of the rows. `error` is infinite where they hold nothing.
FrozenScaling scaling_at(const Ring& ring, std::uint64_t hint_modulus, double row_scale, std::size_t features) {
    const double modulus = ring.modulus_value();
    // What rounding a hint's numbers, by a half and a little, adds to a product, as a part of the modulus: the secret's
    // ternary numbers are sub-Gaussian with their variance.
    const double hint =
        0.5001 * std::sqrt(static_cast<double>(ring.degree()) * 2 / 3) / static_cast<double>(hint_modulus);
    // What a fresh encryption and the bits that are not sent add to each number: sub-Gaussian, a uniform one too.
    const double dropped = (std::ldexp(1.0, 2 * kDropped) + 2) / 12;
    const double noise = kTail * std::sqrt(kNoiseVariance + dropped), rounding = rounding_norm(features);
    FrozenScaling scaling;
    scaling.row_scale = row_scale;
    scaling.request_dropped = kDropped;
    // By Cauchy and Schwarz |x W| <= |x| |W|, and it must stay below q / 2 with its noise.
    const double room = modulus * (0.5 - kTail * hint) / (row_scale + rounding + noise) - rounding - 1;
    // Rows of W have at most the norm weight_scale + rounding.
    const double exact = largest_exact_norm(ring, kLeastTerms) - rounding - 1;
    scaling.weight_scale = std::floor(std::min({room, exact, kLargestWeight}));
    if (scaling.weight_scale < 16) {
        scaling.error = HUGE_VAL;
        return scaling;
    }
    const double stretched = 1 + rounding / scaling.weight_scale;
    const double unit = 1.001 * modulus / (row_scale * scaling.weight_scale);
    const double random = std::hypot(noise * stretched / row_scale, kTail * hint * unit);
    const double error = random + rounding * stretched / row_scale + rounding / scaling.weight_scale;
    // Two numbers modulo 2^bits, each rounded by at most a half and a little.
    while (std::ldexp(unit, -scaling.reply_bits) > kReplyShare * error) {
        ++scaling.reply_bits;
    }
    scaling.error = error + std::ldexp(unit, -scaling.reply_bits);
    const auto q = static_cast<std::uint64_t>(modulus);
    scaling.request_limit = rounded_limit(q, kDropped);
    scaling.request_bits = bit_length(scaling.request_limit - 1);
    return scaling;
}

ParameterChoice choice_of(Precision precision) {
    ParameterChoice choice;
    choice.ring_degree = 2048;
    choice.modulus_bits = prime_bits(precision);
    choice.scale = 4;
    choice.activation_bound = choice.activation_norm = choice.error_bound = 1;
    return choice;
}

Parameters parameters_of(std::size_t features, Precision precision) {
    if (features < 1 || features > kMaxFeatures) {
        throw ParameterError("a frozen layer has 1 to " + std::to_string(kMaxFeatures) + " features, got " +
                             std::to_string(features));
    }
    ParameterChoice choice = choice_of(precision);
    const Ring ring(choice.ring_degree, Parameters(choice).primes());
    const std::uint64_t hint_modulus = hint_modulus_of(precision, kFrozenGroup);
    FrozenScaling best;
    best.error = HUGE_VAL;
    // Powers of two, so that both sides find the same on every processor.
    for (double row_scale = 4; row_scale < ring.modulus_value(); row_scale *= 2) {
        const FrozenScaling scaling = scaling_at(ring, hint_modulus, row_scale, features);
        best = scaling.error < best.error ? scaling : best;
    }
    choice.scale = best.row_scale;
    // For a reader of the parameters, and for their hash; rounded up so that it is the same everywhere.
    choice.error_bound = std::ldexp(std::ceil(std::ldexp(best.error, 30)), -30);
    return Parameters(choice);
}

using Digest = seal::util::HashFunction::hash_block_type;

Digest digest_of(const Parameters& parameters, std::size_t features, const std::string& epoch) {
    std::string text = "hesplit_native: the common matrix of a frozen layer";
    text.append(reinterpret_cast<const char*>(parameters.hash().data()), parameters.hash().size());
    for (std::size_t number : {kFrozenGroup, features, epoch.size()}) {
        for (int byte = 0; byte < 8; ++byte) {
            text.push_back(static_cast<char>(number >> (8 * byte) & 0xff));
        }
    }
    text += epoch;
    text.resize((text.size() + 7) / 8 * 8);
    std::vector<std::uint64_t> words(text.size() / 8);
    for (std::size_t i = 0; i < text.size(); ++i) {
        words[i / 8] |= std::uint64_t{static_cast<unsigned char>(text[i])} << (8 * (i % 8));
    }
    Digest digest;
    seal::util::HashFunction::hash(words.data(), words.size(), digest);
    return digest;
}

}  // namespace

FrozenAgreement::FrozenAgreement(std::size_t features, Precision precision, const std::string& epoch)
    : features_(features),
      parameters_(parameters_of(features, precision)),
      ring_(parameters_.ring_degree(), parameters_.primes()),
      hint_modulus_(hint_modulus_of(precision, kFrozenGroup)) {
    scaling_ = scaling_at(ring_, hint_modulus_, parameters_.choice().scale, features);
    const Digest digest = digest_of(parameters_, features, epoch);
    static_assert(sizeof(Digest) >= sizeof(Seed));
    std::memcpy(seed_.data(), digest.data(), seed_.size());
    std::memcpy(id_.data(), digest.data(), id_.size());
}

std::shared_ptr<const FrozenAgreement> FrozenAgreement::of(std::size_t features, Precision precision,
                                                           const std::string& epoch) {
    using Key = std::pair<std::pair<std::size_t, Precision>, std::string>;
    static std::mutex mutex;
    static auto* const all = new std::map<Key, std::weak_ptr<const FrozenAgreement>>;  // outlives every layer
    const std::lock_guard<std::mutex> lock(mutex);
    std::weak_ptr<const FrozenAgreement>& known = (*all)[{{features, precision}, epoch}];
    std::shared_ptr<const FrozenAgreement> agreement = known.lock();
    if (!agreement) {
        for (auto entry = all->begin(); entry != all->end();) {
            entry = entry->second.expired() && &entry->second != &known ? all->erase(entry) : std::next(entry);
        }
        known = agreement = std::make_shared<const FrozenAgreement>(features, precision, epoch);
    }
    return agreement;
}

int FrozenAgreement::hint_bits() const {
    return bit_length(hint_modulus_ - 1);
}

void FrozenAgreement::expand(std::size_t j, std::uint64_t* polynomial) const {
    expand_uniform(ring_, seed_, static_cast<std::uint32_t>(j), polynomial);
}

const std::vector<Buffer<std::uint64_t>>& FrozenAgreement::matrix() const {
    std::call_once(expanded_, [&] {
        std::vector<Buffer<std::uint64_t>> made(polynomials());
        parallel_for(made.size(), [&](std::size_t j) {
            made[j].resize(ring_.size());
            expand(j, made[j].data());
        });
        matrix_ = std::move(made);
    });
    return matrix_;
}

std::size_t frozen_request_bytes(const FrozenAgreement& agreement, std::size_t rows) {
    return kHeaderBytes + sizeof(std::uint32_t) +
           packed_bytes(rows * agreement.features(), agreement.scaling().request_bits) + kFooterBytes;
}

std::size_t frozen_reply_bytes(const FrozenAgreement& agreement, std::size_t outputs, std::size_t rows) {
    return kHeaderBytes + sizeof(std::uint32_t) + packed_bytes(rows * outputs, agreement.scaling().reply_bits) +
           kFooterBytes;
}

std::size_t frozen_hint_bytes(const FrozenAgreement& agreement, std::size_t outputs) {
    const std::size_t run = packed_bytes(agreement.ring().degree(), agreement.hint_bits());
    return kHeaderBytes + sizeof(std::uint32_t) + outputs * (sizeof(double) + run) + kFooterBytes;
}

}  // namespace hesplit
