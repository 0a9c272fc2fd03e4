// Doors for the tests into rooms that Python does not otherwise enter. Not part of the API.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>

#include "bindings/bindings.h"
#include "core/parallel.h"
#include "core/prng.h"
#include "core/ring.h"
#include "core/wire.h"
#include "linear/client.h"

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

std::vector<std::size_t> loop(std::size_t count, std::size_t fail_at) {
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

void register_testing(py::module_& parent) {
    py::module_ module = parent.def_submodule("testing", "Doors for the tests; not part of the API.");
    module.def("chacha20", &chacha20, py::arg("key"), py::arg("nonce"), py::arg("counter"), py::arg("blocks"));
    module.def("uniform", &uniform, py::arg("seed"), py::arg("modulus"), py::arg("count"));
    module.def("noise", &small<sample_noise, Domain::noise>, py::arg("seed"), py::arg("count"));
    module.def("ternary", &small<sample_ternary, Domain::secret>, py::arg("seed"), py::arg("count"));
    module.def("gaussian", &gaussian, py::arg("seed"), py::arg("deviation"), py::arg("count"));
    module.def("multiply", &multiply, py::arg("primes"), py::arg("a"), py::arg("b"));
    module.def("switch_to_bits", &switch_to_bits, py::arg("primes"), py::arg("a"), py::arg("bits"));
    module.def("pack_bits", &pack, py::arg("values"), py::arg("bits"));
    module.def("unpack_bits", &unpack, py::arg("data"), py::arg("count"), py::arg("bits"), py::arg("limit"));
    module.def("reseal", &reseal, py::arg("message"));
    module.def("parallel_for", &loop, py::arg("count"), py::arg("fail_at"));
}

}  // namespace hesplit
