// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_MODEL_ATTRS
#define SLUICE_MODEL_ATTRS

include "dialects/Model/ModelDialect.td"

def Model_RopeAttr : AttrDef<ModelDialect, "Rope"> {
  let mnemonic = "rope";
  let summary = "Frequencies of a rotary embedding";
  let description = [{
    Pair i of a head of d elements turns by `position * f_i`, where `f_i = theta^(-2i/d)`, scaled:
    - `linear(factor)`: f_i / factor.
    - `llama3(factor, low, high, original)`: wavelengths above original/low are divided by factor, those under original/high
      are kept, and those between are interpolated (Llama 3.1's published rule).
    - `factors([...])`: f_i / factors[i] (GGUF's rope_freqs tensor).

    ```mlir
    #model.rope<theta = 10000.0>
    #model.rope<theta = 500000.0, llama3 = [8.0, 1.0, 4.0, 8192.0]>
    #model.rope<theta = 10000.0, linear = [2.0]>
    ```
  }];
  let parameters = (ins "::mlir::FloatAttr":$theta, StringRefParameter<"none, linear, llama3 or factors">:$scaling,
                        "::mlir::DenseF64ArrayAttr":$values);
  let hasCustomAssemblyFormat = 1;
  let genVerifyDecl = 1;
  let extraClassDeclaration = [{
    /// The angle by which each pair of a head of `headDim` elements turns from one position to the next, in radians.
    ::llvm::SmallVector<double> getFrequencies(int64_t headDim) const;
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
def Model_Vector : 1DTensorOf<[F16, BF16, F32]>;
def Model_Matrix : 2DTensorOf<[F16, BF16, F32]>;

#endif
