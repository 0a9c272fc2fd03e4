#include "linear/frozen/server.h"

#include <seal/util/hash.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "base/parallel.h"
#include "linear/frozen/norms.h"
#include "linear/messages.h"
#include "wire/codec.h"
#include "wire/format.h"

namespace hesplit {

namespace {

// The name of weights: a digest of what replies depend on.
Id name_of(const Id& agreement, const std::vector<double>& norms, const Buffer<float>& integers) {
    std::vector<std::uint64_t> words(2 + norms.size() + (integers.size() + 1) / 2);
    std::memcpy(words.data(), agreement.data(), agreement.size());
    std::memcpy(words.data() + 2, norms.data(), norms.size() * sizeof(double));
    std::memcpy(words.data() + 2 + norms.size(), integers.data(), integers.size() * sizeof(float));
    seal::util::HashFunction::hash_block_type digest;
    seal::util::HashFunction::hash(words.data(), words.size(), digest);
    Id name;
    std::memcpy(name.data(), digest.data(), name.size());
    return name;
}

}  // namespace

FrozenServer::Scaled FrozenServer::scaled(const FrozenAgreement& agreement, View<const double> weight,
                                          std::size_t outputs) {
    const std::size_t features = agreement.features();
    if (!possible_layer(features, outputs) || outputs > kMaxFrozenOutputs || weight.size != features * outputs) {
        throw ParameterError("expected a weight of " + std::to_string(features) + " features and 1 to " +
                             std::to_string(kMaxFrozenOutputs) + " outputs");
    }
    Scaled rows{std::vector<double>(outputs), Buffer<float>(weight.size)};
    parallel_for(outputs, [&](std::size_t p) {
        const double* row = weight.data + p * features;
        const double norm = rows.norms[p] = row_norm(View<const double>{row, features}, "the weight");
        const double factor = norm > 0 ? agreement.scaling().weight_scale / norm : 0;
        for (std::size_t f = 0; f < features; ++f) {
            rows.integers[p * features + f] = static_cast<float>(std::nearbyint(row[f] * factor));
        }
    });
    return rows;
}

FrozenServer::FrozenServer(std::shared_ptr<const FrozenAgreement> agreement, View<const double> weight,
                           std::size_t outputs)
    : FrozenServer(agreement, scaled(*agreement, weight, outputs)) {}

FrozenServer::FrozenServer(std::shared_ptr<const FrozenAgreement> agreement, const Scaled& rows)
    : agreement_(std::move(agreement)),
      norms_(rows.norms),
      id_(name_of(agreement_->id(), rows.norms, rows.integers)),
      matrix_({rows.integers.data(), rows.integers.size()}, rows.norms.size(), agreement_->features()) {}

std::string FrozenServer::multiply(View<const std::uint8_t> request) const {
    const Ring& ring = agreement_->ring();
    const FrozenScaling& scaling = agreement_->scaling();
    const std::size_t features = agreement_->features(), primes = ring.prime_count();
    WireReader reader(request, MessageType::frozen_request);
    reader.require(agreement_->parameters().hash(), agreement_->id());
    const std::size_t rows = reader.u32();
    if (rows < 1 || rows > kMaxFrozenRows) {
        throw WireError("a request holds 1 to " + std::to_string(kMaxFrozenRows) + " rows, this one " +
                        std::to_string(rows));
    }
    reader.require_remaining(packed_bytes(rows * features, scaling.request_bits));
    const std::uint8_t* in = reader.raw(reader.remaining()).data;

    Header header = reader.header();
    header.type = MessageType::frozen_reply;
    header.key = id_;
    WireWriter writer(header, sizeof(std::uint32_t) + packed_bytes(rows * outputs(), scaling.reply_bits));
    writer.u32(static_cast<std::uint32_t>(rows));
    std::uint8_t* out = writer.reserve(packed_bytes(rows * outputs(), scaling.reply_bits));

    const auto q = static_cast<std::uint64_t>(ring.modulus_value());
    for (std::size_t first = 0; first < rows; first += kFrozenGroup) {
        const std::size_t group = std::min(kFrozenGroup, rows - first), count = group * features;
        Buffer<std::uint64_t> numbers(count);
        unpack_bits(in, {numbers.data(), count}, scaling.request_bits, scaling.request_limit);
        in += packed_bytes(count, scaling.request_bits);
        restore_bits({numbers.data(), count}, scaling.request_dropped, q);
        // Loops over residues take sixteen at a time.
        const std::size_t results = group * outputs(), padded = (results + 15) / 16 * 16;
        Buffer<std::uint64_t> products(primes * results), aligned(primes * padded), switched(padded);
        matrix_.multiply(ring, numbers.data(), group, products.data());
        for (std::size_t t = 0; t < primes; ++t) {
            std::copy_n(products.data() + t * results, results, aligned.data() + t * padded);
            std::fill_n(aligned.data() + t * padded + results, padded - results, 0);
        }
        ring.switch_to_bits(aligned.data(), padded, scaling.reply_bits, switched.data());
        pack_bits({switched.data(), results}, scaling.reply_bits, out);
        out += packed_bytes(results, scaling.reply_bits);
    }
    return writer.finish();
}

std::string FrozenServer::hint() const {
    const Ring& ring = agreement_->ring();
    const std::size_t degree = ring.degree(), features = agreement_->features(), width = agreement_->width();
    const std::size_t primes = ring.prime_count(), all = outputs();
    const int bits = agreement_->hint_bits();
    const std::size_t run = packed_bytes(degree, bits);
    WireWriter writer({MessageType::frozen_hint, agreement_->parameters().hash(), id_, Id{}},
                      frozen_hint_bytes(*agreement_, all) - kHeaderBytes - kFooterBytes);
    writer.u32(static_cast<std::uint32_t>(all));
    for (const double norm : norms_) {
        writer.f64(norm);
    }
    std::uint8_t* out = writer.reserve(all * run);

    // As integers below q.
    std::vector<Buffer<std::uint64_t>> common(agreement_->polynomials());
    parallel_for(common.size(), [&](std::size_t j) {
        Buffer<std::uint64_t> polynomial(ring.size());
        agreement_->expand(j, polynomial.data());
        ring.to_coefficients(polynomial.data());
        common[j].resize(degree);
        ring.compose(polynomial.data(), common[j].data());
    });
    const auto q = static_cast<std::uint64_t>(ring.modulus_value());
    const double share = static_cast<double>(agreement_->hint_modulus()) / ring.modulus_value();
    Buffer<std::uint64_t> rows(kFrozenGroup * features), products(primes * kFrozenGroup * all);
    for (std::size_t first = 0; first < degree; first += kFrozenGroup) {
        // Coefficient r of x^-i * a is that of a at r + i, and minus that where it goes around.
        parallel_for(kFrozenGroup, [&](std::size_t row) {
            for (std::size_t f = 0; f < features; ++f) {
                const std::size_t at = first + row + f % width;
                const std::uint64_t* a = common[f / width].data();
                const std::uint64_t value = at < degree ? a[at] : q - a[at - degree];
                rows[row * features + f] = value == q ? 0 : value;
            }
        });
        matrix_.multiply(ring, rows.data(), kFrozenGroup, products.data());
        parallel_for(all, [&](std::size_t p) {
            Buffer<std::uint64_t> numbers(primes * kFrozenGroup);
            for (std::size_t m = 0; m < numbers.size(); ++m) {
                numbers[m] = products[m * all + p];
            }
            ring.compose(numbers.data(), kFrozenGroup, numbers.data());
            for (std::size_t r = 0; r < kFrozenGroup; ++r) {
                const auto rounded = static_cast<std::uint64_t>(static_cast<double>(numbers[r]) * share + 0.5);
                numbers[r] = rounded == agreement_->hint_modulus() ? 0 : rounded;
            }
            pack_bits({numbers.data(), kFrozenGroup}, bits, out + p * run + packed_bytes(first, bits));
        });
    }
    return writer.finish();
}

std::size_t FrozenServer::working_bytes(std::size_t rows) const {
    // Numbers and centred rows of a group; sums, products and what becomes of them. Tiles of rows may be half empty.
    const std::size_t primes = agreement_->ring().prime_count(), word = sizeof(std::uint64_t);
    const std::size_t group = std::min(rows, kFrozenGroup) + 16;
    return group * word * (agreement_->features() * (2 + 2 * primes) + (outputs() + 64) * (1 + 3 * primes));
}

std::size_t FrozenServer::hint_working_bytes() const {
    return working_bytes(kFrozenGroup) +
           (agreement_->polynomials() + 2) * agreement_->ring().size() * sizeof(std::uint64_t);
}

}  // namespace hesplit
