// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The physical layouts of a weight matrix: where each element, scale and zero point lies.
// `PackedShape`'s position functions are the definition; the pack functions below are the same
// thing done quickly, and tests hold them together.
//
// Everywhere: scales are f16 little endian, zero points one int8 each (of int4 formats too), floats
// little endian, int4 elements two's complement nibbles (q & 15) except in `q4_0`, which has q + 8.
// Places that no element occupies (rows beyond the last, columns beyond the last, padding) are zero
// bytes.
//
// "to N" below is padding to a multiple of N bytes.
//
// clang-format off
//
// rows
// ----
//   Row after row. A row of a float format is just its elements; of an integer format:
//
//     row:  | elements | to 2 | scales, f16 [groups] | zero points, int8 [groups] | to 16 |
//
//   int4:   byte j = element 2j in the low nibble, element 2j+1 in the high nibble
//
// q8_0, q4_0
// ----------
//   GGUF's blocks, for int8-g32 and int4-g32 without zero points. A row is its blocks of 32 columns
//   in order, without padding.
//
//     q8_0, 34 bytes                        q4_0, 18 bytes
//       bytes 0-1   scale                     bytes 0-1   scale
//       byte  2+i   element i                 byte  2+i   low nibble: element i
//                   0 <= i < 32                           high nibble: element i+16, 0 <= i < 16
//
// lanes
// -----
//   For the host's vector units. Rows are padded to tiles of 16, columns to Kp, a multiple of 32.
//   Tile after tile:
//
//     tile:  | elements | scales, f16 [groups][16] | zero points, int8 [groups][16] | to 64 |
//
//   q[r,k] is row r of the tile, column k.
//
//     int8:  for columns 2p and 2p+1, 32 bytes
//       byte   0          1          2          3          ...  30         31
//              q[0,2p]    q[0,2p+1]  q[1,2p]    q[1,2p+1]  ...  q[15,2p]   q[15,2p+1]
//
//     int4:  for columns 4u to 4u+3, 32 bytes
//       byte   0          1          2          3          ...  30         31
//       low    q[0,4u]    q[0,4u+1]  q[1,4u]    q[1,4u+1]  ...  q[15,4u]   q[15,4u+1]
//       high   q[0,4u+2]  q[0,4u+3]  q[1,4u+2]  q[1,4u+3]  ...  q[15,4u+2] q[15,4u+3]
//
//     f16, bf16, f32:  for column k, 16 elements
//       place  0          1          2          3          ...  14         15
//              q[0,k]     q[1,k]     q[2,k]     q[3,k]     ...  q[14,k]    q[15,k]
//
// mma
// ---
//   For the tensor cores' 16-row operand A (PTX ISA, "Matrix Fragments for mma.m16n8k32",
//   ".m16n8k16"). Rows are padded to tiles of 16. A tile is cut into chunks of `columns` columns,
//   the last one shorter. Tile after tile, chunk after chunk, each of a multiple of 16 bytes:
//
//     chunk:  | fragments | scales, f16 [groups][16] | zero points, int8 [groups][16] | to 16 |
//
//   A fragment is 512 bytes: 16 rows x 32 columns (int8), x 64 columns (int4) or x 16 columns (f16,
//   bf16). Lane L of the warp owns its bytes 16L to 16L+15, its operand registers:
//
//       byte of the lane   0-3   4-7   8-11  12-15
//       register           a0    a1    a2    a3
//
//   int8: L.a is register a of lane L. It holds four columns; column k is its byte k % 4.
//
//       column k    0-3    4-7    8-11   12-15     16-19  20-23  24-27  28-31
//       row  0      0.a0   1.a0   2.a0   3.a0      0.a2   1.a2   2.a2   3.a2
//       row  1      4.a0   5.a0   6.a0   7.a0      4.a2   5.a2   6.a2   7.a2
//       ...
//       row  7     28.a0  29.a0  30.a0  31.a0     28.a2  29.a2  30.a2  31.a2
//       row  8      0.a1   1.a1   2.a1   3.a1      0.a3   1.a3   2.a3   3.a3
//       ...
//       row 15     28.a1  29.a1  30.a1  31.a1     28.a3  29.a3  30.a3  31.a3
//
//       byte = 16 * ((r % 8) * 4 + k % 16 / 4)  +  4 * (r / 8 + 2 * (k / 16))  +  k % 4
//
//   int4: the 512 bytes hold columns 64f to 64f+63 of the chunk, at the same bytes as int8 (a mask
//   gives 16 * q as an int8, a shift and a mask the other).
//
//       high nibble   columns 64f    to 64f+31
//       low nibble    columns 64f+32 to 64f+63
//
//   f16, bf16: a register holds two columns; column k is its half k % 2.
//
//       column k    0,1    2,3    4,5    6,7       8,9    10,11  12,13  14,15
//       row  0      0.a0   1.a0   2.a0   3.a0      0.a2   1.a2   2.a2   3.a2
//       ...                         (rows as for int8)
//       row 15     28.a1  29.a1  30.a1  31.a1     28.a3  29.a3  30.a3  31.a3
//
//       byte = 16 * ((r % 8) * 4 + k % 8 / 2)  +  4 * (r / 8 + 2 * (k / 8))  +  2 * (k % 2)
//
//   A chunk's fragments end with the last one that has a column; missing columns are 0.
//
//   Scales (and zero points) of a group: row r at place (r % 8) * 2 + r / 8, so that the two rows
//   of a lane are neighbours. A group that is longer than a chunk has its scale (and zero point)
//   repeated in each of its chunks.
//
//       place   0   1   2   3   4   5   ...  12  13  14  15
//       row     0   8   1   9   2   10  ...  6   14  7   15
//
// clang-format on

