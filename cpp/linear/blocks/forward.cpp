#include "linear/blocks/forward.h"

#include <algorithm>
#include <string>

#include "base/parallel.h"
#include "linear/blocks/layout.h"
#include "linear/precision.h"
#include "linear/private_replies.h"
#include "rlwe/encryption.h"

namespace hesplit {

void NextReplyC1::start(const std::shared_ptr<const BlockLayerWeights>& weights) {
    const std::lock_guard<std::mutex> lock(mutex_);
    next_.reset();
    if (announced_ == Seed{} || !ahead_.pays() || !weights->worth_keeping(shape_)) {
        return;
    }
    next_ = std::make_shared<std::shared_ptr<ReplyC1>>();
    ahead_.start([weights, shape = shape_, seed = announced_, key = public_key_, result = next_] {
        *result = weights->reply_c1(shape, seed, key, true);
    });
}

std::shared_ptr<ReplyC1> NextReplyC1::take(const ForwardRequest& request, const BlockLayerWeights* weights) {
    const std::lock_guard<std::mutex> lock(mutex_);
    ahead_.wait();
    announced_ = request.head.announced;
    shape_ = request.head.shape;
    public_key_ = request.public_key;
    const std::shared_ptr<ReplyC1> made = next_ ? std::move(*next_) : nullptr;
    next_.reset();
    const bool fits = made && made->seed == request.head.seed && made->shape == request.head.shape &&
                      made->owner.get() == weights && made->public_key == request.public_key &&
                      made->process == process_id();
    return fits ? made : nullptr;
}

BlockLayerWeights::BlockLayerWeights(const BlockServing& serving, std::vector<double> weight, std::vector<double> bias)
    : serving_(serving), weight_(std::move(weight)), bias_(std::move(bias)) {
    // One output per product is the layout with the least noise: weights that fail here fail in every layout.
    const ParameterChoice& choice = serving_.parameters.choice();
    const View<const double> w{weight_.data(), weight_.size()}, b{bias_.data(), bias_.size()};
    scaling_.emplace(1, scale_blocks(choice, serving_.ring, weight_norms(choice, w, b, serving_.features, 1),
                                     serving_.features, 1, w));
}

const Scaling& BlockLayerWeights::scaling(std::size_t per_product) const {
    if (scaling_->first != per_product) {
        const ParameterChoice& choice = serving_.parameters.choice();
        const View<const double> w{weight_.data(), weight_.size()}, b{bias_.data(), bias_.size()};
        scaling_.emplace(per_product,
                         scale_blocks(choice, serving_.ring, weight_norms(choice, w, b, serving_.features, per_product),
                                      serving_.features, per_product, w, &scaling_->second));
    }
    return scaling_->second;
}

std::shared_ptr<const BlockWeights> BlockLayerWeights::encoded(const BatchShape& shape) const {
    constexpr std::size_t kMaxLayouts = 4;
    const BlockLayout layout = block_layout(serving_.ring, serving_.features, serving_.outputs, shape);
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& [known, weights] : encoded_) {
        if (known.group_size == shape.group_size && known.width == shape.width) {
            return weights;
        }
    }
    encoded_.emplace_back(
        shape, std::make_shared<const BlockWeights>(
                   serving_.ring, serving_.powers, layout, scaling(layout.per_product()),
                   View<const double>{weight_.data(), weight_.size()}, View<const double>{bias_.data(), bias_.size()}));
    // Layouts are the client's choice: all that are kept together take no more than one may.
    std::size_t bytes = 0;
    for (const auto& [known, weights] : encoded_) {
        bytes += weights->bytes();
    }
    while (encoded_.size() > 1 && (encoded_.size() > kMaxLayouts || bytes > kMaxKeptBytes)) {
        bytes -= encoded_.front().second->bytes();
        encoded_.erase(encoded_.begin());
    }
    return encoded_.back().second;
}

int BlockLayerWeights::reply_bits(const BatchShape& shape) const {
    const BlockLayout layout = block_layout(serving_.ring, serving_.features, serving_.outputs, shape);
    const std::lock_guard<std::mutex> lock(mutex_);
    return scaling(layout.per_product()).reply_bits;
}

bool BlockLayerWeights::worth_keeping(const BatchShape& shape) const {
    constexpr std::size_t kMaxResidues = std::size_t{1} << 20;
    const BlockLayout layout = block_layout(serving_.ring, serving_.features, serving_.outputs, shape);
    return shape.groups() * (layout.inputs() + layout.products()) * serving_.ring.size() <= kMaxResidues;
}

