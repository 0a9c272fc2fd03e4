#include "linear/frozen/client.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "base/parallel.h"
#include "linear/frozen/norms.h"
#include "linear/messages.h"
#include "rlwe/encryption.h"
#include "wire/codec.h"

namespace hesplit {

namespace {

// To the nearest integer, for |x| < 2^51.
double rounded(double x) {
    constexpr double kMagic = 0x1.8p52;
    return (x + kMagic) - kMagic;
}

// The parts of a secret that meet those of a hint at the coefficients that are outputs. With y = x^k these are, of the
// product of h = sum_i x^i h_i(y) and s, h_0 s_0 + y sum_(i > 0) h_i s_(k-i).
KeyBuffer<std::uint64_t> meeting_parts(const KeyBuffer<std::int8_t>& secret, const Ring& parts) {
    const std::size_t n = parts.degree(), k = secret.size() / n;
    KeyBuffer<std::uint64_t> transformed(parts.prime_count() * secret.size());
    SecretBuffer<std::int8_t> part(n);
    Buffer<std::uint64_t> residues(parts.size());
    for (std::size_t i = 0; i < k; ++i) {
        for (std::size_t s = 0; s < n; ++s) {
            if (i == 0) {
                part[s] = secret[s * k];
            } else {
                part[s] = static_cast<std::int8_t>(s == 0 ? -secret[n * k - i] : secret[s * k - i]);
            }
        }
        parts.lift(View<const std::int8_t>{part.data(), n}, residues.data());
        parts.to_ntt(residues.data());
        for (std::size_t t = 0; t < parts.prime_count(); ++t) {
            std::copy_n(residues.data() + t * n, n, transformed.data() + (t * k + i) * n);
        }
    }
    secure_zero(residues.data(), residues.size() * sizeof(std::uint64_t));
    return transformed;
}

// Rounds away the low bits of integers; half-way cases go to the even side.
void drop_bits(std::uint64_t* values, std::size_t count, int dropped) {
    const std::uint64_t half = (std::uint64_t{1} << dropped) >> 1;
    for (std::size_t i = 0; i < count; ++i) {
        values[i] = (values[i] + half - 1 + ((values[i] >> dropped) & 1)) >> dropped;
    }
}

// A group's secret in NTT form.
KeyBuffer<std::uint64_t> transformed(const KeyBuffer<std::int8_t>& secret, const Ring& ring) {
    KeyBuffer<std::uint64_t> out(ring.size());
    ring.lift(View<const std::int8_t>{secret.data(), secret.size()}, out.data());
    ring.to_ntt(out.data());
    return out;
}

}  // namespace

FrozenClient::FrozenClient(std::shared_ptr<const FrozenAgreement> agreement, std::size_t outputs, bool bias)
    : agreement_(std::move(agreement)),
      outputs_(outputs),
      bias_(bias),
      parts_(agreement_->ring().degree() / agreement_->width(), agreement_->parameters().primes()) {
    if (!possible_layer(agreement_->features(), outputs) || inputs() == 0) {
        throw ParameterError("a frozen layer has 1 to " + std::to_string(kMaxFeatures) + " outputs and inputs");
    }
}

bool FrozenClient::has_hint() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return hint_ != nullptr;
}

std::size_t FrozenClient::hint_bytes() const {
    return outputs_ * (sizeof(double) + agreement_->ring().size() * sizeof(std::uint64_t));
}

std::shared_ptr<const FrozenClient::Hint> FrozenClient::hint() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!hint_) {
        throw KeyMismatchError("this client has no hint of the layer yet; load it first");
    }
    return hint_;
}