#ifndef SLUICE_FORMATS_PACKING_H
#define SLUICE_FORMATS_PACKING_H

#include "sluice/Formats/Format.h"

#include "llvm/Support/Error.h"

namespace sluice::formats {

struct Layout {
  enum class Kind : uint8_t { Rows, BlocksQ8_0, BlocksQ4_0, Lanes, Mma };

  Kind kind = Kind::Rows;
  /// Columns of a chunk, Mma only: a multiple of 64, and of the group or a divisor of it.
  int64_t columns = 0;

  bool operator==(const Layout &) const = default;
  bool isTiled() const { return kind == Kind::Lanes || kind == Kind::Mma; }
  /// "rows", "q8_0", "q4_0", "lanes", "mma".
  llvm::StringRef name() const;
};

/// Rows of a tile of the tiled layouts.
inline constexpr int64_t tileRows = 16;
/// The greatest number of rows or columns that a packed matrix may have.
inline constexpr int64_t maxExtent = int64_t(1) << 31;
/// The greatest number of elements; keeps every byte position within 63 bits.
inline constexpr int64_t maxElements = int64_t(1) << 56;

/// Where a number lies: its first byte and, for int4, which nibble of it.
struct Position {
  int64_t byte;
  unsigned shift; ///< 4 for a high nibble, else 0

  bool operator==(const Position &) const = default;
};

/// A matrix of `rows` x `columns` in a format and a layout. `rows` counts after the row order has
/// been applied: empty places inside it are rows of zeros (see RowOrder.h).
class PackedShape {
public:
  /// Errors say what is wrong with the combination: an extent below 1 or above maxExtent, more than
  /// maxElements, a group that is not 32, 64, 128, 256 or channel, float elements with groups or
  /// zero points, f32 in mma, bad chunk columns, a block layout with another format or columns that
  /// are no multiple of 32.
  static llvm::Expected<PackedShape> get(Format format, Layout layout, int64_t rows,
                                         int64_t columns);

  Format format() const { return fmt; }
  Layout layout() const { return lay; }
  int64_t rows() const { return numRows; }
  int64_t columns() const { return numColumns; }

