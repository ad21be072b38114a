// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_MODEL_DIALECT
#define SLUICE_MODEL_DIALECT

include "mlir/IR/OpBase.td"
include "mlir/IR/AttrTypeBase.td"
include "mlir/IR/EnumAttr.td"

def ModelDialect : Dialect {
  let name = "model";
  let cppNamespace = "::sluice::model";
  let summary = "What a transformer computes, as a reader of its paper would write it";
  let description = [{
    One function, `@decode`, maps a token and its position to logits. Activations are float32 tensors
    [tokens, width]. Weights are symbols that name a tensor of a model file; their bytes are never in the text. Keys and
    values of earlier positions live in `model.cache` symbols. Additions and products of activations are `arith` operations on tensors.
    A reference evaluator in float32 (`include/sluice/Reference`) defines every operation.
  }];
  let dependentDialects = ["::sluice::quantized::QuantizedDialect", "::mlir::arith::ArithDialect"];
  let useDefaultAttributePrinterParser = 1;
}

#endif
