// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_FUSED_TYPES
#define SLUICE_FUSED_TYPES

include "dialects/Fused/FusedDialect.td"
include "dialects/Quantized/QuantizedAttrs.td"

def Fused_PreparedType : TypeDef<FusedDialect, "Prepared"> {
  let mnemonic = "prepared";
  let summary = "The input of a product of many tokens, rounded and ordered as the product reads it";
  let description = [{
    ```mlir
    !fused.prepared<64, 4096, for = [#quantized.encoding<i8, group = 128>]>
    !fused.prepared<512, 4096, for = [#quantized.encoding<f16>], image>
    !fused.prepared<512, 4096, for = [#quantized.encoding<ui4, group = 32, scale = u6, offset = field>], image, records>
    ```
    Tokens and columns, then the encodings of the product's weights, which say how it is rounded and which sums of it are kept. With `image` the bytes are those of a
    GPU block's shared memory, piece by piece; without it, rows of a host. With `records` they are for weights in layout `records`. `dialects/Fused/PreparedInput.h` has the place of every byte.
  }];
  let parameters = (ins "int64_t":$tokens, "int64_t":$columns, ArrayRefParameter<"::sluice::quantized::EncodingAttr">:$encodings, "bool":$image, "bool":$records);
  let hasCustomAssemblyFormat = 1;
  let genVerifyDecl = 1;
}

#endif
