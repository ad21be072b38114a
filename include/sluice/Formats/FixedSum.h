// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Sums of float32 numbers that do not depend on the order of additions: integers, in words that
// count their additions. docs/numerics.md, "Sums in fixed point".

#ifndef SLUICE_FORMATS_FIXEDSUM_H
#define SLUICE_FORMATS_FIXEDSUM_H

#include <cmath>
#include <cstdint>
#include <optional>

namespace sluice::formats {

/// A word is (sum of the terms << fixedSumCountBits) + number of additions, modulo 2^64; a term is
/// a number times 2^fixedSumFraction, rounded.
inline constexpr int fixedSumCountBits = 8, fixedSumFraction = 30;

/// Numbers whose magnitude is below this can be added so many times: their sum stays below 2^25,
/// which 56 bits hold.
inline float fixedSumLimit(int64_t additions) {
  return std::ldexp(1.0f, 63 - fixedSumCountBits - fixedSumFraction) /
         static_cast<float>(additions);
}

/// The term of a number, rounded to nearest even; nothing if its magnitude is not below `limit`, or
/// it is none.
inline std::optional<int64_t> fixedSumTerm(float value, float limit) {
  if (!(std::fabs(value) < limit))
    return std::nullopt;
  return std::llrint(std::ldexp(static_cast<double>(value), fixedSumFraction));
}

/// What is added to a word.
inline uint64_t fixedSumIncrement(int64_t term) {
  return (static_cast<uint64_t>(term) << fixedSumCountBits) + 1;
}

/// The sum in a word after so many additions, rounded to nearest even.
inline float fixedSumValue(uint64_t word, uint64_t additions) {
  return std::ldexp(static_cast<float>(static_cast<int64_t>(word - additions) >> fixedSumCountBits),
                    -fixedSumFraction);
}

} // namespace sluice::formats

#endif // SLUICE_FORMATS_FIXEDSUM_H
