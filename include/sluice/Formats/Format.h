// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// How a weight's number is stored.
//
// Everything under include/sluice/Formats is plain C++ without MLIR: the attribute
// `#quantized.format` mirrors `Format`, and packing, host kernels, GPU emulator, reference
// evaluator and tests all share these definitions.

#ifndef SLUICE_FORMATS_FORMAT_H
#define SLUICE_FORMATS_FORMAT_H

#include "sluice-support/Float16.h"

#include "llvm/ADT/ArrayRef.h"
#include "llvm/ADT/StringRef.h"

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

using support::bf16ToFloat;
using support::f16ToFloat;
using support::floatToBf16;
using support::floatToF16;
using support::roundToBf16;
using support::roundToF16;

/// Arrays of the same length; vectorised.
void f16ToFloat(llvm::ArrayRef<uint16_t> bits, llvm::MutableArrayRef<float> values);
void floatToF16(llvm::ArrayRef<float> values, llvm::MutableArrayRef<uint16_t> bits);
void bf16ToFloat(llvm::ArrayRef<uint16_t> bits, llvm::MutableArrayRef<float> values);
void floatToBf16(llvm::ArrayRef<float> values, llvm::MutableArrayRef<uint16_t> bits);

} // namespace sluice::formats

#endif // SLUICE_FORMATS_FORMAT_H
