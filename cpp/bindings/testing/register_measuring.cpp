// Times kernels in a native loop, for the benchmarks: what Python adds to a call of microseconds would drown them.
#include <pybind11/stl.h>
#include <seal/modulus.h>
#include <seal/util/ntt.h>

#include <chrono>
#include <cstring>
#include <functional>
#include <map>
#include <vector>

#include "bindings/testing/testing.h"
#include "ring/ring.h"

namespace py = pybind11;

namespace hesplit {

namespace {

// Seconds of one call: the best of `rounds` rounds of `calls` calls.
double best_of(std::size_t rounds, std::size_t calls, const std::function<void()>& call) {
    using Clock = std::chrono::steady_clock;
    double best = 1e9;
    for (std::size_t round = 0; round < rounds; ++round) {
        const Clock::time_point start = Clock::now();
        for (std::size_t i = 0; i < calls; ++i) {
            call();
        }
        const double seconds = std::chrono::duration<double>(Clock::now() - start).count() / static_cast<double>(calls);
        best = std::min(best, seconds);
    }
    return best;
}

// `variant` is one of ours, or "seal" for SEAL's transforms.
double measure(const std::string& variant, const std::string& kernel, std::size_t degree, int prime_bits,
               std::size_t rounds) {
    constexpr std::size_t kCalls = 10;
    constexpr int kPackedBits = 28;
    const seal::Modulus modulus = seal::CoeffModulus::Create(degree, {prime_bits}).front();
    Buffer<std::uint64_t> a(degree), b(degree);
    for (std::size_t i = 0; i < degree; ++i) {
        a[i] = b[i] = (0x9e3779b97f4a7c15ULL * (i + 1)) % modulus.value();
    }
    if (variant == "seal") {
        const int power = seal::util::get_power_of_two(degree);
        const seal::util::NTTTables tables(power, modulus, seal::MemoryPoolHandle::Global());
        const std::map<std::string, std::function<void()>> calls = {
            {"forward", [&] { seal::util::ntt_negacyclic_harvey(seal::util::CoeffIter(a.data()), tables); }},
            {"inverse", [&] { seal::util::inverse_ntt_negacyclic_harvey(seal::util::CoeffIter(a.data()), tables); }},
        };
        return best_of(rounds, kCalls, calls.at(kernel));
    }
    const Kernels& ours = kernels(variant.c_str());
    const Ring ring(degree, {modulus.value()}, ours);
    const Prime prime = Prime::make(modulus.value());
    Buffer<std::int64_t> integers(degree, -12345);
    Buffer<std::uint8_t> bytes(8 * degree, 0x5a);
    Buffer<std::int8_t> small(degree);
    const std::uint32_t state[16] = {1, 2, 3};
    const std::uint64_t mask = (std::uint64_t{1} << prime_bits) - 1;
    const bool narrow = prime_bits <= 32;
    const std::size_t word = narrow ? 4 : 8;
    const std::vector<const std::uint64_t*> two = {a.data(), b.data()}, other = {b.data(), a.data()};
    const ModularKernels modular = ours.modulo(prime_bits);
    const Buffer<std::uint64_t> sign(degree, ~std::uint64_t{0}), nonzero = sign;
    std::uint64_t sum = 0;
    const std::map<std::string, std::function<void()>> calls = {
        {"forward", [&] { ring.to_ntt(a.data()); }},
        {"inverse", [&] { ring.to_coefficients(a.data()); }},
        {"multiply", [&] { ring.multiply(a.data(), b.data(), a.data()); }},
        {"dot", [&] { modular.dot(prime, {two.data()}, {other.data()}, two.size(), a.data(), degree); }},
        {"inner", [&] { sum += modular.inner(prime, two.data(), other.data(), 1, degree); }},
        {"ternary dot", [&] { ours.ternary_dot(sign.data(), nonzero.data(), two.data(), 1, &sum, degree); }},
        {"add", [&] { modular.add(prime.value, a.data(), b.data(), degree); }},
        {"lift", [&] { ring.lift(View<const std::int64_t>{integers.data(), degree}, a.data()); }},
        {"switch to bits", [&] { ring.switch_to_bits(b.data(), kPackedBits, a.data()); }},
        {"pack", [&] { ours.pack(b.data(), kPackedBits, bytes.data(), degree); }},
        {"unpack", [&] { ours.unpack(bytes.data(), kPackedBits, a.data(), degree); }},
        {"chacha20", [&] { ours.chacha20(state, bytes.data(), word * degree / 64); }},
        {"reject", [&] { ours.accept(bytes.data(), narrow, mask, prime.value, a.data(), degree); }},
        {"noise", [&] { ours.noise(bytes.data(), small.data(), degree); }},
    };
    return best_of(rounds, kCalls, calls.at(kernel));
}

// Cycles in a second: additions that wait for one another.
double clock_rate() {
    constexpr std::size_t kRounds = 2000;
    return 4 * kRounds / best_of(100, 10, [] {
               std::size_t sum = 0;
               const auto add = [&sum] {
                   sum += 1;
                   __asm__ volatile("" : "+r"(sum));
               };
               for (std::size_t i = 0; i < kRounds; ++i) {
                   add(), add(), add(), add();
               }
           });
}

// Bytes in a second, read and written again, from one run of `bytes` to another.
double copy_rate(std::size_t bytes) {
    Buffer<std::uint8_t> from(bytes, 1), to(bytes);
    return static_cast<double>(bytes) / best_of(100, 10, [&] {
               std::memcpy(to.data(), from.data(), bytes);
               __asm__ volatile("" : : "r"(to.data()) : "memory");
           });
}

}  // namespace

void register_measuring(py::module_& module) {
    module.def("kernel_seconds", &measure, py::arg("variant"), py::arg("kernel"), py::arg("degree"),
               py::arg("prime_bits"), py::arg("rounds"), py::call_guard<py::gil_scoped_release>());
    module.def("clock_rate", &clock_rate, py::call_guard<py::gil_scoped_release>());
    module.def("copy_rate", &copy_rate, py::arg("bytes"), py::call_guard<py::gil_scoped_release>());
}

}  // namespace hesplit
