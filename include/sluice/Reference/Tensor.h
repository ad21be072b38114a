// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The tensors that the reference evaluator computes with.

#ifndef SLUICE_REFERENCE_TENSOR_H
#define SLUICE_REFERENCE_TENSOR_H

#include "sluice/Formats/CacheLayout.h"
#include "sluice/Formats/Encoding.h"

#include "llvm/ADT/ArrayRef.h"
#include "llvm/ADT/SmallVector.h"

#include <cstdint>
#include <memory>
#include <string>
#include <variant>
#include <vector>

namespace sluice::reference {

/// A dense tensor, row major. Exactly one of the arrays is used: `values` for every float type (f16
/// and bf16 tensors hold numbers that those types have), `integers` for i32.
struct Tensor {
  llvm::SmallVector<int64_t, 3> shape;
  std::vector<float> values;
  std::vector<int32_t> integers;

  /// A float tensor of zeros.
  static Tensor zeros(llvm::ArrayRef<int64_t> shape);
  /// `values` has as many entries as the shape has elements.
  static Tensor floats(llvm::ArrayRef<int64_t> shape, std::vector<float> values);
  static Tensor ints(llvm::ArrayRef<int64_t> shape, std::vector<int32_t> integers);

  int64_t rows() const { return shape.empty() ? 1 : shape.front(); }
  /// Elements of a row: the product of all dimensions but the first.
  int64_t width() const;
  llvm::ArrayRef<float> row(int64_t index) const {
    return llvm::ArrayRef<float>(values).slice(index * width(), width());
  }
  llvm::MutableArrayRef<float> row(int64_t index) {
    return llvm::MutableArrayRef<float>(values).slice(index * width(), width());
  }
};

/// A matrix of `!quantized.tensor`. The layout does not matter here: everything is in logical
/// order.
struct QuantizedMatrix : formats::EncodedRows {
  int64_t rows = 0;
  /// Float formats: [rows][columns]; the arrays of EncodedRows are empty.
  std::vector<float> values;

  QuantizedMatrix() = default;
  QuantizedMatrix(const formats::Encoding &encoding, int64_t rows, int64_t columns)
      : EncodedRows(encoding, rows, columns), rows(rows) {}

  int64_t groups() const { return encoding.groupsPerRow(columns); }
};

/// Keys or values of one layer, in logical order.
struct Cache {
  Cache() = default;
  Cache(int64_t sequences, int64_t positions, int64_t heads, int64_t dim,
        formats::CacheEncoding encoding);

  formats::CacheEncoding encoding;
  int64_t sequences = 1;
  Tensor values; ///< [sequences * positions, heads, head size], as they are read
  Tensor scales; ///< [sequences * positions, heads, groups]; of integer encodings
  /// [sequences, tiles]: which of the cache's own sequences, which are then pages of a tile, each
  /// tile of a sequence is. Null if sequences are what they are.
  std::shared_ptr<const Tensor> pages;
  /// [rows]: whose each row of a step is; empty if row r is sequence r, or the only one's.
  std::vector<int32_t> owners;

  int64_t positions() const {
    return pages ? pages->width() * formats::cacheTile : values.rows() / sequences;
  }
  int64_t heads() const { return values.shape[1]; }
  int64_t dim() const { return values.shape[2]; }
  /// The row of `values` that a position of a step's row has.
  int64_t place(int64_t row, int64_t position) const {
    if (pages) {
      int64_t sequence = pages->rows() == 1 ? 0 : owners.empty() ? row : owners[row];
      int64_t entry = sequence * pages->width() + position / formats::cacheTile;
      return pages->integers[entry] * formats::cacheTile + position % formats::cacheTile;
    }
    return (sequences == 1 ? 0 : row * positions()) + position;
  }
};

/// A weight: a builtin tensor or a quantized matrix.
using WeightValue = std::variant<Tensor, QuantizedMatrix>;

} // namespace sluice::reference

#endif // SLUICE_REFERENCE_TENSOR_H
