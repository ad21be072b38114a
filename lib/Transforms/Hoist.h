// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_LIB_TRANSFORMS_HOIST_H
#define SLUICE_LIB_TRANSFORMS_HOIST_H

#include "mlir/IR/Dominance.h"

namespace sluice {

/// Whether `value` is known at `point`, or is a weight, or the result of quantizing weights, that
/// can be made known there by moving the operations that name it. Moves nothing.
bool canHoist(mlir::Value value, mlir::Operation *point, const mlir::DominanceInfo &dominance);

/// Makes `value`, for which canHoist holds, known at `point`.
void hoist(mlir::Value value, mlir::Operation *point, const mlir::DominanceInfo &dominance);

} // namespace sluice

#endif // SLUICE_LIB_TRANSFORMS_HOIST_H
