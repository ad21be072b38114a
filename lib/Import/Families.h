// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The families of models: what each is called in files, what its graph has that others do not, and
// the names of its tensors. docs/adding-a-model-family.md says how to add one.

#ifndef SLUICE_LIB_IMPORT_FAMILIES_H
#define SLUICE_LIB_IMPORT_FAMILIES_H

#include "sluice/Import/ModelConfig.h"

namespace sluice::detail {

/// Tensor names of one kind of file. A layer's have its prefix and number in front, and `.weight`
/// or `.bias` behind. Where q, k and v have one name, one tensor holds their rows, in this order;
/// the same goes for gate and up. A part that the family lacks has no name.
struct TensorNames {
  llvm::StringLiteral tokenEmbedding, outputNorm, head;
  /// Before the layer's number.
  llvm::StringLiteral layerPrefix;
  llvm::StringLiteral attnNorm, q, k, v, o, mlpNorm, gate, up, down;
  /// Norms of the results of attention and MLP, and of q and k.
  llvm::StringLiteral attnPostNorm = "", mlpPostNorm = "", qNorm = "", kNorm = "";
  llvm::StringLiteral positionEmbedding = "";
  /// Whether the layers' matrices are stored [inputs, outputs].
  bool transposed = false;
  /// Whether the rows of q, k and v take turns head by head.
  bool qkvByHead = false;
  /// Whether q and k have their rotary pairs side by side (Weight::ropeInterleaved).
  bool ropeInterleaved = false;
  /// What all names may begin with, or lack altogether.
  llvm::StringLiteral root = "";
};

struct Family {
  ModelFamily family;
  /// `model_type` of config.json.
  llvm::StringLiteral name;
  /// The one class in `architectures` that is this graph.
  llvm::StringLiteral architecture;
  TensorNames huggingFace;
  /// `general.architecture`; empty if GGUF does not tell the family from another one.
  llvm::StringLiteral ggufName;
  TensorNames gguf;
  /// Sets what every model of the family has.
  void (*describe)(ModelConfig &config);
};

llvm::ArrayRef<Family> families();
const Family &familyOf(ModelFamily family);
/// "llama, mistral and qwen2": the names of all families that have one in GGUF files or in
/// config.json files.
std::string familyNames(bool gguf);
/// Why a model of this `model_type` or `general.architecture` is not supported, where more can be
/// said than which are; empty otherwise.
llvm::StringRef whyUnsupported(llvm::StringRef name);

} // namespace sluice::detail

#endif // SLUICE_LIB_IMPORT_FAMILIES_H
