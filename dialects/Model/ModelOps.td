// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_MODEL_OPS
#define SLUICE_MODEL_OPS

include "dialects/Model/ModelAttrs.td"
include "dialects/Quantized/QuantizedTypes.td"
include "mlir/Interfaces/SideEffectInterfaces.td"
include "mlir/Interfaces/InferTypeOpInterface.td"
include "mlir/IR/SymbolInterfaces.td"
include "mlir/IR/BuiltinAttributes.td"
include "mlir/IR/BuiltinAttributeInterfaces.td"

class Model_Op<string mnemonic, list<Trait> traits = []> : Op<ModelDialect, mnemonic, traits>;

def Model_WeightOp : Model_Op<"weight", [Symbol]> {
  let summary = "A tensor of a model file";
  let description = [{
    Names the bytes of a weight: file (relative to the module's `model.source`), tensor in that file, offset and length in
    bytes. Without `from` the weight is synthetic: only its shape is known. `interleaved d` says that the file keeps each head of
    d rows with rotary pairs side by side (GGUF's order of llama's q and k): row 2i of the file is row i, row 2i+1 is row i + d/2. Where else the rows
    lie otherwise than one after the other, `view` says how: length then is the bytes from the first to the last.

    `as` names the scheme of a checkpoint that keeps the matrix in several tensors (`include/sluice/Import/CheckpointScheme.h`): the one with the elements, and those in the list.
    The type then says what the numbers are (or `tensor<...xf32>` that they are read as values), the scheme where they lie.
    Of a matrix that has the rows of several weights, `view <first = F of T>` says which ones: those from row F of T rows on.
    Numbers whose list has the columns' groups are those of the columns sorted by group, each group's in their order; values are in the file's order.
    A vector `as "inverse-factor"` has 1 / the file's number in every element; one `as "column-order"` has the columns in that sorted order, by their groups.

    Example:

    ```mlir
    model.weight @blk.0.attn_q : tensor<256x256xf16> from "model.safetensors" tensor "model.layers.0.self_attn.q_proj.weight" at 2425856 size 131072
    model.weight @blk.0.attn_k : !quantized.tensor<128x256xi8, group = 32, layout = blocks> from "m.gguf" tensor "blk.0.attn_k.weight" at 4096 size 34816 interleaved 64
    model.weight @blk.1.attn_q : tensor<256x256xf16> from "model.safetensors" tensor "h.1.attn.c_attn.weight" at 4096 size 392192 view <pitch = 768>
    model.weight @blk.0.attn_v : !quantized.tensor<128x256xi4, group = 128> from "m.safetensors" tensor "model.layers.0.self_attn.v_proj.qweight" at 128 size 16384
      as "gptq" [#model.part<"scales" from "m.safetensors" tensor "model.layers.0.self_attn.v_proj.scales" : "F16" [2, 128] at 16512 size 512>]
    model.weight @output : tensor<128256x4096xf16>
    ```
  }];
  let arguments = (ins SymbolNameAttr:$sym_name, TypeAttr:$type, OptionalAttr<StrAttr>:$file, OptionalAttr<StrAttr>:$tensor,
                       OptionalAttr<I64Attr>:$offset, OptionalAttr<I64Attr>:$length, OptionalAttr<StrAttr>:$scheme,
                       OptionalAttr<TypedArrayAttrBase<Model_PartAttr, "parts of a weight">>:$parts, OptionalAttr<I64Attr>:$interleaved,
                       OptionalAttr<Model_ViewAttr>:$view);
  let assemblyFormat = [{
    $sym_name `:` $type (`from` $file^ `tensor` $tensor `at` $offset `size` $length)? (`as` $scheme^ $parts)? (`interleaved` $interleaved^)? (`view` $view^)? attr-dict
  }];
  let hasVerifier = 1;
  let extraClassDeclaration = [{
    bool isSynthetic() { return !getFile(); }
    /// The order of the rows in the file, `interleaved` included.
    ::sluice::formats::RowView getRowView();
  }];
}

def Model_RopeTableOp : Model_Op<"rope_table", [Symbol]> {
  let summary = "Cosines and sines of a rotary embedding for every position";
  let description = [{
    Row p holds cos(p f_i) for all pairs i, then sin(p f_i), computed in double precision and rounded once, so that every device turns by the same numbers.

    Example:

    ```mlir
    model.rope_table @rope <theta = 10000.0> : tensor<2048x64xf32>
    ```
  }];
  let arguments = (ins SymbolNameAttr:$sym_name, Model_RopeAttr:$rope, TypeAttr:$type);
  let assemblyFormat = "$sym_name $rope attr-dict `:` $type";
  let hasVerifier = 1;
}

def Model_CacheOp : Model_Op<"cache", [Symbol]> {
  let summary = "Keys or values of all positions of one layer";
  let description = [{
    Lives from step to step. Its type says how many sequences and positions it has and how numbers are stored.

    Example:

    ```mlir
    model.cache @cache.k.0 : !quantized.cache<1x2048x2x64xf16>
    ```
  }];
  let arguments = (ins SymbolNameAttr:$sym_name, TypeAttr:$type);
  let assemblyFormat = "$sym_name `:` $type attr-dict";
  let hasVerifier = 1;
  let extraClassDeclaration = [{
    ::sluice::quantized::CacheType getCacheType() { return ::mlir::cast<::sluice::quantized::CacheType>(getType()); }
  }];
}

def Model_ParameterOp : Model_Op<"parameter", [Pure, DeclareOpInterfaceMethods<SymbolUserOpInterface>]> {
  let summary = "The value of a weight";
  let description = [{
    Example:

    ```mlir
    %w = model.parameter @blk.0.attn_q : tensor<256x256xf16>
    ```
  }];
  let arguments = (ins FlatSymbolRefAttr:$weight);
  let results = (outs AnyType:$result);
  let assemblyFormat = "$weight attr-dict `:` type($result)";
}

def Model_EmbeddingOp : Model_Op<"embedding", [Pure]> {
  let summary = "Rows of the embedding table";
  let description = [{
    Example:

    ```mlir
    %x = model.embedding %tokens, %table : tensor<1xi32>, tensor<2048x256xf16> -> tensor<1x256xf32>
    ```
  }];
  let arguments = (ins Model_Positions:$tokens, Model_Matrix:$table);
  let results = (outs Model_Activation:$result);
  let assemblyFormat = "$tokens `,` $table attr-dict `:` type($tokens) `,` type($table) `->` type($result)";
  let hasVerifier = 1;
}

def Model_RmsNormOp : Model_Op<"rms_norm", [Pure, AllTypesMatch<["input", "result"]>]> {
  let summary = "Root mean square normalisation";
  let description = [{
    `result = input / sqrt(mean(input^2) + epsilon) * gain`, a row at a time (Zhang and Sennrich, 2019). With `head_dim` each row is heads of so many
    elements; every head has a mean of its own, and all share the gain, which has `head_dim` elements (the norms of q and k in Qwen3). With `plus_one` the
    factor is `gain + 1`: Gemma's files hold the difference from 1.

    Example:

    ```mlir
    %y = model.rms_norm %x, %gain epsilon 1.0e-5 : tensor<1x256xf32>, tensor<256xf16>
    %q = model.rms_norm %x, %shared epsilon 1.0e-6 head_dim 64 : tensor<1x256xf32>, tensor<64xf16>
    %z = model.rms_norm %x, %gain plus_one epsilon 1.0e-6 : tensor<1x256xf32>, tensor<256xf16>
    ```
  }];
  let arguments = (ins Model_Activation:$input, Model_Vector:$gain, F64Attr:$epsilon, UnitAttr:$plus_one, OptionalAttr<I64Attr>:$head_dim);
  let results = (outs Model_Activation:$result);
  let assemblyFormat = "$input `,` $gain (`plus_one` $plus_one^)? `epsilon` custom<Double>($epsilon) (`head_dim` $head_dim^)? attr-dict `:` type($input) `,` type($gain)";
  let hasVerifier = 1;
  let extraClassDeclaration = [{
    /// Elements of which a mean is taken: a head's, or a row's.
    int64_t getWidth() { return getGain().getType().getDimSize(0); }
  }];
}

def Model_LayerNormOp : Model_Op<"layer_norm", [Pure, AllTypesMatch<["input", "result"]>]> {
  let summary = "Normalisation to mean 0 and variance 1";
  let description = [{
    `result = (input - mean(input)) / sqrt(mean((input - mean(input))^2) + epsilon) * gain + bias`, a row at a time (Ba et al., 2016).

    Example:

    ```mlir
    %y = model.layer_norm %x, %gain epsilon 1.0e-5 : tensor<1x256xf32>, tensor<256xf16>
    %z = model.layer_norm %x, %gain bias %b epsilon 1.0e-5 : tensor<1x256xf32>, tensor<256xf16>, tensor<256xf16>
    ```
  }];
  let arguments = (ins Model_Activation:$input, Model_Vector:$gain, Optional<Model_Vector>:$bias, F64Attr:$epsilon);
  let results = (outs Model_Activation:$result);
  let assemblyFormat = [{
    $input `,` $gain (`bias` $bias^)? `epsilon` custom<Double>($epsilon) attr-dict `:` type($input) `,` type($gain) (`,` type($bias)^)?
  }];
  let hasVerifier = 1;
}

def Model_LinearOp : Model_Op<"linear", [Pure]> {
  let summary = "A linear layer: x W^T + b";
  let description = [{
    The weight is [outputs, inputs], as model files have it.

    Example:

    ```mlir
    %y = model.linear %x, %w : tensor<1x256xf32>, tensor<768x256xf16> -> tensor<1x768xf32>
    %y = model.linear %x, %w bias %b : tensor<1x256xf32>, tensor<768x256xf16>, tensor<768xf16> -> tensor<1x768xf32>
    ```
  }];
  let arguments = (ins Model_Activation:$input, Model_Matrix:$weight, Optional<Model_Vector>:$bias);
  let results = (outs Model_Activation:$result);
  let assemblyFormat = [{
    $input `,` $weight (`bias` $bias^)? attr-dict `:` type($input) `,` type($weight) (`,` type($bias)^)? `->` type($result)
  }];
  let hasVerifier = 1;
}

def Model_AddBiasOp : Model_Op<"add_bias", [Pure, AllTypesMatch<["input", "result"]>]> {
  let summary = "Adds a vector to every row";
  let description = [{
    Example:

    ```mlir
    %y = model.add_bias %x, %b : tensor<1x256xf32>, tensor<256xf16>
    ```
  }];
  let arguments = (ins Model_Activation:$input, Model_Vector:$bias);
  let results = (outs Model_Activation:$result);
  let assemblyFormat = "$input `,` $bias attr-dict `:` type($input) `,` type($bias)";
  let hasVerifier = 1;
}

def Model_ScaleChannelsOp : Model_Op<"scale_channels", [Pure, AllTypesMatch<["input", "result"]>]> {
  let summary = "Multiplies every row by a vector, element by element";
  let description = [{
    A factor of a whole weight, or of each of its rows, that the weight's encoding has no place for (NVFP4's).

    Example:

    ```mlir
    %y = model.scale_channels %x, %f : tensor<1x256xf32>, tensor<256xf32>
    ```
  }];
  let arguments = (ins Model_Activation:$input, Model_Vector:$factor);
  let results = (outs Model_Activation:$result);
  let assemblyFormat = "$input `,` $factor attr-dict `:` type($input) `,` type($factor)";
  let hasVerifier = 1;
}