std::shared_ptr<ReplyC1> BlockLayerWeights::reply_c1(const BatchShape& shape, const Seed& seed,
                                                     const std::shared_ptr<const PublicKey>& public_key,
                                                     bool keep_inputs) const {
    const Ring& ring = serving_.ring;
    auto made = std::make_shared<ReplyC1>();
    made->seed = seed;
    made->shape = shape;
    made->owner = shared_from_this();
    made->weights = encoded(shape);
    made->public_key = public_key;
    made->process = process_id();
    const BlockWeights& weights = *made->weights;
    const int bits = weights.scaling().reply_bits;
    const std::size_t products = weights.layout().products(), inputs = weights.layout().inputs();
    const std::size_t at_once = weights.products_at_once();
    made->inputs.resize(shape.groups());
    made->products.resize(shape.groups() * products);
    made->hiding.resize(public_key ? made->products.size() : 0);
    for (std::size_t group = 0; group < shape.groups(); ++group) {
        Buffer<std::uint64_t>& c1 = made->inputs[group];
        c1.resize(inputs * ring.size());
        parallel_for(inputs, [&](std::size_t j) {
            expand_uniform(ring, seed, static_cast<std::uint32_t>(group * inputs + j), c1.data() + j * ring.size());
        });
        const Buffer<std::uint64_t> prepared = weights.prepare_c1(c1);
        parallel_for((products + at_once - 1) / at_once, [&](std::size_t task) {
            const std::size_t first = task * at_once, count = std::min(at_once, products - first);
            Buffer<std::uint64_t> polys(count * ring.size());
            weights.products(prepared.empty() ? c1 : prepared, first, count, polys.data());
            for (std::size_t i = 0; i < count; ++i) {
                const std::size_t index = group * products + first + i;
                if (public_key) {
                    const std::vector<std::uint32_t> sent =
                        output_positions(weights.layout(), first + i, shape.samples_of(group));
                    made->hiding[index] = hide_product(*public_key, {sent.data(), sent.size()},
                                                       weights.padded_outputs(), weights.scaling().flood_bits,
                                                       weights.scaling().spread_bits, polys.data() + i * ring.size());
                }
                Buffer<std::uint8_t>& packed = made->products[index];
                packed.resize(packed_bytes(ring.degree(), bits));
                pack_switched(ring, polys.data() + i * ring.size(), bits, packed.data());
            }
        });
        if (!keep_inputs) {
            Buffer<std::uint64_t>().swap(c1);
        }
    }
    return made;
}

std::string BlockLayerWeights::forward(const ForwardRequest& request, std::vector<GroupInputs>* kept,
                                       LogitMasks* masks) const {
    const Ring& ring = serving_.ring;
    const BatchShape& shape = request.head.shape;
    std::shared_ptr<ReplyC1> c1 = serving_.next.take(request, this);
    if (!c1) {
        c1 = reply_c1(shape, request.head.seed, request.public_key, kept != nullptr);
    }
    const BlockLayout& layout = c1->weights->layout();
    const Scaling& scaling = c1->weights->scaling();
    CiphertextRuns runs(ring.degree(), scaling.reply_bits);
    std::vector<std::size_t> counts;
    for (std::size_t group = 0; group < shape.groups(); ++group) {
        for (std::size_t p = 0; p < layout.products(); ++p) {
            counts.push_back(layout.outputs_of(p) * shape.samples_of(group));
            runs.add(counts.back());
        }
    }
    if (masks) {
        *masks = uniform_masks(counts, scaling.reply_bits);
    }
    WireWriter writer = begin_reply(request.header, masks ? MessageType::share : MessageType::reply,
                                    {shape, scaling.reply_bits, scaling.reply_scale}, runs.bytes());
    std::uint8_t* out = writer.reserve(runs.bytes());
    const std::size_t inputs = layout.inputs();
    for (std::size_t group = 0; group < shape.groups(); ++group) {
        Buffer<std::uint64_t> c0(inputs * ring.size());
        parallel_for(inputs, [&](std::size_t j) {
            const std::uint8_t* in = request.ciphertexts.data + (group * inputs + j) * serving_.codec.bytes();
            serving_.codec.unpack(in, c0.data() + j * ring.size());
        });
        if (kept) {
            Buffer<std::uint64_t> in_ntt = c0;
            parallel_for(inputs, [&](std::size_t j) { ring.to_ntt(in_ntt.data() + j * ring.size()); });
            kept->push_back({std::move(in_ntt), std::move(c1->inputs[group])});
        }
        reply_to_group(request, group, *c1, std::move(c0), runs, masks, out);
    }
    return writer.finish();
}

void BlockLayerWeights::reply_to_group(const ForwardRequest& request, std::size_t group, const ReplyC1& c1,
                                       Buffer<std::uint64_t> c0, const CiphertextRuns& runs, const LogitMasks* masks,
                                       std::uint8_t* out) const {
    const Ring& ring = serving_.ring;
    const BlockWeights& weights = *c1.weights;
    const int bits = weights.scaling().reply_bits;
    const std::size_t products = weights.layout().products(), samples = request.head.shape.samples_of(group);
    const std::size_t at_once = weights.products_at_once(), padded = weights.padded_outputs();
    const Buffer<std::uint64_t> prepared = weights.prepare_c0(std::move(c0));
    parallel_for((products + at_once - 1) / at_once, [&](std::size_t task) {
        const std::size_t first = task * at_once, count = std::min(at_once, products - first);
        Buffer<std::uint64_t> outputs(count * ring.prime_count() * padded, 0), switched(padded);
        weights.outputs(prepared, first, count, samples, outputs.data());
        for (std::size_t i = 0; i < count; ++i) {
            const std::size_t index = group * products + first + i;
            const std::size_t used = weights.layout().outputs_of(first + i) * samples;
            std::uint8_t* to = out + runs.offset(index);
            if (!c1.hiding.empty()) {
                add_residues(ring, c1.hiding[index].data(), padded, outputs.data() + i * ring.prime_count() * padded);
            }
            ring.switch_to_bits(outputs.data() + i * ring.prime_count() * padded, padded, bits, switched.data());
            if (masks) {
                add_mask((*masks)[index], bits, switched.data());
            }
            pack_bits({switched.data(), used}, bits, to);
            std::copy(c1.products[index].begin(), c1.products[index].end(), to + packed_bytes(used, bits));
        }
    });
}

}  // namespace hesplit
