#include "ring/rounding.h"

#include "ring/prng.h"

namespace hesplit {

namespace {

std::uint64_t random_word() {
    std::uint64_t word;
    os_random(&word, sizeof(word));
    return word;
}

}  // namespace

RandomRounding::RandomRounding() {
    thread_local std::uint64_t polynomials = random_word();
    state_ = mix(++polynomials);
}

}  // namespace hesplit
