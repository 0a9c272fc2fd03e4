#include "linear/frozen/client.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "base/error.h"
#include "base/parallel.h"
#include "linear/frozen/norms.h"
#include "linear/messages.h"
#include "rlwe/secret_key.h"
#include "wire/codec.h"

namespace hesplit {

namespace {

// The integer next to x, for |x| < 2^51: adding this leaves no bits for a fraction.
std::int64_t rounded(double x) {
    constexpr double kMagic = 0x1.8p52;
    const double shifted = x + kMagic, magic = kMagic;
    std::int64_t bits, zero;
    std::memcpy(&bits, &shifted, sizeof(bits));
    std::memcpy(&zero, &magic, sizeof(zero));
    return bits - zero;
}

// c0 = m + e - a * s modulo q of a run of coefficients, in place of the a * s that they hold.
template <class T>
void encrypt_run(const T* x, std::size_t count, double factor, const std::int8_t* noise, std::uint64_t* product,
                 std::uint64_t q) {
    for (std::size_t i = 0; i < count; ++i) {
        const std::int64_t message = rounded(static_cast<double>(x[i]) * factor) + noise[i];
        // Between -2q and 2q, in two's complement.
        std::uint64_t value = static_cast<std::uint64_t>(message) - product[i];
        value += q & (0 - (value >> 63));
        value += q & (0 - (value >> 63));
        value -= q;
        product[i] = value + (q & (0 - (value >> 63)));
    }
}

// Where point s of part i is, of k parts that take turns by eight points.
std::size_t turn(std::size_t s, std::size_t i, std::size_t k) {
    return (s / 8 * k + i) * 8 + s % 8;
}

// The parts of a secret that meet those of a hint at the coefficients that are outputs, in turns. With y = x^k
// these are, of the product of h = sum_i x^i h_i(y) and s, h_0 s_0 + y sum_(i > 0) h_i s_(k-i).
KeyBuffer<std::uint64_t> meeting_parts(const KeyBuffer<std::int8_t>& secret, const Ring& parts) {
    const std::size_t n = parts.degree(), k = secret.size() / n;
    KeyBuffer<std::uint64_t> transformed(secret.size());
    SecretBuffer<std::int8_t> part(n);
    SecretBuffer<std::uint64_t> residues(n);
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
        for (std::size_t s = 0; s < n; ++s) {
            transformed[turn(s, i, k)] = residues[s];
        }
    }
    return transformed;
}

}  // namespace

FrozenClient::FrozenClient(std::shared_ptr<const FrozenAgreement> agreement, std::size_t outputs, bool bias)
    : agreement_(std::move(agreement)),
      outputs_(outputs),
      bias_(bias),
      parts_(agreement_->ring().degree() / agreement_->width(), {agreement_->hint_modulus()}) {
    if (!possible_layer(agreement_->features(), outputs) || outputs > kMaxFrozenOutputs || inputs() == 0) {
        throw ParameterError("a frozen layer has 1 to " + std::to_string(kMaxFeatures) + " inputs and 1 to " +
                             std::to_string(kMaxFrozenOutputs) + " outputs");
    }
}

bool FrozenClient::has_hint() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return hint_ != nullptr;
}

