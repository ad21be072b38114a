// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// How a weight's numbers are stored: the one description of a number format.
//
// Everything under include/sluice/Formats is plain C++ without MLIR: the attribute
// `#quantized.encoding` holds an `Encoding`, and packing, host kernels, GPU emulator, reference
// evaluator and tests all ask it. Kernels ask what an element, a unit's scale and a unit's offset
// are; none asks for a name.

#ifndef SLUICE_FORMATS_ENCODING_H
#define SLUICE_FORMATS_ENCODING_H

#include "sluice-support/Float16.h"

#include "llvm/ADT/ArrayRef.h"
#include "llvm/ADT/Hashing.h"
#include "llvm/ADT/StringRef.h"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace sluice::formats {

/// The number format of a weight matrix.
///
/// With an element of F32, F16 or BF16, `value = q`. Otherwise, for every group of `group`
/// consecutive columns of a row (the last group of a row may be shorter), in float32:
///
///   value = float(number - zero) * scale + offset
///
///   number    q itself; the table's integer that q names (code Table); the number whose bits q is
///             (E4M3)
///   zero      offset ZeroPoint: a signed integer in q's range; else 0
///   scale     scaleOf(): an f16, bf16 or f32; a byte (E8M0, E4M3); or a byte or field times an
///             f16 that 256 columns share (a super-block; with bytes a row's last one may be
///             shorter), times superUnit()
///   offset    offsetOf(): offset F16: an f16; offset Field: minus an unsigned field times another
///             f16 of the super-block; else 0
///
/// Scales and offsets are exact float32 numbers, wherever they are normal. Scales may be negative.
///
/// Definitions: ggml-common.h and ggml-quants.c (Q and IQ types); OCP Microscaling Formats 1.0
/// (E2M1, E8M0); OCP 8-bit Floating Point 1.0 (E4M3).
struct Encoding {
  /// Code and bits of an element. I: signed, U: unsigned. IQ4NL, E2M1 and IQ1 to IQ3S are 4-bit
  /// indices into a table of 16 integers. E2M1's are twice the FP4 numbers, so that they are
  /// integers; so are IQ1's to IQ3XXS's multiples of superUnit(). E4M3 is FP8 without infinities;
  /// its two codes of NaN do not occur.
  enum class Element : uint8_t {
    F32,
    F16,
    BF16,
    I8,
    I4,
    I6,
    I5,
    I3,
    U5,
    U4,
    U2,
    IQ4NL,
    E2M1,
    E4M3,
    IQ1,
    IQ2,
    IQ3XXS,
    IQ3S
  };
  enum class Code : uint8_t { Float, Signed, Unsigned, Table };
  /// What a scale is. I8, U6 and U4 are multiplied by an f16 of the super-block. E8M0 is
  /// 2^(e - 128), E4M3 (7 bits, no sign) half its value: their elements are twice what the tables
  /// of FP4 say. BF16 is a scale of E4M3 elements, F32 of these and of I8 and I4.
  enum class Scale : uint8_t { F16, I8, U6, U4, E8M0, E4M3, BF16, F32 };
  /// Field: as wide as the scale, U6 or U4.
  enum class Offset : uint8_t { None, ZeroPoint, F16, Field };

  /// The group of a scale that spans a whole row.
  static constexpr int64_t channel = 0;
  /// Columns of a super-block.
  static constexpr int64_t superColumns = 256;

  Element element = Element::F32;
  int64_t group = channel;
  Offset offset = Offset::None;
  Scale scale = Scale::F16;

  bool operator==(const Encoding &) const = default;

  /// What is wrong with the combination, or "".
  std::string problem() const;

