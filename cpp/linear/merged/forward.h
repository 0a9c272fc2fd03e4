// Replies on merged blocks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "linear/merged/merging.h"
#include "linear/precision.h"
#include "linear/server_packing.h"
#include "packing/merged.h"
#include "rlwe/parameters.h"
#include "wire/codec.h"

namespace hesplit {

// Encoded weights above this are made anew for every group of a request instead of kept.
inline constexpr std::size_t kMaxMergedBytes = std::size_t{1} << 30;

// Weights and bias encoded for one layout. Immutable.
class MergedWeights {
  public:
    // `weight` and `bias` must outlive this object.
    MergedWeights(const Scaling& scaling, const Merging& merging, const MergedLayout& layout, View<const double> weight,
                  View<const double> bias);

    const MergedLayout& layout() const { return layout_; }

    // Reply r from a group's inputs (Merging::rotate).
    MergedCiphertext reply(const std::vector<GroupInputs>& rotated, std::size_t r,
                           const std::vector<GaloisKey>& keys) const;
    // Adds the bias to c0 of reply r, in coefficient form.
    void add_bias(std::size_t r, std::size_t samples, std::uint64_t* c0) const;

  private:
    // Of reply r, in NTT form: [2^levels_of(r), inputs, ring size].
    Buffer<std::uint64_t> encode(std::size_t r) const;

    Scaling scaling_;
    const Merging& merging_;
    MergedLayout layout_;
    View<const double> weight_;
    View<const double> bias_;
    std::vector<Buffer<std::uint64_t>> encoded_;  // by reply; empty when not kept
};

class MergedLayerWeights final : public LayerWeights {
  public:
    // All but the weights are the server's, and outlive this object. Throws RangeError when the parameters cannot hold
    // these weights.
    MergedLayerWeights(const ParameterChoice& choice, const Merging& merging, const PolynomialCodec& codec,
                       std::size_t features, std::vector<double> weight, std::vector<double> bias);

    int reply_bits(const BatchShape&) const override { return scaling_.reply_bits; }
    std::string forward(const ForwardRequest& request, std::vector<GroupInputs>* kept,
                        LogitMasks* masks) const override;
    void work_ahead() const override {}

  private:
    std::shared_ptr<const MergedWeights> encoded(const BatchShape& shape) const;

    Scaling scaling_;
    const Merging& merging_;
    const PolynomialCodec& codec_;
    std::size_t features_;
    std::vector<double> weight_;
    std::vector<double> bias_;

    mutable std::mutex mutex_;
    mutable std::shared_ptr<const MergedWeights> encoded_;  // in the layout of the last request
};

}  // namespace hesplit
