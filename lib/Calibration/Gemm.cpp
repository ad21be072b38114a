// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Gemm.h"

#include <algorithm>
#include <cassert>
#include <cstring>

using namespace sluice::calibration;

/// Columns of A and B that are multiplied before C is touched: a panel of them fits into the first
/// level of cache, all rows of A into the second.
static constexpr int64_t kBlock = 256;

namespace {

/// C [rows, columns] = (or +=) the product of packed panels a [k][Rows] and b [k][columns].
using TileFunction = void (*)(const float *a, const float *b, int64_t k, float *c, int64_t cStride,
                              bool accumulate);

struct Kernel {
  int64_t rows, columns;
  TileFunction tile;
};

template <typename Vector, int Rows, int Vectors>
[[gnu::always_inline]] inline void computeTile(const float *a, const float *b, int64_t k, float *c,
                                               int64_t cStride, bool accumulate) {
  constexpr int lanes = sizeof(Vector) / sizeof(float);
  Vector sums[Rows][Vectors] = {};
  for (int64_t i = 0; i < k; ++i, a += Rows, b += Vectors * lanes) {
    Vector columns[Vectors];
    std::memcpy(columns, b, sizeof(columns));
    for (int row = 0; row < Rows; ++row) {
      Vector element = a[row] - Vector{}; // all lanes
      for (int v = 0; v < Vectors; ++v)
        sums[row][v] += element * columns[v];
    }
  }
  for (int row = 0; row < Rows; ++row)
    for (int v = 0; v < Vectors; ++v) {
      float *place = c + row * cStride + v * lanes;
      if (accumulate) {
        Vector before;
        std::memcpy(&before, place, sizeof(Vector));
        sums[row][v] += before;
      }
      std::memcpy(place, &sums[row][v], sizeof(Vector));
    }
}

using Vector4 [[gnu::vector_size(16)]] = float;
using Vector8 [[gnu::vector_size(32)]] = float;
using Vector16 [[gnu::vector_size(64)]] = float;

#ifdef __x86_64__
[[gnu::target("avx512f")]] void
#else
void
#endif
tileAvx512(const float *a, const float *b, int64_t k, float *c, int64_t cStride, bool accumulate) {
  computeTile<Vector16, 12, 2>(a, b, k, c, cStride, accumulate);
}

#ifdef __x86_64__
[[gnu::target("arch=x86-64-v3")]] void
#else
void
#endif
tileAvx2(const float *a, const float *b, int64_t k, float *c, int64_t cStride, bool accumulate) {
  computeTile<Vector8, 6, 2>(a, b, k, c, cStride, accumulate);
}

void tileAny(const float *a, const float *b, int64_t k, float *c, int64_t cStride,
             bool accumulate) {
  computeTile<Vector4, 4, 2>(a, b, k, c, cStride, accumulate);
}

Kernel chooseKernel() {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx512f"))
    return {12, 32, tileAvx512};
  if (__builtin_cpu_supports("x86-64-v3"))
    return {6, 16, tileAvx2};
#endif
  return {4, 8, tileAny};
}

const Kernel &kernel() {
  static const Kernel chosen = chooseKernel();
  return chosen;
}

} // namespace

/// Packs rows first .. first + count of a matrix, columns begin .. end, as [columns][width]; rows
/// beyond the matrix's are zeros.
static void packPanel(const MatrixView &matrix, int64_t first, int64_t width, int64_t begin,
                      int64_t end, float *out) {
  int64_t count = std::min(width, matrix.rows - first);
  if (count < width)
    std::fill_n(out, width * (end - begin), 0.0f);
  const float *data = matrix.data + first * matrix.rowStride + begin * matrix.columnStride;
  if (matrix.rowStride == 1) {
    for (int64_t k = 0; k < end - begin; ++k, data += matrix.columnStride, out += width)
      std::copy_n(data, count, out);
    return;
  }
  for (int64_t row = 0; row < count; ++row) {
    const float *from = data + row * matrix.rowStride;
    for (int64_t k = 0; k < end - begin; ++k)
      out[k * width + row] = from[k * matrix.columnStride];
  }
}

int64_t PackedMatrix::panelRows() { return kernel().columns; }

PackedMatrix::PackedMatrix(int64_t rows, int64_t columns) : numRows(rows), numColumns(columns) {
  elements.resize((rows + panelRows() - 1) / panelRows() * panelRows() * columns);
}

void PackedMatrix::pack(const MatrixView &part, int64_t first) {
  assert(part.columns == numColumns && first % panelRows() == 0 && "whole panels");
  for (int64_t row = 0; row < part.rows; row += panelRows())
    packPanel(part, row, panelRows(), 0, numColumns, elements.data() + (first + row) * numColumns);
}

double PackedMatrix::squares() const {
  double sum = 0;
  for (float x : elements)
    sum += static_cast<double>(x) * x;
  return sum;
}

void sluice::calibration::multiply(const MatrixView &a, const PackedMatrix &b, float *c,
                                   int64_t cStride, const GemmOptions &options) {
  const Kernel &chosen = kernel();
  int64_t lastRow = options.lastRow < 0 ? b.rows() : options.lastRow;
  assert(options.firstRow % chosen.columns == 0 && lastRow <= b.rows() && "rows of B");
  assert(options.firstColumn + a.columns <= b.columns() && "columns of B");
  int64_t panels = (a.rows + chosen.rows - 1) / chosen.rows;
  std::vector<float> packed(panels * chosen.rows * std::min(kBlock, a.columns));
  std::vector<float> edge(chosen.rows * chosen.columns);
  for (int64_t begin = 0; begin < a.columns; begin += kBlock) {
    int64_t end = std::min(begin + kBlock, a.columns), k = end - begin;
    bool accumulate = options.accumulate || begin > 0;
    for (int64_t panel = 0; panel < panels; ++panel)
      packPanel(a, panel * chosen.rows, chosen.rows, begin, end,
                packed.data() + panel * chosen.rows * k);
    for (int64_t column = options.firstRow; column < lastRow; column += chosen.columns) {
      const float *bPanel =
          b.panel(column / chosen.columns) + (options.firstColumn + begin) * chosen.columns;
      int64_t columns = std::min(chosen.columns, lastRow - column);
      for (int64_t panel = 0; panel < panels; ++panel) {
        const float *aPanel = packed.data() + panel * chosen.rows * k;
        int64_t row = panel * chosen.rows, rows = std::min(chosen.rows, a.rows - row);
        float *place = c + row * cStride + (column - options.firstRow);
        if (rows == chosen.rows && columns == chosen.columns) {
          chosen.tile(aPanel, bPanel, k, place, cStride, accumulate);
          continue;
        }
        chosen.tile(aPanel, bPanel, k, edge.data(), chosen.columns, false);
        for (int64_t i = 0; i < rows; ++i)
          for (int64_t j = 0; j < columns; ++j) {
            float &out = place[i * cStride + j];
            out = (accumulate ? out : 0.0f) + edge[i * chosen.columns + j];
          }
      }
    }
  }
}
