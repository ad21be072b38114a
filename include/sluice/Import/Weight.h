// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Where a weight lies in a model's files.

#ifndef SLUICE_IMPORT_WEIGHT_H
#define SLUICE_IMPORT_WEIGHT_H

#include "sluice/Formats/Encoding.h"
#include "sluice/Import/CheckpointScheme.h"
#include "sluice/Import/TensorRef.h"

#include <optional>

namespace sluice {

/// A matrix that a checkpoint keeps in several tensors (CheckpointScheme.h).
struct CheckpointParts {
  CheckpointScheme scheme;
  /// [outputs, inputs] of the linear layer, whatever the order of the elements in the file and
  /// whatever other layers' rows are beside its own.
  int64_t rows = 0, columns = 0;
  /// The encoding that holds its numbers; nothing if none does: it is then read as float32 values.
  /// With an encoding and a part that has the columns' groups, the columns are sorted by group.
  std::optional<formats::Encoding> encoding;
  /// Columns of a group (0: a whole row) of a scheme whose shapes do not tell (awq-gemv).
  std::optional<int64_t> group = std::nullopt;
  /// All tensors but the one with the elements, in the order of the scheme's roles.
  llvm::SmallVector<std::pair<PartRole, TensorRef>, 3> parts;
  /// A tensor with one number, by which all values are yet to be divided: the encoding has no place
  /// for it, so a layer's result is.
  std::optional<TensorRef> divisor = std::nullopt;

  const TensorRef *find(PartRole role) const {
    for (const auto &[known, tensor] : parts)
      if (known == role)
        return &tensor;
    return nullptr;
  }
};

struct Weight {
  /// Part of a tensor of the file, or a view of one, where that holds more (q, k and v in one) or
  /// has another order; with `parts`, the one that has the elements, whole, and which rows of the
  /// matrix in it are the weight's, in which order.
  TensorRef tensor;
  /// Rows of each head are stored as rotary pairs side by side (0, d/2, 1, d/2+1, ...), as GGUF's
  /// "llama" has q and k, instead of first halves before second halves. Reading does not
  /// permute them; the code that lays the weight out has to.
  bool ropeInterleaved = false;
  std::optional<CheckpointParts> parts = std::nullopt;
};

/// Rows of the matrix that a weight with `parts` lies in: its own or, fused with others, more.
inline int64_t matrixRows(const Weight &weight) {
  return weight.tensor.view.total ? weight.tensor.view.total : weight.parts->rows;
}

} // namespace sluice

#endif // SLUICE_IMPORT_WEIGHT_H
