// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_QUANTIZED_OPS
#define SLUICE_QUANTIZED_OPS

include "dialects/Quantized/QuantizedTypes.td"
include "mlir/Interfaces/SideEffectInterfaces.td"
include "mlir/IR/SymbolInterfaces.td"
include "mlir/IR/BuiltinAttributes.td"
include "mlir/IR/BuiltinAttributeInterfaces.td"

class Quantized_Op<string mnemonic, list<Trait> traits = []> : Op<QuantizedDialect, mnemonic, traits>;

def Quantized_FloatMatrix : 2DTensorOf<[F16, BF16, F32]>;

def Quantized_QuantizeOp : Quantized_Op<"quantize", [Pure]> {
  let summary = "Rounds a float matrix to a quantized one";
  let description = [{
    Scales (and zero points) are chosen a group at a time to minimise the sum of squared errors over that group; the
    search is defined in `include/sluice/Formats/Quantizer.h`. The operand is a weight, so this is work for the compiler, not for the device:
    packing turns it into a recipe that the artifact's writer carries out.

    Example:

    ```mlir
    %q = quantized.quantize %w : tensor<256x768xf16> to !quantized.tensor<256x768xi8, group = 128>
    ```
  }];
  let arguments = (ins Quantized_FloatMatrix:$input);
  let results = (outs Quantized_TensorType:$result);
  let assemblyFormat = "$input attr-dict `:` type($input) `to` qualified(type($result))";
  let hasVerifier = 1;
  let hasFolder = 1;
}

def Quantized_DequantizeOp : Quantized_Op<"dequantize", [Pure]> {
  let summary = "The numbers that a quantized matrix stands for";
  let description = [{
    `value = (q - zero) * scale`, in float32. An unfused compiler writes these numbers to memory; the fusing passes never let that happen.

    Example:

    ```mlir
    %w = quantized.dequantize %q : !quantized.tensor<256x768xi8, group = 128> to tensor<256x768xf32>
    ```
  }];
  let arguments = (ins Quantized_TensorType:$input);
  let results = (outs Quantized_FloatMatrix:$result);
  let assemblyFormat = "$input attr-dict `:` qualified(type($input)) `to` type($result)";
  let hasVerifier = 1;
}

def Quantized_PackedOp : Quantized_Op<"packed", [Symbol]> {
  let summary = "A weight as the kernels read it: the recipe by which it is made from the model's files";
  let description = [{
    Defines a symbol whose bytes the artifact's writer makes: it reads the source weights, quantizes them if the
    format asks for it (blocks that already have the format are taken over bit for bit), orders their rows by
    `order` and lays them out as the type says. A builtin tensor type means a plain conversion (norm gains,
    biases, embedding rows).

    Example:

    ```mlir
    quantized.packed @blk.0.gate_up of [@blk.0.ffn_gate, @blk.0.ffn_up] order [zip(0, 1)] : !quantized.tensor<1536x256xi8, group = 128, layout = lanes>
    quantized.packed @blk.0.attn_norm.f32 of [@blk.0.attn_norm] : tensor<256xf32>
    ```
  }];
  let arguments = (ins SymbolNameAttr:$sym_name, FlatSymbolRefArrayAttr:$sources,
                       DefaultValuedAttr<TypedArrayAttrBase<Quantized_RowOrderAttr, "row orders">, "{}">:$order, TypeAttr:$type);
  let assemblyFormat = "$sym_name `of` $sources (`order` custom<RowOrders>($order)^)? attr-dict `:` $type";
  let hasVerifier = 1;
}

#endif
