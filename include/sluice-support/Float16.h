// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Conversions to and from the 16-bit floating-point formats. Every other one would differ somewhere
// in its treatment of subnormal numbers, ties or NaN.

#ifndef SLUICE_SUPPORT_FLOAT16_H
#define SLUICE_SUPPORT_FLOAT16_H

#include <bit>
#include <cstdint>

namespace sluice::support {

/// IEEE half to float; exact (a NaN stays a NaN with its payload).
inline float f16ToFloat(uint16_t bits) {
  // Without branches, so that loops over it vectorise: a normal number's exponent is moved by a
  // multiplication, which also carries infinity and NaN over; a subnormal one is normalised by a
  // float subtraction.
  uint32_t word = static_cast<uint32_t>(bits) << 16, twice = word + word;
  float normal = std::bit_cast<float>((twice >> 4) + (0xE0u << 23)) * 0x1.0p-112f;
  float subnormal = std::bit_cast<float>((twice >> 17) | (126u << 23)) - 0.5f;
  uint32_t magnitude = std::bit_cast<uint32_t>(twice < (1u << 27) ? subnormal : normal);
  return std::bit_cast<float>((word & 0x80000000u) | magnitude);
}

/// Float to IEEE half, to nearest, ties to even. 65520 and more in magnitude become infinity; a NaN
/// stays a quiet NaN.
inline uint16_t floatToF16(float value) {
  uint32_t word = std::bit_cast<uint32_t>(value), magnitude = word & 0x7FFFFFFFu;
  // Below 2^-14 halves are multiples of 2^-24, as floats of [0.5, 1) are: the addition rounds.
  uint32_t subnormal =
      std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - (126u << 23);
  uint32_t normal = (magnitude - (112u << 23) + 0xFFFu + ((magnitude >> 13) & 1u)) >> 13;
  uint32_t special = magnitude > 0x7F800000u ? 0x7E00u | ((magnitude >> 13) & 0x3FFu) : 0x7C00u;
  uint32_t half = magnitude < (113u << 23) ? subnormal : normal;
  half = magnitude >= (143u << 23) ? special : half;
  return static_cast<uint16_t>(half | (word >> 16 & 0x8000u));
}

/// bfloat16 to float; exact.
inline float bf16ToFloat(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

/// Float to bfloat16, to nearest, ties to even; a NaN stays a quiet NaN.
inline uint16_t floatToBf16(float value) {
  uint32_t word = std::bit_cast<uint32_t>(value);
  uint32_t rounded = (word + 0x7FFFu + ((word >> 16) & 1u)) >> 16;
  uint32_t nan = (word >> 16) | 0x40u;
  return static_cast<uint16_t>((word & 0x7FFFFFFFu) > 0x7F800000u ? nan : rounded);
}

/// A float rounded to the nearest value of f16 or bf16.
inline float roundToF16(float value) { return f16ToFloat(floatToF16(value)); }
inline float roundToBf16(float value) { return bf16ToFloat(floatToBf16(value)); }

} // namespace sluice::support

#endif // SLUICE_SUPPORT_FLOAT16_H
