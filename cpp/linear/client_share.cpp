// LinearClient's part in logits that both sides share.
#include <numeric>
#include <string>
#include <vector>

#include "base/error.h"
#include "linear/client.h"
#include "linear/precision.h"
#include "linear/private_replies.h"
#include "rlwe/flooding.h"
#include "wire/codec.h"

namespace hesplit {

namespace {

// Coefficients of every ciphertext of a reply, group by group.
std::vector<std::size_t> logit_counts(const ClientPacking& packing, const BatchShape& shape) {
    std::vector<std::size_t> counts;
    for (std::size_t group = 0; group < shape.groups(); ++group) {
        for (std::size_t p = 0; p < packing.products(shape); ++p) {
            counts.push_back(packing.position_count(shape, p, shape.samples_of(group)));
        }
    }
    return counts;
}

// Of slots no coefficient is a logit.
void check_shares(const Parameters& parameters) {
    if (parameters.packing() != Packing::blocks) {
        throw ParameterError("shares of logits need packing=\"blocks\"");
    }
}

}  // namespace

std::string LinearClient::open_share(View<const std::uint8_t> bytes, bool weight_gradient_follows, double& deviation) {
    check_shares(parameters_);
    WireReader reader(bytes, MessageType::share);
    reader.require(parameters_.hash(), reader.header().key);
    ClientSession::Answer answer = session_.answer(reader.header(), Awaited::logits);
    ClientKey& key = *answer.request().key;
    const ReplyHead head = read_reply(reader, answer.request());
    check_precise(head);
    const std::vector<std::size_t> counts = logit_counts(*packing_, head.shape);
    const std::size_t products = packing_->products(head.shape);
    const auto positions = [&](std::size_t run) {
        return packing_->positions(head.shape, run % products, head.shape.samples_of(run / products));
    };
    const double flood = release_deviation(head);
    SecretBuffer<std::int64_t> noise(std::accumulate(counts.begin(), counts.end(), std::size_t{0}), 0);
    if (flood > 0) {
        key.key->count_release();
        noise = flooding_noise(flood, noise.size());
    }
    std::string opened = open_runs(MessageType::opened_share, head, key, reader, counts, positions, noise);
    deviation = flood / head.scale;
    if (weight_gradient_follows) {
        answer.done(Awaited::weight_gradient);
    } else {
        answer.done();
    }
    return opened;
}

ReplyHead LinearClient::decrypt_share(WireReader reader, std::uint64_t* share) {
    check_shares(parameters_);
    reader.require(MessageType::share);
    reader.require(parameters_.hash(), reader.header().key);
    ClientSession::Answer answer = session_.answer(reader.header(), Awaited::logits);
    const ClientKey& key = *answer.request().key;
    const ReplyHead head = read_reply(reader, answer.request());
    check_precise(head);
    const BatchShape& shape = head.shape;
    const std::size_t products = packing_->products(shape);
    const std::int64_t mask = (std::int64_t{1} << head.bits) - 1;
    CiphertextRuns runs(ring_.degree(), head.bits);
    for (const std::size_t count : logit_counts(*packing_, shape)) {
        runs.add(count);
    }
    reader.require_remaining(runs.bytes());
    const View<const std::uint8_t> payload = reader.raw(runs.bytes());
    for (std::size_t group = 0; group < shape.groups(); ++group) {
        const std::size_t samples = shape.samples_of(group);
        std::uint64_t* rows = share + group * shape.group_size * outputs_;
        std::size_t first = 0;
        for (std::size_t p = 0; p < products; ++p) {
            SecretBuffer<std::int64_t> values = key.open(payload.data + runs.offset(group * products + p),
                                                         packing_->positions(shape, p, samples), head.bits);
            for (std::int64_t& value : values) {
                value &= mask;
            }
            place_logits(values, samples, first, outputs_, rows);
            first += values.size() / samples;
        }
    }
    answer.done();
    return head;
}

}  // namespace hesplit
