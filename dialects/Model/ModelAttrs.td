// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_MODEL_ATTRS
#define SLUICE_MODEL_ATTRS

include "dialects/Model/ModelDialect.td"

def Model_RopeAttr : AttrDef<ModelDialect, "Rope"> {
  let mnemonic = "rope";
  let summary = "Frequencies of a rotary embedding";
  let description = [{
    Pair i of a head turns by `position * f_i`, where `f_i = theta^(-2i/d)`; d is the head's size, or `dims` if only so many of its elements are rotated: the
    pairs from dims/2 on then turn by nothing. Scaled:
    - `linear(factor)`: f_i / factor.
    - `llama3(factor, low, high, original)`: wavelengths above original/low are divided by factor, those under original/high
      are kept, and those between are interpolated (Llama 3.1's published rule).
    - `factors([...])`: f_i / factors[i] (GGUF's rope_freqs tensor, LongRoPE).
    - `yarn(factor, fast, slow, original)`: pairs that turn more than fast times in original positions are kept, those that turn less than slow times are
      divided by factor, and those between are interpolated (Peng et al., 2023).

    Cosines and sines are multiplied by `magnitude` (YaRN's and LongRoPE's factor of attention).

    ```mlir
    #model.rope<theta = 10000.0>
    #model.rope<theta = 500000.0, llama3 = [8.0, 1.0, 4.0, 8192.0]>
    #model.rope<theta = 10000.0, linear = [2.0]>
    #model.rope<theta = 10000.0, dims = 16, yarn = [4.0, 32.0, 1.0, 2048.0], magnitude = 1.1386294361119891>
    ```
  }];
  let parameters = (ins "::mlir::FloatAttr":$theta, StringRefParameter<"none, linear, llama3, factors or yarn">:$scaling,
                        "::mlir::DenseF64ArrayAttr":$values, DefaultValuedParameter<"int64_t", "0">:$dims,
                        DefaultValuedParameter<"::mlir::FloatAttr", "::mlir::FloatAttr()">:$magnitude);
  let hasCustomAssemblyFormat = 1;
  let genVerifyDecl = 1;
  let extraClassDeclaration = [{
    /// The angle by which each pair of a head of `headDim` elements turns from one position to the next, in radians.
    ::llvm::SmallVector<double> getFrequencies(int64_t headDim) const;
    /// What cosines and sines are multiplied by.
    double getFactor() const { return getMagnitude() ? getMagnitude().getValueAsDouble() : 1.0; }
    /// The number of factors that a head of `headDim` elements needs.
    int64_t getPairs(int64_t headDim) const { return (getDims() ? getDims() : headDim) / 2; }
  }];
}

def Model_ViewAttr : AttrDef<ModelDialect, "View"> {
  let mnemonic = "view";
  let summary = "Where the rows of a weight lie in its file, where they do not follow each other";
  let description = [{
    Row r of the weight is row `p / block * stride + p % block` of the file's, counted from its offset, where p is
    - with `rotary = d of h`, the place of r in heads of h rows whose first d rows are rotated: file rows i and i + d/2 (i < d/2) become rows i and i + h/2 of the
      head, and the others fill the rest in their order, so that all rotary pairs lie half a head apart, the unrotated ones included;
    - else r itself.

    With `first = f of t`, which only a checkpoint's matrix in several tensors has, f is added: of its t rows, these are the first one and those that follow.

    A block of 0 is all rows. With `pitch = n` the file's tensor is transposed: element (r, c) is number `c * n + row` of it.

    ```mlir
    #model.view<pitch = 768>
    #model.view<block = 64, stride = 192, rotary = 16 of 64>
    #model.view<first = 64 of 128>
    ```
  }];
  let parameters = (ins "int64_t":$block, "int64_t":$stride, "int64_t":$rotary, "int64_t":$head, "int64_t":$pitch,
                        "int64_t":$first, "int64_t":$total);
  let hasCustomAssemblyFormat = 1;
  let genVerifyDecl = 1;
  let extraClassDeclaration = [{
    ::sluice::formats::RowView toView() const;
  }];
}

def Model_PartAttr : AttrDef<ModelDialect, "Part"> {
  let mnemonic = "part";
  let summary = "A tensor that belongs to a weight, beside the one with its elements";
  let description = [{
    Checkpoints of GPTQ, AWQ and the like keep scales and zero points in tensors of their own. `role` says what the tensor holds (`include/sluice/Import/CheckpointScheme.h`),
    the element type is spelled as in the file.

    ```mlir
    #model.part<"scales" from "model.safetensors" tensor "model.layers.0.self_attn.q_proj.scales" : "F16" [2, 256] at 4096 size 1024>
    ```
  }];
  let parameters = (ins StringRefParameter<>:$role, StringRefParameter<>:$file, StringRefParameter<>:$tensor, StringRefParameter<>:$element,
                        ArrayRefParameter<"int64_t">:$shape, "int64_t":$offset, "int64_t":$length);
  let assemblyFormat = "`<` $role `from` $file `tensor` $tensor `:` $element ` ` `[` $shape `]` `at` $offset `size` $length `>`";
  let genVerifyDecl = 1;
}

//===----------------------------------------------------------------------===//
// Operand kinds that the model and fused dialects share.
//===----------------------------------------------------------------------===//

/// [tokens, width]
def Model_Activation : 2DTensorOf<[F32]>;
def Model_Positions : 1DTensorOf<[I32]>;
/// [sequences, tiles of each]: the page of a cache that every 32 positions of a sequence have.
def Model_PageTable : 2DTensorOf<[UI32]>;
/// [tokens]: the sequence that each token of a step belongs to, where they are several sequences'.
def Model_Sequences : 1DTensorOf<[I32]>;
def Model_Vector : 1DTensorOf<[F16, BF16, F32]>;
def Model_Matrix : 2DTensorOf<[F16, BF16, F32]>;

#endif
