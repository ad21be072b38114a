// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Conversion/Passes.h"

#include "mlir/Conversion/Passes.h"
#include "mlir/Dialect/GPU/IR/GPUDialect.h"
#include "mlir/Transforms/Passes.h"

using namespace mlir;

void sluice::buildGpuLowerKernelsPipeline(OpPassManager &pm) {
  OpPassManager &kernels = pm.nest<mlir::gpu::GPUModuleOp>();
  kernels.addPass(createCanonicalizerPass());
  kernels.addPass(createCSEPass());
  kernels.addPass(createSCFToControlFlowPass());
  kernels.addPass(createArithToLLVMConversionPass());
  // Runs on whole modules only.
  pm.addPass(createConvertControlFlowToLLVMPass());
  OpPassManager &converted = pm.nest<mlir::gpu::GPUModuleOp>();
  converted.addPass(createReconcileUnrealizedCastsPass());
  converted.addPass(createCanonicalizerPass());
  converted.addPass(createCSEPass());
}

void sluice::buildGpuCodePipeline(OpPassManager &pm, StringRef target, bool racecheck) {
  pm.addPass(createConvertFusedToGpu({target.str(), racecheck}));
  buildGpuLowerKernelsPipeline(pm);
}
