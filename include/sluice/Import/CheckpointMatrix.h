// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Reads a matrix that a checkpoint keeps in several tensors, row by row.

#ifndef SLUICE_IMPORT_CHECKPOINTMATRIX_H
#define SLUICE_IMPORT_CHECKPOINTMATRIX_H

#include "sluice/Import/FileSet.h"
#include "sluice/Import/Weight.h"

#include "llvm/Support/Error.h"

#include <memory>
#include <string>
#include <vector>

namespace sluice {

/// Reading is const and may happen on many threads.
class CheckpointMatrix {
public:
  /// Opens the tensors of a weight with `parts`, whose encoding does not matter. Checks types,
  /// shapes, bounds and column groups once, so that the reads below cannot fail. Errors, one line:
  /// what one of these has instead; groups of another size than 32, 64, 128, 256 or a whole row; of
  /// FP4 and FP8, a scale that is NaN or negative where the format has none; a factor of 0.
  static llvm::Expected<std::shared_ptr<const CheckpointMatrix>> open(const Weight &weight,
                                                                      FileSet &files);

  /// Of the whole matrix, also where the weight is a part of it.
  int64_t rows() const { return numRows; }
  int64_t columns() const { return numColumns; }
  /// Bits of an element, and the columns of a group (0: a whole row).
  unsigned bits() const { return elementBits; }
  int64_t group() const { return groupSize; }

  /// The encoding that holds the numbers as they are; without zero points where all are 0. Nothing
  /// if none does; whyNoEncoding() then says why. It is of the columns sorted by group, if there
  /// are column groups that are not in order (needs(PartRole::Groups)).
  const std::optional<formats::Encoding> &encoding() const { return enc; }
  llvm::StringRef whyNoEncoding() const { return reason; }
  /// Whether a part says something: zero points that are all 0 and column groups in order do not.
  bool needs(PartRole role) const;

  /// The numbers of a row in encoding(), which has to exist.
  void readNumbers(int64_t row, const formats::RowNumbers &to) const;
  /// The values of a row, (q - zero) * scale in float32, in the file's order of columns. `out` has
  /// columns() entries. Of a vector its numbers.
  void readRow(int64_t row, llvm::MutableArrayRef<float> out) const;

private:
  /// A tensor's bytes.
  struct Bytes {
    std::shared_ptr<const MappedFile> file;
    const uint8_t *data = nullptr;
    TensorRef ref;
    explicit operator bool() const { return data; }
  };
  static llvm::Expected<Bytes> openTensor(const TensorRef &tensor, FileSet &files);

  llvm::Error load(const Weight &weight, FileSet &files);
  llvm::Error loadScales();
  llvm::Error loadIntegerScales(bool groupsFirst);
  llvm::Error loadByteScales();
  llvm::Error loadGemvScales(std::optional<int64_t> group);
  llvm::Error loadFactor();
  llvm::Error loadZeros();
  llvm::Error loadColumnGroups(const Bytes &index);
  void chooseEncoding();

  /// Field `field` of a little-endian int32.
  int unpack(const uint8_t *words, int64_t word, unsigned field) const;
  /// q, or the code of a number of FP8 or FP4.
  int quantized(int64_t row, int64_t column) const;
  /// What an element stands for before zero point and scale.
  float number(int64_t row, int64_t column) const;
  /// A scale as encoding() has it.
  uint32_t scaleCode(int64_t row, int64_t group) const;
  bool hasByteScales() const {
    return scheme == CheckpointScheme::Nvfp4 || scheme == CheckpointScheme::Mxfp4 ||
           scheme == CheckpointScheme::Mxfp4Blocks;
  }
  int zero(int64_t row, int64_t group) const;
  float scale(int64_t row, int64_t group) const;

  CheckpointScheme scheme = CheckpointScheme::Gptq;
  int64_t numRows = 0, numColumns = 0, groups = 0, groupSize = 0;
  unsigned elementBits = 0;
  Bytes elements, scales, zeros;
  /// The scale of (row, group) is number row / rowsOfScale * rowStride + group * groupStride.
  int64_t rowsOfScale = 1, rowStride = 0, groupStride = 0;
  /// The group of a column, where columns are not in the order of their groups, and the columns
  /// sorted by group.
  std::vector<int32_t> columnGroups, columnOrder;
  std::optional<formats::Encoding> enc;
  std::string reason;
};

} // namespace sluice

#endif // SLUICE_IMPORT_CHECKPOINTMATRIX_H
