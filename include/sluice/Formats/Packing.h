// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The physical layouts of a weight matrix: where each element, scale and zero point lies.
// `PackedShape`'s position functions are the definition; the pack functions below are the same
// thing done quickly, and tests hold them together.
//
// Everywhere but in `blocks`: numbers are little endian, zero points one int8 each (of int4 formats
// too), signed elements of b bits two's complement (q & (2^b - 1)). Places that no element occupies
// (rows beyond the last, columns beyond the last, padding) are zero bytes.
//
// "to N" below is padding to a multiple of N bytes.
//
// clang-format off
//
// rows
// ----
//   Row after row. A row of a float format is just its elements; of another:
//
//     row:  | elements | to 2 | scales [groups] | offsets [groups] | to 2 | supers | to 16 |
//
//   (scales F32: to 4).
//
//   Elements are in planes (Encoding::planes), one after the other. Plane of width w:
//     byte w * j / 8, from bit w * j % 8 on: the plane's bits of element j
//   int4:   byte j = element 2j in the low nibble, element 2j+1 in the high nibble
//
// blocks
// ------
//   GGUF's blocks (GgufBlocks.h). A row is its blocks in order, without padding.
//
// lanes
// -----
//   For the host's vector units. Rows are padded to tiles of 16, columns to Kp, a multiple of 32.
//   Tile after tile:
//
//     tile:  | elements | scales [groups][16] | offsets [groups][16] | supers | to 64 |
//
//   q[r,k] is row r of the tile, column k. The elements of 16 columns are 32 b bytes: for each plane
//   of width w, w times 32 bytes; each 32 bytes have 8 / w pairs of columns, the first at the low end
//   of the bytes:
//
//     byte   0          1          2          3          ...  30         31
//            q[0,2p]    q[0,2p+1]  q[1,2p]    q[1,2p+1]  ...  q[15,2p]   q[15,2p+1]
//
//     byte 32 b (k / 16) + 32 (widths of the planes before) + 32 (w p / 8) + 2 r + k % 2,
//     from bit w p % 8 on, where p = k % 16 / 2
//
//     int8:  32 bytes for every two columns
//     int4:  32 bytes for every four columns: 4u and 4u+1 in low nibbles, 4u+2 and 4u+3 in high ones
//
//     f16, bf16, f32, fp8:  for column k, 16 elements
//       place  0          1          2          3          ...  14         15
//              q[0,k]     q[1,k]     q[2,k]     q[3,k]     ...  q[14,k]    q[15,k]
//
//   Scales and offsets of rows, lanes and mma, R rows of a tile (16; rows: 1) side by side:
//
//     scale F16, BF16, number [groups][R]               offset F16        f16 [groups][R]
//           F32
//     scale I8, E8M0,  byte [groups][R]                 offset ZeroPoint  int8 [groups][R]
//           E4M3
//     scale U6, U4     byte [groups][R]: low 4 bits of the scale, low 4 bits of the offset << 4
//                      U6: in place of offsets, byte [groups / 2][R]: the high 2 bits of scale and
//                      offset of group 2i, then of group 2i+1, from the low end
//     supers           f16 [super-blocks][numbers][R]
//
// mma
// ---
//   For the tensor cores' 16-row operand A (PTX ISA, "Matrix Fragments for mma.m16n8k32",
//   ".m16n8k16"). Rows are padded to tiles of 16. A tile is cut into chunks of `columns` columns,
//   the last one shorter. Tile after tile, chunk after chunk, each of a multiple of 16 bytes:
//
//     chunk:  | fragments | scales [groups][16] | zero points, int8 [groups][16] | to 16 |
//
//   It holds floats of 16 bits, Encoding::isPlainInteger() formats and fp8.
//
// records
// -------
//   For the tensor cores, too, and for every encoding of integers: tiles of 16 rows, cut into records
//   of 256 columns (Records.h). A chunk, which a kernel copies at a time, is any number of records:
//   the bytes do not depend on it.
//
//   A fragment is 512 bytes: 16 rows x 32 columns (int8, fp8), x 64 columns (int4) or x 16 columns
//   (f16, bf16). Lane L of the warp owns its bytes 16L to 16L+15, its operand registers:
//
//       byte of the lane   0-3   4-7   8-11  12-15
//       register           a0    a1    a2    a3
//
//   int8, fp8: L.a is register a of lane L. It holds four columns; column k is its byte k % 4.
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

#include "sluice/Formats/Records.h"

#include "llvm/Support/Error.h"

namespace sluice::formats {

struct Layout {
  enum class Kind : uint8_t { Rows, Blocks, Lanes, Mma, Records };

  Kind kind = Kind::Rows;
  /// Columns of a chunk. Mma: a multiple of 64, and of the group or a divisor of it. Records: a
  /// multiple of 256. Others: 0.
  int64_t columns = 0;

  bool operator==(const Layout &) const = default;
  bool hasChunks() const { return kind == Kind::Mma || kind == Kind::Records; }
  bool isTiled() const { return kind == Kind::Lanes || hasChunks(); }
  /// "rows", "blocks", "lanes", "mma", "records".
  llvm::StringRef name() const;
};

/// Rows of a tile of the tiled layouts.
inline constexpr int64_t tileRows = 16;
/// The greatest number of rows or columns that a packed matrix may have.
inline constexpr int64_t maxExtent = int64_t(1) << 31;
/// The greatest number of elements; keeps every byte position within 63 bits.
inline constexpr int64_t maxElements = int64_t(1) << 56;

/// Where a number lies: its first byte and, if it is narrower, at which bit of it.
struct Position {
  int64_t byte;
  unsigned shift; ///< int4: 4 for a high nibble, else 0

