// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The table of an embedding, as its rows lie in memory.

#ifndef SLUICE_LIB_CONVERSION_FUSEDKERNELS_EMBEDDINGTABLE_H
#define SLUICE_LIB_CONVERSION_FUSEDKERNELS_EMBEDDINGTABLE_H

#include "sluice/Conversion/Passes.h"
#include "sluice/Formats/Packing.h"

namespace sluice::kernels {

struct EmbeddingTable {
  /// In layout rows.
  formats::PackedShape shape;
  mlir::Type element;
  int64_t rows, width;

  /// Fails, with a message, if the table has another layout or a shape that cannot be.
  static mlir::FailureOr<EmbeddingTable> get(fused::EmbeddingOp op);
};

} // namespace sluice::kernels

#endif // SLUICE_LIB_CONVERSION_FUSEDKERNELS_EMBEDDINGTABLE_H
