#include "linear/inspection.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "linear/blocks/layout.h"
#include "linear/blocks/weights.h"
#include "linear/precision.h"
#include "linear/ranges.h"
#include "linear/traces/weights.h"
#include "packing/traces.h"
#include "rlwe/encryption.h"

namespace hesplit {

namespace {

Ring ring_of(const LinearServer& server) {
    if (server.parameters().packing() != Packing::blocks) {
        throw ParameterError("only messages on coefficient blocks can be inspected");
    }
    return Ring(server.parameters().ring_degree(), server.parameters().primes());
}

BlockLayout layout_of(const LinearServer& server, const BatchShape& shape) {
    return checked_block_layout(shape, server.parameters().ring_degree(), server.features(), server.outputs());
}

BlockLayout one_group_of(const LinearServer& server, const BatchShape& shape) {
    const BlockLayout layout = layout_of(server, shape);
    if (shape.groups() != 1) {
        throw ParameterError("only messages of one group of samples can be inspected, got " +
                             std::to_string(shape.groups()));
    }
    return layout;
}

WireReader open(const LinearServer& server, View<const std::uint8_t> bytes, MessageType type) {
    WireReader reader(bytes, type);
    reader.require(server.parameters().hash(), reader.header().key);
    return reader;
}

std::vector<std::uint64_t> primes_of(const Ring& ring) {
    std::vector<std::uint64_t> primes;
    for (std::size_t row = 0; row < ring.prime_count(); ++row) {
        primes.push_back(ring.prime(row));
    }
    return primes;
}

InspectedCiphertext read_ciphertext(WireReader& reader, std::size_t degree, int bits,
                                    std::vector<std::uint32_t> positions) {
    const std::uint64_t limit = std::uint64_t{1} << bits;
    InspectedCiphertext found;
    found.positions = std::move(positions);
    found.c0.resize(found.positions.size());
    found.c1.resize(degree);
    reader.packed({found.c0.data(), found.c0.size()}, bits, limit);
    reader.packed({found.c1.data(), found.c1.size()}, bits, limit);
    return found;
}

// A request whose lengths have been checked, up to its ciphertexts.
struct OpenRequest {
    WireReader reader;
    RequestHead head;
    BlockLayout layout;
    PolynomialCodec codec;
};

OpenRequest open_request(const LinearServer& server, const Ring& ring, View<const std::uint8_t> request) {
    WireReader reader = open(server, request, MessageType::request);
    const RequestHead head = read_request_head(reader);
    OpenRequest opened{reader, head, one_group_of(server, head.shape), PolynomialCodec(ring, dropped_bits(ring))};
    opened.reader.require_remaining(opened.layout.inputs() * opened.codec.bytes());
    return opened;
}

// All polynomials of a request, one after the other: c0 in coefficient form, c1 in NTT form.
struct Inputs {
    Buffer<std::uint64_t> c0, c1;
};

Inputs read_inputs(const Ring& ring, OpenRequest& request) {
    const std::size_t count = request.layout.inputs();
    Inputs inputs{Buffer<std::uint64_t>(count * ring.size()), Buffer<std::uint64_t>(count * ring.size())};
    for (std::size_t j = 0; j < count; ++j) {
        request.codec.unpack(request.reader.raw(request.codec.bytes()).data, inputs.c0.data() + j * ring.size());
        expand_uniform(ring, request.head.seed, static_cast<std::uint32_t>(j), inputs.c1.data() + j * ring.size());
    }
    return inputs;
}

TraceLayout traces_of(const LinearServer& server) {
    return plan_traces(server.parameters().ring_degree() / 2, server.features(), server.outputs(),
                       server.parameters().choice().batch_size);
}

InspectedMessage inspect_trace_reply(const LinearServer& server, View<const std::uint8_t> reply) {
    const Ring ring(server.parameters().ring_degree(), server.parameters().data_primes());
    WireReader reader = open(server, reply, MessageType::reply);
    const ReplyHead head = read_reply_head(reader, ring);
    const TraceLayout layout = traces_of(server);
    InspectedMessage message{head.shape, {}, head.bits, head.scale, {}};
    for (std::size_t p = 0; p < layout.products(); ++p) {
        message.ciphertexts.push_back(read_ciphertext(reader, ring.degree(), head.bits, trace_positions(layout)));
    }
    reader.require_remaining(0);
    return message;
}

// Of private weights on slots, c0 whole.
InspectedMessage inspect_trace_products(const LinearServer& server, View<const std::uint8_t> request,
                                        View<const double> weight, View<const double> bias) {
    const Parameters& parameters = server.parameters();
    const Ring ring(parameters.ring_degree(), parameters.data_primes());
    const TraceLayout layout = traces_of(server);
    WireReader reader = open(server, request, MessageType::request);
    const RequestHead head = read_request_head(reader);
    const PolynomialCodec codec(ring, dropped_bits(ring));
    reader.require_remaining(layout.inputs() * codec.bytes());
    const TraceWeights weights(parameters, ring, layout, weight, {bias.begin(), bias.end()});
    const Scaling& scaling = weights.scaling();
    InspectedMessage message{head.shape, primes_of(ring), scaling.reply_bits, scaling.reply_scale, {}};
    const std::size_t inputs = layout.inputs();
    GroupInputs group{Buffer<std::uint64_t>(inputs * ring.size()), Buffer<std::uint64_t>(inputs * ring.size())};
    for (std::size_t j = 0; j < inputs; ++j) {
        codec.unpack(reader.raw(codec.bytes()).data, group.c0.data() + j * ring.size());
        ring.to_ntt(group.c0.data() + j * ring.size());
        expand_uniform(ring, head.seed, static_cast<std::uint32_t>(j), group.c1.data() + j * ring.size());
    }
    for (std::size_t p = 0; p < layout.products(); ++p) {
        InspectedCiphertext product;
        product.positions.resize(ring.degree());
        std::iota(product.positions.begin(), product.positions.end(), 0U);
        product.c0.resize(ring.size());
        product.c1.resize(ring.size());
        weights.product(group, p, product.c0.data(), product.c1.data());
        const SecretBuffer<std::uint64_t> offset = weights.bias(p, head.shape.samples);
        for (std::size_t row = 0; row < ring.prime_count(); ++row) {
            for (std::size_t i = 0; i < weights.positions().size(); ++i) {
                std::uint64_t& residue = product.c0[row * ring.degree() + weights.positions()[i]];
                residue = (residue + offset[row * weights.padded() + i]) % ring.prime(row);
            }
        }
        message.ciphertexts.push_back(std::move(product));
    }
    return message;
}

}  // namespace

InspectedMessage inspect_request(const LinearServer& server, View<const std::uint8_t> request) {
    const Ring ring = ring_of(server);
    OpenRequest opened = open_request(server, ring, request);
    Inputs inputs = read_inputs(ring, opened);
    InspectedMessage message{opened.head.shape, primes_of(ring), 0, server.parameters().choice().scale, {}};
    std::vector<std::uint32_t> all(ring.degree());
    std::iota(all.begin(), all.end(), 0U);
    for (std::size_t j = 0; j < opened.layout.inputs(); ++j) {
        const std::uint64_t* c0 = inputs.c0.data() + j * ring.size();
        std::uint64_t* c1 = inputs.c1.data() + j * ring.size();
        ring.to_coefficients(c1);
        message.ciphertexts.push_back({{c0, c0 + ring.size()}, {c1, c1 + ring.size()}, all});
    }
    return message;
}

InspectedMessage inspect_products(const LinearServer& server, View<const std::uint8_t> request,
                                  View<const double> weight, View<const double> bias) {
    check_weights(weight, bias, server.features(), server.outputs());
    if (server.parameters().traced()) {
        return inspect_trace_products(server, request, weight, bias);
    }
    const Ring ring = ring_of(server);
    OpenRequest opened = open_request(server, ring, request);
    Inputs inputs = read_inputs(ring, opened);
    const BlockLayout& layout = opened.layout;
    InversePowers powers(ring);
    const ParameterChoice& choice = server.parameters().choice();
    const Scaling scaling =
        scale_blocks(choice, ring, weight_norms(choice, weight, bias, layout.features, layout.per_product()),
                     layout.features, layout.per_product(), weight);
    const BlockWeights weights(ring, powers, layout, scaling, weight, bias);
    const std::size_t samples = opened.head.shape.samples, padded = weights.padded_outputs();
    const Buffer<std::uint64_t> prepared = weights.prepare_c1(inputs.c1);
    const Buffer<std::uint64_t>& c1 = prepared.empty() ? inputs.c1 : prepared;
    const Buffer<std::uint64_t> c0 = weights.prepare_c0(std::move(inputs.c0));
    InspectedMessage message{opened.head.shape, primes_of(ring), scaling.reply_bits, scaling.reply_scale, {}};
    for (std::size_t p = 0; p < layout.products(); ++p) {
        InspectedCiphertext product;
        product.positions = output_positions(layout, p, samples);
        product.c1.resize(ring.size());
        weights.products(c1, p, 1, product.c1.data());
        Buffer<std::uint64_t> outputs(ring.prime_count() * padded, 0);
        weights.outputs(c0, p, 1, samples, outputs.data());
        for (std::size_t row = 0; row < ring.prime_count(); ++row) {
            const std::uint64_t* run = outputs.data() + row * padded;
            product.c0.insert(product.c0.end(), run, run + product.positions.size());
        }
        message.ciphertexts.push_back(std::move(product));
    }
    return message;
}

InspectedMessage inspect_reply(const LinearServer& server, View<const std::uint8_t> reply) {
    if (server.parameters().traced()) {
        return inspect_trace_reply(server, reply);
    }
    const Ring ring = ring_of(server);
    WireReader reader = open(server, reply, MessageType::reply);
    const ReplyHead head = read_reply_head(reader, ring);
    const BlockLayout layout = one_group_of(server, head.shape);
    InspectedMessage message{head.shape, {}, head.bits, head.scale, {}};
    for (std::size_t p = 0; p < layout.products(); ++p) {
        message.ciphertexts.push_back(
            read_ciphertext(reader, ring.degree(), head.bits, output_positions(layout, p, head.shape.samples)));
    }
    reader.require_remaining(0);
    return message;
}

InspectedMessage inspect_masked_gradient(const LinearServer& server, View<const std::uint8_t> masked) {
    const Ring ring = ring_of(server);
    WireReader reader = open(server, masked, MessageType::weight_gradient);
    const ReplyHead head = read_reply_head(reader, ring);
    const BlockLayout layout = layout_of(server, head.shape);
    // Before anything is made that is as large as the message claims to be.
    if (layout.products() * layout.inputs() * packed_bytes(ring.degree(), head.bits) > reader.remaining()) {
        throw WireError("a weight gradient that is shorter than its layout");
    }
    InspectedMessage message{head.shape, {}, head.bits, head.scale, {}};
    for (const GradientRun& run : weight_gradient_runs(layout)) {
        message.ciphertexts.push_back(
            read_ciphertext(reader, ring.degree(), head.bits, weight_gradient_positions(layout, run.p, run.j)));
    }
    reader.require_remaining(0);
    return message;
}

std::vector<std::vector<std::uint64_t>> inspect_opened_gradient(const LinearServer& server,
                                                                View<const std::uint8_t> masked,
                                                                View<const std::uint8_t> opened) {
    const InspectedMessage asked = inspect_masked_gradient(server, masked);
    const Header header = WireReader(masked, MessageType::weight_gradient).header();
    WireReader reader(opened, MessageType::opened_gradient);
    reader.require(server.parameters().hash(), header.key);
    if (reader.header().message != header.message) {
        throw KeyMismatchError("an opened weight gradient that belongs to another request");
    }
    std::vector<std::vector<std::uint64_t>> values;
    for (const InspectedCiphertext& ciphertext : asked.ciphertexts) {
        std::vector<std::uint64_t>& part = values.emplace_back(ciphertext.positions.size());
        reader.packed({part.data(), part.size()}, asked.bits, std::uint64_t{1} << asked.bits);
    }
    reader.require_remaining(0);
    return values;
}

std::string forge_reply(const LinearServer& server, View<const std::uint8_t> request, int bits, double scale,
                        const std::vector<InspectedCiphertext>& ciphertexts) {
    const Ring ring = ring_of(server);
    const OpenRequest opened = open_request(server, ring, request);
    const BlockLayout& layout = opened.layout;
    const BatchShape& shape = opened.head.shape;
    if (bits < 1 || bits > 62 || ciphertexts.size() != layout.products()) {
        throw ParameterError("a reply to this request has " + std::to_string(layout.products()) +
                             " ciphertexts of 1 to 62 bits");
    }
    std::size_t payload = 0;
    for (std::size_t p = 0; p < layout.products(); ++p) {
        const std::vector<std::uint64_t>& c0 = ciphertexts[p].c0;
        const std::vector<std::uint64_t>& c1 = ciphertexts[p].c1;
        const std::size_t outputs = layout.outputs_of(p) * shape.samples;
        const auto too_large = [bits](std::uint64_t value) { return value >> bits != 0; };
        if (c0.size() != outputs || c1.size() != ring.degree() || std::any_of(c0.begin(), c0.end(), too_large) ||
            std::any_of(c1.begin(), c1.end(), too_large)) {
            throw ParameterError("ciphertext " + std::to_string(p) + " of this reply has " + std::to_string(outputs) +
                                 " coefficients of c0 and " + std::to_string(ring.degree()) + " of c1, below 2^" +
                                 std::to_string(bits));
        }
        payload += packed_bytes(c0.size(), bits) + packed_bytes(c1.size(), bits);
    }
    Header header = opened.reader.header();
    header.type = MessageType::reply;
    WireWriter writer(header, kReplyPrefix + payload);
    write_reply_head(writer, {shape, bits, scale});
    for (const InspectedCiphertext& ciphertext : ciphertexts) {
        writer.packed({ciphertext.c0.data(), ciphertext.c0.size()}, bits);
        writer.packed({ciphertext.c1.data(), ciphertext.c1.size()}, bits);
    }
    return writer.finish();
}

}  // namespace hesplit
