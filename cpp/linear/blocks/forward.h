// Replies on coefficient blocks. c1 of a reply follows from the seed of its request alone; a client announces the seed
// of its next request, so that this half can be computed before the request has come.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "base/ahead.h"
#include "linear/blocks/weights.h"
#include "linear/server_packing.h"
#include "rlwe/public_key.h"
#include "wire/codec.h"

namespace hesplit {

class BlockLayerWeights;

// c1 of the inputs of a request, and of the products of its reply; with private weights also what hides them in c0.
struct ReplyC1 {
    Seed seed{};
    BatchShape shape;
    std::shared_ptr<const BlockLayerWeights> owner;  // whose weights those are
    std::shared_ptr<const BlockWeights> weights;
    std::shared_ptr<const PublicKey> public_key;  // that hides them
    long process = 0;                             // a forked child must not use what its parent hides with
    std::vector<Buffer<std::uint64_t>> inputs;    // by group, in NTT form
    std::vector<Buffer<std::uint8_t>> products;   // by group and product, packed
    // By group and product, [primes, padded_outputs()] residues, to be used once; empty unless weights are private.
    std::vector<SecretBuffer<std::uint64_t>> hiding;
};

// That of the next request. Safe to use from several threads.
class NextReplyC1 {
  public:
    // Begins to compute it with these weights for the seed that was announced last, if that pays.
    void start(const std::shared_ptr<const BlockLayerWeights>& weights);
    // What was computed if it is for this request and these weights, else null. Notes what the request announces.
    std::shared_ptr<ReplyC1> take(const ForwardRequest& request, const BlockLayerWeights* weights);

  private:
    // Guarded by mutex_; the job puts its result where next_ points to. ahead_ is last, so that a job ends before the
    // rest.
    std::mutex mutex_;
    Seed announced_{};  // for the next request, of that shape and key
    BatchShape shape_;
    std::shared_ptr<const PublicKey> public_key_;
    std::shared_ptr<std::shared_ptr<ReplyC1>> next_;
    Ahead ahead_;
};

// What the replies of one server have in common; outlives its weights.
struct BlockServing {
    const Parameters& parameters;
    const Ring& ring;
    const PolynomialCodec& codec;
    NextReplyC1& next;
    InversePowers& powers;
    std::size_t features;
    std::size_t outputs;
};

class BlockLayerWeights final : public LayerWeights, public std::enable_shared_from_this<BlockLayerWeights> {
  public:
    // Throws RangeError when the parameters cannot hold these weights in any layout.
    BlockLayerWeights(const BlockServing& serving, std::vector<double> weight, std::vector<double> bias);

    int reply_bits(const BatchShape& shape) const override;
    std::string forward(const ForwardRequest& request, std::vector<GroupInputs>* kept,
                        LogitMasks* masks) const override;
    void work_ahead() const override { serving_.next.start(shared_from_this()); }

    // Whether c1 of a reply is small enough to be kept between two requests.
    bool worth_keeping(const BatchShape& shape) const;
    // `public_key` hides the weights, null: they are not hidden; `keep_inputs`: with c1 of the inputs, in NTT form.
    std::shared_ptr<ReplyC1> reply_c1(const BatchShape& shape, const Seed& seed,
                                      const std::shared_ptr<const PublicKey>& public_key, bool keep_inputs) const;
    // The weights encoded for one layout.
    std::shared_ptr<const BlockWeights> encoded(const BatchShape& shape) const;

  private:
    // Call it with mutex_ held.
    const Scaling& scaling(std::size_t per_product) const;
    void reply_to_group(const ForwardRequest& request, std::size_t group, const ReplyC1& c1, Buffer<std::uint64_t> c0,
                        const CiphertextRuns& runs, const LogitMasks* masks, std::uint8_t* out) const;

    BlockServing serving_;
    std::vector<double> weight_;
    std::vector<double> bias_;

    mutable std::mutex mutex_;
    // A training loop uses one or two layouts. Oldest first.
    mutable std::vector<std::pair<BatchShape, std::shared_ptr<const BlockWeights>>> encoded_;
    // The last one asked for, with its outputs per product: a request's cost and the weights' encoding ask for the
    // same.
    mutable std::optional<std::pair<std::size_t, Scaling>> scaling_;
};

}  // namespace hesplit
