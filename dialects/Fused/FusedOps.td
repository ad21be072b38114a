// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_FUSED_OPS
#define SLUICE_FUSED_OPS

include "dialects/Fused/FusedAttrs.td"
include "dialects/Fused/FusedInterfaces.td"
include "dialects/Fused/FusedTypes.td"
include "dialects/Model/ModelAttrs.td"
include "dialects/Quantized/QuantizedTypes.td"
include "mlir/Interfaces/SideEffectInterfaces.td"
include "mlir/IR/SymbolInterfaces.td"
include "mlir/IR/BuiltinAttributes.td"
include "mlir/IR/BuiltinAttributeInterfaces.td"

class Fused_Op<string mnemonic, list<Trait> traits = []> : Op<FusedDialect, mnemonic, traits>;

/// An operation that becomes one kernel launch; it has attributes `traffic` and `schedule`.
class Fused_Kernel<string mnemonic, list<Trait> traits = []>
    : Fused_Op<mnemonic, traits # [DeclareOpInterfaceMethods<Fused_KernelOpInterface, ["computeTraffic", "getLabel", "planGpuLaunch"]>]>;

/// [tokens, width]
def Fused_Activation : 2DTensorOf<[F32, F16, BF16]>;
def Fused_Weight : AnyTypeOf<[Model_Matrix, Quantized_TensorType]>;

/// How many of a step's rows are there; those behind them are neither read nor written. A step that is made for
/// up to so many tokens runs with any number of them.
def Fused_Count : Type<And<[RankedTensorOf<[I32]>.predicate, CPred<"::llvm::cast<::mlir::RankedTensorType>($_self).getShape() == ::llvm::ArrayRef<int64_t>({1})">]>,
                       "one i32", "::mlir::RankedTensorType">,
                  BuildableType<"::mlir::RankedTensorType::get({1}, $_builder.getI32Type())">;

/// [sequences + 1]: where the tokens of packed sequences begin and end. Sequence s has rows `starts[s]` to `starts[s + 1] - 1` of a step, none if these are equal, at positions that grow by one
/// from row to row. The last one is how many rows are there.
def Fused_Starts : 1DTensorOf<[I32]>;

def Fused_EmbeddingOp : Fused_Kernel<"embedding", [Pure]> {
  let summary = "Rows of the embedding table, dequantized as they are read";
  let description = [{
    Example:

    ```mlir
    %x = fused.embedding %tokens, %table : tensor<1xi32>, !quantized.tensor<2048x256xi8, group = 32> -> tensor<1x256xf32>
    %y = fused.embedding %chunk, %table active(%n) : tensor<64xi32>, !quantized.tensor<2048x256xi8, group = 32> -> tensor<64x256xf32>
    ```
  }];
  let arguments = (ins Model_Positions:$tokens, Fused_Weight:$table, Optional<Fused_Count>:$active, OptionalAttr<Fused_TrafficAttr>:$traffic, OptionalAttr<AnyAttr>:$schedule);
  let results = (outs Model_Activation:$result);
  let assemblyFormat = [{
    $tokens `,` $table (`active` `(` $active^ `)`)? oilist(`traffic` `(` qualified($traffic) `)` | `schedule` `(` $schedule `)`) attr-dict `:` type($tokens) `,` type($table) `->` type($result)
  }];
  let hasVerifier = 1;
}

