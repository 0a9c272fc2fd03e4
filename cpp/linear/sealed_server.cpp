#include <algorithm>

#include "base/error.h"
#include "base/parallel.h"
#include "linear/client.h"
#include "linear/precision.h"
#include "linear/sealed.h"

namespace hesplit {

namespace {

Parameters parse_parameters(WireReader& reader) {
    const std::size_t size = reader.u16();
    Parameters parameters = Parameters::parse(reader.raw(size));
    reader.require(parameters.hash(), reader.header().key);
    if (parameters.packing() != Packing::blocks || parameters.choice().updates == 0) {
        throw WireError("sealed weights under parameters that are not for them");
    }
    return parameters;
}

Seed read_seed(WireReader& reader) {
    Seed seed;
    const View<const std::uint8_t> bytes = reader.raw(seed.size());
    std::copy(bytes.begin(), bytes.end(), seed.begin());
    return seed;
}

MessageType type_of(View<const std::uint8_t> bytes) {
    const bool state = bytes.size > 5 && bytes[5] == static_cast<std::uint8_t>(MessageType::sealed_state);
    return state ? MessageType::sealed_state : MessageType::sealed_weight;
}

// (a0 + a1 s)(b0 + b1 s) summed over pairs: three polynomials over the ring.
struct Degree2 {
    Buffer<std::uint64_t> c0, c1, c2;
};

using Pointers = std::vector<const std::uint64_t*>;

Degree2 multiply(const Ring& ring, const Pointers& a0, const Pointers& a1, const Pointers& b0, const Pointers& b1) {
    const auto view = [](const Pointers& list) { return View<const std::uint64_t* const>{list.data(), list.size()}; };
    Degree2 product{Buffer<std::uint64_t>(ring.size()), Buffer<std::uint64_t>(ring.size()),
                    Buffer<std::uint64_t>(ring.size())};
    ring.dot(view(a0), view(b0), product.c0.data());
    ring.dot(view(a1), view(b1), product.c2.data());
    Pointers left = a0, right = b1;
    left.insert(left.end(), a1.begin(), a1.end());
    right.insert(right.end(), b0.begin(), b0.end());
    ring.dot(view(left), view(right), product.c1.data());
    ring.to_coefficients(product.c0.data());
    ring.to_coefficients(product.c1.data());
    ring.to_coefficients(product.c2.data());
    return product;
}

// A reply of products: one per group and run, each with c0 at its positions and c1, c2 in full.
class Reply {
  public:
    Reply(const Ring& ring, Header header, const BatchShape& shape, int bits,
          std::vector<std::vector<std::uint32_t>> positions)
        : ring_(ring), bits_(bits), positions_(std::move(positions)) {
        std::size_t total = 0;
        for (const std::vector<std::uint32_t>& list : positions_) {
            offsets_.push_back(total);
            total += packed_bytes(list.size(), bits) + 2 * packed_bytes(ring.degree(), bits);
        }
        header.type = MessageType::sealed_reply;
        writer_ = std::make_unique<WireWriter>(header, kShapeBytes + total);
        write_shape(*writer_, shape);
        out_ = writer_->reserve(total);
    }

    // May be called from several threads for different indices.
    void write(std::size_t index, const Degree2& product) const {
        const std::vector<std::uint32_t>& positions = positions_[index];
        std::uint8_t* out = out_ + offsets_[index];
        Buffer<std::uint64_t> switched(ring_.degree());
        ring_.switch_to_bits(product.c0.data(), {positions.data(), positions.size()}, bits_, switched.data());
        pack_bits({switched.data(), positions.size()}, bits_, out);
        out += packed_bytes(positions.size(), bits_);
        for (const Buffer<std::uint64_t>* poly : {&product.c1, &product.c2}) {
            ring_.switch_to_bits(poly->data(), bits_, switched.data());
            pack_bits({switched.data(), switched.size()}, bits_, out);
            out += packed_bytes(ring_.degree(), bits_);
        }
    }

    std::string finish() const { return writer_->finish(); }

