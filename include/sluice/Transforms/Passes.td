// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_TRANSFORMS_PASSES
#define SLUICE_TRANSFORMS_PASSES

include "mlir/Pass/PassBase.td"

// A pass is named like its .cpp file, its argument is that name in kebab case, and so is its lit test.

//===----------------------------------------------------------------------===//
// Model and quantized stages
//===----------------------------------------------------------------------===//

defvar plannerOptions = [
  Option<"target", "target", "std::string", /*default=*/"\"host\"", "name or path of a target description">,
  Option<"scheme", "scheme", "std::string", /*default=*/"\"auto\"", "what is asked for the weights, see quantized-quantize-weights; auto is planned">,
  Option<"keys", "k-cache", "std::string", /*default=*/"\"auto\"", "what is asked for cached keys; auto is planned">,
  Option<"values", "v-cache", "std::string", /*default=*/"\"auto\"", "what is asked for cached values">,
  Option<"goal", "goal", "std::string", /*default=*/"\"error-budget=1\"",
         "error-budget=X (least time; predicted divergence at most X, in 1e-3 nats a token), or max-bits=X (a weight), max-bytes=N or max-time=X (ms a token) for the least error">,
  Option<"context", "context", "int64_t", /*default=*/"0", "positions that attention reads; 0: half of the caches">,
  Option<"statistics", "stats", "std::string", /*default=*/"\"\"", "a file of statistics (sluice measure), or nothing">
];

def QuantizedPlanWeights : Pass<"quantized-plan-weights", "::mlir::ModuleOp"> {
  let summary = "Choose the number format of every linear layer's weight by its cost";
  let description = [{
    For every weight, and for every layer's keys and values, each format has a predicted time (bytes over what a kernel of that size reaches on the target, and what else the
    target's description says), a predicted error (from statistics of the model over calibration text, else from the weights alone) and a size. The pass chooses, over the whole
    model at once, what makes one of them least while another stays within `goal`; `docs/planner.md` has the method. Products that become one kernel are chosen together.

    Weights that are planned get a `quantized.quantize` as from `quantized-quantize-weights`, with `sluice.decision` and `sluice.reason`, or, where their own format is
    best, these attributes on their parameter. Weights that have a decision, or for which something else than `auto` is asked, are counted but not chosen.
    The module gets `sluice.plan`: what was decided, the runners-up, the sums, and the price at which error was bought, at which `quantized-plan-caches` goes on.

    ```mlir
    %w = model.parameter @blk.0.attn_q : tensor<256x256xf16>
    %y = model.linear %x, %w : tensor<1x256xf32>, tensor<256x256xf16> -> tensor<1x256xf32>
    ```
    ==>
    ```mlir
    %w = model.parameter @blk.0.attn_q : tensor<256x256xf16>
    %q = quantized.quantize %w {sluice.decision = "int6-g64", sluice.reason = "planned: error 0.031e-3 nats, 0.11 us; next int5-g64: 0.12e-3, 0.09 us"}
        : tensor<256x256xf16> to !quantized.tensor<256x256xi6, group = 64>
    %d = quantized.dequantize %q : !quantized.tensor<256x256xi6, group = 64> to tensor<256x256xf32>
    %y = model.linear %x, %d : tensor<1x256xf32>, tensor<256x256xf32> -> tensor<1x256xf32>
    ```
  }];
  let options = plannerOptions;
  let dependentDialects = ["::sluice::quantized::QuantizedDialect"];
}

def QuantizedPlanCaches : Pass<"quantized-plan-caches", "::mlir::ModuleOp"> {
  let summary = "Choose the number format of every layer's cached keys and values by its cost";
  let description = [{
    After `quantized-plan-weights` every layer's caches take what is best at the price that was found there for weights and caches together (`sluice.plan` of the module). Alone, the pass
    plans the caches with the weights as they are. Caches stay as they are where nothing was measured of the model: how much rounded keys cost differs a hundredfold between models.

    ```mlir
    model.cache @cache.k.0 : !quantized.cache<1x2048x2x64xf16>
    ```
    ==>
    ```mlir
    model.cache @cache.k.0 : !quantized.cache<1x2048x2x64xi8, group = head> {sluice.decision = "int8", sluice.reason = "planned: error 0.01e-3 nats, 2.1 us"}
    ```
  }];
  let options = plannerOptions;
  let dependentDialects = ["::sluice::model::ModelDialect"];
}