def Fused_MatvecOp : Fused_Kernel<"matvec", [RecursiveMemoryEffects, SingleBlock, DeclareOpInterfaceMethods<SymbolUserOpInterface>, Fused_ProductOpInterface]> {
  let summary = "Products of one input with one or more weight matrices, with what comes before and after them";
  let description = [{
    Computes `sum_k W[r, k] * p(x)[k]` for all rows of all weights, where `p` is the prologue (identity if absent), then runs the epilogue on the sums and returns what
    it yields. `segments` are the numbers of rows of the epilogue's arguments, in logical order; a packed weight that stands for several carries them all.
    `order` is the packed weight's row order. `prefetch` says which bytes of a later product's weight a GPU kernel brings into the L2 cache at its end.

    Numbers (docs/numerics.md): for integer weights, p(x) is rounded to 16-bit fixed point with one scale per group of 128 elements, and sums inside an accumulation block are exact; for f16 and bf16 weights p(x) is
    rounded to that type and sums are float32; float32 weights are multiplied as they are.

    Regions may use values defined above the operation (gains, biases, residuals, positions, tables).

    Example:

    ```mlir
    %h = fused.matvec %x weights(%gate, %up) segments [768, 768]
        : tensor<1x256xf32>, !quantized.tensor<768x256xi8, group = 128>, !quantized.tensor<768x256xi8, group = 128> -> tensor<1x768xf16>
    prologue {
    ^bb0(%in: tensor<1x256xf32>):
      %n = model.rms_norm %in, %gain epsilon 1.0e-5 : tensor<1x256xf32>, tensor<256xf32>
      fused.yield %n : tensor<1x256xf32>
    } epilogue {
    ^bb0(%g: tensor<1x768xf32>, %u: tensor<1x768xf32>):
      %s = model.silu %g : tensor<1x768xf32>
      %m = arith.mulf %s, %u : tensor<1x768xf32>
      %r = arith.truncf %m : tensor<1x768xf32> to tensor<1x768xf16>
      fused.yield %r : tensor<1x768xf16>
    }
    ```
  }];
  let arguments = (ins Fused_Activation:$input, Variadic<Fused_Weight>:$weights, DenseI64ArrayAttr:$segments,
                       OptionalAttr<TypedArrayAttrBase<Quantized_RowOrderAttr, "row orders">>:$order,
                       OptionalAttr<Fused_TrafficAttr>:$traffic, OptionalAttr<AnyAttr>:$schedule,
                       OptionalAttr<Fused_PrefetchAttr>:$prefetch);
  let results = (outs Variadic<Fused_Activation>:$results);
  let regions = (region AnyRegion:$prologue, AnyRegion:$epilogue);
  let hasCanonicalizer = 1;
  let assemblyFormat = [{
    $input `weights` `(` $weights `)` `segments` $segments (`order` custom<RowOrders>($order)^)?
    oilist(`traffic` `(` qualified($traffic) `)` | `schedule` `(` $schedule `)` | `prefetch` `(` qualified($prefetch) `)`) attr-dict
    `:` type($input) `,` type($weights) (`->` type($results)^)?
    (`prologue` $prologue^)? (`epilogue` $epilogue^)?
  }];
  let hasVerifier = 1;
  let extraClassDeclaration = [{
    int64_t getTokens() { return getInput().getType().getShape()[0]; }
    int64_t getColumns() { return getInput().getType().getShape()[1]; }
    ::sluice::quantized::QuantizedTensorType getPackedType() { return ::mlir::dyn_cast<::sluice::quantized::QuantizedTensorType>(getWeights().front().getType()); }
  }];
}

def Fused_PrepareOp : Fused_Kernel<"prepare", [Pure, SingleBlock]> {
  let summary = "The input of products of many tokens, in the form in which they read it";
  let description = [{
    What `fused.matvec` does to its input before it multiplies, done once for all blocks of a `fused.matmul`: the prologue (identity if absent), then the rounding
    that the encodings of the product's weights ask for (docs/numerics.md).

    Without `active` all rows are there.

    Example:

    ```mlir
    %p = fused.prepare %x active(%n) : tensor<64x256xf32> -> !fused.prepared<64, 256, for = [#quantized.encoding<i8, group = 128>]>
    prologue {
    ^bb0(%in: tensor<64x256xf32>):
      %m = model.rms_norm %in, %gain epsilon 1.0e-5 : tensor<64x256xf32>, tensor<256xf32>
      fused.yield %m : tensor<64x256xf32>
    }
    ```
  }];
  let arguments = (ins Fused_Activation:$input, Optional<Fused_Count>:$active, OptionalAttr<Fused_TrafficAttr>:$traffic, OptionalAttr<AnyAttr>:$schedule);
  let results = (outs Fused_PreparedType:$result);
  let regions = (region AnyRegion:$prologue);
  let assemblyFormat = [{
    $input (`active` `(` $active^ `)`)? oilist(`traffic` `(` qualified($traffic) `)` | `schedule` `(` $schedule `)`) attr-dict
    `:` type($input) `->` qualified(type($result)) (`prologue` $prologue^)?
  }];
  let hasVerifier = 1;
  let extraClassDeclaration = [{
    int64_t getTokens() { return getInput().getType().getShape()[0]; }
    int64_t getColumns() { return getInput().getType().getShape()[1]; }
  }];
}

