// Parts of the core that Python does not otherwise reach: sampling, the ring, the embedding, kernels, the wire format.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <seal/ckks.h>
#include <seal/context.h>
#include <seal/util/ntt.h>

#include <algorithm>
#include <array>
#include <optional>

#include "base/parallel.h"
#include "bindings/bindings.h"
#include "bindings/testing/testing.h"
#include "ckks/embedding.h"
#include "ckks/precise_embedding.h"
#include "kernels/kernels.h"
#include "linear/frozen/matrix.h"
#include "linear/private_replies.h"
#include "privacy/noise.h"
#include "ring/prng.h"
#include "ring/ring.h"
#include "wire/format.h"

namespace py = pybind11;

namespace hesplit {

namespace {

using Residues = py::array_t<std::uint64_t, py::array::c_style>;

py::bytes chacha20(const std::string& key, const std::array<std::uint32_t, 3>& nonce, std::uint32_t counter,
                   std::size_t blocks) {
    if (key.size() != 32) {
        throw ParameterError("a ChaCha20 key has 32 bytes");
    }
    ChaCha20 stream(reinterpret_cast<const std::uint8_t*>(key.data()), nonce, counter);
    std::string out(64 * blocks, '\0');
    stream.blocks(reinterpret_cast<std::uint8_t*>(out.data()), out.size());
    return {out};
}

Seed fixed_seed(std::uint8_t value) {
    Seed seed;
    seed.fill(value);
    return seed;
}

Residues uniform(std::uint8_t seed, std::uint64_t modulus, std::size_t count) {
    const Seed bytes = fixed_seed(seed);
    ChaCha20 stream(bytes.data(), Domain::uniform, 0, 0);
    Residues out(static_cast<py::ssize_t>(count));
    sample_uniform(stream, modulus, out.mutable_data(), count);
    return out;
}

template <void (*Sample)(ChaCha20&, std::int8_t*, std::size_t), Domain domain>
py::array_t<std::int8_t> small(std::uint8_t seed, std::size_t count) {
    const Seed bytes = fixed_seed(seed);
    ChaCha20 stream(bytes.data(), domain, 0, 0);
    py::array_t<std::int8_t> out(static_cast<py::ssize_t>(count));
    Sample(stream, out.mutable_data(), count);
    return out;
}

py::array_t<std::int64_t> gaussian(std::uint8_t seed, double deviation, std::size_t count) {
    const Seed bytes = fixed_seed(seed);
    ChaCha20 stream(bytes.data(), Domain::flood, 0, 0);
    py::array_t<std::int64_t> out(static_cast<py::ssize_t>(count));
    sample_gaussian(stream, deviation, out.mutable_data(), count);
    return out;
}

template <void (*Sample)(ChaCha20&, std::uint64_t, std::int64_t*, std::size_t)>
py::array_t<std::int64_t> discrete(std::uint8_t seed, std::uint64_t scale, std::size_t count) {
    const Seed bytes = fixed_seed(seed);
    ChaCha20 stream(bytes.data(), Domain::privacy, 0, 0);
    py::array_t<std::int64_t> out(static_cast<py::ssize_t>(count));
    Sample(stream, scale, out.mutable_data(), count);
    return out;
}

// Rows in steps of 1 within a bound.
py::array_t<std::int64_t> steps_of(const Matrix<float>& rows, bool gaussian, std::uint64_t bound) {
    const GridNoise noise{gaussian ? Mechanism::gaussian : Mechanism::laplace, 1, bound, 1};
    const auto columns = static_cast<std::size_t>(rows.shape(1));
    py::array_t<std::int64_t> out({rows.shape(0), rows.shape(1)});
    for (py::ssize_t i = 0; i < rows.shape(0); ++i) {
        to_steps({rows.data(i, 0), columns}, noise, out.mutable_data(i, 0));
    }
    return out;
}

// a * b in the ring, [rows, degree] coefficients each.
Residues multiply(const std::vector<std::uint64_t>& primes, const Residues& a, const Residues& b) {
    const Ring ring(static_cast<std::size_t>(a.shape(1)), primes);
    Buffer<std::uint64_t> x(a.data(), a.data() + ring.size()), y(b.data(), b.data() + ring.size());
    ring.to_ntt(x.data());
    ring.to_ntt(y.data());
    ring.multiply(x.data(), y.data(), x.data());
    ring.to_coefficients(x.data());
    Residues out({a.shape(0), a.shape(1)});
    std::copy(x.begin(), x.end(), out.mutable_data());
    return out;
}

Residues switch_to_bits(const std::vector<std::uint64_t>& primes, const Residues& a, int bits) {
    const Ring ring(static_cast<std::size_t>(a.shape(1)), primes);
    Residues out(a.shape(1));
    ring.switch_to_bits(a.data(), bits, out.mutable_data());
    return out;
}

// What private replies add to c0 at `positions`, and to c1 of a product: [primes, coefficients] both.
py::tuple hide(const py::buffer& object, const std::vector<std::uint32_t>& positions, int flood_bits,
               const Residues& product, int spread_bits) {
    const Bytes bytes(object);
    const std::shared_ptr<const PublicKey> key = PublicKey::parse(bytes.view());
    const std::size_t primes = key->ring().prime_count(), count = positions.size(), padded = (count + 15) / 16 * 16;
    Residues c1({product.shape(0), product.shape(1)}), c0({primes, count});
    std::copy_n(product.data(), product.size(), c1.mutable_data());
    const SecretBuffer<std::uint64_t> part =
        hide_product(*key, {positions.data(), count}, padded, flood_bits, spread_bits, c1.mutable_data());
    for (std::size_t row = 0; row < primes; ++row) {
        std::copy_n(part.data() + row * padded, count, c0.mutable_data() + row * count);
    }
    return py::make_tuple(c0, c1);
}

py::array_t<double> embed(const py::array_t<double, py::array::c_style>& slots) {
    py::array_t<double> out(2 * slots.size());
    Embedding(static_cast<std::size_t>(out.size())).to_coefficients(slots.data(), out.mutable_data());
    return out;
}

py::array_t<double> slots_of(const py::array_t<double, py::array::c_style>& coefficients) {
    py::array_t<double> out(coefficients.size() / 2);
    Embedding(static_cast<std::size_t>(coefficients.size())).to_slots(coefficients.data(), out.mutable_data());
    return out;
}

// round(scale * m) for the first `count` coefficients, [primes, count].
Residues precise_embed(const py::array_t<double, py::array::c_style>& slots, double bound, double scale,
                       const std::vector<std::uint64_t>& primes, std::size_t count) {
    const Ring ring(1024, primes);
    Residues out({primes.size(), count});
    PreciseEmbedding(static_cast<std::size_t>(2 * slots.size()))
        .encode(slots.data(), bound, scale, ring, count, out.mutable_data());
    return out;
}

// What SEAL's encoder reads from these coefficients, below 2^50 in size.
std::vector<double> seal_slots_of(const py::array_t<std::int64_t, py::array::c_style>& coefficients) {
    const auto n = static_cast<std::size_t>(coefficients.size());
    seal::EncryptionParameters parameters(seal::scheme_type::ckks);
    parameters.set_poly_modulus_degree(n);
    parameters.set_coeff_modulus(seal::CoeffModulus::Create(n, {60}));
    const seal::SEALContext context(parameters, true, seal::sec_level_type::none);
    const auto data = context.first_context_data();
    const std::uint64_t prime = data->parms().coeff_modulus()[0].value();
    seal::Plaintext plain(n);
    for (std::size_t i = 0; i < n; ++i) {
        const std::int64_t value = coefficients.data()[i];
        plain[i] = value < 0 ? prime - static_cast<std::uint64_t>(-value) : static_cast<std::uint64_t>(value);
    }
    seal::util::ntt_negacyclic_harvey(seal::util::CoeffIter(plain.data()), data->small_ntt_tables()[0]);
    plain.parms_id() = data->parms_id();
    plain.scale() = 1;
    std::vector<double> slots;
    seal::CKKSEncoder(context).decode(plain, slots);
    return slots;
}

// The kernels of one variant on arrays, for comparison with another's. Sizes are the caller's business.
class VariantKernels {
  public:
    explicit VariantKernels(const std::string& name) : kernels_(kernels(name.c_str())) {}

