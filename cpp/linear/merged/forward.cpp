#include "linear/merged/forward.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/parallel.h"

namespace hesplit {

MergedWeights::MergedWeights(const Scaling& scaling, const Merging& merging, const MergedLayout& layout,
                             View<const double> weight, View<const double> bias)
    : scaling_(scaling), merging_(merging), layout_(layout), weight_(weight), bias_(bias) {
    const std::size_t bytes = merged_polynomials(layout_) * layout_.blocks.inputs() * merging.data().size() * 8;
    if (bytes <= kMaxMergedBytes) {
        encoded_.resize(layout_.replies());
        parallel_for(encoded_.size(), [&](std::size_t r) { encoded_[r] = encode(r); });
    }
}

Buffer<std::uint64_t> MergedWeights::encode(std::size_t r) const {
    const Ring& ring = merging_.data();
    const std::size_t n = ring.degree(), inputs = layout_.blocks.inputs(), own = layout_.levels_of(r);
    // The trace multiplies by 2^own, and logits come out 2^babies times as large (scale_merged).
    const auto babies = static_cast<std::size_t>(scaling_.babies);
    const std::size_t up = static_cast<std::size_t>(scaling_.weight_shift) + babies;
    std::vector<std::uint64_t> factors;
    for (std::size_t row = 0; row < ring.prime_count(); ++row) {
        factors.push_back(ring.product(ring.power(2, up, row), ring.power((ring.prime(row) + 1) / 2, own, row), row));
    }
    Buffer<std::uint64_t> encoded((std::size_t{1} << own) * inputs * ring.size());
    for (std::size_t j = 0; j < inputs; ++j) {
        const Buffer<std::int64_t> placed =
            place_merged_weights(layout_, weight_.data, r, j, scaling_.weight_scale, babies);
        parallel_for(std::size_t{1} << own, [&](std::size_t e) {
            std::uint64_t* poly = encoded.data() + (e * inputs + j) * ring.size();
            ring.lift(View<const std::int64_t>{placed.data() + e * n, n}, poly);
            for (std::size_t row = 0; row < ring.prime_count(); ++row) {
                ring.scale_row({poly + row * n, n}, factors[row], row);
            }
            ring.to_ntt(poly);
        });
    }
    return encoded;
}

MergedCiphertext MergedWeights::reply(const std::vector<GroupInputs>& rotated, std::size_t r,
                                      const std::vector<GaloisKey>& keys) const {
    const Ring& ring = merging_.data();
    const std::size_t count = layout_.blocks.inputs();
    const auto babies = static_cast<std::size_t>(scaling_.babies);
    const Buffer<std::uint64_t> made = encoded_.empty() ? encode(r) : Buffer<std::uint64_t>();
    const Buffer<std::uint64_t>& encoded = encoded_.empty() ? made : encoded_[r];
    // A reply of few products has fewer levels, or no rotations of inputs at all.
    const std::size_t giants = layout_.giants_of(r, babies), sets = std::size_t{1} << (layout_.levels_of(r) - giants);
    std::vector<const std::uint64_t*> c0, c1;
    for (std::size_t e = 0; e < sets; ++e) {
        for (std::size_t j = 0; j < count; ++j) {
            c0.push_back(rotated[e].c0.data() + j * ring.size());
            c1.push_back(rotated[e].c1.data() + j * ring.size());
        }
    }
    const auto product = [&](std::size_t e) {
        std::vector<const std::uint64_t*> weights;
        for (std::size_t baby = 0; baby < sets; ++baby) {
            for (std::size_t j = 0; j < count; ++j) {
                weights.push_back(encoded.data() + (((baby << giants) + e) * count + j) * ring.size());
            }
        }
        const View<const std::uint64_t* const> view{weights.data(), weights.size()};
        // A multiple of the special prime is 0 modulo it.
        MergedCiphertext sum{Buffer<std::uint64_t>(merging_.key().size()), Buffer<std::uint64_t>(ring.size())};
        ring.dot_both({c0.data(), c0.size()}, {c1.data(), c1.size()}, view, sum.c0.data(), sum.c1.data());
        std::fill(sum.c0.begin() + static_cast<std::ptrdiff_t>(ring.size()), sum.c0.end(), std::uint64_t{0});
        return sum;
    };
    return merging_.merge(layout_, r, babies, product, keys);
}

void MergedWeights::add_bias(std::size_t r, std::size_t samples, std::uint64_t* c0) const {
    const Ring& ring = merging_.data();
    if (bias_.size == 0) {
        return;
    }
    const std::vector<std::uint32_t> positions = merged_positions(layout_, r, samples);
    const std::size_t first = layout_.first_product(r) * layout_.blocks.per_product();
    for (std::size_t i = 0; i < positions.size(); ++i) {
        const double value = std::nearbyint(bias_[first + i / samples] * scaling_.product_scale);
        for (std::size_t row = 0; row < ring.prime_count(); ++row) {
            std::uint64_t& at = c0[row * ring.degree() + positions[i]];
            const std::uint64_t sum = at + ring.residue(value, row);
            at = std::min(sum, sum - ring.prime(row));  // sum < q: sum - q wraps around and is larger
        }
    }
}

MergedLayerWeights::MergedLayerWeights(const ParameterChoice& choice, const Merging& merging,
                                       const PolynomialCodec& codec, std::size_t features, std::vector<double> weight,
                                       std::vector<double> bias)
    : merging_(merging), codec_(codec), features_(features), weight_(std::move(weight)), bias_(std::move(bias)) {
    const View<const double> w{weight_.data(), weight_.size()}, b{bias_.data(), bias_.size()};
    scaling_ = scale_merged_fast(choice, merging.data(), merging.key(), weight_norms(choice, w, b, features, 1),
                                 features, weight_.size() / features, w);
}

std::shared_ptr<const MergedWeights> MergedLayerWeights::encoded(const BatchShape& shape) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!encoded_ || encoded_->layout().blocks.group_size != shape.group_size) {
        encoded_.reset();  // layouts are the client's choice: no two of them are kept
        encoded_ = std::make_shared<const MergedWeights>(
            scaling_, merging_,
            merged_layout(merging_.data().degree(), features_, weight_.size() / features_, shape.group_size),
            View<const double>{weight_.data(), weight_.size()}, View<const double>{bias_.data(), bias_.size()});
    }
    return encoded_;
}