  bool operator==(const Position &) const = default;
};

/// A matrix of `rows` x `columns` in a format and a layout. `rows` counts after the row order has
/// been applied: empty places inside it are rows of zeros (see RowOrder.h).
class PackedShape {
public:
  /// Errors say what is wrong with the combination: an extent below 1 or above maxExtent, more than
  /// maxElements, an impossible encoding (Encoding::problem), one that the layout has not, bad
  /// chunk columns, blocks of an encoding that GGUF lacks, columns that are no whole number of
  /// blocks or super-blocks.
  static llvm::Expected<PackedShape> get(Encoding format, Layout layout, int64_t rows,
                                         int64_t columns);

  const Encoding &format() const { return fmt; }
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
  /// (mma), of 256 (records), else columns().
  int64_t paddedColumns() const { return padded; }
  int64_t groups() const { return fmt.groupsPerRow(numColumns); }
  /// The group of a column.
  int64_t groupOf(int64_t column) const {
    return fmt.group == Encoding::channel ? 0 : column / fmt.group;
  }

  /// Chunks of a tile; 1 in the layouts that have none.
  int64_t chunks() const;
  /// The first byte of a chunk in its tile.
  int64_t chunkOffset(int64_t chunk) const { return chunk * chunkStride; }
  /// Bytes of a chunk.
  int64_t chunkBytes(int64_t chunk) const {
    return chunk + 1 < chunks() ? chunkStride : tile - chunk * chunkStride;
  }
  /// Columns of a chunk that hold elements (the last chunk may have fewer).
  int64_t chunkColumns(int64_t chunk) const;
  // What follows is of all layouts but records and blocks.

  /// Bytes of a chunk's elements: its scales start there (rows: at the next even byte, see
  /// chunkScales).
  int64_t chunkElements(int64_t chunk) const;
  /// The first byte of a chunk's scales, in the chunk, their number of groups, the first byte of
  /// the offsets (zero points, f16, or high bits of fields), and of the numbers of super-blocks.
  int64_t chunkScales(int64_t chunk) const;
  int64_t chunkGroups(int64_t chunk) const;
  int64_t chunkOffsets(int64_t chunk) const;
  int64_t chunkSupers(int64_t chunk) const;

  /// Element (row, column), 0 <= row < tiles() * rowsPerTile(), 0 <= column < columns(), and of it
  /// one plane.
  Position elementPosition(int64_t row, int64_t column, size_t plane = 0) const;
  /// The scale, and the offset, that apply to element (row, column). Where an mma chunk repeats
  /// a scale, the one in the element's own chunk. Integer formats only; offsets only if the format
  /// has them. Of fields, the scale's is the byte with the low bits of both, the offset's (U6 only)
  /// is where the scale's 2 high bits lie, followed by the offset's.
  int64_t scalePosition(int64_t row, int64_t column) const;
  Position offsetPosition(int64_t row, int64_t column) const;
  /// A number of the super-block of (row, column).

  // Where the numbers that belong to element (row, column) are, bit by bit; of all layouts but
  // blocks.
  BitFields elementBits(int64_t row, int64_t column) const;
  BitFields scaleBits(int64_t row, int64_t column) const;
  BitFields offsetBits(int64_t row, int64_t column) const;
  /// An f16 of the super-block.
  int64_t superPosition(int64_t row, int64_t column, int64_t number) const;

private:
  PackedShape() = default;
  /// The first byte of the chunk of (row, column).
  int64_t chunkStart(int64_t row, int64_t column) const;
  /// A column's group among those of its chunk.
  int64_t groupInChunk(int64_t column) const;
  int64_t chunkOf(int64_t column) const {
    return lay.kind == Layout::Kind::Mma ? column / lay.columns : 0;
  }
  /// The first byte of the record of (row, column).
  int64_t recordStart(int64_t row, int64_t column) const;
  /// The end of a chunk's last numbers, before padding.
  int64_t scalesEnd(int64_t chunk) const;

  Encoding fmt;
  Layout lay;
  int64_t numRows = 0, numColumns = 0, padded = 0, tile = 0, chunkStride = 0;
};

/// Bytes of a matrix; the errors of PackedShape::get.
llvm::Expected<int64_t> packedBytes(Encoding format, Layout layout, int64_t rows, int64_t columns);

/// One row to pack. Null `elements` is an empty place: zeros.
struct PackRow {
  PackRow() = default;
  PackRow(const void *floats) : elements(floats) {}
  PackRow(const EncodedRow &row)
      : elements(row.q.data()), scales(row.scales.data()), zeros(row.zeros.data()),
        offsets(row.offsets.data()), supers(row.supers.data()) {}

  /// columns() entries: int8_t q (integers), uint16_t bits (f16, bf16) or float (f32).
  const void *elements = nullptr;
  /// The other numbers of an EncodedRow; null where the format has none.
  const uint32_t *scales = nullptr;
  const int8_t *zeros = nullptr;
  const uint16_t *offsets = nullptr, *supers = nullptr;
};

/// Writes one tile. `rows` has at most rowsPerTile() entries (missing ones are empty); `out` has
/// tileBytes() bytes, all of which are written.
void packTile(const PackedShape &shape, llvm::ArrayRef<PackRow> rows,
              llvm::MutableArrayRef<uint8_t> out);

/// Reads one row of a packed matrix of integers back, number by number, by the position functions:
/// `packed` is the whole matrix. The result has one row.
EncodedRows unpackRow(const PackedShape &shape, llvm::ArrayRef<uint8_t> packed, int64_t row);
/// The values that a row of a packed matrix of any format stands for.
void unpackRow(const PackedShape &shape, llvm::ArrayRef<uint8_t> packed, int64_t row,
               llvm::MutableArrayRef<float> values);

} // namespace sluice::formats

#endif // SLUICE_FORMATS_PACKING_H