def Model_ReorderOp : Model_Op<"reorder", [Pure, AllTypesMatch<["input", "result"]>]> {
  let summary = "Puts the elements of every row in another order";
  let description = [{
    Element j of a row becomes the input's element `order[j]`. The order's elements are whole numbers from 0 to the width less 1, each once: the columns of a
    weight that were sorted by their groups (GPTQ's act-order), in the new order.

    Example:

    ```mlir
    %y = model.reorder %x by %order : tensor<1x256xf32>, tensor<256xf32>
    ```
  }];
  let arguments = (ins Model_Activation:$input, 1DTensorOf<[F32]>:$order);
  let results = (outs Model_Activation:$result);
  let assemblyFormat = "$input `by` $order attr-dict `:` type($input) `,` type($order)";
  let hasVerifier = 1;
}

def Model_RotaryOp : Model_Op<"rotary", [Pure, AllTypesMatch<["input", "result"]>]> {
  let summary = "Rotary position embedding";
  let description = [{
    Each row is heads of `head_dim` elements; elements i and i + head_dim/2 of a head turn by `position * f_i`
    (Su et al., 2021, in the order of the halves that Hugging Face models use), or with `interleaved` elements 2i and 2i + 1. With `table`, cosines and
    sines come from a `rope_table`.

    Example:

    ```mlir
    %y = model.rotary %x at %position head_dim 64 <theta = 10000.0> : tensor<1x256xf32>, tensor<1xi32>
    %y = model.rotary %x at %position head_dim 64 interleaved <theta = 10000.0> : tensor<1x256xf32>, tensor<1xi32>
    %y = model.rotary %x at %position head_dim 64 <theta = 10000.0> table %t : tensor<1x256xf32>, tensor<1xi32>, tensor<2048x64xf32>
    ```
  }];
  let arguments = (ins Model_Activation:$input, Model_Positions:$positions, I64Attr:$head_dim, UnitAttr:$interleaved, Model_RopeAttr:$rope,
                       Optional<2DTensorOf<[F32]>>:$table);
  let results = (outs Model_Activation:$result);
  let assemblyFormat = [{
    $input `at` $positions `head_dim` $head_dim (`interleaved` $interleaved^)? $rope (`table` $table^)? attr-dict
    `:` type($input) `,` type($positions) (`,` type($table)^)?
  }];
  let hasVerifier = 1;
}

def Model_CacheAppendOp : Model_Op<"cache_append", [MemoryEffects<[MemWrite]>, AttrSizedOperandSegments, DeclareOpInterfaceMethods<SymbolUserOpInterface>]> {
  let summary = "Stores this step's keys or values";
  let description = [{
    Rounds a head's vector as the cache's type says. Row r belongs to sequence r, or to the only one.

    With `pages` the cache's first dimension is pages of 32 positions that sequences share: positions 32 i to 32 i + 31 of sequence s are in page `pages[s, i]`.
    With `sequences`, too, row r belongs to sequence `sequences[r]`: rows are then tokens of prompts, any number of each sequence.

    Example:

    ```mlir
    model.cache_append @cache.k.0, %k at %position : tensor<1x128xf32>, tensor<1xi32>
    model.cache_append @pages.k.0, %k at %position pages %table : tensor<1x128xf32>, tensor<1xi32>, tensor<1x64xui32>
    model.cache_append @pages.k.0, %chunk at %positions pages %all sequences %owners : tensor<64x128xf32>, tensor<64xi32>, tensor<4x64xui32> sequences tensor<64xi32>
    ```
  }];
  let arguments = (ins FlatSymbolRefAttr:$cache, Model_Activation:$input, Model_Positions:$positions, Optional<Model_PageTable>:$pages, Optional<Model_Sequences>:$sequences);
  let assemblyFormat = [{
    $cache `,` $input `at` $positions (`pages` $pages^)? (`sequences` $sequences^)? attr-dict
    `:` type($input) `,` type($positions) (`,` type($pages)^)? (`sequences` type($sequences)^)?
  }];
}

def Model_AttentionOp : Model_Op<"attention", [MemoryEffects<[MemRead]>, AllTypesMatch<["query", "result"]>, DeclareOpInterfaceMethods<SymbolUserOpInterface>]> {
  let summary = "Attention of one query per head over the cached keys and values";
  let description = [{
    For each query head h: `softmax(q_h K^T * scale) V` over positions 0 to `position`, this step's included; query head h uses key/value head
    `h / (query heads / key heads)` (grouped queries, Ainslie et al., 2023). With a `window` of W only the last W positions count, `position - W + 1` to
    `position` (sliding window, Jiang et al., 2023). With a `soft_cap` of c each scaled score s becomes `c tanh(s / c)` (Gemma 2).

    Example:

    ```mlir
    %y = model.attention %q, @cache.k.0, @cache.v.0 at %position scale 0.125 : tensor<1x256xf32>, tensor<1xi32>
    %z = model.attention %q, @cache.k.0, @cache.v.0 at %position scale 0.125 window 512 : tensor<1x256xf32>, tensor<1xi32>
    %w = model.attention %q, @cache.k.0, @cache.v.0 at %position scale 0.125 soft_cap 50.0 : tensor<1x256xf32>, tensor<1xi32>
    ```
  }];
  let arguments = (ins Model_Activation:$query, FlatSymbolRefAttr:$keys, FlatSymbolRefAttr:$values, Model_Positions:$positions, F64Attr:$scale,
                       OptionalAttr<ConfinedAttr<I64Attr, [IntPositive]>>:$window, OptionalAttr<F64Attr>:$soft_cap);
  let results = (outs Model_Activation:$result);
  let assemblyFormat = [{
    $query `,` $keys `,` $values `at` $positions `scale` custom<Double>($scale) (`window` $window^)? (`soft_cap` custom<Double>($soft_cap)^)? attr-dict
    `:` type($query) `,` type($positions)
  }];
}

def Model_HadamardOp : Model_Op<"hadamard", [Pure, AllTypesMatch<["input", "result"]>]> {
  let summary = "Rotates every head by a Walsh-Hadamard matrix";
  let description = [{
    Each row is heads of `head_dim` elements; every block of n elements of a head, n the greatest power of two that divides `head_dim`, is multiplied by
    the Walsh-Hadamard matrix H_n / sqrt(n) (element (i, j): (-1)^popcount(i & j) / sqrt(n)), which is its own inverse. A rotation of q and k leaves their products as they
    are, and spreads what an outlier channel of the keys holds over all of them, so that few bits lose less (Ashkboos et al., QuaRot, 2024).

    Example:

    ```mlir
    %y = model.hadamard %x head_dim 64 : tensor<1x128xf32>
    ```
  }];
  let arguments = (ins Model_Activation:$input, I64Attr:$head_dim);
  let results = (outs Model_Activation:$result);
  let assemblyFormat = "$input `head_dim` $head_dim attr-dict `:` type($input)";
  let hasVerifier = 1;
  let extraClassDeclaration = [{
    /// Elements of a block: the greatest power of two that divides the head size.
    int64_t getBlock() { return getHeadDim() & -getHeadDim(); }
  }];
}

def Model_SiluOp : Model_Op<"silu", [Pure, Elementwise, SameOperandsAndResultType]> {
  let summary = "x / (1 + exp(-x))";
  let description = [{
    Example:

    ```mlir
    %y = model.silu %x : tensor<1x768xf32>
    ```
  }];
  let arguments = (ins Model_Activation:$input);
  let results = (outs Model_Activation:$result);
  let assemblyFormat = "$input attr-dict `:` type($input)";
}

def Model_GeluOp : Model_Op<"gelu", [Pure, Elementwise, SameOperandsAndResultType]> {
  let summary = "x times the normal distribution's cumulative function of x";
  let description = [{
    `x / 2 * (1 + erf(x / sqrt(2)))` (Hendrycks and Gimpel, 2016), or with `tanh` its approximation `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))`,
    with which many models were trained.

    Example:

    ```mlir
    %y = model.gelu %x : tensor<1x768xf32>
    %z = model.gelu %x tanh : tensor<1x768xf32>
    ```
  }];
  let arguments = (ins Model_Activation:$input, UnitAttr:$approximate);
  let results = (outs Model_Activation:$result);
  let assemblyFormat = "$input (`tanh` $approximate^)? attr-dict `:` type($input)";
}

def Model_ScaleOp : Model_Op<"scale", [Pure, Elementwise, SameOperandsAndResultType]> {
  let summary = "x times a constant";
  let description = [{
    Example:

    ```mlir
    %y = model.scale %x by 0.22 : tensor<1x256xf32>
    ```
  }];
  let arguments = (ins Model_Activation:$input, F64Attr:$factor);
  let results = (outs Model_Activation:$result);
  let assemblyFormat = "$input `by` custom<Double>($factor) attr-dict `:` type($input)";
  let hasVerifier = 1;
}

def Model_SoftCapOp : Model_Op<"soft_cap", [Pure, Elementwise, SameOperandsAndResultType]> {
  let summary = "c tanh(x / c)";
  let description = [{
    Keeps x between -c and c, and changes little of what is far from them (logits of Gemma 2).

    Example:

    ```mlir
    %y = model.soft_cap %x at 30.0 : tensor<1x2048xf32>
    ```
  }];
  let arguments = (ins Model_Activation:$input, F64Attr:$cap);
  let results = (outs Model_Activation:$result);
  let assemblyFormat = "$input `at` custom<Double>($cap) attr-dict `:` type($input)";
  let hasVerifier = 1;
}

#endif