  private:
    const Ring& ring_;
    int bits_;
    std::vector<std::vector<std::uint32_t>> positions_;
    std::vector<std::size_t> offsets_;
    std::unique_ptr<WireWriter> writer_;
    std::uint8_t* out_ = nullptr;
};

// `count` polynomials from the `first` on, `step` apart.
Pointers pointers(const Buffer<std::uint64_t>& polys, const Ring& ring, std::size_t first, std::size_t count,
                  std::size_t step) {
    Pointers list(count);
    for (std::size_t i = 0; i < count; ++i) {
        list[i] = polys.data() + (first + i * step) * ring.size();
    }
    return list;
}

}  // namespace

SealedServer::SealedServer(View<const std::uint8_t> bytes, std::size_t max_samples)
    : SealedServer(WireReader(bytes, type_of(bytes)), max_samples) {}

SealedServer::SealedServer(WireReader reader, std::size_t max_samples)
    : parameters_(parse_parameters(reader)), key_id_(reader.header().key), max_samples_(max_samples) {
    const std::size_t features = reader.u32(), outputs = reader.u32();
    if (features < 1 || outputs < 1 || features >= kMaxFeatures || outputs > kMaxFeatures) {
        throw WireError("sealed weights of an impossible layer of " + std::to_string(features) + " -> " +
                        std::to_string(outputs));
    }
    ring_ = std::make_unique<Ring>(parameters_.ring_degree(), parameters_.primes());
    codec_ = std::make_unique<PolynomialCodec>(*ring_, dropped_bits(*ring_));
    layout_ =
        plan_sealed(parameters_.choice(), features + 1, outputs, codec_->bits_per_coefficient(), kTypicalReplyBits);
    bits_ = {reader.u8(), reader.u8()};
    const int most = std::min(max_degree_2_bits(ring_->degree()), parameters_.total_bits() - 1);
    if (bits_.logits < 1 || bits_.logits > most || bits_.input_gradient < 1 || bits_.input_gradient > most) {
        throw WireError("sealed weights with an impossible number of reply bits");
    }
    weights_ = reader.header().type == MessageType::sealed_state ? read_state(reader) : read_weights(reader);
}

void SealedServer::read_ciphertexts(View<const std::uint8_t> bytes, const Seed& seed, std::size_t first,
                                    std::size_t count, std::uint64_t* c0, std::uint64_t* c1) const {
    parallel_for(count, [&](std::size_t i) {
        std::uint64_t* poly = c0 + i * ring_->size();
        codec_->unpack(bytes.data + (first + i) * codec_->bytes(), poly);
        ring_->to_ntt(poly);
        expand_uniform(*ring_, seed, static_cast<std::uint32_t>(first + i), c1 + i * ring_->size());
    });
}

std::shared_ptr<const SealedServer::Weights> SealedServer::read_weights(WireReader& reader) const {
    check_shape(read_shape(reader));
    const Seed seed = read_seed(reader);
    const std::size_t count = layout_.products() * layout_.inputs();
    reader.require_remaining(count * codec_->bytes());
    auto fresh = std::make_shared<Weights>();
    fresh->c0.resize(count * ring_->size());
    fresh->c1.resize(count * ring_->size());
    read_ciphertexts(reader.raw(reader.remaining()), seed, 0, count, fresh->c0.data(), fresh->c1.data());
    return fresh;
}

std::shared_ptr<const SealedServer::Weights> SealedServer::weights() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return weights_;
}

void SealedServer::check_shape(const BatchShape& shape) const {
    if (shape.group_size != layout_.group_size || shape.width != layout_.width || shape.samples < 1 ||
        shape.samples > std::max<std::size_t>(max_samples_, layout_.group_size)) {
        throw WireError("a sealed message of " + std::to_string(shape.samples) +
                        " samples or of another layout; this server takes up to " + std::to_string(max_samples_));
    }
}

void SealedServer::refresh(View<const std::uint8_t> sealed) {
    WireReader reader(sealed, MessageType::sealed_weight);
    reader.require(parameters_.hash(), key_id_);
    parse_parameters(reader);
    const std::size_t features = reader.u32(), outputs = reader.u32();
    const SealedBits bits{reader.u8(), reader.u8()};
    const int most = std::min(max_degree_2_bits(ring_->degree()), parameters_.total_bits() - 1);
    if (features != this->features() || outputs != this->outputs() || bits.logits < 1 || bits.logits > most ||
        bits.input_gradient != bits_.input_gradient) {
        throw WireError("refreshed weights of another shape or with other reply bits");
    }
    std::shared_ptr<const Weights> fresh = read_weights(reader);
    const std::lock_guard<std::mutex> lock(mutex_);
    bits_ = bits;
    weights_ = std::move(fresh);
}

std::string SealedServer::forward(View<const std::uint8_t> request) const {
    WireReader reader(request, MessageType::sealed_request);
    reader.require(parameters_.hash(), key_id_);
    const BatchShape shape = read_shape(reader);
    check_shape(shape);
    const Seed seed = read_seed(reader);
    const std::size_t inputs = layout_.inputs(), products = layout_.products();
    reader.require_remaining(shape.groups() * inputs * codec_->bytes());
    const View<const std::uint8_t> ciphertexts = reader.raw(reader.remaining());
    std::shared_ptr<const Weights> weights;
    int bits = 0;
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        weights = weights_;
        bits = bits_.logits;
    }

    std::vector<std::vector<std::uint32_t>> positions;
    for (std::size_t group = 0; group < shape.groups(); ++group) {
        for (std::size_t p = 0; p < products; ++p) {
            positions.push_back(output_positions(layout_, p, shape.samples_of(group)));
        }
    }
    const Reply reply(*ring_, reader.header(), shape, bits, std::move(positions));
    parallel_for(shape.groups(), [&](std::size_t group) {
        Buffer<std::uint64_t> x0(inputs * ring_->size()), x1(inputs * ring_->size());
        read_ciphertexts(ciphertexts, seed, group * inputs, inputs, x0.data(), x1.data());
        for (std::size_t p = 0; p < products; ++p) {
            reply.write(group * products + p,
                        multiply(*ring_, pointers(x0, *ring_, 0, inputs, 1), pointers(x1, *ring_, 0, inputs, 1),
                                 pointers(weights->c0, *ring_, p * inputs, inputs, 1),
                                 pointers(weights->c1, *ring_, p * inputs, inputs, 1)));
        }
    });
    return reply.finish();
}

