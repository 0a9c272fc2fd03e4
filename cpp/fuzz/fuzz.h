// Fuzzers of every entry that takes a peer's bytes or a file's: one program an entry, each a source file beside this
// one, which says what genuine bytes are and hands bytes to the entry. docs/fuzzing.md says how to run them.
//
// A peer is free to compute a checksum, so most inputs get a right one: damage that only a checksum finds is one input
// in sixteen. Keys and identifiers are drawn anew by every process. So that an input means the same in the next
// process, it holds placeholders for the identifiers of the key and of the message.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "ring/prng.h"
#include "rlwe/parameters.h"

namespace hesplit::fuzz {

using Bytes = std::vector<std::uint8_t>;

// Defined by each program.

// What the entry accepts; the mutator begins with these.
std::vector<std::string> genuine();
// Gives the bytes to the entry. A WireError, KeyMismatchError, ParameterError or RangeError is how an entry refuses
// bytes; any other exception is a finding, as is what a sanitizer sees.
void receive(const Bytes& bytes);

// For those that deal in messages.

// The message with placeholders for its identifiers.
std::string anonymous(std::string message);
// The bytes with these identifiers in place of placeholders; a checksum that was right stays right.
Bytes addressed(Bytes bytes, const Id& key, const Id& message);

// What the header of a message says: the identifiers of the key and of the message, the hash of the parameters.
Id key_id(const std::string& message);
Id message_id(const std::string& message);
ParameterHash parameter_hash(const Bytes& bytes);

inline View<const std::uint8_t> view(const Bytes& bytes) {
    return {bytes.data(), bytes.size()};
}
inline View<const std::uint8_t> view(const std::string& bytes) {
    return {reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size()};
}

}  // namespace hesplit::fuzz
