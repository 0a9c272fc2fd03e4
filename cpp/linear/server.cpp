#include "linear/server.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <tuple>

#include "base/error.h"
#include "base/parallel.h"
#include "linear/block_layer.h"
#include "linear/kept.h"
#include "linear/slot_layer.h"

namespace hesplit {

struct LinearServer::Weights {
    std::vector<double> weight;
    std::vector<double> bias;

    std::mutex mutex;
    // Encodings by (rows, width): a training loop uses one or two.
    std::map<std::tuple<std::uint32_t, std::uint32_t>, std::shared_ptr<const BlockWeights>> blocks;
    std::shared_ptr<const SlotWeights> slots;

    View<const double> weight_view() const { return {weight.data(), weight.size()}; }
    View<const double> bias_view() const { return {bias.data(), bias.size()}; }

    std::shared_ptr<const BlockWeights> for_layout(const Parameters& parameters, const Ring& ring,
                                                   const BlockLayout& layout, const BatchShape& shape) {
        constexpr std::size_t kMaxLayouts = 4;  // each may keep 256 MB
        const std::lock_guard<std::mutex> lock(mutex);
        if (blocks.size() >= kMaxLayouts) {
            blocks.clear();
        }
        std::shared_ptr<const BlockWeights>& entry = blocks[{shape.group_size, shape.width}];
        if (!entry) {
            entry = std::make_shared<const BlockWeights>(parameters, ring, layout, weight_view(), bias_view());
        }
        return entry;
    }
};

struct LinearServer::Half {
    Seed seed{};
    BatchShape shape;
    std::shared_ptr<Weights> owner;
    std::shared_ptr<const BlockWeights> weights;
    std::vector<Buffer<std::uint64_t>> c1;        // by group, in NTT form
    std::vector<std::vector<std::uint8_t>> runs;  // by group and product: c1 of the reply
};

// A request whose lengths have been checked; its residues are checked when they are unpacked.
struct LinearServer::ForwardJob {
    Header header;
    BatchShape shape;
    Seed seed{};
    Seed announced{};  // of the next request
    View<const std::uint8_t> ciphertexts;
    std::shared_ptr<Weights> weights;

