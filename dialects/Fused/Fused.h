// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_DIALECTS_FUSED_H
#define SLUICE_DIALECTS_FUSED_H

#include "mlir/Bytecode/BytecodeOpInterface.h"
#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/IR/BuiltinAttributes.h"
#include "mlir/IR/BuiltinTypes.h"
#include "mlir/IR/Dialect.h"
#include "mlir/IR/OpDefinition.h"
#include "mlir/IR/OpImplementation.h"
#include "mlir/IR/SymbolTable.h"
#include "mlir/Interfaces/InferTypeOpInterface.h"
#include "mlir/Interfaces/SideEffectInterfaces.h"

#include "dialects/Fused/GpuLaunch.h"
#include "dialects/Fused/Traffic.h"
#include "dialects/Model/Model.h"
#include "dialects/Quantized/Quantized.h"

#include "dialects/Fused/FusedDialect.h.inc"
#define GET_ATTRDEF_CLASSES
#include "dialects/Fused/FusedAttrs.h.inc"
#define GET_TYPEDEF_CLASSES
#include "dialects/Fused/FusedTypes.h.inc"

namespace sluice::fused {
/// A discardable attribute, a dictionary: how long a kernel takes by the time model
/// (sluice/Analysis/TimeModel.h, TimeFormula::toAttribute), on a fused operation, its dispatch and
/// its launch; on the function and the step, what a step takes beside its kernels.
inline constexpr llvm::StringLiteral kTimeAttr = "sluice.time";
/// Checks that a kernel's schedule, if it has one, is one.
mlir::LogicalResult verifySchedule(mlir::Operation *op);
/// Tiles of up to `tile` neighbouring tokens of one sequence that `tokens` packed tokens of up to
/// `sequences` sequences have at most. Tile floor(starts[s] / tile) + s is the first one of
/// sequence s, if it has tokens: so many lie before it at most, as each sequence adds one that is
/// not full.
inline int64_t packedTiles(int64_t tokens, int64_t tile, int64_t sequences) {
  return tokens / tile + sequences;
}

/// The operand `active` of an operation of the dialect, null where it has none.
template <typename Op> mlir::Value activeRows(Op op) {
  if constexpr (requires { op.getActive(); })
    return op.getActive();
  else
    return {};
}
} // namespace sluice::fused

#include "dialects/Fused/FusedInterfaces.h.inc"
#define GET_OP_CLASSES
#include "dialects/Fused/FusedOps.h.inc"

#endif // SLUICE_DIALECTS_FUSED_H
