// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Hoist.h"

#include "dialects/Model/Model.h"
#include "dialects/Quantized/Quantized.h"

using namespace mlir;

bool sluice::canHoist(Value value, Operation *point, const DominanceInfo &dominance) {
  if (dominance.properlyDominates(value, point))
    return true;
  // Only what names or prepares a weight: moving computations up would lengthen the lives of their
  // results.
  Operation *op = value.getDefiningOp();
  return isa_and_nonnull<model::ParameterOp, quantized::QuantizeOp, quantized::DequantizeOp>(op) &&
         llvm::all_of(op->getOperands(),
                      [&](Value operand) { return canHoist(operand, point, dominance); });
}

void sluice::hoist(Value value, Operation *point, const DominanceInfo &dominance) {
  if (dominance.properlyDominates(value, point))
    return;
  Operation *op = value.getDefiningOp();
  for (Value operand : op->getOperands())
    hoist(operand, point, dominance);
  op->moveBefore(point);
}