    WireWriter reply(const Scaling& scaling, std::size_t payload) const {
        Header reply_header = header;
        reply_header.type = MessageType::reply;
        WireWriter writer(reply_header, kReplyPrefix + payload);
        write_reply_head(writer, {shape, scaling.reply_bits, scaling.reply_scale});
        return writer;
    }
};

namespace {

Parameters parse_parameters(WireReader& reader) {
    const std::size_t size = reader.u16();
    Parameters parameters = Parameters::parse(reader.raw(size));
    reader.require(parameters.hash(), reader.header().key);
    return parameters;
}

}  // namespace

LinearServer::LinearServer(View<const std::uint8_t> public_material, std::size_t max_samples)
    : LinearServer(WireReader(public_material, MessageType::public_material), max_samples) {}

LinearServer::LinearServer(WireReader reader, std::size_t max_samples)
    : parameters_(parse_parameters(reader)), key_id_(reader.header().key), max_samples_(max_samples) {
    features_ = reader.u32();
    outputs_ = reader.u32();
    weight_gradients_ = reader.u8() == 1;
    if (features_ < 1 || outputs_ < 1 || features_ > kMaxFeatures || outputs_ > kMaxFeatures) {
        throw WireError("public material for an impossible layer of " + std::to_string(features_) + " -> " +
                        std::to_string(outputs_));
    }
    if (parameters_.packing() == Packing::blocks) {
        own_ring_ = std::make_unique<Ring>(parameters_.ring_degree(), parameters_.primes());
        ring_ = own_ring_.get();
    } else {
        slot_ring_ = std::make_unique<SlotRing>(parameters_);
        ring_ = &slot_ring_->data();
        slots_ = plan_slots(slot_ring_->slots(), features_, outputs_, parameters_.choice().batch_size,
                            allow_babies(*slot_ring_), weight_gradients_);
        load_rotation_keys(reader);
    }
    reader.require_remaining(0);
    codec_ = std::make_unique<PolynomialCodec>(*ring_, dropped_bits(*ring_));
}

LinearServer::~LinearServer() = default;

void LinearServer::load_rotation_keys(WireReader& reader) {
    const std::vector<int> steps = server_rotations(slots_, parameters_.choice().batch_size, weight_gradients_);
    if (steps.empty()) {
        return;
    }
    const PolynomialCodec codec(slot_ring_->key(), 0);
    const std::size_t parts = ring_->prime_count();
    reader.require_remaining(32 + steps.size() * parts * codec.bytes());
    Seed seed;
    const View<const std::uint8_t> seed_bytes = reader.raw(seed.size());
    std::copy(seed_bytes.begin(), seed_bytes.end(), seed.begin());
    Buffer<std::uint64_t> c0(slot_ring_->rotation_key_size());
    for (std::size_t k = 0; k < steps.size(); ++k) {
        for (std::size_t digit = 0; digit < parts; ++digit) {
            codec.unpack(reader.raw(codec.bytes()).data, c0.data() + digit * slot_ring_->key().size());
        }
        rotation_keys_.emplace(
            steps[k], slot_ring_->load_rotation_key(steps[k], seed, static_cast<std::uint32_t>(k * parts), c0.data()));
    }
}

void LinearServer::set_weight(View<const double> weight, View<const double> bias) {
    if (weight.size != features_ * outputs_ || (bias.size != 0 && bias.size != outputs_)) {
        throw ParameterError("expected weight [" + std::to_string(outputs_) + ", " + std::to_string(features_) +
                             "] and bias [" + std::to_string(outputs_) + "]");
    }
    for (const View<const double>& values : {weight, bias}) {
        for (const double value : values) {
            if (!std::isfinite(value)) {
                throw RangeError("the weights contain NaN or infinity");
            }
        }
    }
    auto fresh = std::make_shared<Weights>();
    fresh->weight.assign(weight.begin(), weight.end());
    fresh->bias.assign(bias.begin(), bias.end());
    if (slot_ring_) {
        fresh->slots = std::make_shared<const SlotWeights>(parameters_, *slot_ring_, slots_, fresh->weight_view(),
                                                           fresh->bias_view());
    } else {
        // One output per product is the layout with the least noise: weights that fail here fail in every layout.
        scale_blocks(parameters_.choice(), *ring_, weight_norms(parameters_.choice(), weight, bias, features_, 1),
                     features_, 1, weight);
    }
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        weights_ = fresh;
    }
    work_ahead(fresh);
}

LinearServer::ForwardJob LinearServer::read(View<const std::uint8_t> request) const {
    WireReader reader(request, MessageType::request);
    // Without rotation keys the server has no need to know the key: a client may take a fresh one for every request.
    reader.require(parameters_.hash(), key_id_ == Id{} ? reader.header().key : key_id_);
    ForwardJob job;
    job.header = reader.header();
    const RequestHead head = read_request_head(reader);
    job.shape = head.shape;
    job.seed = head.seed;
    job.announced = head.announced;
    const BatchShape& shape = job.shape;
    if (shape.samples < 1 || shape.samples > max_samples_) {
        throw WireError("a request of " + std::to_string(shape.samples) + " samples; this server takes 1 to " +
                        std::to_string(max_samples_));
    }
    std::size_t inputs = 0;
    if (slot_ring_) {
        if (shape.group_size != slots_.group_size() || shape.width != 0) {
            throw WireError("a request with another slot layout");
        }
        inputs = slots_.inputs();
    } else {
        inputs = checked_block_layout(shape, ring_->degree(), features_, outputs_).inputs();
    }
    reader.require_remaining(shape.groups() * inputs * codec_->bytes());
    job.ciphertexts = reader.raw(reader.remaining());
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        job.weights = weights_;
    }
    if (!job.weights) {
        throw ParameterError("set_weight must be called before forward");
    }
    return job;
}

std::string LinearServer::forward(View<const std::uint8_t> request, std::size_t* samples,
                                  std::shared_ptr<const Kept>* kept) const {
    const ForwardJob job = read(request);
    const std::shared_ptr<Kept> keep = kept ? std::make_shared<Kept>() : nullptr;
    std::string reply = slot_ring_ ? forward_slots(job, keep.get()) : forward_blocks(job, keep.get());
    if (samples) {
        *samples = job.shape.samples;
    }
    if (keep) {
        keep->header = job.header;
        keep->shape = job.shape;
        *kept = keep;
    }
    return reply;
}