void FrozenClient::load_hint(View<const std::uint8_t> message) {
    const Ring& ring = agreement_->ring();
    WireReader reader(message, MessageType::frozen_hint);
    reader.require(agreement_->parameters().hash(), reader.header().key);
    reader.require_remaining(frozen_hint_bytes(*agreement_, outputs_) - kHeaderBytes - kFooterBytes);
    if (reader.u32() != outputs_) {
        throw WireError("a hint for another number of outputs");
    }
    auto loaded = std::make_shared<Hint>();
    loaded->weights = reader.header().key;
    for (std::size_t p = 0; p < outputs_; ++p) {
        loaded->norms.push_back(reader.f64());
        if (!(loaded->norms[p] >= 0 && loaded->norms[p] <= 1.7976931348623157e308)) {
            throw WireError("a hint with an impossible norm");
        }
    }
    loaded->outputs.resize(outputs_);
    const std::size_t degree = ring.degree(), run = reader.remaining() / outputs_, n = parts_.degree();
    const std::size_t k = agreement_->width(), primes = ring.prime_count();
    const std::uint8_t* in = reader.raw(outputs_ * run).data;
    const auto q = static_cast<std::uint64_t>(agreement_->modulus());
    parallel_for(outputs_, [&](std::size_t p) {
        Buffer<std::uint64_t> polynomial(ring.size()), part(parts_.size());
        unpack_bits(in + p * run, {polynomial.data(), degree}, static_cast<int>(run * 8 / degree), q);
        ring.decompose(polynomial.data(), polynomial.data());
        Buffer<std::uint64_t>& out = loaded->outputs[p];
        out.resize(ring.size());
        for (std::size_t i = 0; i < k; ++i) {
            for (std::size_t t = 0; t < primes; ++t) {
                for (std::size_t s = 0; s < n; ++s) {
                    part[t * n + s] = polynomial[t * degree + s * k + i];
                }
            }
            parts_.to_ntt(part.data());
            for (std::size_t t = 0; t < primes; ++t) {
                std::copy_n(part.data() + t * n, n, out.data() + (t * k + i) * n);
            }
        }
    });
    const std::lock_guard<std::mutex> lock(mutex_);
    hint_ = std::move(loaded);
}

template <class T>
std::string FrozenClient::encrypt(const T* x, std::size_t rows, FrozenSecret& secret) const {
    if (rows < 1 || rows > kMaxFrozenRows) {
        throw ParameterError("a request holds 1 to " + std::to_string(kMaxFrozenRows) + " rows, got " +
                             std::to_string(rows));
    }
    const Ring& ring = agreement_->ring();
    const FrozenScaling& scaling = agreement_->scaling();
    const std::size_t features = agreement_->features(), width = agreement_->width(), degree = ring.degree();
    FrozenSecret fresh;
    fresh.message = random_id();
    fresh.norms.resize(rows);
    for (std::size_t s = 0; s < rows; ++s) {
        fresh.norms[s] = row_norm(View<const T>{x + s * inputs(), inputs()}, "x", bias_ ? 1.0 : 0.0);
    }
    agreement_->prepare();

    const std::size_t body = packed_bytes(rows * features, scaling.request_bits);
    WireWriter writer({MessageType::frozen_request, agreement_->parameters().hash(), agreement_->id(), fresh.message},
                      sizeof(std::uint32_t) + body);
    writer.u32(static_cast<std::uint32_t>(rows));
    std::uint8_t* out = writer.reserve(body);
    // One key for the secrets and one for the noise of all groups of this request.
    SecretBuffer<std::uint8_t> secret_key(32), noise_key(32);
    os_random(secret_key.data(), secret_key.size());
    os_random(noise_key.data(), noise_key.size());
    Buffer<std::uint64_t> numbers(std::min(rows, kFrozenGroup) * features);
    for (std::size_t first = 0; first < rows; first += kFrozenGroup) {
        const std::size_t count = std::min(kFrozenGroup, rows - first);
        const auto group = static_cast<std::uint32_t>(first / kFrozenGroup);
        KeyBuffer<std::int8_t> ternary(degree);
        ChaCha20 secrets(secret_key.data(), Domain::secret, group, 0);
        sample_ternary(secrets, ternary.data(), degree);
        const KeyBuffer<std::uint64_t> s = transformed(ternary, ring);
        parallel_for(agreement_->polynomials(), [&](std::size_t j) {
            Buffer<std::uint64_t> c0(ring.size());
            SecretBuffer<std::uint64_t> message(ring.size());
            SecretBuffer<std::int64_t> integers(degree, 0);
            SecretBuffer<std::int8_t> noise(degree);
            ring.multiply(agreement_->matrix(j), s.data(), c0.data());
            ring.to_coefficients(c0.data());
            ring.negate(c0.data());
            ChaCha20 stream(noise_key.data(), Domain::noise, static_cast<std::uint32_t>(j), group);
            sample_noise(stream, noise.data(), degree);
            ring.add_small({noise.data(), degree}, c0.data());
            const std::size_t begin = j * width, end = std::min(begin + width, features);
            for (std::size_t r = 0; r < count; ++r) {
                const double norm = fresh.norms[first + r];
                for (std::size_t f = begin; f < end; ++f) {
                    const double value = f < inputs() ? static_cast<double>(x[(first + r) * inputs() + f]) : 1.0;
                    const double scaled = norm > 0 ? rounded(value / norm * scaling.row_scale) : 0;
                    integers[r * width + f - begin] = static_cast<std::int64_t>(scaled);
                }
            }
            ring.lift(View<const std::int64_t>{integers.data(), degree}, message.data());
            ring.add(c0.data(), message.data());
            ring.compose(c0.data(), c0.data());
            drop_bits(c0.data(), count * width, scaling.request_dropped);
            for (std::size_t r = 0; r < count; ++r) {
                std::copy_n(c0.data() + r * width, end - begin, numbers.data() + r * features + begin);
            }
        });
        fresh.secrets.push_back(std::move(ternary));
        pack_bits({numbers.data(), count * features}, scaling.request_bits, out);
        out += packed_bytes(count * features, scaling.request_bits);
    }
    secret = std::move(fresh);
    return writer.finish();
}

