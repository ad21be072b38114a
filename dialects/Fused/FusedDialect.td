// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_FUSED_DIALECT
#define SLUICE_FUSED_DIALECT

include "mlir/IR/OpBase.td"
include "mlir/IR/AttrTypeBase.td"
include "mlir/IR/EnumAttr.td"

def FusedDialect : Dialect {
  let name = "fused";
  let cppNamespace = "::sluice::fused";
  let summary = "Kernels bound by memory bandwidth, one operation per kernel";
  let description = [{
    Each operation becomes one kernel launch. It reads its weights in their quantized form; what happens to its input before the product
    (prologue) and to its sums after it (epilogue) are regions of `model` and `arith` operations, so that a reader sees what was fused.
    Traffic and schedule are attributes that later passes fill in.
  }];
  let dependentDialects = ["::sluice::model::ModelDialect", "::sluice::quantized::QuantizedDialect"];
  let useDefaultAttributePrinterParser = 1;
  let useDefaultTypePrinterParser = 1;
}

#endif