std::shared_ptr<LinearServer::Half> LinearServer::make_half(const std::shared_ptr<Weights>& weights,
                                                            const BatchShape& shape, const Seed& seed,
                                                            bool keep_inputs) const {
    const BlockLayout layout{ring_->degree(), features_, outputs_, shape.group_size, shape.width};
    auto half = std::make_shared<Half>();
    half->seed = seed;
    half->shape = shape;
    half->owner = weights;
    half->weights = weights->for_layout(parameters_, *ring_, layout, shape);
    const int bits = half->weights->scaling().reply_bits;
    const std::size_t products = layout.products(), inputs = layout.inputs();
    const std::size_t at_once = half->weights->products_at_once();
    const std::size_t tasks = (products + at_once - 1) / at_once;
    half->c1.resize(shape.groups());
    half->runs.resize(shape.groups() * products);
    for (std::size_t group = 0; group < shape.groups(); ++group) {
        Buffer<std::uint64_t>& c1 = half->c1[group];
        c1.resize(inputs * ring_->size());
        parallel_for(inputs, [&](std::size_t j) {
            expand_uniform(*ring_, seed, static_cast<std::uint32_t>(group * inputs + j), c1.data() + j * ring_->size());
        });
        const Buffer<std::uint64_t> prepared = half->weights->prepare_c1(c1);
        parallel_for(tasks, [&](std::size_t task) {
            const std::size_t first = task * at_once;
            const std::size_t count = std::min(at_once, products - first);
            Buffer<std::uint64_t> made(count * ring_->size()), switched(ring_->degree());
            half->weights->products(prepared.empty() ? c1 : prepared, first, count, made.data());
            for (std::size_t i = 0; i < count; ++i) {
                std::vector<std::uint8_t>& run = half->runs[group * products + first + i];
                run.resize(packed_bytes(ring_->degree(), bits));
                ring_->switch_to_bits(made.data() + i * ring_->size(), bits, switched.data());
                pack_bits({switched.data(), switched.size()}, bits, run.data());
            }
        });
        if (!keep_inputs) {
            Buffer<std::uint64_t>().swap(c1);
        }
    }
    return half;
}

void LinearServer::work_ahead(const std::shared_ptr<Weights>& weights) const {
    // Beyond this a result would keep too much memory alive between two requests.
    constexpr std::size_t kMaxResidues = std::size_t{1} << 20;
    const std::lock_guard<std::mutex> lock(ahead_mutex_);
    next_half_.reset();
    if (slot_ring_ || announced_ == Seed{} || !ahead_.pays()) {
        return;
    }
    const BatchShape shape = announced_shape_;
    const BlockLayout layout{ring_->degree(), features_, outputs_, shape.group_size, shape.width};
    if (shape.groups() * (layout.inputs() + layout.products()) * ring_->size() > kMaxResidues) {
        return;
    }
    next_half_ = std::make_shared<std::shared_ptr<Half>>();
    ahead_.start([this, weights, shape, seed = announced_, result = next_half_] {
        *result = make_half(weights, shape, seed, true);
    });
}

// What was made ahead, if it is for this request and these weights; else made now.
std::shared_ptr<LinearServer::Half> LinearServer::take_half(const ForwardJob& job, bool keep_inputs) const {
    {
        const std::lock_guard<std::mutex> lock(ahead_mutex_);
        ahead_.wait();
        announced_ = job.announced;
        announced_shape_ = job.shape;
        if (next_half_) {
            const std::shared_ptr<Half> half = std::move(*next_half_);
            next_half_.reset();
            if (half && half->seed == job.seed && half->shape == job.shape && half->owner == job.weights) {
                return half;
            }
        }
    }
    return make_half(job.weights, job.shape, job.seed, keep_inputs);
}

