#include "linear/messages.h"

#include <algorithm>

namespace hesplit {

void write_shape(WireWriter& writer, const BatchShape& shape) {
    writer.u32(shape.samples);
    writer.u32(shape.rows);
    writer.u32(shape.width);
}

BatchShape read_shape(WireReader& reader) {
    BatchShape shape;
    shape.samples = reader.u32();
    shape.rows = reader.u32();
    shape.width = reader.u32();
    return shape;
}

std::vector<GradientRun> weight_gradient_runs(const BlockLayout& layout) {
    std::vector<GradientRun> runs;
    for (std::size_t p = 0; p < layout.products(); ++p) {
        for (std::size_t j = 0; j < layout.inputs(); ++j) {
            runs.push_back({p, j, layout.outputs_of(p) * layout.features_of(j)});
        }
    }
    return runs;
}

std::vector<GradientRun> weight_gradient_runs(const SlotLayout& layout, std::size_t degree) {
    std::vector<GradientRun> runs;
    for (std::size_t p = 0; p < gradient_products(layout); ++p) {
        for (std::size_t j = 0; j < layout.inputs(); ++j) {
            runs.push_back({p, j, degree});
        }
    }
    return runs;
}

RequestCodec::RequestCodec(const Ring& ring, int dropped) : ring_(ring), dropped_(dropped) {
    const std::uint64_t half = (std::uint64_t{1} << dropped_) >> 1;
    for (std::size_t row = 0; row < ring_.prime_count(); ++row) {
        if (row == 0 || !ring_.composable()) {
            runs_.push_back({ring_.prime(row), 0, 0});
        } else {
            runs_[0].modulus *= ring_.prime(row);
        }
    }
    for (Run& run : runs_) {
        run.limit = ((run.modulus - 1 + half) >> dropped_) + 1;
        for (std::uint64_t largest = run.limit - 1; largest != 0; largest >>= 1) {
            ++run.bits;
        }
        bytes_ += packed_bytes(ring_.degree(), run.bits);
    }
}

double RequestCodec::bits_per_coefficient() const {
    return 8.0 * static_cast<double>(bytes_) / static_cast<double>(ring_.degree());
}

void RequestCodec::pack(const std::uint64_t* c0, std::uint8_t* out, Buffer<std::uint64_t>& scratch) const {
    const std::size_t n = ring_.degree();
    const std::uint64_t half = (std::uint64_t{1} << dropped_) >> 1;
    scratch.resize(n);
    for (std::size_t r = 0; r < runs_.size(); ++r) {
        if (ring_.composable()) {
            ring_.compose(c0, scratch.data());
        } else {
            std::copy_n(c0 + r * n, n, scratch.data());
        }
        for (std::size_t i = 0; dropped_ != 0 && i < n; ++i) {
            // Half-way cases go to the even side: a bias of 1/2, always upwards, would add up in sealed weights.
            const std::uint64_t odd = (scratch[i] >> dropped_) & 1;
            scratch[i] = (scratch[i] + half - 1 + odd) >> dropped_;
        }
        pack_bits({scratch.data(), n}, runs_[r].bits, out);
        out += packed_bytes(n, runs_[r].bits);
    }
}

void RequestCodec::unpack(const std::uint8_t* in, std::uint64_t* c0) const {
    const std::size_t n = ring_.degree();
    for (std::size_t r = 0; r < runs_.size(); ++r) {
        const Run& run = runs_[r];
        std::uint64_t* out = c0 + r * n;
        unpack_bits(in, {out, n}, run.bits, run.limit);
        in += packed_bytes(n, run.bits);
        for (std::size_t i = 0; dropped_ != 0 && i < n; ++i) {
            const std::uint64_t value = out[i] << dropped_;
            out[i] = std::min(value, value - run.modulus);  // rounding up may have reached the modulus
        }
    }
    if (ring_.composable()) {
        ring_.decompose(c0, c0);
    }
}

}  // namespace hesplit
