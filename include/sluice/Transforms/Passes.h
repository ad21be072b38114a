// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_TRANSFORMS_PASSES_H
#define SLUICE_TRANSFORMS_PASSES_H

#include "dialects/Fused/Fused.h"
#include "dialects/Model/Model.h"
#include "dialects/Plan/Plan.h"
#include "dialects/Quantized/Quantized.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/IR/BuiltinOps.h"
#include "mlir/Pass/Pass.h"

#include <functional>

/// The passes between the stages of a model; include/sluice/Transforms/Passes.td documents each
/// with an example. A pass with options is made by `createX(XOptions)`.
namespace sluice {
#define GEN_PASS_DECL
#include "lib/Transforms/Passes.h.inc"

/// The same, which tells how much of its work (0 to 1) is done: roundings are tried in it.
std::unique_ptr<mlir::Pass> createQuantizedPlanWeights(const QuantizedPlanWeightsOptions &options,
                                                       std::function<void(double done)> progress);

#define GEN_PASS_REGISTRATION
#include "lib/Transforms/Passes.h.inc"
} // namespace sluice

#endif // SLUICE_TRANSFORMS_PASSES_H