std::string LinearServer::forward_blocks(const ForwardJob& job, Kept* kept) const {
    const BlockLayout layout{ring_->degree(), features_, outputs_, job.shape.group_size, job.shape.width};
    const std::shared_ptr<Half> half = take_half(job, kept != nullptr);
    const BlockWeights& weights = *half->weights;
    const int bits = weights.scaling().reply_bits;
    const std::size_t products = layout.products(), inputs = layout.inputs(), size = ring_->size();
    const std::size_t at_once = weights.products_at_once(), padded = weights.padded_outputs();

    std::vector<std::size_t> offsets;
    std::size_t total = 0;
    for (std::size_t group = 0; group < job.shape.groups(); ++group) {
        for (std::size_t p = 0; p < products; ++p) {
            offsets.push_back(total);
            total += packed_bytes(layout.outputs_of(p) * job.shape.samples_of(group), bits) +
                     packed_bytes(ring_->degree(), bits);
        }
    }
    WireWriter writer = job.reply(weights.scaling(), total);
    std::uint8_t* out = writer.reserve(total);

    for (std::size_t group = 0; group < job.shape.groups(); ++group) {
        Buffer<std::uint64_t> c0(inputs * size);
        parallel_for(inputs, [&](std::size_t j) {
            codec_->unpack(job.ciphertexts.data + (group * inputs + j) * codec_->bytes(), c0.data() + j * size);
        });
        if (kept) {
            Buffer<std::uint64_t> in_ntt = c0;
            parallel_for(inputs, [&](std::size_t j) { ring_->to_ntt(in_ntt.data() + j * size); });
            kept->blocks.push_back({inputs, std::move(in_ntt), std::move(half->c1[group])});
        }
        const Buffer<std::uint64_t> prepared = weights.prepare_c0(std::move(c0));
        const std::size_t samples = job.shape.samples_of(group);
        parallel_for((products + at_once - 1) / at_once, [&](std::size_t task) {
            const std::size_t first = task * at_once;
            const std::size_t count = std::min(at_once, products - first);
            Buffer<std::uint64_t> outputs(count * ring_->prime_count() * padded, 0), switched(padded);
            weights.outputs(prepared, first, count, samples, outputs.data());
            for (std::size_t i = 0; i < count; ++i) {
                const std::size_t index = group * products + first + i;
                const std::size_t used = layout.outputs_of(first + i) * samples;
                ring_->switch_to_bits(outputs.data() + i * ring_->prime_count() * padded, padded, bits,
                                      switched.data());
                pack_bits({switched.data(), used}, bits, out + offsets[index]);
                const std::vector<std::uint8_t>& run = half->runs[index];
                std::copy(run.begin(), run.end(), out + offsets[index] + packed_bytes(used, bits));
            }
        });
    }
    return writer.finish();
}

std::string LinearServer::forward_slots(const ForwardJob& job, Kept* kept) const {
    const SlotWeights& weights = *job.weights->slots;
    const int bits = weights.scaling().reply_bits;
    const std::size_t run = packed_bytes(ring_->degree(), bits);
    const std::size_t group_bytes = slots_.products() * 2 * run;
    WireWriter writer = job.reply(weights.scaling(), job.shape.groups() * group_bytes);
    std::uint8_t* out = writer.reserve(job.shape.groups() * group_bytes);

    if (kept) {
        kept->slots.resize(job.shape.groups());
    }
    parallel_for(job.shape.groups(), [&](std::size_t group) {
        SlotGroupInputs inputs;
        for (std::size_t j = 0; j < slots_.inputs(); ++j) {
            const std::size_t index = group * slots_.inputs() + j;
            inputs.emplace_back(*ring_);
            codec_->unpack(job.ciphertexts.data + index * codec_->bytes(), inputs.back().c0.data());
            ring_->to_ntt(inputs.back().c0.data());
            expand_uniform(*ring_, job.seed, static_cast<std::uint32_t>(index), inputs.back().c1.data());
        }
        Buffer<std::uint64_t> switched(ring_->degree());
        std::uint8_t* to = out + group * group_bytes;
        for (const SlotCiphertext& product : weights.products(inputs, rotation_keys_)) {
            for (const Buffer<std::uint64_t>* part : {&product.c0, &product.c1}) {
                ring_->switch_to_bits(part->data(), bits, switched.data());
                pack_bits({switched.data(), switched.size()}, bits, to);
                to += run;
            }
        }
        if (kept) {
            kept->slots[group] = std::move(inputs);
        }
    });
    return writer.finish();
}

}  // namespace hesplit