template std::string FrozenClient::encrypt(const float*, std::size_t, FrozenSecret&) const;
template std::string FrozenClient::encrypt(const double*, std::size_t, FrozenSecret&) const;

void FrozenClient::decrypt(View<const std::uint8_t> reply, const FrozenSecret& secret, double* y) const {
    const std::shared_ptr<const Hint> hint = this->hint();
    WireReader reader(reply, MessageType::frozen_reply);
    if (reader.header().message != secret.message) {
        throw KeyMismatchError("a reply to another request");
    }
    reader.require(agreement_->parameters().hash(), reader.header().key);
    if (reader.header().key != hint->weights) {
        throw KeyMismatchError("the server's weights are not those of the hint; load the hint again");
    }
    const FrozenScaling& scaling = agreement_->scaling();
    const std::size_t rows = secret.norms.size(), n = parts_.degree(), k = agreement_->width();
    const std::size_t primes = parts_.prime_count(), groups = secret.secrets.size();
    reader.require_remaining(sizeof(std::uint32_t) + packed_bytes(rows * outputs_, scaling.reply_bits));
    if (reader.u32() != rows) {
        throw WireError("a reply for another number of rows");
    }
    Buffer<std::uint64_t> numbers(rows * outputs_);
    reader.packed({numbers.data(), numbers.size()}, scaling.reply_bits, std::uint64_t{1} << scaling.reply_bits);

    std::vector<KeyBuffer<std::uint64_t>> secrets(groups);
    parallel_for(groups, [&](std::size_t g) { secrets[g] = meeting_parts(secret.secrets[g], parts_); });
    const double unit = std::ldexp(agreement_->modulus(), -scaling.reply_bits) / scaling.row_scale / scaling.weight_scale;
    const int spare = 64 - scaling.reply_bits;
    parallel_for(outputs_, [&](std::size_t p) {
        SecretBuffer<std::uint64_t> masks(parts_.size()), switched(n);
        for (std::size_t g = 0; g < groups; ++g) {
            for (std::size_t t = 0; t < primes; ++t) {
                const auto h = pointers<std::uint64_t>(hint->outputs[p].data() + t * k * n, k, n);
                const auto s = pointers<std::uint64_t>(secrets[g].data() + t * k * n, k, n);
                parts_.dot_row({h.data(), k}, {s.data(), k}, t, masks.data() + t * n);
                parts_.to_coefficients_row(masks.data() + t * n, t);
            }
            parts_.switch_to_bits(masks.data(), scaling.reply_bits, switched.data());
            const std::size_t count = std::min(n, rows - g * n);
            for (std::size_t r = 0; r < count; ++r) {
                const std::size_t at = (g * n + r) * outputs_ + p;
                // Modulo 2^bits, as a signed number.
                const auto phase = static_cast<std::int64_t>((numbers[at] + switched[r]) << spare) >> spare;
                y[at] = static_cast<double>(phase) * unit * hint->norms[p] * secret.norms[g * n + r];
            }
        }
    });
}

}  // namespace hesplit
