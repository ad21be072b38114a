// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// A tensor's place in a model file.

#ifndef SLUICE_IMPORT_TENSORREF_H
#define SLUICE_IMPORT_TENSORREF_H

#include "sluice/Import/StorageType.h"

#include "sluice/Formats/RowOrder.h"

#include "llvm/ADT/SmallVector.h"

#include <string>

namespace sluice {

struct TensorRef {
  /// As the file spells it.
  std::string name;
  /// Relative to the model's root (ModelFiles::root); a bare file name for GGUF.
  std::string file;
  StorageType type = StorageType::F32;
  /// What the file calls a type that is StorageType::Unknown here: F4, or ggml's number.
  std::string unknownType;
  /// Outermost dimension first: [rows, columns] for a matrix. GGUF's order is reversed on reading.
  llvm::SmallVector<int64_t, 4> shape;
  /// First byte of the tensor, from the start of the file.
  uint64_t offset = 0;
  /// How the rows lie, where the tensor is a view of another one; `bytes` then are those from the
  /// first to the last.
  formats::RowView view;
  /// Of a GGUF tensor of unknown type: up to the next one, or to the end of the file.
  uint64_t bytes = 0;

  /// The type for a message or a listing: "F16", "unknown (F4)".
  std::string typeText() const {
    return type == StorageType::Unknown ? "unknown (" + unknownType + ")" : storageName(type).str();
  }
};

} // namespace sluice

#endif // SLUICE_IMPORT_TENSORREF_H