  /// Bytes of the whole matrix.
  int64_t bytes() const { return tiles() * tileBytes(); }
  /// Tiles: of 16 rows in the tiled layouts, of one row in the others.
  int64_t tiles() const { return (numRows + rowsPerTile() - 1) / rowsPerTile(); }
  int64_t rowsPerTile() const { return lay.isTiled() ? tileRows : 1; }
  int64_t tileBytes() const { return tile; }
  /// Columns with padding: a multiple of 32 (lanes), of what a fragment or pair of fragments holds
  /// (mma), else columns().
  int64_t paddedColumns() const { return padded; }
  int64_t groups() const { return fmt.groupsPerRow(numColumns); }
  /// The group of a column.
  int64_t groupOf(int64_t column) const {
    return fmt.group == Format::channel ? 0 : column / fmt.group;
  }

  /// Chunks of a tile; 1 in all layouts but mma.
  int64_t chunks() const;
  /// The first byte of a chunk in its tile.
  int64_t chunkOffset(int64_t chunk) const { return chunk * chunkStride; }
  /// Bytes of a chunk.
  int64_t chunkBytes(int64_t chunk) const {
    return chunk + 1 < chunks() ? chunkStride : tile - chunk * chunkStride;
  }
  /// Columns of a chunk that hold elements (the last chunk may have fewer).
  int64_t chunkColumns(int64_t chunk) const;
  /// Bytes of a chunk's elements: its scales start there (rows: at the next even byte, see
  /// chunkScales).
  int64_t chunkElements(int64_t chunk) const;
  /// The first byte of a chunk's scales, in the chunk, their number of groups, and the first byte
  /// of the zero points.
  int64_t chunkScales(int64_t chunk) const;
  int64_t chunkGroups(int64_t chunk) const;
  int64_t chunkZeros(int64_t chunk) const;

  /// Element (row, column), 0 <= row < tiles() * rowsPerTile(), 0 <= column < columns().
  Position elementPosition(int64_t row, int64_t column) const;
  /// The scale, and the zero point, that apply to element (row, column). Where an mma chunk repeats
  /// a scale, the one in the element's own chunk. Integer formats only; zero points only if the
  /// format has them.
  int64_t scalePosition(int64_t row, int64_t column) const;
  int64_t zeroPosition(int64_t row, int64_t column) const;

private:
  PackedShape() = default;

  Format fmt;
  Layout lay;
  int64_t numRows = 0, numColumns = 0, padded = 0, tile = 0, chunkStride = 0;
};

/// Bytes of a matrix; the errors of PackedShape::get.
llvm::Expected<int64_t> packedBytes(Format format, Layout layout, int64_t rows, int64_t columns);

/// One row to pack. Null `elements` is an empty place: zeros.
struct PackRow {
  /// columns() entries: int8_t q (int8 and int4), uint16_t bits (f16, bf16) or float (f32).
  const void *elements = nullptr;
  /// groups() entries; null for float formats.
  const uint16_t *scales = nullptr;
  /// groups() entries; null for formats without zero points.
  const int8_t *zeros = nullptr;
};

/// Writes one tile. `rows` has at most rowsPerTile() entries (missing ones are empty); `out` has
/// tileBytes() bytes, all of which are written.
void packTile(const PackedShape &shape, llvm::ArrayRef<PackRow> rows,
              llvm::MutableArrayRef<uint8_t> out);

/// Reads one row of a packed matrix back, element by element, by the position functions: `packed`
/// is the whole matrix. Integer formats: q has columns() entries, scales and zeros groups().
void unpackRow(const PackedShape &shape, llvm::ArrayRef<uint8_t> packed, int64_t row,
               llvm::MutableArrayRef<int8_t> q, llvm::MutableArrayRef<uint16_t> scales,
               llvm::MutableArrayRef<int8_t> zeros);
/// The values that a row of a packed matrix of any format stands for.
void unpackRow(const PackedShape &shape, llvm::ArrayRef<uint8_t> packed, int64_t row,
               llvm::MutableArrayRef<float> values);

} // namespace sluice::formats

#endif // SLUICE_FORMATS_PACKING_H