    // Forward of polynomials with that support, where one is given.
    Residues transform(std::uint64_t prime, const Residues& a, bool inverse, std::size_t period,
                       std::size_t used) const {
        const Ring ring(static_cast<std::size_t>(a.size()), {prime}, kernels_);
        Residues out = copy(a);
        if (inverse) {
            ring.to_coefficients(out.mutable_data());
        } else if (period != 0) {
            ring.to_ntt_row(out.mutable_data(), 0, {period, used});
        } else {
            ring.to_ntt(out.mutable_data());
        }
        return out;
    }
    Residues multiply(std::uint64_t prime, const Residues& a, const Residues& b) const {
        Residues out(a.size());
        modulo(prime).multiply(Prime::make(prime), a.data(), b.data(), out.mutable_data(), size(a));
        return out;
    }
    Residues dot(std::uint64_t prime, const Residues& a, const Residues& b) const {
        Residues out(a.shape(1));
        const auto left = rows(a), right = rows(b);
        modulo(prime).dot(Prime::make(prime), {left.data(), 0}, {right.data(), 0}, left.size(), out.mutable_data(),
                          size(out));
        return out;
    }
    std::uint64_t inner(std::uint64_t prime, const Residues& a, const Residues& b) const {
        const auto left = rows(a), right = rows(b);
        return modulo(prime).inner(Prime::make(prime), left.data(), right.data(), left.size(),
                                   static_cast<std::size_t>(a.shape(1)));
    }
    Residues dot_short(std::uint64_t prime, const py::array_t<std::uint32_t, py::array::c_style>& a,
                       const Residues& b) const {
        Residues out(a.shape(1));
        kernels_.dot_short(Prime::make(prime), a.data(), b.data(), static_cast<std::size_t>(a.shape(0)),
                           out.mutable_data(), size(out));
        return out;
    }
    // [primes, rows, outputs] of numbers [rows, terms] and integer weights [outputs, terms].
    Residues integer_product(const std::vector<std::uint64_t>& primes, const Residues& numbers,
                             const py::array_t<float, py::array::c_style>& weights) const {
        const Ring ring(1024, primes);
        const IntegerMatrix matrix({weights.data(), static_cast<std::size_t>(weights.size())},
                                   static_cast<std::size_t>(weights.shape(0)),
                                   static_cast<std::size_t>(weights.shape(1)), kernels_);
        Residues out({static_cast<py::ssize_t>(primes.size()), numbers.shape(0), weights.shape(0)});
        matrix.multiply(ring, numbers.data(), static_cast<std::size_t>(numbers.shape(0)), out.mutable_data());
        return out;
    }
    Residues combine(std::uint64_t prime, const Residues& a, const Residues& scalars) const {
        Residues out({scalars.shape(0), a.shape(1)});
        const auto in = rows(a);
        std::vector<std::uint64_t*> to;
        for (py::ssize_t o = 0; o < out.shape(0); ++o) {
            to.push_back(out.mutable_data(o));
        }
        modulo(prime).combine(Prime::make(prime), {in.data(), 0}, in.size(), scalars.data(), to.size(), to.data(),
                              static_cast<std::size_t>(a.shape(1)));
        return out;
    }
    Residues add(std::uint64_t prime, const Residues& a, const Residues& b) const {
        Residues out = copy(a);
        modulo(prime).add(prime, out.mutable_data(), b.data(), size(a));
        return out;
    }
    Residues subtract_from(std::uint64_t prime, const Residues& a, const Residues& b) const {
        Residues out = copy(a);
        modulo(prime).subtract_from(prime, out.mutable_data(), b.data(), size(a));
        return out;
    }
    Residues negate(std::uint64_t prime, const Residues& a) const {
        Residues out(a.size());
        modulo(prime).negate(prime, a.data(), out.mutable_data(), size(a));
        return out;
    }
    Residues add_small(std::uint64_t prime, const Residues& a, const py::array_t<std::int8_t>& small_values) const {
        Residues out = copy(a);
        modulo(prime).add_small(prime, out.mutable_data(), small_values.data(), size(a));
        return out;
    }
    Residues lift(std::uint64_t prime, const py::array_t<std::int64_t>& values) const {
        Residues out(values.size());
        modulo(prime).lift(Prime::make(prime), values.data(), out.mutable_data(), size(out));
        return out;
    }
    Residues add_fraction(std::uint64_t prime, std::uint64_t factor, const Residues& a,
                          const std::optional<Residues>& before, std::uint64_t added, int shift) const {
        Residues out(a.size());
        modulo(prime).add_fraction(Prime::make(prime), factor, a.data(), before ? before->data() : nullptr, added,
                                   shift, out.mutable_data(), size(a));
        return out;
    }
    Residues ternary_dot(const py::array_t<std::int8_t>& secret, const Residues& windows) const {
        std::vector<std::uint64_t> sign, nonzero;
        for (py::ssize_t i = 0; i < secret.size(); ++i) {
            sign.push_back(secret.data()[i] < 0 ? ~std::uint64_t{0} : 0);
            nonzero.push_back(secret.data()[i] != 0 ? ~std::uint64_t{0} : 0);
        }
        const auto in = rows(windows);
        Residues out(windows.shape(0));
        kernels_.ternary_dot(sign.data(), nonzero.data(), in.data(), in.size(), out.mutable_data(), sign.size());
        return out;
    }
    py::bytes chacha20(const std::array<std::uint32_t, 16>& state, std::size_t blocks) const {
        std::string out(64 * blocks, '\0');
        kernels_.chacha20(state.data(), reinterpret_cast<std::uint8_t*>(out.data()), blocks);
        return {out};
    }
    py::array_t<std::int8_t> noise(const std::string& coins) const {
        py::array_t<std::int8_t> out(static_cast<py::ssize_t>(coins.size() / 6));
        kernels_.noise(reinterpret_cast<const std::uint8_t*>(coins.data()), out.mutable_data(), coins.size() / 6);
        return out;
    }
    Residues accept(const std::string& words, bool narrow, std::uint64_t mask, std::uint64_t q) const {
        const std::size_t n = words.size() / (narrow ? 4 : 8);
        std::vector<std::uint64_t> out(n);
        out.resize(
            kernels_.accept(reinterpret_cast<const std::uint8_t*>(words.data()), narrow, mask, q, out.data(), n));
        return Residues(static_cast<py::ssize_t>(out.size()), out.data());
    }
    py::bytes pack(const Residues& values, int bits) const {
        std::string out(size(values) * static_cast<std::size_t>(bits) / 8, '\0');
        kernels_.pack(values.data(), bits, reinterpret_cast<std::uint8_t*>(out.data()), size(values));
        return {out};
    }
    std::pair<Residues, std::uint64_t> unpack(const std::string& bytes, int bits, std::size_t n) const {
        Residues out(static_cast<py::ssize_t>(n));
        const std::uint64_t largest =
            kernels_.unpack(reinterpret_cast<const std::uint8_t*>(bytes.data()), bits, out.mutable_data(), n);
        return {out, largest};
    }