  // Elements.
  Code code() const;
  /// Bits of an element.
  unsigned bits() const;
  bool isInteger() const { return code() != Code::Float; }
  /// Whether groups have scales: integers and E4M3.
  bool isScaled() const { return isInteger() || element == Element::E4M3; }
  /// Least and greatest q; not for floats.
  int qMin() const { return code() == Code::Signed ? -(1 << (bits() - 1)) : 0; }
  int qMax() const { return (1 << (code() == Code::Signed ? bits() - 1 : bits())) - 1; }
  /// The 16 integers of code Table.
  llvm::ArrayRef<int8_t> table() const;
  int integerOf(int8_t q) const { return code() == Code::Table ? table()[q] : q; }
  /// The number that q stands for; of scaled elements.
  inline float numberOf(int8_t q) const;

  /// Layouts store an element of b bits in planes, whose widths are the powers of two that b is the
  /// sum of: plane p holds the bits from `low` on of every element.
  struct Plane {
    unsigned width, low;
  };
  llvm::ArrayRef<Plane> planes() const;

  // Scales and offsets.
  bool hasZeroPoint() const { return offset == Offset::ZeroPoint; }
  /// Whether every value of a group has something added that is no multiple of its scale.
  bool hasOffset() const { return offset == Offset::F16 || offset == Offset::Field; }
  bool hasFields() const { return scale == Scale::U6 || scale == Scale::U4; }
  /// f16 numbers of a super-block: its scale and, with offset Field, its offset.
  int64_t superNumbers() const { return scale == Scale::I8 ? 1 : hasFields() ? 2 : 0; }
  unsigned scaleBits() const;
  unsigned offsetBits() const;
  /// By what a super-block's f16 is multiplied, a power of two: 1/8 for IQ1 and IQ2, 1/4 for
  /// IQ3XXS, else 1.
  float superUnit() const;
  /// A group's scale from its code (the bits of a float, a byte, a field) and the super-block's
  /// f16.
  float scaleOf(uint32_t code, uint16_t super) const;
  /// A group's offset, likewise; 0 without one.
  float offsetOf(uint16_t code, uint16_t super) const;

  /// Signed integers of 4 or 8 bits with an f16 or f32 scale and perhaps a zero point for every
  /// group of 32 or more: what layout mma holds.
  bool isPlainInteger() const {
    return (element == Element::I8 || element == Element::I4) &&
           (scale == Scale::F16 || scale == Scale::F32) && !hasOffset() && group != 16;
  }

  /// Scales (and offsets) of a row of `columns` elements; 0 for elements without scales.
  int64_t groupsPerRow(int64_t columns) const;
  /// Columns that share a scale in a row of `columns` elements; scaled elements only.
  int64_t groupColumns(int64_t columns) const { return group == channel ? columns : group; }
  /// Whether a row of so many columns can be stored: super-blocks whose scales are fields are
  /// whole.
  bool fitsColumns(int64_t columns) const { return !hasFields() || columns % superColumns == 0; }
  int64_t supersPerRow(int64_t columns) const {
    return superNumbers() ? (columns + superColumns - 1) / superColumns : 0;
  }
  /// Bytes of a row's elements, and of its scales and offsets, without any padding between rows or
  /// tiles: what a reader of the row has to move.
  int64_t elementBytesPerRow(int64_t columns) const { return (columns * bits() + 7) / 8; }
  int64_t scaleBytesPerRow(int64_t columns) const;
  int64_t bytesPerRow(int64_t columns) const {
    return elementBytesPerRow(columns) + scaleBytesPerRow(columns);
  }