def Fused_MatmulOp : Fused_Kernel<"matmul", [RecursiveMemoryEffects, SingleBlock, AttrSizedOperandSegments, Fused_ProductOpInterface]> {
  let summary = "Products of many tokens' inputs with one or more weight matrices, with what comes after them";
  let description = [{
    As `fused.matvec` without a prologue, for the rows of a prepared input that are active, or all. It reads the same packed weights.

    Example:

    ```mlir
    %y = fused.matmul %p active(%n) weights(%w) segments [768]
        : !fused.prepared<64, 256, for = [#quantized.encoding<i8, group = 128>]>, !quantized.tensor<768x256xi8, group = 128, layout = lanes> -> tensor<64x768xf32>
    ```
  }];
  let arguments = (ins Fused_PreparedType:$input, Optional<Fused_Count>:$active, Variadic<Fused_Weight>:$weights, DenseI64ArrayAttr:$segments,
                       OptionalAttr<TypedArrayAttrBase<Quantized_RowOrderAttr, "row orders">>:$order,
                       OptionalAttr<Fused_TrafficAttr>:$traffic, OptionalAttr<AnyAttr>:$schedule);
  let results = (outs Variadic<Fused_Activation>:$results);
  let regions = (region AnyRegion:$epilogue);
  let assemblyFormat = [{
    $input (`active` `(` $active^ `)`)? `weights` `(` $weights `)` `segments` $segments (`order` custom<RowOrders>($order)^)?
    oilist(`traffic` `(` qualified($traffic) `)` | `schedule` `(` $schedule `)`) attr-dict
    `:` qualified(type($input)) `,` type($weights) (`->` type($results)^)? (`epilogue` $epilogue^)?
  }];
  let hasVerifier = 1;
  let extraClassDeclaration = [{
    int64_t getTokens() { return getInput().getType().getTokens(); }
    int64_t getColumns() { return getInput().getType().getColumns(); }
  }];
}

def Fused_AppendOp : Fused_Kernel<"append", [RecursiveMemoryEffects, SingleBlock, AttrSizedOperandSegments, DeclareOpInterfaceMethods<SymbolUserOpInterface>]> {
  let summary = "What many tokens' queries, keys and values go through before attention, appends included";
  let description = [{
    The prologue of `fused.attention` in a kernel of its own: where a token attends to the keys and values of others of the same step, these must be in the caches before
    attention begins. The region is the same as there; the result is the query that it yields.
    `sequences` as for `model.cache_append`, for tokens of several sequences.

    Example:

    ```mlir
    %q1 = fused.append %q new(%k, %v), @cache.k.0, @cache.v.0 at %position active(%n)
        : tensor<64x256xf32> new(tensor<64x128xf32>, tensor<64x128xf32>), tensor<64xi32> -> tensor<64x256xf32>
    prologue {
    ^bb0(%q0: tensor<64x256xf32>, %k0: tensor<64x128xf32>, %v0: tensor<64x128xf32>):
      model.cache_append @cache.k.0, %k0 at %position : tensor<64x128xf32>, tensor<64xi32>
      model.cache_append @cache.v.0, %v0 at %position : tensor<64x128xf32>, tensor<64xi32>
      fused.yield %q0 : tensor<64x256xf32>
    }
    ```
  }];
  let arguments = (ins Fused_Activation:$query, Fused_Activation:$new_keys, Fused_Activation:$new_values, FlatSymbolRefAttr:$keys, FlatSymbolRefAttr:$values,
                       Model_Positions:$positions, Optional<Model_PageTable>:$pages, Optional<Model_Sequences>:$sequences, Fused_Count:$active, OptionalAttr<Fused_TrafficAttr>:$traffic, OptionalAttr<AnyAttr>:$schedule);
  let results = (outs Fused_Activation:$result);
  let regions = (region SizedRegion<1>:$prologue);
  let assemblyFormat = [{
    $query `new` `(` $new_keys `,` $new_values `)` `,` $keys `,` $values `at` $positions (`pages` $pages^)? (`sequences` $sequences^)? `active` `(` $active `)`
    oilist(`traffic` `(` qualified($traffic) `)` | `schedule` `(` $schedule `)`) attr-dict
    `:` type($query) `new` `(` type($new_keys) `,` type($new_values) `)` `,` type($positions) (`,` type($pages)^)? (`sequences` type($sequences)^)? `->` type($result) `prologue` $prologue
  }];
  let hasVerifier = 1;
  let extraClassDeclaration = [{
    int64_t getTokens() { return getQuery().getType().getShape()[0]; }
    /// The operand that an argument of the prologue stands for; other values stand for themselves.
    ::mlir::Value getSource(::mlir::Value value);
  }];
}

