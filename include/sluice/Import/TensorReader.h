// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// A weight's numbers, row by row.

#ifndef SLUICE_IMPORT_TENSORREADER_H
#define SLUICE_IMPORT_TENSORREADER_H

#include "sluice/Formats/GgufBlocks.h"
#include "sluice/Import/CheckpointMatrix.h"
#include "sluice/Import/FileSet.h"
#include "sluice/Import/TensorRef.h"

#include "llvm/Support/Error.h"

#include <cstdint>
#include <memory>
#include <optional>

namespace sluice {

/// Reads a tensor of a type that weights may have (isUsableWeight), or the tensors of a
/// checkpoint's scheme. Rows are the innermost dimension; all outer dimensions together count the
/// rows, so a vector is one row. Rows (of a vector elements) are those of the tensor's view,
/// wherever the file has them. Reading is const and may happen on many threads.
class TensorReader {
public:
  /// Checks type, extent and bounds once, so that the reads below cannot fail.
  static llvm::Expected<TensorReader> open(const TensorRef &tensor, FileSet &files);
  static llvm::Expected<TensorReader> open(const TensorRef &tensor,
                                           std::shared_ptr<const MappedFile> file);

  /// Also opens the parts of a checkpoint's scheme. Errors too: its file has numbers in another
  /// encoding than `weight` says.
  static llvm::Expected<TensorReader> open(const Weight &weight, FileSet &files);

  /// Of a tensor without parts.
  StorageType type() const { return storage; }
  int64_t rows() const { return numRows; }
  int64_t columns() const { return numColumns; }
  /// The file's row, counted from the tensor's first byte, that is row `row`; with parts, the
  /// matrix's row in the checkpoint.
  int64_t fileRow(int64_t row) const { return numRows == 1 && !matrix ? row : view.fileRow(row); }
  /// The blocks of the tensor's type; null for plain numbers and parts.
  const formats::GgufBlock *blocks() const { return block; }
  /// The encoding of the numbers, where they are no plain ones: of blocks or parts.
  const std::optional<formats::Encoding> &encoding() const { return numbers; }

  /// `out` has columns() entries. Blocks and parts with an encoding give the values of that
  /// (Formats/Encoding.h), other parts their values in the file's order of columns.
  void readRow(int64_t row, llvm::MutableArrayRef<float> out) const;

  /// The row's numbers as the file has them, into row `to` of `rows`, whose encoding is
  /// encoding().
  void readNumbers(int64_t row, formats::EncodedRows &rows, int64_t to) const;

  /// The row as stored; not of parts, nor of a view whose elements are not together (a transposed
  /// one, a vector).
  llvm::ArrayRef<uint8_t> rowBytes(int64_t row) const;

private:
  std::shared_ptr<const MappedFile> file;
  const uint8_t *data = nullptr;
  StorageType storage = StorageType::F32;
  const formats::GgufBlock *block = nullptr;
  std::shared_ptr<const CheckpointMatrix> matrix;
  std::optional<formats::Encoding> numbers;
  int64_t numRows = 0;
  int64_t numColumns = 0;
  uint64_t bytesPerRow = 0;
  formats::RowView view;
};

/// The type of re-packed blocks that a tensor of this encoding has, by its shape, view and number
/// of bytes; nothing if it has none.
std::optional<StorageType> repackedStorage(const formats::Encoding &encoding,
                                           const TensorRef &tensor);

} // namespace sluice

#endif // SLUICE_IMPORT_TENSORREADER_H
