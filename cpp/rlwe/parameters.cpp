#include "rlwe/parameters.h"

#include <seal/modulus.h>
#include <seal/util/hash.h>

#include <cmath>
#include <cstring>
#include <numeric>
#include <stdexcept>

#include "base/error.h"
#include "wire/little_endian.h"

namespace hesplit {

namespace {

constexpr std::size_t kMaxPrimes = 32;
constexpr std::uint32_t kMaxCount = std::uint32_t{1} << 30;
// A server's copy of sealed weights is no further behind; and parameters of before, which counted something else up to
// 2^16 by default, are not taken for such.
constexpr std::uint32_t kMaxUpdates = std::uint32_t{1} << 15;
// Version 3 ends with the statistical security, version 4 also with what private weights need; parameters that need
// neither are written as version 2.
constexpr std::uint8_t kUsualVersion = 2, kStatisticalVersion = 3, kPrivateVersion = 4;
constexpr std::uint32_t kLeastStatisticalBits = 20, kMostStatisticalBits = 60;

// Where slots lie and how keys are switched follow from the parameters by rules (packing/slots.h, ckks/slot_ring.h,
// linear/merged/merging.h) that are no part of them. Builds with other rules have other hashes, and refuse each other
// instead of computing nonsense.
constexpr std::uint64_t kSlotLayouts = 2, kMergedKeys = 2;

std::uint8_t version_of(const ParameterChoice& choice) {
    if (choice.private_bits != 0) {
        return kPrivateVersion;
    }
    return choice.statistical_bits == kStatisticalBits ? kUsualVersion : kStatisticalVersion;
}

// The 8-byte fields after the sizes of the primes.
std::size_t field_count(std::uint8_t version) {
    return version == kPrivateVersion ? 11 : version == kStatisticalVersion ? 9 : 8;
}

std::string join(const std::vector<int>& values) {
    std::string text = "[";
    for (std::size_t i = 0; i < values.size(); ++i) {
        text += (i ? ", " : "") + std::to_string(values[i]);
    }
    return text + "]";
}

bool positive(double value) {
    return std::isfinite(value) && value > 0;
}

void check_modulus(const ParameterChoice& choice) {
    const bool quantum = choice.security == Security::quantum;
    const int limit = max_modulus_bits(choice.ring_degree, choice.security);
    if (limit == 0) {
        throw ParameterError("ring_degree must be 1024, 2048, 4096, 8192, 16384 or 32768, got " +
                             std::to_string(choice.ring_degree));
    }
    const std::size_t primes = choice.modulus_bits.size();
    const bool switches =
        choice.packing == Packing::merged || (choice.packing == Packing::slots && choice.private_bits == 0);
    if (primes < (switches ? 2 : 1) || primes > (choice.packing == Packing::merged ? 3 : kMaxPrimes)) {
        const char* needed = "1 to 32 primes";
        if (choice.packing == Packing::slots && switches) {
            needed = "2 to 32 primes with packing=\"slots\" (the last one is for key switching)";
        } else if (choice.packing == Packing::merged) {
            needed = "2 or 3 primes with packing=\"merged\" (the last one is for key switching)";
        }
        throw ParameterError(std::string("modulus_bits needs ") + needed + ", got " + join(choice.modulus_bits));
    }
    int total = 0;
    for (const int bits : choice.modulus_bits) {
        if (bits < 14 || bits > 60) {
            throw ParameterError("each prime must have 14 to 60 bits, got " + join(choice.modulus_bits));
        }
        total += bits;
    }
    if (choice.packing == Packing::merged && total - choice.modulus_bits.back() > 61) {  // composable
        throw ParameterError("with packing=\"merged\" the primes before the last have at most 61 bits together, got " +
                             join(choice.modulus_bits));
    }
    if (total > limit && choice.security != Security::paper) {
        throw ParameterError(
            "modulus_bits " + join(choice.modulus_bits) + " sum to " + std::to_string(total) + " bits, but " +
            std::to_string(choice.ring_degree) + " is 128-bit secure only up to " + std::to_string(limit) +
            " bits against " + (quantum ? "quantum" : "classical") +
            " computers (2024 guideline, ternary secret). Choose a smaller modulus or a larger ring degree" +
            (quantum ? "" : "; to run a published set all the same, pass security=\"paper\""));
    }
}

void check_private(const ParameterChoice& choice) {
    if (choice.private_bits == 0) {
        if (choice.weight_norm != 0) {
            throw ParameterError(
                "weight_norm is agreed with private_bits only: without them replies are scaled to the weights");
        }
        return;
    }
    if (choice.private_bits < kLeastStatisticalBits || choice.private_bits > kMostStatisticalBits) {
        throw ParameterError("private_bits must be 0 or between " + std::to_string(kLeastStatisticalBits) + " and " +
                             std::to_string(kMostStatisticalBits) + ", got " + std::to_string(choice.private_bits));
    }
    if (!positive(choice.weight_norm)) {
        throw ParameterError("private weights need a positive weight_norm that both sides agree on");
    }
    for (const double value : {choice.weight_norm, choice.activation_norm, choice.error_bound}) {
        if (value > 0x1p200 || value < 0x1p-200) {  // or products of them overflow
            throw ParameterError("weight_norm, activation_norm and error_bound must be between 2^-200 and 2^200");
        }
    }
    if (choice.packing == Packing::merged) {
        throw ParameterError(
            "private weights need packing=\"blocks\" or \"slots\": the worst case of the noise of merging is not "
            "bounded");
    }
    int exponent = 0;
    if (choice.packing == Packing::slots && std::frexp(choice.scale, &exponent) != 0.5) {
        // Or the scale of logits would be a rounded product, and not quite the same for weights and bias.
        throw ParameterError("with private weights on slots scale is a power of two, got " +
                             std::to_string(choice.scale));
    }
    if (choice.updates != 0) {
        throw ParameterError("private weights are weights that the server has in the clear, and sealed ones are not");
    }
}

void check_ranges(const ParameterChoice& choice) {
    check_private(choice);
    // Replies that hide the weights need larger scales; activations are then rounded at a smaller one, and multiplied
    // by a power of two in the ring.
    const int most = choice.private_bits != 0 ? 120 : 60;
    if (!positive(choice.scale) || choice.scale < 2 || choice.scale > std::ldexp(1.0, most)) {
        throw ParameterError("scale must be between 2 and 2^" + std::to_string(most) + ", got " +
                             std::to_string(choice.scale));
    }
    if (!positive(choice.activation_bound) || !positive(choice.activation_norm) || !positive(choice.error_bound)) {
        throw ParameterError("activation_bound, activation_norm and error_bound must be positive and finite");
    }
    if (choice.activation_bound * choice.scale > std::ldexp(1.0, most + 2)) {
        throw ParameterError("activation_bound * scale must stay below 2^" + std::to_string(most + 2) +
                             "; choose a smaller scale");
    }
    if (choice.releases > kMaxCount || choice.updates > kMaxUpdates) {
        throw ParameterError("releases must be at most 2^30 and updates at most 2^15");
    }
    if ((choice.releases != 0 || choice.updates != 0) && choice.packing != Packing::blocks) {
        throw ParameterError(
            "flooded releases and sealed weights need packing=\"blocks\": a bound on the worst-case noise of rotations "
            "would take a modulus several times as long");
    }
    if (choice.statistical_bits < kLeastStatisticalBits || choice.statistical_bits > kMostStatisticalBits) {
        throw ParameterError("statistical_bits must be between " + std::to_string(kLeastStatisticalBits) + " and " +
                             std::to_string(kMostStatisticalBits) + ", got " + std::to_string(choice.statistical_bits));
    }
    if (choice.batch_size < 1 || choice.batch_size > 65536) {
        throw ParameterError("batch_size must be between 1 and 65536, got " + std::to_string(choice.batch_size));
    }
}

std::vector<std::uint64_t> find_primes(const ParameterChoice& choice) {
    std::vector<std::uint64_t> primes;
    try {
        for (const seal::Modulus& modulus : seal::CoeffModulus::Create(choice.ring_degree, choice.modulus_bits)) {
            primes.push_back(modulus.value());
        }
    } catch (const std::exception&) {
        throw ParameterError("there are not enough primes of " + join(choice.modulus_bits) + " bits for ring degree " +
                             std::to_string(choice.ring_degree) + " (each must be 1 modulo " +
                             std::to_string(2 * choice.ring_degree) + ")");
    }
    return primes;
}

// The canonical layout: version, packing, security, prime count (1 byte each), prime sizes (1 byte each), then ring
// degree, batch size, releases, updates (8 bytes each) and four doubles; from version 3 on the statistical security (8
// bytes), in version 4 the bits of private weights and their norm (8 bytes each).
struct CanonicalBytes {
    std::vector<std::uint8_t> bytes;
    void u8(std::uint8_t value) { bytes.push_back(value); }
    void u64(std::uint64_t value) {
        bytes.resize(bytes.size() + 8);
        store_little_endian(bytes.data() + bytes.size() - 8, value, 8);
    }
    void f64(double value) { u64(bits_of(value)); }
};

std::uint64_t read_u64(const std::uint8_t* in) {
    return load_little_endian(in, 8);
}

double read_f64(const std::uint8_t* in) {
    return double_of(read_u64(in));
}

}  // namespace

int max_modulus_bits(std::size_t ring_degree, Security security) {
    const bool quantum = security == Security::quantum;
    switch (ring_degree) {
        case 1024:
            return quantum ? 20 : 26;
        case 2048:
            return quantum ? 40 : 53;
        case 4096:
            return quantum ? 80 : 106;
        case 8192:
            return quantum ? 161 : 214;
        case 16384:
            return quantum ? 322 : 430;
        case 32768:
            return quantum ? 644 : 868;
        default:
            return 0;
    }
}

Parameters::Parameters(ParameterChoice choice) : choice_(std::move(choice)) {
    check_modulus(choice_);
    check_ranges(choice_);
    primes_ = find_primes(choice_);

    CanonicalBytes writer{bytes()};
    for (const std::uint64_t prime : primes_) {
        writer.u64(prime);
    }
    if (choice_.packing == Packing::slots && !traced()) {
        writer.u64(kSlotLayouts);
    } else if (choice_.packing == Packing::merged) {
        writer.u64(kMergedKeys);
    }
    while (writer.bytes.size() % 8 != 0) {
        writer.u8(0);
    }
    std::vector<std::uint64_t> words;
    for (std::size_t i = 0; i < writer.bytes.size(); i += 8) {
        words.push_back(read_u64(writer.bytes.data() + i));
    }
    seal::util::HashFunction::hash_block_type digest;
    seal::util::HashFunction::hash(words.data(), words.size(), digest);
    std::memcpy(hash_.data(), digest.data(), hash_.size());
}

std::vector<std::uint64_t> Parameters::data_primes() const {
    std::vector<std::uint64_t> primes = primes_;
    if (packing() != Packing::blocks && !traced()) {
        primes.pop_back();
    }
    return primes;
}

int Parameters::total_bits() const {
    return std::accumulate(choice_.modulus_bits.begin(), choice_.modulus_bits.end(), 0);
}

std::vector<std::uint8_t> Parameters::bytes() const {
    CanonicalBytes writer;
    const std::uint8_t version = version_of(choice_);
    writer.u8(version);
    writer.u8(static_cast<std::uint8_t>(choice_.packing));
    writer.u8(static_cast<std::uint8_t>(choice_.security));
    writer.u8(static_cast<std::uint8_t>(choice_.modulus_bits.size()));
    for (const int bits : choice_.modulus_bits) {
        writer.u8(static_cast<std::uint8_t>(bits));
    }
    writer.u64(choice_.ring_degree);
    writer.u64(choice_.batch_size);
    writer.u64(choice_.releases);
    writer.u64(choice_.updates);
    writer.f64(choice_.scale);
    writer.f64(choice_.activation_bound);
    writer.f64(choice_.activation_norm);
    writer.f64(choice_.error_bound);
    if (version != kUsualVersion) {
        writer.u64(choice_.statistical_bits);
    }
    if (version == kPrivateVersion) {
        writer.u64(choice_.private_bits);
        writer.f64(choice_.weight_norm);
    }
    return writer.bytes;
}

Parameters Parameters::parse(View<const std::uint8_t> bytes) {
    if (bytes.size < 4 || bytes[0] < kUsualVersion || bytes[0] > kPrivateVersion || bytes[3] < 1 ||
        bytes[3] > kMaxPrimes || bytes.size != 4 + std::size_t{bytes[3]} + field_count(bytes[0]) * 8) {
        throw WireError("these bytes are not a description of parameters, or of another version");
    }
    if (bytes[1] < 1 || bytes[1] > 3 || bytes[2] < 1 || bytes[2] > 3) {
        throw WireError("parameters with an unknown packing or security level");
    }
    ParameterChoice choice;
    choice.packing = static_cast<Packing>(bytes[1]);
    choice.security = static_cast<Security>(bytes[2]);
    const std::uint8_t* in = bytes.data + 4;
    for (std::size_t i = 0; i < bytes[3]; ++i) {
        choice.modulus_bits.push_back(*in++);
    }
    const std::uint64_t ring_degree = read_u64(in);
    const std::uint64_t batch_size = read_u64(in + 8);
    choice.ring_degree = static_cast<std::size_t>(ring_degree);
    choice.batch_size = static_cast<std::size_t>(batch_size);
    const std::uint64_t releases = read_u64(in + 16);
    const std::uint64_t updates = read_u64(in + 24);
    if (releases > kMaxCount || updates > kMaxUpdates) {
        throw WireError("parameters with an impossible number of releases or updates");
    }
    choice.releases = static_cast<std::uint32_t>(releases);
    choice.updates = static_cast<std::uint32_t>(updates);
    choice.scale = read_f64(in + 32);
    choice.activation_bound = read_f64(in + 40);
    choice.activation_norm = read_f64(in + 48);
    choice.error_bound = read_f64(in + 56);
    if (bytes[0] != kUsualVersion) {
        const std::uint64_t statistical_bits = read_u64(in + 64);
        if (statistical_bits > kMostStatisticalBits) {
            throw WireError("parameters with an impossible statistical security");
        }
        choice.statistical_bits = static_cast<std::uint32_t>(statistical_bits);
    }
    if (bytes[0] == kPrivateVersion) {
        const std::uint64_t private_bits = read_u64(in + 72);
        if (private_bits > kMostStatisticalBits) {
            throw WireError("parameters with an impossible privacy of the weights");
        }
        choice.private_bits = static_cast<std::uint32_t>(private_bits);
        choice.weight_norm = read_f64(in + 80);
    }
    if (version_of(choice) != bytes[0]) {  // or the same parameters would have two hashes
        throw WireError("parameters in a longer form than they need");
    }
    try {
        return Parameters(std::move(choice));
    } catch (const ParameterError& error) {
        throw WireError(std::string("parameters that cannot be used: ") + error.what());
    }
}

std::size_t parameter_bytes(const Parameters& parameters) {
    return 2 + parameters.bytes().size();
}

void write_parameters(WireWriter& writer, const Parameters& parameters) {
    const std::vector<std::uint8_t> bytes = parameters.bytes();
    writer.u16(static_cast<std::uint16_t>(bytes.size()));
    writer.raw({bytes.data(), bytes.size()});
}

Parameters read_parameters(WireReader& reader) {
    const std::size_t size = reader.u16();
    Parameters parameters = Parameters::parse(reader.raw(size));
    reader.require(parameters.hash(), reader.header().key);
    return parameters;
}

}  // namespace hesplit
