// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// A weight's numbers, row by row.

#ifndef SLUICE_IMPORT_TENSORREADER_H
#define SLUICE_IMPORT_TENSORREADER_H

#include "sluice/Import/FileSet.h"
#include "sluice/Import/TensorRef.h"

#include "llvm/Support/Error.h"

#include <cstdint>
#include <memory>

namespace sluice {

/// Reads a tensor of type F32, F16, BF16, Q8_0 or Q4_0. Rows are the innermost dimension; all outer
/// dimensions together count the rows, so a vector is one row. Reading is const and may happen on
/// many threads.
class TensorReader {
public:
  /// Checks type, extent and bounds once, so that the reads below cannot fail.
  static llvm::Expected<TensorReader> open(const TensorRef &tensor, FileSet &files);
  static llvm::Expected<TensorReader> open(const TensorRef &tensor,
                                           std::shared_ptr<const MappedFile> file);

  StorageType type() const { return storage; }
  int64_t rows() const { return numRows; }
  int64_t columns() const { return numColumns; }
  /// 32 for Q8_0 and Q4_0, else 0.
  int64_t blockElements() const { return blocked ? storageInfo(storage).blockElements : 0; }

  /// `out` has columns() entries. Blocks give scale * integer in float32.
  void readRow(int64_t row, llvm::MutableArrayRef<float> out) const;

  /// Q8_0 and Q4_0 only: the row's integers in logical order (Q4_0's in [-8, 7]; Q8_0's in
  /// [-128, 127]) and each block's f16 scale as its bits. `q` has columns() entries, `scaleBits`
  /// columns() / 32.
  void readBlocks(int64_t row, llvm::MutableArrayRef<int8_t> q,
                  llvm::MutableArrayRef<uint16_t> scaleBits) const;

  /// The row as stored.
  llvm::ArrayRef<uint8_t> rowBytes(int64_t row) const;

private:
  std::shared_ptr<const MappedFile> file;
  const uint8_t *data = nullptr;
  StorageType storage = StorageType::F32;
  bool blocked = false;
  int64_t numRows = 0;
  int64_t numColumns = 0;
  uint64_t bytesPerRow = 0;
};

} // namespace sluice

#endif // SLUICE_IMPORT_TENSORREADER_H
