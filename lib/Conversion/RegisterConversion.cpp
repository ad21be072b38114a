// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Conversion/Passes.h"

#include "mlir/Pass/PassRegistry.h"

using namespace mlir;

void sluice::registerConversion() {
  registerSluiceConversionPasses();
  PassPipelineRegistration<>("host-lower-kernels",
                             "Lower generated host kernels to the llvm dialect alone",
                             buildHostLowerKernelsPipeline);
  PassPipelineRegistration<>(
      "host-code", "Generate host kernels for fused operations, in the llvm dialect alone",
      buildHostCodePipeline);
  PassPipelineRegistration<>("gpu-lower-kernels",
                             "Lower generated GPU kernels to the llvm and nvvm dialects",
                             buildGpuLowerKernelsPipeline);
}
