// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_TRANSFORMS_PASSES
#define SLUICE_TRANSFORMS_PASSES

include "mlir/Pass/PassBase.td"

// A pass is named like its .cpp file, its argument is that name in kebab case, and so is its lit test.

//===----------------------------------------------------------------------===//
// Model and quantized stages
//===----------------------------------------------------------------------===//

def QuantizedQuantizeWeights : Pass<"quantized-quantize-weights", "::mlir::ModuleOp"> {
  let summary = "Decide the number format of every linear layer's weight";
  let description = [{
    Puts `quantized.quantize` and `quantized.dequantize` between the weight of every `model.linear` and the layer. The embedding table, gains and
    biases keep their format; so does a weight that already has the asked-for one, and everything with `keep`.

    Where the columns are not a multiple of the scheme's group, the largest smaller group that divides them is taken, or f16 if
    there is none. What was decided and why stands on the quantize operation in the discardable attributes
    `sluice.decision` (a format's name) and `sluice.reason` (a sentence); packing copies them to the `quantized.packed` operation that takes its
    place. A weight that has been through this pass is left alone by a second run.

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
                        "keep, f16, bf16, f32, or int8 or int4 with -g32, -g64, -g128, -g256 or -channel, and optionally -zp">];
  let dependentDialects = ["::sluice::quantized::QuantizedDialect"];
}

//===----------------------------------------------------------------------===//
// Fused stage
//===----------------------------------------------------------------------===//

def FusedFuseDequantize : Pass<"fused-fuse-dequantize", "::mlir::ModuleOp"> {
  let summary = "Turn layers into kernels that read quantized weights";
  let description = [{
    `model.linear`, `model.embedding` and `model.attention` become `fused.matvec`, `fused.embedding` and `fused.attention`; a `quantized.dequantize` in front of them
    disappears, so that dequantized weights never exist in memory. A bias becomes `model.add_bias`.

    Here activations get the roundings that belong to a model's definition: attention takes and gives f16, and a product of
    activations (the gated MLP's) is rounded to f16 before a layer reads it. Results of norms stay float32.

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
    weights, at the place of the first: one launch, and one read of the input. Weights of different formats or layouts, and weights that
    are not known at that place, stay apart, with a remark.

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
  let dependentDialects = ["::sluice::fused::FusedDialect"];
}

def FusedFusePrologues : Pass<"fused-fuse-prologues", "::mlir::ModuleOp"> {
  let summary = "Compute norms inside the kernels that read them";
  let description = [{
    A `model.rms_norm` that a `fused.matvec` reads becomes the matvec's prologue. A norm with several readers is computed in
    each of them (it costs one pass over a vector, a kernel of its own costs a launch), with a remark.

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
    Moves `model.add_bias`, `model.silu`, `model.rotary`, `model.cache_append`, `arith.addf`, `arith.mulf` and `arith.truncf` into the epilogue of the
    `fused.matvec` whose results they finish, as long as their other operands are known before the matvec. Values that are
    still read elsewhere are yielded. A `model.cache_append` stays where it is, with a remark, if something between reads or writes the same cache.

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

#endif // SLUICE_TRANSFORMS_PASSES
