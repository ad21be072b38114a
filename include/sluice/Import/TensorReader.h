// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// A weight's numbers, row by row.

#ifndef SLUICE_IMPORT_TENSORREADER_H
#define SLUICE_IMPORT_TENSORREADER_H

#include "sluice/Formats/GgufBlocks.h"
#include "sluice/Import/FileSet.h"
#include "sluice/Import/TensorRef.h"

#include "llvm/Support/Error.h"

#include <cstdint>
#include <memory>

namespace sluice {

/// Reads a tensor of a type that weights may have (isUsableWeight), or Q8_K. Rows are the innermost
/// dimension; all outer dimensions together count the rows, so a vector is one row. Rows (of a
/// vector elements) are those of the tensor's view, wherever the file has them. Reading is const
/// and may happen on many threads.
class TensorReader {
public:
  /// Checks type, extent and bounds once, so that the reads below cannot fail.
  static llvm::Expected<TensorReader> open(const TensorRef &tensor, FileSet &files);
  static llvm::Expected<TensorReader> open(const TensorRef &tensor,
                                           std::shared_ptr<const MappedFile> file);

  StorageType type() const { return storage; }
  int64_t rows() const { return numRows; }
  int64_t columns() const { return numColumns; }
  /// The file's row, counted from the tensor's first byte, that is row `row`.
  int64_t fileRow(int64_t row) const { return numRows == 1 ? row : view.fileRow(row); }
  /// The blocks of the tensor's type; null for plain numbers and Q8_K.
  const formats::GgufBlock *blocks() const { return block; }

  /// `out` has columns() entries. Blocks give the values of their encoding (Formats/Encoding.h).
  void readRow(int64_t row, llvm::MutableArrayRef<float> out) const;

  /// The row's numbers as its blocks have them, into row `to` of `rows`, whose encoding is that of
  /// blocks().
  void readBlocks(int64_t row, formats::EncodedRows &rows, int64_t to) const;

  /// The row as stored; not of a view whose elements are not together (a transposed one, a vector).
  llvm::ArrayRef<uint8_t> rowBytes(int64_t row) const;

private:
  std::shared_ptr<const MappedFile> file;
  const uint8_t *data = nullptr;
  StorageType storage = StorageType::F32;
  const formats::GgufBlock *block = nullptr;
  int64_t numRows = 0;
  int64_t numColumns = 0;
  uint64_t bytesPerRow = 0;
  formats::RowView view;
};

} // namespace sluice

#endif // SLUICE_IMPORT_TENSORREADER_H
