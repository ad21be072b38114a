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
// rows
// ------------------------------------------------------------------------------------------------------------
//   Row after row, `stride` = the row's bytes padded to 16 (floats: not padded).
//     row: | elements, in order | scale of group 0, 1, ... | zero point of group 0, 1, ... |
//     padding |
//   int4: byte j holds element 2j in its low nibble and 2j+1 in its high nibble. The scales start
//   at an even byte.
//
// q8_0, q4_0
// ------------------------------------------------------------------------------------------------------
//   GGUF's blocks: a row is its blocks of 32 columns in order; int8-g32 and int4-g32 without zero
//   points only.
//     q8_0, 34 bytes: | scale | 32 int8 |         q4_0, 18 bytes: | scale | 16 bytes |
//   q4_0's byte i holds element i in its low nibble and element i + 16 in its high nibble.
//
// lanes
// -----------------------------------------------------------------------------------------------------------
//   For the host's vector units. Rows are padded to tiles of 16, columns to Kp, a multiple of 32.
//   Tile after tile:
//     tile: | elements | scales [ceil(Kp / group)][16 rows] | zero points [ceil(Kp / group)][16
//     rows] | pad to 64 |
//   int8: 32 bytes for two columns p of 16 rows        int4: 32 bytes for four columns u of 16 rows
//     byte 2r   = q[r][2p]                                byte 2r   = q[r][4u]   low, q[r][4u+2]
//     high nibble byte 2r+1 = q[r][2p+1]                              byte 2r+1 = q[r][4u+1] low,
//     q[r][4u+3] high nibble
//        row 0   row 1       row 15                         row 0             row 1           row
//        15
//       | 0 1 | | 0 1 | ... | 0 1 |                        | 0/2 1/3 | | 0/2 1/3 | ... | 0/2 1/3 |
//   f16, bf16, f32: 16 elements for each column, row r at place r.
//
// mma
// -------------------------------------------------------------------------------------------------------------
//   For the tensor cores' 16-row operand (PTX ISA, "Matrix Fragments for mma.m16n8k32",
//   ".m16n8k16"). Rows are padded to tiles of 16; a tile is cut into chunks of `columns` columns,
//   the last one shorter; tile after tile, chunk after chunk:
//     chunk: | fragments of 512 bytes | scales [groups of the chunk][16] | zero points [groups of
//     the chunk][16] |
//   A fragment is 16 rows x 32 columns (int8, int4) or x 16 columns (f16, bf16). A thread (lane
//   0..31) owns 16 consecutive bytes of it, its four 32-bit operand registers a0..a3:
//
//         int8 / int4, k = column in fragment            f16 / bf16
//              k: 0-3  ... 12-15 | 16-19 ... 28-31           k: 0,1 ... 6,7 | 8,9 ... 14,15
//     row r<8:   a0 of lane 4r+k/4 | a2 of lane 4r+k%16/4  row r<8:  a0 of lane 4r+k/2 | a2 of lane
//     4r+k%8/2 row r>=8:  a1 of the same    | a3 of the same        row r>=8: a1 of the same    |
//     a3 of the same
//
//   Int8: byte ((r%8)*4 + k%16/4)*16 + (r/8 + 2*(k/16))*4 + k%4.
//   int4: fragments 2f and 2f+1 share 512 bytes, at the same byte as int8: 2f in the high nibbles,
//   2f+1 in the low ones (so a mask gives 16 * q as an int8, and a shift and a mask the other).
//   f16, bf16: byte ((r%8)*4 + k%8/2)*16 + (r/8 + 2*(k/8))*4 + k%2*2.
//   A chunk's elements end at the last fragment (int4: pair of fragments) that has a column;
//   missing columns are 0. The scale of row r in a group lies at place (r%8)*2 + r/8, so that a
//   lane's two rows are neighbours; zero points too. A group that is longer than a chunk has its
//   scale (and zero point) repeated in each of its chunks. Every chunk's size is a multiple of 16
//   bytes.

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
  /// maxElements, a group that is not 32, 64,
  /// 128, 256 or channel, float elements with groups or zero points, f32 in mma, bad chunk columns,
  /// a block layout with another format or columns that are no multiple of 32.
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