std::string MergedLayerWeights::forward(const ForwardRequest& request, std::vector<GroupInputs>* kept,
                                        LogitMasks*) const {
    const Ring& ring = merging_.data();
    const BatchShape& shape = request.head.shape;
    const std::shared_ptr<const MergedWeights> weights = encoded(shape);
    const MergedLayout& layout = weights->layout();
    const std::size_t replies = layout.replies();
    CiphertextRuns runs(ring.degree(), scaling_.reply_bits);
    for (std::size_t group = 0; group < shape.groups(); ++group) {
        for (std::size_t r = 0; r < replies; ++r) {
            runs.add(layout.outputs_of(r) * shape.samples_of(group));
        }
    }
    WireWriter writer = begin_reply(request.header, MessageType::reply,
                                    {shape, scaling_.reply_bits, scaling_.reply_scale}, runs.bytes());
    std::uint8_t* out = writer.reserve(runs.bytes());
    for (std::size_t group = 0; group < shape.groups(); ++group) {
        GroupInputs inputs = read_group(ring, codec_, request, group, layout.blocks.inputs());
        if (kept) {
            kept->push_back(inputs);
        }
        const std::vector<GroupInputs> rotated = merging_.rotate(
            layout, std::move(inputs), static_cast<std::size_t>(scaling_.babies), *request.merging_keys);
        const std::size_t samples = shape.samples_of(group);
        // With few replies the threads work on one at a time (Merging::merge).
        const auto reply = [&](std::size_t r) {
            MergedCiphertext merged = weights->reply(rotated, r, *request.merging_keys);
            merging_.finish(merged);
            weights->add_bias(r, samples, merged.c0.data());
            const std::vector<std::uint32_t> positions = merged_positions(layout, r, samples);
            std::uint8_t* to = out + runs.offset(group * replies + r);
            to = pack_switched(ring, merged.c0.data(), {positions.data(), positions.size()}, scaling_.reply_bits, to);
            pack_switched(ring, merged.c1.data(), scaling_.reply_bits, to);
        };
        if (replies < num_threads()) {
            for (std::size_t r = 0; r < replies; ++r) {
                reply(r);
            }
        } else {
            parallel_for(replies, reply);
        }
    }
    return writer.finish();
}

}  // namespace hesplit