std::string SealedServer::update(View<const std::uint8_t> update) {
    WireReader reader(update, MessageType::sealed_update);
    reader.require(parameters_.hash(), key_id_);
    const BatchShape shape = read_shape(reader);
    check_shape(shape);
    const Seed seed = read_seed(reader);
    const std::size_t inputs = layout_.inputs(), products = layout_.products();
    const std::size_t gradients = shape.groups() * products, steps = products * inputs;
    reader.require_remaining((gradients + steps) * codec_->bytes());
    const View<const std::uint8_t> ciphertexts = reader.raw(reader.remaining());
    const std::shared_ptr<const Weights> weights = this->weights();
    if (weights->updates >= parameters_.choice().updates) {
        throw WireError("the sealed weights have taken all the updates that the parameters allow; refresh them");
    }

    std::vector<std::vector<std::uint32_t>> positions;
    for (std::size_t group = 0; group < shape.groups(); ++group) {
        for (std::size_t j = 0; j < inputs; ++j) {
            positions.push_back(input_gradient_positions(layout_, j, shape.samples_of(group)));
        }
    }
    const Reply reply(*ring_, reader.header(), shape, bits_.input_gradient, std::move(positions));
    Buffer<std::uint64_t> g0(gradients * ring_->size()), g1(gradients * ring_->size());
    read_ciphertexts(ciphertexts, seed, 0, gradients, g0.data(), g1.data());
    parallel_for(shape.groups() * inputs, [&](std::size_t index) {
        const std::size_t first = index / inputs * products, j = index % inputs;
        reply.write(index,
                    multiply(*ring_, pointers(g0, *ring_, first, products, 1), pointers(g1, *ring_, first, products, 1),
                             pointers(weights->c0, *ring_, j, products, inputs),
                             pointers(weights->c1, *ring_, j, products, inputs)));
    });

    auto next = std::make_shared<Weights>();
    next->c0.resize(steps * ring_->size());
    next->c1.resize(steps * ring_->size());
    next->updates = weights->updates + 1;
    read_ciphertexts(ciphertexts, seed, gradients, steps, next->c0.data(), next->c1.data());
    for (std::size_t i = 0; i < steps; ++i) {
        ring_->add(next->c0.data() + i * ring_->size(), weights->c0.data() + i * ring_->size());
        ring_->add(next->c1.data() + i * ring_->size(), weights->c1.data() + i * ring_->size());
    }
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (weights_ != weights) {
            throw WireError("two updates of the same weights at once");
        }
        weights_ = std::move(next);
    }
    return reply.finish();
}

std::string SealedServer::saved() const {
    const std::shared_ptr<const Weights> weights = this->weights();
    const std::vector<std::uint8_t> parameters = parameters_.bytes();
    const PolynomialCodec exact(*ring_, 0);
    const std::size_t count = layout_.products() * layout_.inputs();
    WireWriter writer({MessageType::sealed_state, parameters_.hash(), key_id_, Id{}},
                      2 + parameters.size() + 8 + 2 + 4 + 2 * count * exact.bytes());
    writer.u16(static_cast<std::uint16_t>(parameters.size()));
    writer.raw({parameters.data(), parameters.size()});
    writer.u32(static_cast<std::uint32_t>(features()));
    writer.u32(static_cast<std::uint32_t>(outputs()));
    writer.u8(static_cast<std::uint8_t>(bits_.logits));
    writer.u8(static_cast<std::uint8_t>(bits_.input_gradient));
    writer.u32(weights->updates);
    Buffer<std::uint64_t> scratch;
    for (const Buffer<std::uint64_t>* part : {&weights->c0, &weights->c1}) {
        for (std::size_t i = 0; i < count; ++i) {
            exact.pack(part->data() + i * ring_->size(), writer.reserve(exact.bytes()), scratch);
        }
    }
    return writer.finish();
}

std::shared_ptr<const SealedServer::Weights> SealedServer::read_state(WireReader& reader) const {
    const PolynomialCodec exact(*ring_, 0);
    const std::size_t count = layout_.products() * layout_.inputs();
    auto state = std::make_shared<Weights>();
    state->updates = reader.u32();
    reader.require_remaining(2 * count * exact.bytes());
    for (Buffer<std::uint64_t>* part : {&state->c0, &state->c1}) {
        part->resize(count * ring_->size());
        for (std::size_t i = 0; i < count; ++i) {
            exact.unpack(reader.raw(exact.bytes()).data, part->data() + i * ring_->size());
        }
    }
    return state;
}

}  // namespace hesplit