def QuantizedQuantizeWeights : Pass<"quantized-quantize-weights", "::mlir::ModuleOp"> {
  let summary = "Decide the number format of every linear layer's weight";
  let description = [{
    Puts `quantized.quantize` and `quantized.dequantize` between the weight of every `model.linear` and the layer. The embedding table, gains and
    biases keep their format; so does a weight that already has the asked-for one, and everything with `keep`.

    Where the columns are not a multiple of the scheme's group, the last group of a row is shorter. What was decided and why stands on the
    quantize operation in the discardable attributes
    `sluice.decision` (a format's name) and `sluice.reason` (a sentence); packing copies them to the `quantized.packed` operation that takes its
    place. A weight that has been through this pass, or has a `sluice.decision` written by hand, is left alone; a warning says what is not as asked.

    `stats` names a file of statistics (docs/planner.md) by which the packer rounds. The reason then says what the file has of a weight:
    `asked for, rounded by its input's Hessian`, `... by its input's moments` or `... without statistics`. A file that has other columns of a weight, or none of
    the weights, is of another model and an error.

    ```mlir
    %w = model.parameter @blk.0.attn_q : tensor<256x256xf16>
    %y = model.linear %x, %w : tensor<1x256xf32>, tensor<256x256xf16> -> tensor<1x256xf32>
    ```
    ==>
    ```mlir
    %w = model.parameter @blk.0.attn_q : tensor<256x256xf16>
    %q = quantized.quantize %w {sluice.decision = "int8-g128", sluice.reason = "asked for"}
        : tensor<256x256xf16> to !quantized.tensor<256x256xi8, group = 128>
    %d = quantized.dequantize %q : !quantized.tensor<256x256xi8, group = 128> to tensor<256x256xf32>
    %y = model.linear %x, %d : tensor<1x256xf32>, tensor<256x256xf32> -> tensor<1x256xf32>
    ```
  }];
  let options = [Option<"scheme", "scheme", "std::string", /*default=*/"\"keep\"",
                        "a format for all weights, then PATTERN=FORMAT for those whose names match, separated by commas; a format is auto (left to quantized-plan-weights), keep, f16, bf16, f32, int3 to int6, int8 or iq4 with -g16 to -g256 or -channel and optionally -zp or -n8, fp8 with -g32 to -channel and optionally -f32, or a GGUF type such as q4_k">,
                 Option<"stats", "stats", "std::string", /*default=*/"\"\"", "a file of statistics to round by">];
  let dependentDialects = ["::sluice::quantized::QuantizedDialect"];
}

def QuantizedQuantizeCaches : Pass<"quantized-quantize-caches", "::mlir::ModuleOp"> {
  let summary = "Decide how every layer's keys and values are cached";
  let description = [{
    Gives the caches of every `model.attention` the encodings that `k-cache` and `v-cache` name: one for all layers, others for single ones (`int4-rot,0-1=int8`; layer i is the
    function's i-th attention). A name that ends in `-rot` rotates the query, and what is appended to the keys, by `model.hadamard`. What was decided
    stands on the cache in `sluice.decision` and `sluice.reason`; a cache that has a decision is left alone.

    ```mlir
    model.cache @cache.k.0 : !quantized.cache<1x2048x2x64xf16>
    ```
    ==>
    ```mlir
    model.cache @cache.k.0 : !quantized.cache<1x2048x2x64xi8, group = head> {sluice.decision = "int8", sluice.reason = "asked for"}
    ```
  }];
  let options = [Option<"keys", "k-cache", "std::string", /*default=*/"\"auto\"", "formats of cached keys">,
                 Option<"values", "v-cache", "std::string", /*default=*/"\"auto\"", "formats of cached values">];
  let dependentDialects = ["::sluice::model::ModelDialect"];
}

//===----------------------------------------------------------------------===//
// Fused stage
//===----------------------------------------------------------------------===//

def FusedFuseDequantize : Pass<"fused-fuse-dequantize", "::mlir::ModuleOp"> {
  let summary = "Turn layers into kernels that read quantized weights";
  let description = [{
    `model.linear`, `model.embedding` and `model.attention` become `fused.matvec`, `fused.embedding` and `fused.attention`; a `quantized.dequantize` in front of them
    disappears, so that dequantized weights never exist in memory. A bias becomes `model.add_bias`.

    Attention takes and gives f16, which belongs to its definition. What else a layer reads is stored in the type that the model computed it in, as far as its readers'
    weights say: f16 or bf16 where all of them are of that type, or were before `quantized-quantize-weights` made integers of them, else float32. A norm's result is never stored, see `fused-fuse-prologues`, nor is a sum rounded that others read.

    A dequantize that something else reads is left, with a remark.

    ```mlir
    %d = quantized.dequantize %q : !quantized.tensor<768x256xi8, group = 128> to tensor<768x256xf32>
    %y = model.linear %x, %d bias %b : tensor<1x256xf32>, tensor<768x256xf32>, tensor<768xf16> -> tensor<1x768xf32>
    ```
    ==>
    ```mlir
    %s = fused.matvec %x weights(%q) segments [768]
        : tensor<1x256xf32>, !quantized.tensor<768x256xi8, group = 128> -> tensor<1x768xf32>
    %y = model.add_bias %s, %b : tensor<1x768xf32>, tensor<768xf16>
    ```
  }];
  let dependentDialects = ["::sluice::fused::FusedDialect", "::mlir::arith::ArithDialect"];
}

def FusedMergeMatvecs : Pass<"fused-merge-matvecs", "::mlir::ModuleOp"> {
  let summary = "Make one kernel of products that read the same input";
  let description = [{
    Products of one input with several weights (query, key and value; gate and up) become one `fused.matvec` with several
    weights, at the place of the first: one launch, and one read of the input. Weights that are not known at that place stay apart, with a remark.

    Weights of different formats stay apart, too; but for GPUs those that layout `records` holds are merged (a Q6_K value weight with Q4_K ones of query
    and key), the weights of one format side by side. They stay apart if rows of two formats are combined later, as gate and up are: those would have to lie in one tile.

    ```mlir
    %g = fused.matvec %x weights(%gate) segments [768] : tensor<1x256xf32>, tensor<768x256xf16> -> tensor<1x768xf32>
    %u = fused.matvec %x weights(%up) segments [768] : tensor<1x256xf32>, tensor<768x256xf16> -> tensor<1x768xf32>
    ```
    ==>
    ```mlir
    %g, %u = fused.matvec %x weights(%gate, %up) segments [768, 768]
        : tensor<1x256xf32>, tensor<768x256xf16>, tensor<768x256xf16> -> tensor<1x768xf32>, tensor<1x768xf32>
    ```
  }];
  let options = [Option<"target", "target", "std::string", /*default=*/"\"host\"", "name or path of a target description">];
  let dependentDialects = ["::sluice::fused::FusedDialect"];
}

def FusedFusePrologues : Pass<"fused-fuse-prologues", "::mlir::ModuleOp"> {
  let summary = "Compute norms inside the kernels that read them";
  let description = [{
    A `model.rms_norm` that a `fused.matvec` reads becomes the matvec's prologue. A norm with several readers is computed in
    each of them (it costs one pass over a vector, a kernel of its own costs a launch), with a remark. So does a `model.reorder`, which then reads elements of the
    norm's input, or of what attention stored, one by one.

    ```mlir
    %n = model.rms_norm %x, %gain epsilon 1.0e-5 : tensor<1x256xf32>, tensor<256xf32>
    %y = fused.matvec %n weights(%w) segments [768] : tensor<1x256xf32>, tensor<768x256xf16> -> tensor<1x768xf32>
    ```
    ==>
    ```mlir
    %y = fused.matvec %x weights(%w) segments [768] : tensor<1x256xf32>, tensor<768x256xf16> -> tensor<1x768xf32>
    prologue {
    ^bb0(%in: tensor<1x256xf32>):
      %n = model.rms_norm %in, %gain epsilon 1.0e-5 : tensor<1x256xf32>, tensor<256xf32>
      fused.yield %n : tensor<1x256xf32>
    }
    ```
  }];
  let dependentDialects = ["::sluice::fused::FusedDialect"];
}

def FusedFuseEpilogues : Pass<"fused-fuse-epilogues", "::mlir::ModuleOp"> {
  let summary = "Finish results inside the kernels that compute them";
  let description = [{
    Moves `model.add_bias`, activations, `model.scale`, `model.scale_channels`, `model.soft_cap`, `model.rotary`, `model.cache_append`, `arith.addf`, `arith.mulf` and `arith.truncf` into the epilogue of the
    `fused.matvec` whose results they finish, as long as their other operands are known before the matvec. Values that are
    still read elsewhere are yielded. A `model.cache_append` stays where it is, with a remark, if something between reads or writes the same cache.

    What needs whole heads (norms of q and k, Hadamard rotations, caches that are not of 16 bits) or interleaved pairs is left to attention's prologue, and
    so the appends of that layer are. Where an epilogue can do all, `placement` decides; `auto` asks the time model of the target (docs/cost-model.md): appending in a
    prologue takes longer (an H100 0.1 to 0.35 us a layer), an epilogue delays nothing, but halves of heads whose size is no multiple of 16 are rows of
    tiles that are not full, so the product has more of them. Each `fused.attention` gets `sluice.decision`, which a later run keeps to, and `sluice.reason`.

    ```mlir
    %g, %u = fused.matvec %x weights(%gate, %up) segments [768, 768]
        : tensor<1x256xf32>, tensor<768x256xf16>, tensor<768x256xf16> -> tensor<1x768xf32>, tensor<1x768xf32>
    %s = model.silu %g : tensor<1x768xf32>
    %m = arith.mulf %s, %u : tensor<1x768xf32>
    %r = arith.truncf %m : tensor<1x768xf32> to tensor<1x768xf16>
    ```
    ==>
    ```mlir
    %r = fused.matvec %x weights(%gate, %up) segments [768, 768]
        : tensor<1x256xf32>, tensor<768x256xf16>, tensor<768x256xf16> -> tensor<1x768xf16>
    epilogue {
    ^bb0(%g: tensor<1x768xf32>, %u: tensor<1x768xf32>):
      %s = model.silu %g : tensor<1x768xf32>
      %m = arith.mulf %s, %u : tensor<1x768xf32>
      %t = arith.truncf %m : tensor<1x768xf32> to tensor<1x768xf16>
      fused.yield %t : tensor<1x768xf16>
    }
    ```
  }];
  let options = [Option<"target", "target", "std::string", /*default=*/"\"host\"", "name or path of a target description">,
                 Option<"placement", "placement", "std::string", /*default=*/"\"auto\"",
                        "where rotary embeddings and appends go that an epilogue can compute: auto, epilogue or prologue">];
  let dependentDialects = ["::sluice::fused::FusedDialect"];
}

def FusedFuseRows : Pass<"fused-fuse-rows", "::mlir::ModuleOp"> {
  let summary = "Make kernels of the norms and element operations that no product takes";
  let description = [{
    A norm of a product's result needs all of it, so it can be computed at the end of no product, and where more than a product's input is made of it, at the
    beginning of none. Each such norm, or element operation between kernels, begins a `fused.rows`, which takes what can follow with it:
    element operations, `model.rotary`, `arith.truncf`, and the `model.cache_append` of a 16-bit cache, as long as their other operands are known before.

    ```mlir
    %n = model.rms_norm %o, %gain epsilon 1.0e-6 : tensor<1x256xf32>, tensor<256xf32>
    %h = arith.addf %x, %n : tensor<1x256xf32>
    ```
    ==>
    ```mlir
    %h = fused.rows -> tensor<1x256xf32> body {
      %n = model.rms_norm %o, %gain epsilon 1.0e-6 : tensor<1x256xf32>, tensor<256xf32>
      %s = arith.addf %x, %n : tensor<1x256xf32>
      fused.yield %s : tensor<1x256xf32>
    }
    ```
  }];
  let dependentDialects = ["::sluice::fused::FusedDialect"];
}

def FusedFuseAttentionPrologues : Pass<"fused-fuse-attention-prologues", "::mlir::ModuleOp"> {
  let summary = "Append to caches, and prepare queries, inside attention";
  let description = [{
    What a product's epilogue did not take, because it needs whole heads, moves into the prologue of the `fused.attention` that follows: the
    `model.cache_append` of its keys and values, and the `model.rms_norm` (of heads), `model.rotary`, `model.hadamard` and `arith.truncf` operations through
    which the new query, keys and values come. Attention that finds its caches appended by an epilogue is left alone.

    ```mlir
    %k1 = model.hadamard %k head_dim 64 : tensor<1x128xf32>
    model.cache_append @cache.k.0, %k1 at %position : tensor<1x128xf32>, tensor<1xi32>
    model.cache_append @cache.v.0, %v at %position : tensor<1x128xf32>, tensor<1xi32>
    %q1 = model.hadamard %q head_dim 64 : tensor<1x256xf32>
    %y = fused.attention %q1, @cache.k.0, @cache.v.0 at %position scale 0.125 : tensor<1x256xf32>, tensor<1xi32> -> tensor<1x256xf16>
    ```
    ==>
    ```mlir
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
  let dependentDialects = ["::sluice::fused::FusedDialect"];
}

def FusedTabulateRotary : Pass<"fused-tabulate-rotary", "::mlir::ModuleOp"> {
  let summary = "Read cosines and sines of rotary embeddings from tables";
  let description = [{
    Gives every `model.rotary`, also those inside regions, a `model.rope_table` symbol: one for each frequencies and head size, with a row for
    every position that a cache holds.

    ```mlir
    %y = model.rotary %x at %position head_dim 64 <theta = 10000.0> : tensor<1x256xf32>, tensor<1xi32>
    ```
    ==>
    ```mlir
    model.rope_table @rope <theta = 10000.0> : tensor<2048x64xf32>
    // ...
    %t = model.parameter @rope : tensor<2048x64xf32>
    %y = model.rotary %x at %position head_dim 64 <theta = 10000.0> table %t : tensor<1x256xf32>, tensor<1xi32>, tensor<2048x64xf32>
    ```
  }];
  let options = [Option<"context", "context", "uint64_t", /*default=*/"0",
                        "positions of a table; 0: as many as the largest cache has">];
  let dependentDialects = ["::sluice::model::ModelDialect"];
}

def FusedAnnotateTraffic : Pass<"fused-annotate-traffic", "::mlir::ModuleOp"> {
  let summary = "Write on every kernel how many bytes it moves";
  let description = [{
    Sets `traffic` of every fused operation, or corrects it: bytes read of weights, of their scales and zero points, of activations (inputs,
    residuals, norm gains, biases, a row of a rotary or embedding table), of keys and values for a position of context, bytes
    written, and operations. `dialects/Fused/Traffic.h` says how they are counted.

    ```mlir
    %y = fused.matvec %x weights(%w) segments [768]
        : tensor<1x256xf32>, !quantized.tensor<768x256xi8, group = 128> -> tensor<1x768xf32>
    ```
    ==>
    ```mlir
    %y = fused.matvec %x weights(%w) segments [768]
        traffic(#fused.traffic<weights = 196608, scales = 3072, activations = 1024, keys = 0, values = 0, written = 3072, operations = 393216, operations_per_position = 0>)
        : tensor<1x256xf32>, !quantized.tensor<768x256xi8, group = 128> -> tensor<1x768xf32>
    ```
  }];
  let dependentDialects = ["::sluice::fused::FusedDialect"];
}

//===----------------------------------------------------------------------===//
// Scheduled stage
//===----------------------------------------------------------------------===//

def FusedPackWeights : Pass<"fused-pack-weights", "::mlir::ModuleOp"> {
  let summary = "Choose the physical layout of every weight";
  let description = [{
    Gives every weight that a kernel reads a `quantized.packed` symbol: the recipe by which the artifact's writer makes it from the model's file. Matrices of a
    `fused.matvec` become one, in layout `lanes` for a CPU or `mma` for a GPU, whose chunks of about 16 KB are what a bulk copy brings. Rows that the
    epilogue combines lie in one tile: `pairs` for heads that rotary embedding turns, `zip` for segments that are combined elementwise. Embedding
    tables stay row by row; gains and biases become float32. What was decided and why (`sluice.decision`, `sluice.reason`) moves from quantize operations to the recipe.

    A weight that is packed already is left alone. Afterwards no function loads a `model.weight`.

    ```mlir
    %g = model.parameter @blk.0.ffn_gate : tensor<768x256xf16>
    %u = model.parameter @blk.0.ffn_up : tensor<768x256xf16>
    %h = fused.matvec %x weights(%g, %u) segments [768, 768]
        : tensor<1x256xf32>, tensor<768x256xf16>, tensor<768x256xf16> -> tensor<1x768xf32>
    epilogue {
    ^bb0(%a: tensor<1x768xf32>, %b: tensor<1x768xf32>):
      %m = arith.mulf %a, %b : tensor<1x768xf32>
      fused.yield %m : tensor<1x768xf32>
    }
    ```
    ==>
    ```mlir
    quantized.packed @blk.0.ffn_gate_up of [@blk.0.ffn_gate, @blk.0.ffn_up] order [zip(0, 1)]
        {sluice.decision = "f16", sluice.reason = "as the model's file has it"} : !quantized.tensor<1536x256xf16, layout = lanes>
    // ...
    %w = model.parameter @blk.0.ffn_gate_up : !quantized.tensor<1536x256xf16, layout = lanes>
    %h = fused.matvec %x weights(%w) segments [768, 768] order [zip(0, 1)]
        : tensor<1x256xf32>, !quantized.tensor<1536x256xf16, layout = lanes> -> tensor<1x768xf32>
    epilogue {
    ^bb0(%a: tensor<1x768xf32>, %b: tensor<1x768xf32>):
      %m = arith.mulf %a, %b : tensor<1x768xf32>
      fused.yield %m : tensor<1x768xf32>
    }
    ```
  }];
  let options = [Option<"target", "target", "std::string", /*default=*/"\"host\"", "name or path of a target description">,
                 Option<"columns", "columns", "int64_t", /*default=*/"0",
                        "columns of a chunk of layout mma; 0: about 16 KB of elements, less if the matrix is narrower">];
  let dependentDialects = ["::sluice::model::ModelDialect", "::sluice::quantized::QuantizedDialect"];
}

def FusedAppendSampling : Pass<"fused-append-sampling", "::mlir::ModuleOp"> {
  let summary = "Choose the next token where the logits are";
  let description = [{
    For a GPU, `@decode` ends in a `fused.sample`: it takes the words that say how to choose (`include/sluice-runtime/SamplingWords.h`) and also returns the token,
    so that a step's logits need not leave the device. For a CPU nothing changes: logits are in the host's memory already, where the runtime chooses. A `@decode` that
    samples is left alone.

    ```mlir
    %logits = fused.matvec %x weights(%w) segments [2048] : tensor<1x256xf32>, tensor<2048x256xf16> -> tensor<1x2048xf32>
    ```
    ==>
    ```mlir
    %logits = fused.matvec %x weights(%w) segments [2048] : tensor<1x256xf32>, tensor<2048x256xf16> -> tensor<1x2048xf32>
    %next = fused.sample %logits, %options : tensor<1x2048xf32>, tensor<1x8xi32> -> tensor<1xi32>
    ```
  }];
  let options = [Option<"target", "target", "std::string", /*default=*/"\"host\"", "name or path of a target description">];
  let dependentDialects = ["::sluice::fused::FusedDialect"];
}

def FusedDeriveSteps : Pass<"fused-derive-steps", "::mlir::ModuleOp"> {
  let summary = "Derive steps of many tokens from the step of one";
  let description = [{
    A prompt's tokens share one read of the weights. From `@decode` this pass makes functions `@prefill_T`, each for 1 to T tokens of a sequence (`%count` of them),
    that read the same packed weights and the same caches:

    - a `fused.matvec` becomes a `fused.prepare`, which has the prologue, and a `fused.matmul`, which has the epilogue;
    - the prologue of a `fused.attention`, which appends, becomes a `fused.append`: all keys and values of the step are in the caches before attention begins;
    - behind the last attention, where no token depends on another one, only the last token's row is kept (`fused.last_row`), so that the operations from there on,
      the head among them, are those of `@decode`.

    Of a `@decode` of a token of each of several sequences, whose caches are in pages, `@prefill_T` takes tokens of several of them, packed one behind the other: `%sequences` says whose each is, `%starts`
    where those of each begin. Behind the last attention a row of each sequence goes on, as in `@decode`. There is no `@verify_T`. `@decode` itself is rewritten: beyond two sequences its products become
    those of many tokens.

    T is what the target says (tuning, `prefill_tokens`), or `prefill`; a 0 means none. `@verify_T` is a step of the same kind that gives the logits of all its tokens:
    for texts that are only scored, and for tokens that something guessed. It chooses none of them. Its T is the target's `verify_tokens`, or `verify`.

    ```mlir
    func.func @decode(%token: tensor<1xi32>, %position: tensor<1xi32>) -> tensor<1x768xf32> {
      %table = model.parameter @token_embd : tensor<2048x256xf16>
      %w = model.parameter @w : !quantized.tensor<768x256xi8, group = 128, layout = lanes>
      %x = fused.embedding %token, %table : tensor<1xi32>, tensor<2048x256xf16> -> tensor<1x256xf32>
      %y = fused.matvec %x weights(%w) segments [768] : tensor<1x256xf32>, !quantized.tensor<768x256xi8, group = 128, layout = lanes> -> tensor<1x768xf32>
      return %y : tensor<1x768xf32>
    }
    ```
    ==> (without an attention every row goes on to the end)
    ```mlir
    func.func @verify_64(%token: tensor<64xi32>, %position: tensor<64xi32>, %count: tensor<1xi32>) -> tensor<64x768xf32> {
      %table = model.parameter @token_embd : tensor<2048x256xf16>
      %w = model.parameter @w : !quantized.tensor<768x256xi8, group = 128, layout = lanes>
      %x = fused.embedding %token, %table active(%count) : tensor<64xi32>, tensor<2048x256xf16> -> tensor<64x256xf32>
      %p = fused.prepare %x active(%count) : tensor<64x256xf32> -> !fused.prepared<64, 256, for = [#quantized.encoding<i8, group = 128>]>
      %y = fused.matmul %p active(%count) weights(%w) segments [768]
          : !fused.prepared<64, 256, for = [#quantized.encoding<i8, group = 128>]>, !quantized.tensor<768x256xi8, group = 128, layout = lanes> -> tensor<64x768xf32>
      return %y : tensor<64x768xf32>
    }
    ```
  }];
  let options = [Option<"target", "target", "std::string", /*default=*/"\"host\"", "name or path of a target description">,
                 ListOption<"prefill", "prefill", "int64_t", "tokens of the steps; without it, what the target says">,
                 Option<"verify", "verify", "int64_t", /*default=*/"-1", "tokens of the step that gives all logits; 0: none, -1: what the target says">];
  let dependentDialects = ["::sluice::fused::FusedDialect"];
}

def FusedTileCaches : Pass<"fused-tile-caches", "::mlir::ModuleOp"> {
  let summary = "Give every cache the layout that its target's attention reads";
  let description = [{
    Keys and values that a `fused.attention` reads get the tiled layouts of the target (`include/sluice/Formats/CacheLayout.h`): `mma_keys` and `mma_values` for a GPU,
    `lanes_keys` and `lanes_values` for a CPU. Positions are rounded up to whole tiles, for a GPU to blocks of 64, whose softmax weights share a unit where values are integers. Only memory is added: which positions a sequence may have is the model's
    `context_length`, which stays, and so do the rows of rotary tables. What an added position holds is never seen, as attention sees positions up to the
    step's own. A cache that nothing reads stays as it is; one that is read as keys and as values is an error.

    ```mlir
    model.cache @cache.k.0 : !quantized.cache<1x100x2x64xf16>
    ```
    ==>
    ```mlir
    model.cache @cache.k.0 : !quantized.cache<1x128x2x64xf16, layout = mma_keys>
    ```
  }];
  let options = [Option<"target", "target", "std::string", /*default=*/"\"host\"", "name or path of a target description">];
  let dependentDialects = ["::sluice::model::ModelDialect"];
}

def FusedPageCaches : Pass<"fused-page-caches", "::mlir::ModuleOp"> {
  let summary = "Put the caches of several sequences into pages that they share";
  let description = [{
    Where `@decode` has a token of each of several sequences, every cache becomes pages of 32 positions of all heads, and `@decode` takes a page table: the page
    of every 32 positions of each sequence. All caches have the same number of pages, so that one table serves the keys and values of all layers. The runtime hands
    out pages as sequences grow; `pages` says how many there are to hand out, and the memory is what they take. Each sequence has one page more, which the table names
    where the sequence has none of its own, so that a place without a sequence has memory to write to. The caches of one sequence stay as they are.

    ```mlir
    model.cache @cache.k.0 : !quantized.cache<4x128x2x64xf16, layout = mma_keys>
    model.cache @cache.v.0 : !quantized.cache<4x128x2x64xf16, layout = mma_values>
    func.func @decode(%q: tensor<4x256xf16>, %position: tensor<4xi32>) -> tensor<4x256xf16> {
      %a = fused.attention %q, @cache.k.0, @cache.v.0 at %position scale 0.125 : tensor<4x256xf16>, tensor<4xi32> -> tensor<4x256xf16>
      return %a : tensor<4x256xf16>
    }
    ```
    ==> (with `pages=10`)
    ```mlir
    model.cache @cache.k.0 : !quantized.cache<14x32x2x64xf16, layout = mma_keys>
    model.cache @cache.v.0 : !quantized.cache<14x32x2x64xf16, layout = mma_values>
    func.func @decode(%q: tensor<4x256xf16>, %position: tensor<4xi32>, %pages: tensor<4x4xui32>) -> tensor<4x256xf16> {
      %a = fused.attention %q, @cache.k.0, @cache.v.0 at %position pages %pages scale 0.125 : tensor<4x256xf16>, tensor<4xi32>, tensor<4x4xui32> -> tensor<4x256xf16>
      return %a : tensor<4x256xf16>
    }
    ```
  }];
  let options = [Option<"pages", "pages", "int64_t", /*default=*/"0", "pages to hand out; 0: as many as all sequences need together">];
  let dependentDialects = ["::sluice::fused::FusedDialect"];
}

def FusedAssignSchedules : Pass<"fused-assign-schedules", "::mlir::ModuleOp"> {
  let summary = "Choose how every kernel runs on a target";
  let description = [{
    Sets `schedule` of every fused operation for a target description, and `sluice.schedule_reason`, which says why in words. An operation that has a schedule keeps it.
    `sluice.time` is how long each takes by the time model (docs/cost-model.md).

    What a schedule takes of a GPU is computed by the plan that the kernel's generator uses too (dialects/Fused/GpuPlan.h), so what is chosen fits. The most that
    makes sense of everything is `tuning` of the target's description; of the ways within it that fit, the time model's fastest is taken:

    - products: stages of the ring of copies, tiles whose sums are held at once, and next to attention whether both share a multiprocessor;
    - products of many tokens: tiles of rows and tokens, and blocks that divide a tile's columns;
    - attention: blocks that divide the positions, and a long ring, or a short one that leaves room for a product.

    On a GPU with bulk copies, a product whose schedule is chosen here also gets `prefetch`: the first `product_prefetch_bytes` that each block of the next product reads
    (attention, if it lies between them, does not count), and `sluice.prefetch_reason`. A constant of 0 turns that off.

    ```mlir
    %y = fused.matvec %x weights(%w) segments [768]
        : tensor<1x256xf32>, !quantized.tensor<768x256xi8, group = 128, layout = mma, columns = 256> -> tensor<1x768xf32>
    ```
    ==>
    ```mlir
    %y = fused.matvec %x weights(%w) segments [768]
        schedule(#fused.gpu_schedule<blocks = 48, warps = 16, stages = 1, in_flight = 1, columns = 256, splits = 1, early = "weights">)
        {sluice.schedule_reason = "48 tiles on 132 multiprocessors; a ring of 1 x 4160 bytes, all that a block reads"}
        : tensor<1x256xf32>, !quantized.tensor<768x256xi8, group = 128, layout = mma, columns = 256> -> tensor<1x768xf32>
    ```
  }];
  let options = [Option<"target", "target", "std::string", /*default=*/"\"host\"", "name or path of a target description">,
                 Option<"context", "context", "int64_t", /*default=*/"0", "positions that attention is taken to read; 0: half of its cache, or window">];
  let dependentDialects = ["::sluice::fused::FusedDialect"];
}

def FusedPlanPersistent : Pass<"fused-plan-persistent", "::mlir::ModuleOp"> {
  let summary = "Plan a decode step as one persistent kernel";
  let description = [{
    Where `@decode` is an embedding, layers of projections, attention and a gated MLP that are all alike, and a head, one kernel of clusters can do all of it but the embedding and
    the choice of the token. This pass gives the function `sluice.persistent`, the schedule of that kernel for a target description, and `sluice.persistent_reason`, which says in words what it
    means, or why there is none. Which block computes what, and what blocks hand to each other, follows from the schedule (dialects/Fused/PersistentPlan.h); that everything that
    is waited for comes, as often as it is expected, and that no buffer is used again too early, has been checked (dialects/Fused/Protocol.h). A schedule that is there already is kept if it fits, and an error if it does not.

    Where the target tells how long such a kernel takes, `sluice.persistent_times` has the predicted times of both ways. With `where-faster` the step gets a schedule only if one kernel is predicted to be faster by more than 2%, which is what predictions
    are off, and nothing happens where the target does not tell.

    ```mlir
    func.func private @decode(%token: tensor<1xi32>, %position: tensor<1xi32>) -> tensor<1x2048xf32>
    ```
    ==> (for a model of 256 columns, 2 key/value heads of 64 and an MLP of 768)
    ```mlir
    func.func private @decode(%token: tensor<1xi32>, %position: tensor<1xi32>) -> tensor<1x2048xf32> attributes {
      sluice.persistent = #fused.persistent_schedule<clusters = 6, cluster_blocks = 8, attention_clusters = 2, warps = 16, stages = 12, attention_in_flight = 3, mlp_in_flight = 4>,
      sluice.persistent_reason = "6 clusters of 8 blocks, 2 of them with 1 key/value head each; ..."}
    ```
  }];
  let options = [Option<"target", "target", "std::string", /*default=*/"\"host\"", "name or path of a target description">,
                 Option<"context", "context", "int64_t", /*default=*/"0", "positions that attention is taken to read; 0: half of its cache">,
                 Option<"whereFaster", "where-faster", "bool", /*default=*/"false", "only steps that are predicted to be faster as one kernel">];
  let statistics = [Statistic<"planned", "planned", "steps that can be one kernel">];
  let dependentDialects = ["::sluice::fused::FusedDialect"];
}

//===----------------------------------------------------------------------===//
// Plan stage
//===----------------------------------------------------------------------===//

def PlanAssignBuffers : Pass<"plan-assign-buffers", "::mlir::ModuleOp"> {
  let summary = "Give every value of the step a place in memory";
  let description = [{
    Turns the function `@decode`, whose operations are `plan.dispatch`, into `plan.buffer` symbols and a `plan.step`. Values between launches share one arena:
    the largest first, each at the lowest cost in space where nothing that is alive at the same time lies, at multiples of 256 bytes. The function's arguments become
    the inputs `@token` and `@position` (and `@sampling`), what it returns the output `@logits` (and `@next`, which feeds `@token`: it is the next step's token); packed weights, rotary tables and
    caches keep their names. The recipe of a weight goes on as `NAME.recipe`, and its buffer's attribute `source` names it; `model.cache` symbols end here.

    ```mlir
    func.func private @decode(%token: tensor<1xi32>, %position: tensor<1xi32>) -> tensor<1x2048xf32> {
      %t = model.parameter @token_embd.rows : tensor<2048x256xf16>
      %x = plan.dispatch @kernels::@embedding_0(%token, %t) launch <grid = 1, block = 0, shared = 0, cluster = 1, overlap = false> label "token_embd"
          : (tensor<1xi32>, tensor<2048x256xf16>) -> tensor<1x256xf32>
      %w = model.parameter @output.packed : !quantized.tensor<2048x256xf16, layout = lanes>
      %y = plan.dispatch @kernels::@matvec_0(%x, %w) launch <grid = 128, block = 0, shared = 0, cluster = 1, overlap = false> label "output"
          : (tensor<1x256xf32>, !quantized.tensor<2048x256xf16, layout = lanes>) -> tensor<1x2048xf32>
      return %y : tensor<1x2048xf32>
    }
    ```
    ==>
    ```mlir
    plan.buffer @token input : tensor<1xi32> bytes 4
    plan.buffer @position input : tensor<1xi32> bytes 4
    plan.buffer @token_embd.rows weights : tensor<2048x256xf16> bytes 1048576 {source = @token_embd.rows.recipe}
    plan.buffer @output.packed weights : !quantized.tensor<2048x256xf16, layout = lanes> bytes 1048576 {source = @output.packed.recipe}
    plan.buffer @token_embd.out arena : tensor<1x256xf32> bytes 1024 offset 0 alive 0 to 1
    plan.buffer @logits output : tensor<1x2048xf32> bytes 8192
    plan.step @decode arena 1024 {
      plan.launch @kernels::@embedding_0 [@token, @token_embd.rows, @token_embd.out]
          launch <grid = 1, block = 0, shared = 0, cluster = 1, overlap = false> label "token_embd"
      plan.launch @kernels::@matvec_0 [@token_embd.out, @output.packed, @logits]
          launch <grid = 128, block = 0, shared = 0, cluster = 1, overlap = false> label "output"
    }
    ```
  }];
  let dependentDialects = ["::sluice::plan::PlanDialect"];
}

#endif // SLUICE_TRANSFORMS_PASSES