std::size_t FrozenClient::resident_bytes() const {
    return outputs_ * (sizeof(double) + agreement_->ring().degree() * sizeof(std::uint32_t));
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
        if (!(loaded->norms[p] >= 0 && loaded->norms[p] <= std::numeric_limits<double>::max())) {
            throw WireError("a hint with an impossible norm");
        }
    }
    const std::size_t degree = ring.degree(), n = parts_.degree(), k = agreement_->width();
    const int bits = agreement_->hint_bits();
    const std::size_t run = packed_bytes(degree, bits);
    const std::uint8_t* in = reader.raw(outputs_ * run).data;
    loaded->outputs.resize(outputs_ * degree);
    parallel_for(outputs_, [&](std::size_t p) {
        Buffer<std::uint64_t> polynomial(degree), part(n);
        unpack_bits(in + p * run, {polynomial.data(), degree}, bits, agreement_->hint_modulus());
        for (std::size_t i = 0; i < k; ++i) {
            for (std::size_t s = 0; s < n; ++s) {
                part[s] = polynomial[s * k + i];
            }
            parts_.to_ntt(part.data());
            for (std::size_t s = 0; s < n; ++s) {
                loaded->outputs[p * degree + turn(s, i, k)] = static_cast<std::uint32_t>(part[s]);
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
    const std::vector<Buffer<std::uint64_t>>& matrix = agreement_->matrix();

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
    const auto q = static_cast<std::uint64_t>(agreement_->modulus());
    for (std::size_t first = 0; first < rows; first += kFrozenGroup) {
        const std::size_t count = std::min(kFrozenGroup, rows - first);
        const auto group = static_cast<std::uint32_t>(first / kFrozenGroup);
        KeyBuffer<std::int8_t> ternary(degree);
        ChaCha20 secrets(secret_key.data(), Domain::secret, group, 0);
        sample_ternary(secrets, ternary.data(), degree);
        const KeyBuffer<std::uint64_t> s = secret_in_ring(View<const std::int8_t>{ternary.data(), degree}, ring);
        parallel_for(agreement_->polynomials(), [&](std::size_t j) {
            SecretBuffer<std::uint64_t> product(ring.size());  // until it is c0, it says the secret
            ring.multiply(matrix[j].data(), s.data(), product.data());
            ring.to_coefficients(product.data());
            ring.compose(product.data(), product.data());
            SecretBuffer<std::int8_t> noise(count * width);
            ChaCha20 stream(noise_key.data(), Domain::noise, static_cast<std::uint32_t>(j), group);
            sample_noise(stream, noise.data(), noise.size());
            const std::size_t begin = j * width, end = std::min(begin + width, features);
            for (std::size_t r = 0; r < count; ++r) {
                const double norm = fresh.norms[first + r], factor = norm > 0 ? scaling.row_scale / norm : 0;
                encrypt_run(x + (first + r) * inputs() + begin, std::min(end, inputs()) - begin, factor,
                            noise.data() + r * width, product.data() + r * width, q);
                if (end > inputs()) {
                    const double one = 1;
                    const std::size_t last = inputs() - begin;
                    encrypt_run(&one, 1, factor, noise.data() + r * width + last, product.data() + r * width + last, q);
                }
                std::uint64_t* to = numbers.data() + r * features + begin;
                std::copy_n(product.data() + r * width, end - begin, to);
                drop_bits({to, end - begin}, scaling.request_dropped);
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
    const std::size_t groups = secret.secrets.size();
    reader.require_remaining(sizeof(std::uint32_t) + packed_bytes(rows * outputs_, scaling.reply_bits));
    if (reader.u32() != rows) {
        throw WireError("a reply for another number of rows");
    }
    Buffer<std::uint64_t> numbers(rows * outputs_);
    reader.packed({numbers.data(), numbers.size()}, scaling.reply_bits, std::uint64_t{1} << scaling.reply_bits);

    std::vector<KeyBuffer<std::uint64_t>> secrets(groups);
    parallel_for(groups, [&](std::size_t g) { secrets[g] = meeting_parts(secret.secrets[g], parts_); });
    const double unit =
        std::ldexp(agreement_->modulus(), -scaling.reply_bits) / scaling.row_scale / scaling.weight_scale;
    const int spare = 64 - scaling.reply_bits;
    // Outputs by the line: rows are as far apart as the layer is wide, which may be where caches keep few lines.
    constexpr std::size_t kTogether = 64;
    parallel_for((outputs_ + kTogether - 1) / kTogether, [&](std::size_t job) {
        const std::size_t begin = job * kTogether, width = std::min(kTogether, outputs_ - begin);
        SecretBuffer<std::uint64_t> mask(n), masks(width * n);
        for (std::size_t g = 0; g < groups; ++g) {
            for (std::size_t p = 0; p < width; ++p) {
                parts_.dot_short(hint->outputs.data() + (begin + p) * k * n, secrets[g].data(), k, mask.data());
                parts_.to_coefficients(mask.data());
                parts_.switch_to_bits(mask.data(), scaling.reply_bits, masks.data() + p * n);
            }
            const std::size_t count = std::min(n, rows - g * n);
            for (std::size_t r = 0; r < count; ++r) {
                const std::size_t at = (g * n + r) * outputs_ + begin;
                const double norm = secret.norms[g * n + r];
                for (std::size_t p = 0; p < width; ++p) {
                    // Modulo 2^bits, as a signed number.
                    const auto phase =
                        static_cast<std::int64_t>((numbers[at + p] + masks[p * n + r]) << spare) >> spare;
                    y[at + p] = static_cast<double>(phase) * unit * hint->norms[begin + p] * norm;
                }
            }
        }
    });
}

}  // namespace hesplit
