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

//===----------------------------------------------------------------------===//
// Operand kinds that the model and fused dialects share.
//===----------------------------------------------------------------------===//

/// [tokens, width]
def Model_Activation : 2DTensorOf<[F32]>;
def Model_Positions : 1DTensorOf<[I32]>;
def Model_Vector : 1DTensorOf<[F16, BF16, F32]>;
def Model_Matrix : 2DTensorOf<[F16, BF16, F32]>;

#endif