def Fused_LastRowOp : Fused_Kernel<"last_row", [Pure]> {
  let summary = "The last row that is there, or that each sequence has";
  let description = [{
    Of a prompt's tokens only the last one's logits are wanted. With `starts` row s of the result is the last one of sequence s; of a sequence that has none it is any row.

    Example:

    ```mlir
    %y = fused.last_row %x active(%n) : tensor<64x256xf32> -> tensor<1x256xf32>
    %z = fused.last_row %x active(%n) starts %starts : tensor<64x256xf32> starts tensor<5xi32> -> tensor<4x256xf32>
    ```
  }];
  let arguments = (ins Fused_Activation:$input, Fused_Count:$active, Optional<Fused_Starts>:$starts, OptionalAttr<Fused_TrafficAttr>:$traffic, OptionalAttr<AnyAttr>:$schedule);
  let results = (outs Fused_Activation:$result);
  let assemblyFormat = [{
    $input `active` `(` $active `)` (`starts` $starts^)? oilist(`traffic` `(` qualified($traffic) `)` | `schedule` `(` $schedule `)`) attr-dict
    `:` type($input) (`starts` type($starts)^)? `->` type($result)
  }];
  let hasVerifier = 1;
}

def Fused_YieldOp : Fused_Op<"yield", [Pure, Terminator, ParentOneOf<["MatvecOp", "PrepareOp", "MatmulOp", "AppendOp", "AttentionOp", "RowsOp"]>]> {
  let summary = "Ends a region of a kernel";
  let description = [{
    Example:

    ```mlir
    fused.yield %r : tensor<1x768xf16>
    ```
  }];
  let arguments = (ins Variadic<AnyType>:$values);
  let assemblyFormat = "($values^ `:` type($values))? attr-dict";
}

def Fused_RowsOp : Fused_Kernel<"rows", [RecursiveMemoryEffects, SingleBlock]> {
  let summary = "What is computed from whole rows, in a kernel of its own";
  let description = [{
    For what no product can do at its beginning or end: a norm of a product's result (Gemma 2's norms after attention and MLP, OLMo 2's of q and k), and what is
    made of it. The body holds norms, element operations, `model.rotary` and `model.cache_append` of 16-bit caches on values from above; all matrices
    in it have the same shape. What it yields is stored. A rotary pair lies in one head, so if there is a rotation, rows are computed a pair of half heads at a time.

    Example:

    ```mlir
    %h = fused.rows -> tensor<1x256xf32> body {
      %n = model.rms_norm %o, %gain epsilon 1.0e-6 : tensor<1x256xf32>, tensor<256xf32>
      %s = arith.addf %x, %n : tensor<1x256xf32>
      fused.yield %s : tensor<1x256xf32>
    }
    ```
  }];
  let arguments = (ins Optional<Fused_Count>:$active, OptionalAttr<Fused_TrafficAttr>:$traffic, OptionalAttr<AnyAttr>:$schedule);
  let results = (outs Variadic<Fused_Activation>:$results);
  let regions = (region SizedRegion<1>:$body);
  let assemblyFormat = [{
    (`active` `(` $active^ `)`)? oilist(`traffic` `(` qualified($traffic) `)` | `schedule` `(` $schedule `)`) attr-dict (`->` type($results)^)? `body` $body
  }];
  let hasVerifier = 1;
  let extraClassDeclaration = [{
    /// [tokens, width] of every matrix in the body.
    ::llvm::ArrayRef<int64_t> getRowsShape();
    int64_t getTokens() { return getRowsShape()[0]; }
    int64_t getWidth() { return getRowsShape()[1]; }
    /// The size of the heads that the body rotates; 0 if it rotates none.
    int64_t getHeadDim();
  }];
}