  private:
    ModularKernels modulo(std::uint64_t prime) const { return kernels_.modulo(Prime::make(prime).bits); }
    static std::size_t size(const Residues& a) { return static_cast<std::size_t>(a.size()); }
    static Residues copy(const Residues& a) { return Residues(a.size(), a.data()); }
    static std::vector<const std::uint64_t*> rows(const Residues& a) {
        std::vector<const std::uint64_t*> list;
        for (py::ssize_t row = 0; row < a.shape(0); ++row) {
            list.push_back(a.data(row));
        }
        return list;
    }

    const Kernels& kernels_;
};

py::bytes pack(const Residues& values, int bits) {
    std::string out(packed_bytes(static_cast<std::size_t>(values.size()), bits), '\0');
    pack_bits({values.data(), static_cast<std::size_t>(values.size())}, bits,
              reinterpret_cast<std::uint8_t*>(out.data()));
    return {out};
}

Residues unpack(const std::string& bytes, std::size_t count, int bits, std::uint64_t limit) {
    if (bytes.size() != packed_bytes(count, bits)) {
        throw WireError("wrong length");
    }
    Residues out(static_cast<py::ssize_t>(count));
    unpack_bits(reinterpret_cast<const std::uint8_t*>(bytes.data()), {out.mutable_data(), count}, bits, limit);
    return out;
}

// Recomputes the checksum of a message, so that tests reach the checks behind it.
py::bytes reseal(const std::string& message) {
    if (message.size() < kHeaderBytes + kFooterBytes) {
        throw WireError("too short");
    }
    std::string bytes = message;
    seal_message({reinterpret_cast<std::uint8_t*>(bytes.data()), bytes.size()});
    return {bytes};
}

// How often each index was visited by a loop of so many threads.
std::vector<std::size_t> loop(std::size_t count, std::size_t fail_at, std::size_t threads) {
    set_num_threads(threads);
    std::vector<std::size_t> hits(count, 0);
    py::gil_scoped_release release;
    parallel_for(count, [&](std::size_t i) {
        if (i == fail_at) {
            throw RangeError("planned");
        }
        ++hits[i];
    });
    return hits;
}

}  // namespace

void register_testing(py::module_& module) {
    module.def("chacha20", &chacha20, py::arg("key"), py::arg("nonce"), py::arg("counter"), py::arg("blocks"));
    module.def("uniform", &uniform, py::arg("seed"), py::arg("modulus"), py::arg("count"));
    module.def("noise", &small<sample_noise, Domain::noise>, py::arg("seed"), py::arg("count"));
    module.def("ternary", &small<sample_ternary, Domain::secret>, py::arg("seed"), py::arg("count"));
    module.def("gaussian", &gaussian, py::arg("seed"), py::arg("deviation"), py::arg("count"));
    module.def("discrete_gaussian", &discrete<sample_discrete_gaussian>, py::arg("seed"), py::arg("deviation"),
               py::arg("count"));
    module.def("discrete_laplace", &discrete<sample_discrete_laplace>, py::arg("seed"), py::arg("scale"),
               py::arg("count"));
    module.def("steps_of", &steps_of, py::arg("rows").noconvert(), py::arg("gaussian"), py::arg("bound"));
    module.def("multiply", &multiply, py::arg("primes"), py::arg("a"), py::arg("b"));
    module.def("hide_product", &hide, py::arg("public_key"), py::arg("positions"), py::arg("flood_bits"), py::arg("c1"),
               py::arg("spread_bits") = 0);
    module.def("switch_to_bits", &switch_to_bits, py::arg("primes"), py::arg("a"), py::arg("bits"));
    module.def("embed", &embed, py::arg("slots"));
    module.def("precise_embed", &precise_embed, py::arg("slots"), py::arg("bound"), py::arg("scale"), py::arg("primes"),
               py::arg("count"));
    module.def("slots_of", &slots_of, py::arg("coefficients"));
    module.def("seal_slots_of", &seal_slots_of, py::arg("coefficients"));
    module.def("pack_bits", &pack, py::arg("values"), py::arg("bits"));
    module.def("unpack_bits", &unpack, py::arg("data"), py::arg("count"), py::arg("bits"), py::arg("limit"));
    py::class_<VariantKernels>(module, "Kernels")
        .def(py::init<const std::string&>(), py::arg("name"))
        .def("transform", &VariantKernels::transform, py::arg("prime"), py::arg("a"), py::arg("inverse"),
             py::arg("period") = 0, py::arg("used") = 0)
        .def("multiply", &VariantKernels::multiply, py::arg("prime"), py::arg("a"), py::arg("b"))
        .def("dot", &VariantKernels::dot, py::arg("prime"), py::arg("a"), py::arg("b"))
        .def("inner", &VariantKernels::inner, py::arg("prime"), py::arg("a"), py::arg("b"))
        .def("dot_short", &VariantKernels::dot_short, py::arg("prime"), py::arg("a"), py::arg("b"))
        .def("integer_product", &VariantKernels::integer_product, py::arg("primes"), py::arg("numbers"),
             py::arg("weights"))
        .def("combine", &VariantKernels::combine, py::arg("prime"), py::arg("a"), py::arg("scalars"))
        .def("add", &VariantKernels::add, py::arg("prime"), py::arg("a"), py::arg("b"))
        .def("subtract_from", &VariantKernels::subtract_from, py::arg("prime"), py::arg("a"), py::arg("b"))
        .def("negate", &VariantKernels::negate, py::arg("prime"), py::arg("a"))
        .def("add_small", &VariantKernels::add_small, py::arg("prime"), py::arg("a"), py::arg("small"))
        .def("lift", &VariantKernels::lift, py::arg("prime"), py::arg("values"))
        .def("add_fraction", &VariantKernels::add_fraction, py::arg("prime"), py::arg("factor"), py::arg("a"),
             py::arg("before"), py::arg("added"), py::arg("shift"))
        .def("ternary_dot", &VariantKernels::ternary_dot, py::arg("secret"), py::arg("windows"))
        .def("chacha20", &VariantKernels::chacha20, py::arg("state"), py::arg("blocks"))
        .def("noise", &VariantKernels::noise, py::arg("coins"))
        .def("accept", &VariantKernels::accept, py::arg("words"), py::arg("narrow"), py::arg("mask"), py::arg("q"))
        .def("pack", &VariantKernels::pack, py::arg("values"), py::arg("bits"))
        .def("unpack", &VariantKernels::unpack, py::arg("data"), py::arg("bits"), py::arg("count"));
    module.def("reseal", &reseal, py::arg("message"));
    module.def("parallel_for", &loop, py::arg("count"), py::arg("fail_at"), py::arg("threads"));
}

}  // namespace hesplit
