// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_CONVERSION_PASSES_H
#define SLUICE_CONVERSION_PASSES_H

#include "dialects/Fused/Fused.h"
#include "dialects/Model/Model.h"
#include "dialects/Plan/Plan.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/GPU/IR/GPUDialect.h"
#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/Dialect/LLVMIR/NVVMDialect.h"
#include "mlir/Dialect/Math/IR/Math.h"
#include "mlir/Dialect/SCF/IR/SCF.h"
#include "mlir/Dialect/Vector/IR/VectorOps.h"
#include "mlir/IR/BuiltinOps.h"
#include "mlir/Pass/Pass.h"
#include "mlir/Pass/PassManager.h"

/// The passes from scheduled kernels to a device's code; include/sluice/Conversion/Passes.td
/// documents each with an example.
namespace sluice {
#define GEN_PASS_DECL
#include "lib/Conversion/Passes.h.inc"

#define GEN_PASS_REGISTRATION
#include "lib/Conversion/Passes.h.inc"

/// The symbol of the module that holds the generated kernels.
inline constexpr llvm::StringLiteral kKernelsModule = "kernels";

/// Lowers the kernels that `convert-fused-to-host` makes to the llvm dialect alone:
/// `host-lower-kernels` in sluice-opt.
void buildHostLowerKernelsPipeline(mlir::OpPassManager &pm);

/// All of the way from scheduled kernels to the llvm dialect: `convert-fused-to-host`, then the
/// above.
void buildHostCodePipeline(mlir::OpPassManager &pm);

/// Lowers the kernels that `convert-fused-to-gpu` makes to the llvm and nvvm dialects:
/// `gpu-lower-kernels` in sluice-opt.
void buildGpuLowerKernelsPipeline(mlir::OpPassManager &pm);

/// All of the way from scheduled kernels to the llvm and nvvm dialects for a target:
/// `convert-fused-to-gpu`, with its option `racecheck`, then the above.
void buildGpuCodePipeline(mlir::OpPassManager &pm, llvm::StringRef target, bool racecheck = false);

/// Registers the passes and pipelines of this header.
void registerConversion();
} // namespace sluice

#endif // SLUICE_CONVERSION_PASSES_H