  /// "f32", "f16", "bf16", or ELEMENT-GROUP[-SCALE][-OFFSET]: "int8-g128", "int4-channel",
  /// "int4-g64-zp", "iq4-g64" (IQ4NL), "int5-g32-n8" (nested scales: Scale::I8), "fp8-g128" (E4M3
  /// with BF16 scales), "fp8-channel-f32", "int8-g256-f32" (with F32 ones), "iq2-g16-n8" (IQ2, of 4
  /// bits). What is a GGUF type has that type's name: "q4_k", "iq4_nl" (not "iq4-g32"), "q6_k" (not
  /// "int6-g16-n8"); GGUF's Q8_0 and Q4_0 are "int8-g32" and "int4-g32".
  std::string name() const;
  /// The encoding that has this name, either one of those that have two; nothing if it is none of
  /// all().
  static std::optional<Encoding> fromName(llvm::StringRef name);
  /// Every encoding that can be asked for by name: floats; signed integers of 3, 4, 5, 6 and 8 bits
  /// and IQ4NL's table, in groups of 16 to 256 and whole rows with f16 scales, in groups of 16, 32
  /// and 64 with nested scales; zero points or f32 scales for int4 and int8 in groups of 32 or
  /// more; GGUF's types, and what their IQ types are re-packed to. Each once.
  static llvm::ArrayRef<Encoding> all();
};

/// E4M3 (FN: no infinities, 0x7F and 0xFF are NaN; OCP 8-bit floating point, revision 1.0): 4 bits
/// of exponent with bias 7, 3 of mantissa. The conversion to it is to nearest even and saturates.
uint8_t floatToE4M3(float x);
inline float e4m3ToFloat(uint8_t bits) {
  // An f16 has the same fields with one exponent bit more; biases 15 and 7 differ by 8.
  unsigned magnitude = bits & 0x7F;
  uint16_t half = magnitude == 0x7F ? 0x7E00 : static_cast<uint16_t>(magnitude << 7);
  return support::f16ToFloat(static_cast<uint16_t>(half | (bits & 0x80) << 8)) * 256.0f;
}

float Encoding::numberOf(int8_t q) const {
  return element == Element::E4M3 ? e4m3ToFloat(static_cast<uint8_t>(q))
                                  : static_cast<float>(integerOf(q));
}

/// The names that Encoding::fromName takes, for messages: "f16, ..., or q4_1, ...".
std::string encodingNames();

/// So that an attribute can hold one.
llvm::hash_code hash_value(const Encoding &encoding);

/// One row (or some consecutive groups of one), number by number.
struct EncodedRow {
  /// An entry per column.
  llvm::ArrayRef<int8_t> q;
  /// An entry per group: scales (codes), zero points, offsets (codes). Empty if there are none.
  llvm::ArrayRef<uint32_t> scales;
  llvm::ArrayRef<int8_t> zeros;
  llvm::ArrayRef<uint16_t> offsets;
  /// superNumbers() f16 per super-block.
  llvm::ArrayRef<uint16_t> supers;

  int zero(int64_t group) const { return zeros.empty() ? 0 : zeros[group]; }
  float scale(const Encoding &encoding, int64_t group) const {
    return encoding.scaleOf(scales[group], super(encoding, group, 0));
  }
  float offset(const Encoding &encoding, int64_t group) const {
    return offsets.empty() ? 0.0f : encoding.offsetOf(offsets[group], super(encoding, group, 1));
  }

private:
  uint16_t super(const Encoding &encoding, int64_t group, int64_t number) const {
    if (number >= encoding.superNumbers())
      return 0;
    return supers[group * encoding.group / Encoding::superColumns * encoding.superNumbers() +
                  number];
  }
};

/// The numbers of an EncodedRow, to be written; null where there are none.
struct RowNumbers {
  int8_t *q = nullptr;
  uint32_t *scales = nullptr;
  int8_t *zeros = nullptr;
  uint16_t *offsets = nullptr, *supers = nullptr;
};

/// The numbers that rows of one encoding consist of, owned.
struct EncodedRows {
  Encoding encoding;
  int64_t columns = 0;
  std::vector<int8_t> q, zeros;
  std::vector<uint32_t> scales;
  std::vector<uint16_t> offsets, supers;

  EncodedRows() = default;
  EncodedRows(const Encoding &encoding, int64_t rows, int64_t columns);
  EncodedRow row(int64_t index) const;
  RowNumbers numbers(int64_t index);
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

#endif // SLUICE_FORMATS_ENCODING_H
