// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Products of float32 matrices, at the speed of the widest vectors that the machine has.
//
// clang-format off
//
//   C [M, N] = A [M, K] B [N, K]^T, or + that
//
//   B is packed into panels of `columns` of its rows:  [N / columns][K][columns]
//   A is packed, kBlock columns at a time, likewise:   [M / rows][kBlock][rows]
//   a tile of C, [rows, columns], stays in registers:  for each k, one row of vectors of B times
//                                                      `rows` broadcast elements of A
//
//   avx512f: 12 x 32    x86-64-v3: 6 x 16    other: 4 x 8
//
// clang-format on
//
// B is often used many times (a weight, for all tokens of a text), so its packing is the caller's
// to keep. Nothing here starts threads: callers have many products to run side by side. Sums are
// made in an order that depends on the shapes and the kind of machine alone.

#ifndef SLUICE_LIB_CALIBRATION_GEMM_H
#define SLUICE_LIB_CALIBRATION_GEMM_H

#include <cstdint>
#include <vector>

namespace sluice::calibration {

/// Elements (row, column) of a matrix at data[row * rowStride + column * columnStride].
struct MatrixView {
  const float *data;
  int64_t rows, columns;
  int64_t rowStride, columnStride = 1;

  MatrixView transposed() const { return {data, columns, rows, columnStride, rowStride}; }
};

class PackedMatrix {
public:
  PackedMatrix() = default;
  explicit PackedMatrix(const MatrixView &matrix) : PackedMatrix(matrix.rows, matrix.columns) {
    pack(matrix, 0);
  }
  /// Zeros, to be packed rows by rows.
  PackedMatrix(int64_t rows, int64_t columns);

  /// Puts a matrix of the same columns at rows `first` and following. Panels are
  /// `panelRows()` rows: two threads may pack different panels.
  void pack(const MatrixView &part, int64_t first);
  static int64_t panelRows();

  /// The sum of the squares of all elements.
  double squares() const;
  int64_t rows() const { return numRows; }
  int64_t columns() const { return numColumns; }
  const float *panel(int64_t index) const {
    return elements.data() + index * panelRows() * numColumns;
  }

private:
  std::vector<float> elements;
  int64_t numRows = 0, numColumns = 0;
};

/// What a product does with C, and which part of B it uses.
struct GemmOptions {
  bool accumulate = false;
  /// Rows of B, of which the first is a multiple of panelRows(); C has as many columns. All if
  /// `lastRow` is negative.
  int64_t firstRow = 0, lastRow = -1;
  /// The column of B at which it begins: as many are used as A has.
  int64_t firstColumn = 0;
};

/// C has rows of `cStride` elements.
void multiply(const MatrixView &a, const PackedMatrix &b, float *c, int64_t cStride,
              const GemmOptions &options = {});

} // namespace sluice::calibration

#endif // SLUICE_LIB_CALIBRATION_GEMM_H