def Fused_AttentionOp : Fused_Kernel<"attention", [MemoryEffects<[MemRead]>, RecursiveMemoryEffects, AttrSizedOperandSegments, DeclareOpInterfaceMethods<SymbolUserOpInterface>]> {
  let summary = "Attention over the cached keys and values, dequantized as they are read";
  let description = [{
    As `model.attention`, with the roundings that belong to the definition (docs/numerics.md, "Attention"): K and V are as the cache stores them; the query is
    16-bit fixed point for integer keys, else of the keys' precision; softmax weights are 16-bit fixed point for integer values, else f16 (bf16 values: a sum of two bf16 numbers).

    The prologue, if there is one, maps the step's query and new keys and values (`new`) to the query that is attended with, and appends to the caches. It
    works on whole heads, so it can do what a product's epilogue, to which a head's rows come in different tiles, cannot: rounding a head to a common scale, rotating it. Rows then belong to
    different sequences.

    With `active`, rows are tokens of the cache's one sequence, whose keys and values are in it already; each attends to what lies up to its own position. Positions grow by one from row to row.

    With `pages`, the caches' first dimension is pages of 32 positions that sequences share, and the table says which of them each sequence has (`model.cache_append`); appends name the same table.
    With `starts`, too, and `active`, rows are tokens of several sequences, packed one behind the other: each attends to what its own sequence has.

    Example:

    ```mlir
    %y = fused.attention %q, @cache.k.0, @cache.v.0 at %position scale 0.125 : tensor<1x256xf16>, tensor<1xi32> -> tensor<1x256xf16>
    %z = fused.attention %q, @pages.k.0, @pages.v.0 at %position pages %table scale 0.125 : tensor<1x256xf16>, tensor<1xi32>, tensor<1x64xui32> -> tensor<1x256xf16>
    %w = fused.attention %chunk, @pages.k.0, @pages.v.0 at %positions pages %all starts %starts scale 0.125 active(%n)
        : tensor<64x256xf16>, tensor<64xi32>, tensor<4x64xui32> starts tensor<5xi32> -> tensor<64x256xf16>
    %y = fused.attention %q new(%k, %v), @cache.k.0, @cache.v.0 at %position scale 0.125
        : tensor<1x256xf32> new(tensor<1x128xf32>, tensor<1x128xf32>), tensor<1xi32> -> tensor<1x256xf16>
    prologue {
    ^bb0(%q0: tensor<1x256xf32>, %k0: tensor<1x128xf32>, %v0: tensor<1x128xf32>):
      %q1 = model.hadamard %q0 head_dim 64 : tensor<1x256xf32>
      %k1 = model.hadamard %k0 head_dim 64 : tensor<1x128xf32>
      model.cache_append @cache.k.0, %k1 at %position : tensor<1x128xf32>, tensor<1xi32>
      model.cache_append @cache.v.0, %v0 at %position : tensor<1x128xf32>, tensor<1xi32>
      fused.yield %q1 : tensor<1x256xf32>
    }
    ```
  }];
  let arguments = (ins Fused_Activation:$query, Variadic<Fused_Activation>:$appended, FlatSymbolRefAttr:$keys, FlatSymbolRefAttr:$values, Model_Positions:$positions,
                       Optional<Model_PageTable>:$pages, Optional<Fused_Starts>:$starts, Optional<Fused_Count>:$active, F64Attr:$scale, OptionalAttr<ConfinedAttr<I64Attr, [IntPositive]>>:$window, OptionalAttr<F64Attr>:$soft_cap,
                       OptionalAttr<Fused_TrafficAttr>:$traffic, OptionalAttr<AnyAttr>:$schedule);
  let results = (outs 2DTensorOf<[F16]>:$result);
  let regions = (region AnyRegion:$prologue);
  let assemblyFormat = [{
    $query (`new` `(` $appended^ `)`)? `,` $keys `,` $values `at` $positions (`pages` $pages^)? (`starts` $starts^)? `scale` custom<Double>($scale) (`window` $window^)?
    (`soft_cap` custom<Double>($soft_cap)^)? (`active` `(` $active^ `)`)? oilist(`traffic` `(` qualified($traffic) `)` | `schedule` `(` $schedule `)`) attr-dict
    `:` type($query) (`new` `(` type($appended)^ `)`)? `,` type($positions) (`,` type($pages)^)? (`starts` type($starts)^)? `->` type($result) (`prologue` $prologue^)?
  }];
  let hasVerifier = 1;
  let extraClassDeclaration = [{
    int64_t getTokens() { return getQuery().getType().getShape()[0]; }
    /// The operand that an argument of the prologue stands for; other values stand for themselves.
    ::mlir::Value getSource(::mlir::Value value);
  }];
}

def Fused_SampleOp : Fused_Kernel<"sample", [Pure]> {
  let summary = "The next token, chosen from logits on the device";
  let description = [{
    Gives the id of one token for each row of logits, or -1 where a logit is NaN or +infinity or none is finite. `options` are 8 words per row: take the largest
    logit, or top-k, top-p, min-p, temperature and a random number. `include/sluice-runtime/SamplingWords.h` defines the words and the choice.

    Example:

    ```mlir
    %next = fused.sample %logits, %options : tensor<1x2048xf32>, tensor<1x8xi32> -> tensor<1xi32>
    ```
  }];
  let arguments = (ins Model_Activation:$logits, 2DTensorOf<[I32]>:$options, OptionalAttr<Fused_TrafficAttr>:$traffic, OptionalAttr<AnyAttr>:$schedule);
  let results = (outs Model_Positions:$result);
  let assemblyFormat = [{
    $logits `,` $options oilist(`traffic` `(` qualified($traffic) `)` | `schedule` `(` $schedule `)`) attr-dict `:` type($logits) `,` type($options) `->` type($result)
  }];
  let hasVerifier = 1;
}

#endif
