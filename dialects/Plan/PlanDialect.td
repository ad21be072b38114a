// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_PLAN_DIALECT
#define SLUICE_PLAN_DIALECT

include "mlir/IR/OpBase.td"
include "mlir/IR/AttrTypeBase.td"
include "mlir/IR/EnumAttr.td"

def PlanDialect : Dialect {
  let name = "plan";
  let cppNamespace = "::sluice::plan";
  let summary = "Buffers and launches: what the runtime does for a step";
  let description = [{
    `plan.dispatch` launches a compiled kernel on values; once buffers are assigned, `plan.step` holds `plan.launch` operations on
    `plan.buffer` symbols, and plan.json is its transcript.
  }];
  let dependentDialects = ["::sluice::fused::FusedDialect"];
  let useDefaultAttributePrinterParser = 1;
}

#endif
