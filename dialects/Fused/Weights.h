// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What kernels of every target ask of the weights that they read.

#ifndef SLUICE_DIALECTS_FUSED_WEIGHTS_H
#define SLUICE_DIALECTS_FUSED_WEIGHTS_H

#include "dialects/Fused/Fused.h"

#include "sluice/Formats/Packing.h"

namespace sluice::fused {

/// The element type of a quantized tensor or of a builtin tensor.
mlir::Type elementOf(mlir::Type weight);

/// How the rows of an embedding's table lie in memory. Fails, with an error at `op`, if it has
/// another layout than rows or a shape that cannot be.
mlir::FailureOr<formats::PackedShape> tableShape(EmbeddingOp op);

/// A packed weight of a product: consecutive segments, in tiles that follow those of the weights
/// before it.
struct PackedPart {
  formats::PackedShape shape;
  int64_t firstTile = 0;
  int64_t endTile() const { return firstTile + shape.tiles(); }
};

/// The packed weights of a product for GPUs: one, or several of different encodings in records
/// whose chunks have the same columns. Fails, with an error at `op`, if they are not packed so, or
/// if the row order does not keep each weight's segments together.
mlir::FailureOr<llvm::SmallVector<PackedPart, 1>> packedParts(ProductOp op);

/// Columns of an accumulation block, whose products with an integer weight a kernel adds up
/// exactly: those of a weight group, at most 128. (A group that spans the row is cut at 128 columns
/// as well.)
int64_t accumulationColumns(formats::Encoding format);

} // namespace sluice::fused

#endif // SLUICE_DIALECTS_FUSED_WEIGHTS_H
