// What each variant's files export to dispatch.cpp. A variant has what pays there and borrows the rest from others.
#pragma once

#include "kernels/kernels.h"

namespace hesplit {

extern const Transforms kScalarTransforms;  // every prime
extern const Products kScalarProducts;
extern const Sums kScalarSums;
extern const Conversions kScalarConversions;
extern const WordProducts kScalarWordProducts;
extern const ShortProducts kScalarShortProducts;
extern const Streams kScalarStreams;
extern const BitPacking kScalarBitPacking;
extern const Matrices kScalarMatrices;

extern const Transforms kAvx2Transforms;       // primes of up to kVectorPrimeBits bits
extern const Transforms kAvx2ShortTransforms;  // primes of up to kX86ShortBits bits: 32-bit lanes
extern const Products kAvx2Products;           // primes of up to kAvx2ProductBits bits: a word holds two products
extern const Products kAvx2LimbProducts;       // primes of up to kVectorPrimeBits bits
extern const Sums kAvx2Sums;
extern decltype(Conversions::lift) const kAvx2Lift;                 // primes of up to kVectorPrimeBits bits
extern decltype(Conversions::add_fraction) const kAvx2AddFraction;  // primes of up to kAvx2ProductBits bits
extern const WordProducts kAvx2WordProducts;
extern const ShortProducts kAvx2ShortProducts;
extern const Streams kAvx2Streams;
extern const BitPacking kAvx2BitPacking;
extern const Matrices kAvx2Matrices;
inline constexpr int kX86ShortBits = 27, kAvx2ProductBits = 31;

extern const Transforms kAvx512IfmaTransforms;  // primes of up to kVectorPrimeBits bits, as the next two
extern const Products kAvx512IfmaProducts;
extern const Conversions kAvx512IfmaConversions;
extern const Products kAvx512IfmaNarrowProducts;  // primes of up to kAvx512IfmaNarrowBits bits: products below 2^52
extern const Sums kAvx512IfmaSums;
extern const WordProducts kAvx512IfmaWordProducts;
extern const ShortProducts kAvx512IfmaShortProducts;
extern const Streams kAvx512IfmaStreams;
extern const BitPacking kAvx512IfmaBitPacking;
extern const Matrices kAvx512IfmaMatrices;
inline constexpr int kAvx512IfmaNarrowBits = 26;

extern const Transforms kNeonTransforms;             // primes of up to kVectorPrimeBits bits
extern const Transforms kNeonShortTransforms;        // primes of up to kNeonShortBits bits: 32-bit lanes
extern const Products kNeonProducts;                 // primes of up to kNeonProductBits bits: a word holds two products
extern decltype(Conversions::lift) const kNeonLift;  // primes of up to kVectorPrimeBits bits
extern const WordProducts kNeonWordProducts;
extern const ShortProducts kNeonShortProducts;
extern const Streams kNeonStreams;
extern const BitPacking kNeonBitPacking;
extern const Matrices kNeonMatrices;
inline constexpr int kNeonShortBits = 27, kNeonProductBits = 31;

}  // namespace hesplit
