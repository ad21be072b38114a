// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Which rows of a packed matrix's sources lie side by side in its tiles of 16, so that a kernel's
// epilogue finds the rows that it combines in one tile. Mirrors `#quantized.row_order`.
//
// clang-format off
//
//                places of a tile:   0 ... 7                   8 ... 15
//   natural(i)         tile t        rows 16t .. 16t+7         rows 16t+8 .. 16t+15    of source i
//   pairs(i, d)        tile t        rows 8t .. 8t+7           rows 8t+d/2 .. 8t+d/2+7 of a head of
//                                                              d rows, head after head of source i
//   zip(i, j)          tile t        rows 8t .. 8t+7           rows 8t .. 8t+7
//                                    of source i               of source j
//
// clang-format on
//
// t counts the tiles of the segment; in pairs, those of the head, and a place whose row would be
// in the head's other half (or beyond the head) is empty. Every segment starts a tile, and so does
// every head of pairs. Places that are left over are empty.

#ifndef SLUICE_FORMATS_ROWORDER_H
#define SLUICE_FORMATS_ROWORDER_H

#include "llvm/ADT/ArrayRef.h"
#include "llvm/Support/Error.h"

#include <cstdint>
#include <vector>

namespace sluice::formats {

struct RowSegment {
  enum class Kind : uint8_t { Natural, Pairs, Zip };
  Kind kind = Kind::Natural;
  /// The source (of Zip: the first source).
  int64_t first = 0;
  /// Pairs: rows of a head. Zip: the second source. Natural: unused.
  int64_t second = 0;

  /// The tiles of 16 rows that the segment takes if its source (of Zip: each of them) has `rows`
  /// rows. The rows of a pair of heads' halves, or of two zipped sources, share a tile.
  int64_t tiles(int64_t rows) const;
};

/// A place in a packed matrix: a row of a source, or empty.
struct RowPlace {
  int64_t source = -1;
  int64_t row = 0;

  bool empty() const { return source < 0; }
  bool operator==(const RowPlace &) const = default;
};

class RowOrder {
public:
  /// Expands segments over sources of the given row counts. No segments means natural(0),
  /// natural(1), ... Errors: no source or one without rows, a segment that names a source that does
  /// not exist, a source named twice or never, a head size that is odd, below 2 or does not divide
  /// the source's rows, zipped sources of different sizes, more than 2^31 places.
  static llvm::Expected<RowOrder> get(llvm::ArrayRef<RowSegment> segments,
                                      llvm::ArrayRef<int64_t> sourceRows);
  /// How many places get() makes, without making them; the same errors.
  static llvm::Expected<int64_t> count(llvm::ArrayRef<RowSegment> segments,
                                       llvm::ArrayRef<int64_t> sourceRows);

  /// One entry per row of the packed matrix; the size is a multiple of 16.
  llvm::ArrayRef<RowPlace> places() const { return order; }
  int64_t rows() const { return static_cast<int64_t>(order.size()); }
  /// The inverse: the packed row of a source's row.
  int64_t packedRow(int64_t source, int64_t row) const { return inverse[source][row]; }
  /// Packed rows of a whole source, indexed by its rows.
  llvm::ArrayRef<int64_t> packedRows(int64_t source) const { return inverse[source]; }

private:
  std::vector<RowPlace> order;
  std::vector<std::vector<int64_t>> inverse;
};

/// GGUF files of the llama architecture store the rows of q and k so that rotary embedding pairs
/// neighbours: file row 2i of a head is the model's row i, file row 2i+1 its row i + d/2. Gives the
/// file row of a model row, for heads of d rows (d even).
inline int64_t ggufRotaryRow(int64_t row, int64_t headRows) {
  int64_t half = headRows / 2, r = row % headRows;
  return row - r + (r < half ? 2 * r : 2 * (r - half) + 1);
}
/// Its inverse: the model row of a file row.
inline int64_t rotaryRowOfGguf(int64_t row, int64_t headRows) {
  int64_t r = row % headRows;
  return row - r + r / 2 + (r % 2) * (headRows / 2);
}

/// Where the rows of a weight lie in a tensor of its file; by default one after the other.
struct RowView {
  /// The size of a head whose rotary pairs lie side by side (ggufRotaryRow); 0: none.
  int64_t interleaved = 0;
  /// Rows that lie together, and the rows from one such block to the next; 0: all lie together.
  int64_t block = 0, stride = 0;
  /// Heads of `head` rows (0: none) whose first `rotary` are rotated: file rows i and i + rotary/2
  /// become rows i and i + head/2, the others fill the rest in their order.
  int64_t rotary = 0, head = 0;
  /// Not 0: the tensor is transposed, and this is the distance of its rows, in elements.
  int64_t pitch = 0;
  /// Of a checkpoint's matrix in several tensors: it has `total` rows (0: the weight's), from which
  /// the weight begins with row `first`.
  int64_t first = 0, total = 0;

  bool operator==(const RowView &) const = default;
  bool isPlain() const { return *this == RowView(); }
  /// The file's row, counted from the weight's first (with `total`: from the matrix's first), that
  /// is row `row` of the weight.
  int64_t fileRow(int64_t row) const;
  /// How many rows lie from the first to the last of a weight of `rows` rows.
  int64_t fileRows(int64_t rows) const;
};

} // namespace sluice::formats

#endif // SLUICE_FORMATS_ROWORDER_H
