// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Fused/Fused.h"
#include "dialects/Model/Model.h"
#include "dialects/Plan/Plan.h"
#include "dialects/Quantized/Quantized.h"
#include "sluice/Conversion/Passes.h"
#include "sluice/Transforms/Passes.h"

#include "mlir/InitAllDialects.h"
#include "mlir/InitAllPasses.h"
#include "mlir/Tools/mlir-opt/MlirOptMain.h"

int main(int argc, char **argv) {
  mlir::DialectRegistry registry;
  mlir::registerAllDialects(registry);
  mlir::registerAllPasses();
  sluice::registerSluiceTransformsPasses();
  sluice::registerConversion();
  registry.insert<sluice::model::ModelDialect, sluice::quantized::QuantizedDialect, sluice::fused::FusedDialect,
                  sluice::plan::PlanDialect>();
  return mlir::asMainReturnCode(mlir::MlirOptMain(argc, argv, "Sluice optimizer driver\n", registry));
}
