// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Layout `records`: every encoding of integers in the order of the tensor cores' operand, so that
// one kernel multiplies all of them at the memory's speed.
//
// A tile of 16 rows is cut into records of 256 columns (a super-block of each row), one after the
// other. A record is
//
//     | b planes of 512 bytes | units | super-blocks |
//
// where b is the bits of an element.
//
// Columns. mma.m16n8k32 has eight columns and a token needs two of them, for the high and the low
// byte of its inputs. The others serve as sub-blocks: the 128 columns of an activation group are
// dealt to four products (fragments) so that lane 4g + s of a warp has weights of sub-block s
// alone, 32 columns of rows g and g + 8; columns 2s and 2s + 1 of the input's operand hold the high
// and low bytes of the inputs of sub-block s, and zeros elsewhere. The four products add up in the
// same registers, after which each lane has the exact sum of its own sub-block, and the scales of
// four sub-blocks are applied at once.
//
//     column c: group g = c / 128, sub-block s = c / 32 % 4, fragment j = c / 8 % 4, i = c % 8
//     row r:    lane 4 (r % 8) + s, register r / 8 + 2 (i / 4), byte i % 4 of it
//     operand   4 g + j, of eight
//
// Elements. A byte of an operand holds an element as a multiple of 2^(8 - b), a signed one in two's
// complement: at the top of the byte. Unsigned elements of 4 or more bits in group 1 stand at the
// bottom, where they need no shift. Byte `512 p + 16 lane + 4 register + byte` of plane p holds at
// its top (group 1, unsigned: bottom) the element of operand p; what it has free, 8 - b bits, holds
// pieces of the elements of operands b to 7 (RecordShape::pieces). A word of operands is hence a
// few masks and shifts of the words of planes. Of code Table, where 16 integers are looked up byte
// by byte, a word of a plane holds eight indices instead, one in each nibble: operand p's in its
// low half, operand p + 4's in its high half.
//
// Units. A unit is 16, 32 or 128 columns: a group, or 128 columns of a larger one, whose scale is
// repeated. What the units of a record have, from byte 512 b on, with r of a lane's two rows
// (row / 8), h the unit of 16 in the sub-block and place(n) the n-th number of a lane:
//
//     f16, unit 32        u16 at 8 lane + 4 g + 2 r; with offset f16: at 16 lane + 8 g + 2 r, the
//                         offset 4 bytes further on
//     f16, unit 16        u16 at 16 lane + 8 g + 4 h + 2 r
//     f16, unit 128       u16 at 8 (row % 8) + 4 g + 2 r
//     bytes, unit 32      at 4 lane + 2 g + r
//     bytes, unit 16      at 8 lane + 4 g + 2 h + r
//     fields of 6 bits    of 48 bits of a lane, from bit 6 (4 g + 2 r) on: scale, offset; bits 0 to
//                         31 are the u32 at 4 lane, the others the u16 at 128 + 2 lane
//     fields of 4 bits    nibble 8 g + 4 h + 2 r of 8 bytes at 8 lane: scale; the next one: offset
//
// Super-blocks, f16, after the units: with one number, at 4 (row % 8) + 2 r; with two (scale and
// offset), at 8 (row % 8) + 4 r, the offset 2 bytes further on.

#ifndef SLUICE_FORMATS_RECORDS_H
#define SLUICE_FORMATS_RECORDS_H

#include "sluice/Formats/Encoding.h"

#include "llvm/ADT/SmallVector.h"

namespace sluice::formats {

/// Some bits of a number in memory: bits [shift, shift + width) of the little-endian number that
/// starts at `byte` are its bits [low, low + width). Widths up to 8 lie in that byte.
struct BitField {
  int64_t byte;
  unsigned shift, width, low;

  bool operator==(const BitField &) const = default;
};
using BitFields = llvm::SmallVector<BitField, 4>;

/// How a record of an encoding is divided.
class RecordShape {
public:
  static constexpr int64_t columns = 256, rows = 16, operands = 8, planeBytes = 512;

  /// Why the layout has no place for an encoding, or "": it is for integers, without zero points.
  static std::string problem(const Encoding &encoding);

  explicit RecordShape(const Encoding &encoding);

  const Encoding &encoding() const { return enc; }
  /// Columns of a unit: 16, 32 or 128.
  int64_t unit() const { return unitColumns; }
  int64_t bytes() const { return supersAt() + superBytes; }
  int64_t unitsAt() const { return enc.bits() * planeBytes; }
  int64_t supersAt() const { return unitsAt() + unitBytes; }

  /// Bits of a byte of plane `plane` that are bits of operand's byte: of `width` bits, from bit
  /// `from` of the plane's to bit `to` of the operand's.
  struct Piece {
    unsigned plane, from, to, width;
  };
  /// The pieces of an operand; not of code Table.
  llvm::SmallVector<Piece, 4> pieces(unsigned operand) const;
  /// An operand's byte is the element times 2^fraction.
  unsigned fraction(unsigned operand) const;

  // Positions in the record; row < 16, column < 256.
  BitFields element(int64_t row, int64_t column) const;
  BitFields scale(int64_t row, int64_t column) const;
  BitFields offset(int64_t row, int64_t column) const;
  int64_t super(int64_t row, int64_t number) const;

private:
  Encoding enc;
  int64_t unitColumns, unitBytes, superBytes;
};

/// Two words of eight integers, a and b, from which the table's are looked up by byte permutations
/// that replicate the sign (PRMT with bit 3 of a selector): with s(x) = -1 for a negative x, else
/// 0, the integer of index i < 8 is a[i] + s(b[i]), that of 8 + i is s(a[i]) + b[i].
struct LookupTable {
  int8_t a[8], b[8];
  static LookupTable of(const Encoding &encoding);
};

} // namespace sluice::formats

#endif // SLUICE_FORMATS_RECORDS_H
