// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The segments of a product's packed weight, and what an epilogue computes from which of them.

#ifndef SLUICE_LIB_CONVERSION_FUSEDKERNELS_PACKEDSEGMENTS_H
#define SLUICE_LIB_CONVERSION_FUSEDKERNELS_PACKEDSEGMENTS_H

#include "ComputeBuilder.h"

#include "llvm/ADT/SmallBitVector.h"

namespace sluice::kernels {

/// A segment of the packed weight: the sources (arguments of the epilogue) whose rows it holds.
struct PackedSegment {
  quantized::RowOrderAttr order;
  int64_t firstTile = 0, tiles = 0;

  bool holds(int64_t source) const {
    return source == order.getFirst() || (order.isZip() && source == order.getSecond());
  }
};

/// The packed weight's segments with their tiles, in order: at least one. Fails, with a message,
/// if the row order does not fit the sources.
mlir::FailureOr<llvm::SmallVector<PackedSegment>> packedSegments(fused::ProductOp op);

/// Emits code that finds the segment of a tile and runs `body` with the segment's number and the
/// tile's number in it.
void emitForSegment(ComputeBuilder &k, llvm::ArrayRef<PackedSegment> segments, mlir::Value tile,
                    llvm::function_ref<void(size_t segment, mlir::Value tile)> body);

/// Tells from which sources the values of an epilogue are computed.
class EpilogueSources {
public:
  explicit EpilogueSources(fused::ProductOp op) : op(op) {}

  const llvm::SmallBitVector &of(mlir::Value value);
  /// Whether `value`, which `user` reads, is computed from rows of `segment`. Fails, with a
  /// message, if it is computed from rows of another segment as well, or from no product at all.
  mlir::FailureOr<bool> areIn(const PackedSegment &segment, mlir::Operation *user,
                              mlir::Value value);

private:
  fused::ProductOp op;
  llvm::DenseMap<mlir::Value, llvm::SmallBitVector> known;
};

} // namespace sluice::kernels

#endif // SLUICE_LIB_CONVERSION_FUSEDKERNELS_PACKEDSEGMENTS_H
