// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_QUANTIZED_DIALECT
#define SLUICE_QUANTIZED_DIALECT

include "mlir/IR/OpBase.td"
include "mlir/IR/AttrTypeBase.td"
include "mlir/IR/EnumAttr.td"

def QuantizedDialect : Dialect {
  let name = "quantized";
  let cppNamespace = "::sluice::quantized";
  let summary = "Tensors of quantized weights: their number formats and their physical layouts";
  let description = [{
    A quantized tensor is a matrix whose elements are small integers (or half-width floats) with one
    scale, and possibly one zero point, per group of consecutive elements of a row. Format and physical
    layout are part of the type, so that code which reads bytes in another order than they were
    written in does not verify. `quantize` and `dequantize` are explicit operations; which tensors are
    quantized and how is decided by passes, and fusing passes make `dequantize` disappear into the
    kernels that consume it.
  }];
  let useDefaultAttributePrinterParser = 1;
  let useDefaultTypePrinterParser = 1;
}

#endif
