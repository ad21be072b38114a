// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_QUANTIZED_TYPES
#define SLUICE_QUANTIZED_TYPES

include "dialects/Quantized/QuantizedAttrs.td"

def Quantized_TensorType : TypeDef<QuantizedDialect, "QuantizedTensor"> {
  let mnemonic = "tensor";
  let summary = "A matrix of weights in a number format and a physical layout";
  let description = [{
    ```mlir
    !quantized.tensor<4096x14336xi8, group = 128>
    !quantized.tensor<4096x14336xi4, group = 64, zero_point, layout = mma, columns = 2048>
    !quantized.tensor<4096x4096xf16, layout = lanes>
    !quantized.tensor<4096x4096xui4, group = 32, scale = u6, offset = field, layout = blocks>
    ```
    The shape is logical, [rows, columns]: [outputs, inputs] of a linear layer. Without `layout` the
    layout is `rows`.
  }];
  let parameters = (ins ArrayRefParameter<"int64_t">:$shape, "EncodingAttr":$encoding, "LayoutAttr":$layout);
  let hasCustomAssemblyFormat = 1;
  let genVerifyDecl = 1;
  let extraClassDeclaration = [{
    int64_t getRows() const { return getShape()[0]; }
    int64_t getColumns() const { return getShape()[1]; }
    /// Elements that share a scale.
    int64_t getGroup() const { return getEncoding().getValue().groupColumns(getColumns()); }
    QuantizedTensorType withLayout(LayoutAttr layout) const { return get(getContext(), getShape(), getEncoding(), layout); }
  }];
}

#endif
