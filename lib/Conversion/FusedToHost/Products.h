// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The stages of a matrix-vector kernel: the input as a product reads it, the products of a tile,
// and the epilogue of its sums.

#ifndef SLUICE_LIB_CONVERSION_FUSEDTOHOST_PRODUCTS_H
#define SLUICE_LIB_CONVERSION_FUSEDTOHOST_PRODUCTS_H

#include "../FusedKernels/KernelInterface.h"
#include "../FusedKernels/PackedSegments.h"
#include "KernelBuilder.h"
#include "LaneElements.h"

#include "sluice/Formats/Packing.h"

namespace sluice::host {

using kernels::KernelInterface;
using kernels::PackedSegment;

/// The one packed weight of a product.
struct PackedProduct {
  llvm::SmallVector<PackedSegment> segments;
  formats::PackedShape shape;

  /// Fails, with a message, if the product has no such weight in layout lanes.
  static mlir::FailureOr<PackedProduct> get(fused::ProductOp op);
};

/// The input of all tokens in stack memory, `columns` padded to a multiple of 32 with zeros.
struct PreparedInput {
  int64_t tokens = 1;
  int64_t columns = 0; ///< K
  int64_t padded = 0;  ///< K rounded up to a multiple of 32
  /// Columns of an accumulation block, of integer weights with an exact sum; scaled weights only.
  int64_t accumulationColumns = 0;
  /// Integer weights: int16 [tokens][padded]; scaled weights: float [tokens][groups]; zero points
  /// and offsets: the sums of the x16 of each accumulation block, int32 [tokens][groups *
  /// sumsPerGroup].
  mlir::Value x16, scales, inputSums;
  /// Weights with biased pairs (isBiased): what the bias adds to the sum of each accumulation
  /// block, negated, int32, placed like inputSums.
  mlir::Value biases;
  /// Float weights: float [tokens][padded].
  mlir::Value values;

  /// Activation groups, of 128 columns each.
  int64_t groups() const { return (padded + 127) / 128; }
  /// Accumulation blocks of an activation group.
  int64_t sumsPerGroup() const {
    return accumulationColumns >= 128 ? 1 : 128 / accumulationColumns;
  }
};

/// An operation with a prologue.
struct PrologueOp {
  mlir::Operation *op;
  mlir::Value input;
  mlir::Region &prologue;
  int64_t columns;
};

/// Stack memory for the input of `tokens` tokens.
PreparedInput allocateInput(KernelBuilder &k, const formats::Encoding &format, int64_t tokens,
                            int64_t columns, bool hasSums, bool hasBiases);

/// Emits the prologue of rows `firstRow` + [begin, end) for tokens [begin, end) of `input`: it
/// reads the row, runs the prologue region and rounds the result to what the weight's format asks
/// for. Errors name the operation that cannot be converted.
mlir::LogicalResult emitInput(KernelBuilder &k, const PrologueOp &op,
                              const KernelInterface &interface, const formats::Encoding &format,
                              const PreparedInput &input, mlir::Value firstRow, mlir::Value begin,
                              mlir::Value end);

/// Emits the prologue of all tokens into stack memory.
mlir::FailureOr<PreparedInput> emitPrologue(KernelBuilder &k, fused::MatvecOp op,
                                            const KernelInterface &interface,
                                            const formats::Encoding &format);

/// Emits the products of one tile with all tokens: for each token a vector of 16 float32
/// sums, one per row.
llvm::SmallVector<mlir::Value> emitTileProducts(KernelBuilder &k, const formats::PackedShape &shape,
                                                const PreparedInput &input, mlir::Value tile,
                                                int64_t accumulators);

/// Emits the epilogue of one tile of `segment` for one token: `sums` are its 16 lanes, `tile`
/// (i64) counts from the segment's first.
mlir::LogicalResult emitEpilogue(KernelBuilder &k, fused::ProductOp op,
                                 const KernelInterface &interface, const PackedSegment &segment,
                                 mlir::Value tile, mlir::Value sums, mlir::Value token);

// The kernels. Each fills the body of a function whose pointers `interface` has and returns
// the number of work items of a launch.
mlir::FailureOr<int64_t> emitMatvec(KernelBuilder &k, fused::MatvecOp op,
                                    const KernelInterface &interface, mlir::Value begin,
                                    mlir::Value end);
mlir::FailureOr<int64_t> emitPrepare(KernelBuilder &k, fused::PrepareOp op,
                                     const KernelInterface &interface, mlir::Value begin,
                                     mlir::Value end);
mlir::FailureOr<int64_t> emitMatmul(KernelBuilder &k, fused::MatmulOp op,
                                    const KernelInterface &interface, mlir::Value begin,
                                    mlir::Value end);
mlir::FailureOr<int64_t> emitAttention(KernelBuilder &k, fused::AttentionOp op,
                                       const KernelInterface &interface, mlir::Value begin,
                                       mlir::Value end);
mlir::FailureOr<int64_t> emitAppend(KernelBuilder &k, fused::AppendOp op,
                                    const KernelInterface &interface, mlir::Value begin,
                                    mlir::Value end);
mlir::FailureOr<int64_t> emitLastRow(KernelBuilder &k, fused::LastRowOp op,
                                     const KernelInterface &interface, mlir::Value begin,
                                     mlir::Value end);
mlir::FailureOr<int64_t> emitRows(KernelBuilder &k, fused::RowsOp op,
                                  const KernelInterface &interface, mlir::Value begin,
                                  mlir::Value end);
mlir::FailureOr<int64_t> emitEmbedding(KernelBuilder &k, fused::EmbeddingOp op,
                                       const KernelInterface &interface, mlir::Value begin,
                                       mlir::Value end);

} // namespace sluice::host

#endif // SLUICE_LIB_CONVERSION_FUSEDTOHOST_PRODUCTS_H
