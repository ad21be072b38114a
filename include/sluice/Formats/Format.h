// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// How a weight's number is stored, and the conversions between float and the 16-bit floats.
//
// Everything under include/sluice/Formats is plain C++ without MLIR: the attribute
// `#quantized.format` mirrors `Format`, and packing, host kernels, GPU emulator, reference
// evaluator and tests all share these definitions.

#ifndef SLUICE_FORMATS_FORMAT_H
#define SLUICE_FORMATS_FORMAT_H

#include "llvm/ADT/ArrayRef.h"
#include "llvm/ADT/StringRef.h"

#include <bit>
#include <cstdint>
#include <optional>
#include <string>

namespace sluice::formats {

/// The number format of a weight matrix.
///
/// With an integer element, `value = (q - zero) * scale`, computed in float32: q is a signed
/// integer of the element's width (int8: -128..127, int4: -8..7), scale an f16 for every `group`
/// consecutive columns of a row (the last group of a row may be shorter), and zero a signed integer
/// in the element's range for every group, or 0 if the format is symmetric. Scales may be negative.
/// A group of zeros has scale 0. With a float element `value = q`.
///
/// GGUF's Q8_0 is int8 with groups of 32, its Q4_0 is int4 with groups of 32 (its nibble minus 8 is
/// q), both symmetric.
struct Format {
  enum class Element : uint8_t { F32, F16, BF16, I8, I4 };

  /// The group of a scale that spans a whole row.
  static constexpr int64_t channel = 0;

  Element element = Element::F32;
  int64_t group = channel;
  bool zeroPoint = false;

  bool operator==(const Format &) const = default;

  bool isInteger() const { return element == Element::I8 || element == Element::I4; }
  /// Bits of an element.
  unsigned bits() const;
  /// Least and greatest q; integer elements only.
  int qMin() const { return element == Element::I8 ? -128 : -8; }
  int qMax() const { return element == Element::I8 ? 127 : 7; }

  /// Scales (and zero points) of a row of `columns` elements; 0 for a float element.
  int64_t groupsPerRow(int64_t columns) const;
  /// Columns that share a scale in a row of `columns` elements; integer elements only.
  int64_t groupColumns(int64_t columns) const { return group == channel ? columns : group; }
  /// Bytes of a row's elements, scales and zero points, without any padding between rows or tiles:
  /// what a reader of the row has to move.
  int64_t bytesPerRow(int64_t columns) const;

  /// "f32", "f16", "bf16", "int8-g128", "int4-g64-zp", "int8-channel", "int4-channel-zp".
  std::string name() const;
  /// Parses such a name (groups of 32, 64, 128 or 256); nothing if it is not one.
  static std::optional<Format> fromName(llvm::StringRef name);
};

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

/// Arrays of the same length; vectorised.
void f16ToFloat(llvm::ArrayRef<uint16_t> bits, llvm::MutableArrayRef<float> values);
void floatToF16(llvm::ArrayRef<float> values, llvm::MutableArrayRef<uint16_t> bits);
void bf16ToFloat(llvm::ArrayRef<uint16_t> bits, llvm::MutableArrayRef<float> values);
void floatToBf16(llvm::ArrayRef<float> values, llvm::MutableArrayRef<uint16_t> bits);

} // namespace sluice::formats

#endif // SLUICE_FORMATS_FORMAT_H
