// What libFuzzer calls: one input, and a mutator that knows the frame of a message.
#include "fuzz.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>

#include "base/error.h"
#include "base/parallel.h"
#include "wire/format.h"

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t max_size);
extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv);
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);
extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t max_size,
                                               unsigned seed);

namespace hesplit::fuzz {

namespace {

// Places within the header (wire format).
constexpr std::size_t kMagicBytes = 6;  // magic, version, type
constexpr std::size_t kLengthAt = 8, kHashAt = 16, kKeyAt = 32, kMessageAt = 48;
constexpr std::size_t kFrameBytes = kHeaderBytes + kFooterBytes;
static_assert(kHeaderBytes == 64 && kMessageAt + sizeof(Id) == kHeaderBytes, "the places above are of another format");

constexpr std::uint8_t kKeyPlaceholder = 0xa5, kMessagePlaceholder = 0x5a;

const std::vector<std::string>& seeds() {
    static const std::vector<std::string> messages = genuine();
    return messages;
}

bool framed(const std::uint8_t* data, std::size_t size) {
    return size >= kFrameBytes && std::memcmp(data, "HESN", 4) == 0;
}

bool sealed(const Bytes& bytes) {
    Bytes again(bytes);
    seal_message({again.data(), again.size()});
    return std::equal(again.end() - kFooterBytes, again.end(), bytes.end() - kFooterBytes);
}

bool replace(std::uint8_t* at, std::uint8_t placeholder, const Id& id) {
    if (!std::all_of(at, at + id.size(), [placeholder](std::uint8_t byte) { return byte == placeholder; })) {
        return false;
    }
    std::copy(id.begin(), id.end(), at);
    return true;
}

using Random = std::minstd_rand;

std::size_t restart(std::uint8_t* data, std::size_t max_size, Random& random) {
    const std::string& seed = seeds()[random() % seeds().size()];
    const std::size_t size = std::min(seed.size(), max_size);
    std::copy_n(seed.data(), size, data);
    return size;
}

// Fields lie between the header and long runs of residues: half of the mutations are there.
std::size_t mutate(std::uint8_t* data, std::size_t size, std::size_t max_size, Random& random) {
    constexpr std::size_t kFields = 128, kResidues = kHeaderBytes + kFields;
    if (size <= kResidues || random() % 2 == 0) {
        return LLVMFuzzerMutate(data, size, max_size);
    }
    Bytes fields(data + kHeaderBytes, data + kResidues);
    fields.resize(2 * kFields);
    const std::size_t rest = size - kResidues;
    const std::size_t length =
        std::min(LLVMFuzzerMutate(fields.data(), kFields, fields.size()), max_size - kHeaderBytes - rest);
    std::memmove(data + kHeaderBytes + length, data + kResidues, rest);
    std::copy_n(fields.data(), length, data + kHeaderBytes);
    return kHeaderBytes + length + rest;
}

// Messages that bring parameters along carry their hash twice: in the header, and by the parameters themselves.
void repair_hash(std::uint8_t* data, std::size_t size) {
    constexpr std::size_t kParametersAt = kHeaderBytes + 2;
    const std::size_t parameters = data[kHeaderBytes] + std::size_t{data[kHeaderBytes + 1]} * 256;
    if (kParametersAt + parameters + kFooterBytes > size) {
        return;
    }
    try {
        const ParameterHash hash = Parameters::parse({data + kParametersAt, parameters}).hash();
        std::copy(hash.begin(), hash.end(), data + kHashAt);
    } catch (const Error&) {
        // The entry will refuse them.
    }
}

// The genuine message of the same type and under the same parameters, or any.
const std::string& original(const std::uint8_t* data, Random& random) {
    for (const std::string& seed : seeds()) {
        if (std::memcmp(seed.data(), data, kMagicBytes) == 0 &&
            std::memcmp(seed.data() + kHashAt, data + kHashAt, sizeof(ParameterHash)) == 0) {
            return seed;
        }
    }
    return seeds()[random() % seeds().size()];
}

// Makes right again what every message must have right, each with a chance to stay wrong.
std::size_t repair(std::uint8_t* data, std::size_t size, std::size_t max_size, Random& random) {
    const auto often = [&random] { return random() % 16 != 0; };
    const std::string& seed = original(data, random);
    if (seed.size() <= max_size && random() % 4 != 0) {
        for (; size < seed.size(); ++size) {
            data[size] = static_cast<std::uint8_t>(seed[size]);
        }
        size = seed.size();
    }
    if (often()) {
        std::copy_n(seed.data(), kHeaderBytes, data);
    }
    if (often()) {
        for (std::size_t i = 0; i < 8; ++i) {
            data[kLengthAt + i] = static_cast<std::uint8_t>(std::uint64_t{size} >> (8 * i));
        }
    }
    if (often()) {
        repair_hash(data, size);
    }
    if (often()) {
        seal_message({data, size});
    }
    return size;
}

}  // namespace

std::string anonymous(std::string message) {
    std::fill_n(message.begin() + kKeyAt, sizeof(Id), static_cast<char>(kKeyPlaceholder));
    std::fill_n(message.begin() + kMessageAt, sizeof(Id), static_cast<char>(kMessagePlaceholder));
    seal_message({reinterpret_cast<std::uint8_t*>(message.data()), message.size()});
    return message;
}

Bytes addressed(Bytes bytes, const Id& key, const Id& message) {
    if (!framed(bytes.data(), bytes.size())) {
        return bytes;
    }
    const bool was_sealed = sealed(bytes);
    bool changed = replace(bytes.data() + kKeyAt, kKeyPlaceholder, key);
    changed = replace(bytes.data() + kMessageAt, kMessagePlaceholder, message) || changed;
    if (was_sealed && changed) {
        seal_message({bytes.data(), bytes.size()});
    }
    return bytes;
}

Id key_id(const std::string& message) {
    Id id;
    std::copy_n(message.begin() + kKeyAt, id.size(), id.begin());
    return id;
}

Id message_id(const std::string& message) {
    Id id;
    std::copy_n(message.begin() + kMessageAt, id.size(), id.begin());
    return id;
}

ParameterHash parameter_hash(const Bytes& bytes) {
    ParameterHash hash{};
    if (bytes.size() >= kHeaderBytes) {
        std::copy_n(bytes.begin() + kHashAt, hash.size(), hash.begin());
    }
    return hash;
}

}  // namespace hesplit::fuzz

using namespace hesplit;

extern "C" int LLVMFuzzerInitialize(int*, char***) {
    set_num_threads(1);
    for (const std::string& seed : fuzz::seeds()) {
        try {
            fuzz::receive({seed.begin(), seed.end()});
        } catch (const Error& error) {
            // Then nothing that follows would reach what it is meant for.
            std::fprintf(stderr, "genuine bytes are refused: %s\n", error.what());
            std::abort();
        }
    }
    return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    try {
        fuzz::receive({data, data + size});
    } catch (const WireError&) {
    } catch (const KeyMismatchError&) {
    } catch (const ParameterError&) {
    } catch (const RangeError&) {
    }
    return 0;
}

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t max_size,
                                               unsigned seed) {
    fuzz::Random random(seed);
    if (size < 32 || random() % 64 == 0) {
        size = fuzz::restart(data, max_size, random);
    }
    size = fuzz::mutate(data, size, max_size, random);
    const View<const std::uint8_t> first = fuzz::view(fuzz::seeds().front());
    if (fuzz::framed(first.data, first.size) && size >= kHeaderBytes + kFooterBytes) {
        size = fuzz::repair(data, size, max_size, random);
    }
    return size;
}
