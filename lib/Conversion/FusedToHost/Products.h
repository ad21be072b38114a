// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The stages of a matrix-vector kernel: the input as a product reads it, the products of a tile,
// and what becomes of its sums.

#ifndef SLUICE_LIB_CONVERSION_FUSEDTOHOST_PRODUCTS_H
#define SLUICE_LIB_CONVERSION_FUSEDTOHOST_PRODUCTS_H

#include "KernelInterface.h"

#include "sluice/Formats/Packing.h"

namespace sluice::host {

/// The format of a quantized tensor or of a builtin tensor of floats.
formats::Format formatOf(mlir::Type weight);

/// The input of all tokens in stack memory, `columns` padded to a multiple of 32 with zeros.
struct PreparedInput {
  int64_t tokens = 1;
  int64_t columns = 0; ///< K
  int64_t padded = 0;  ///< K rounded up to a multiple of 32
  int64_t unit = 0;    ///< columns of an exact integer sum; integer weights only
  /// Integer weights: int16 [tokens][padded], float [tokens][blocks] and, for zero points,
  /// the sums of x16 of each unit, int32 [tokens][blocks * unitsPerBlock].
  mlir::Value x16, scales, unitSums;
  /// Int4 weights: -8 times the sum of those x16 of each unit that meet a low nibble, int32, placed
  /// like unitSums.
  mlir::Value lowBiases;
  /// Float weights: float [tokens][padded].
  mlir::Value values;

  int64_t blocks() const { return (padded + 127) / 128; }
  int64_t unitsPerBlock() const { return unit >= 128 ? 1 : 128 / unit; }
};

/// Emits the prologue: it reads the input, runs the prologue region and rounds the result to what
/// the weight's format asks for. Errors name the operation that cannot be converted.
mlir::FailureOr<PreparedInput> emitPrologue(KernelBuilder &k, fused::MatvecOp op,
                                            const KernelInterface &interface,
                                            formats::Format format);

/// Emits the products of one tile with all tokens: a vector of 16 float32 sums, one a row, for
/// each.
llvm::SmallVector<mlir::Value> emitTileProducts(KernelBuilder &k, const formats::PackedShape &shape,
                                                const PreparedInput &input, mlir::Value tile,
                                                int64_t accumulators);

/// The rows of a segment of a packed weight that lie in one tile.
struct TileRows {
  /// Runs of consecutive rows, `laneCount` lanes each; first row (i64) and mask (null: all lanes).
  struct Run {
    mlir::Value first, mask;
    int64_t laneCount;
  };
  llvm::SmallVector<Run, 2> runs;
  int64_t lanes() const {
    int64_t count = 0;
    for (const Run &run : runs)
      count += run.laneCount;
    return count;
  }
};

/// A segment of the packed weight: the sources (arguments of the epilogue) whose rows it holds.
struct PackedSegment {
  quantized::RowOrderAttr order;
  int64_t firstTile = 0, tiles = 0;
};

/// Emits the epilogue of one tile of `segment` for one token: `sums` are its 16 lanes, `tile`
/// (i64) counts from the segment's first.
mlir::LogicalResult emitEpilogue(KernelBuilder &k, fused::MatvecOp op,
                                 const KernelInterface &interface, const PackedSegment &segment,
                                 mlir::Value tile, mlir::Value sums, int64_t token);

/// Emits an operation on the lanes of its operands that means the same for each of them (additions,
/// conversions, silu). Null if it is no such operation.
mlir::Value emitElementwise(KernelBuilder &k, mlir::Operation *op, mlir::ValueRange operands);

// The kernels. Each fills the body of a function whose arguments `interface` has loaded and returns
// the number of work items of a launch.
mlir::FailureOr<int64_t> emitMatvec(KernelBuilder &k, fused::MatvecOp op,
                                    const KernelInterface &interface, mlir::Value begin,
                                    mlir::Value end);
mlir::FailureOr<int64_t> emitAttention(KernelBuilder &k, fused::AttentionOp op,
                                       const KernelInterface &interface, mlir::Value begin,
                                       mlir::Value end);
mlir::FailureOr<int64_t> emitEmbedding(KernelBuilder &k, fused::EmbeddingOp op,
                                       const KernelInterface &interface, mlir::Value begin,
                                       mlir::Value end);

} // namespace sluice::host

#endif // SLUICE_LIB_CONVERSION_FUSEDTOHOST_PRODUCTS_H
