// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// A model's files as one checked description, without MLIR: hyper-parameters, where each weight
// lies, and where the tokenizer comes from.

#ifndef SLUICE_IMPORT_MODELFILES_H
#define SLUICE_IMPORT_MODELFILES_H

#include "sluice-runtime/Tokenizer.h"
#include "sluice/Import/FileSet.h"
#include "sluice/Import/ModelConfig.h"
#include "sluice/Import/Weight.h"

#include "llvm/Support/Error.h"

#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace sluice {

/// Shapes [rows, columns], with D = heads * headDim and C = kvHeads * headDim: norms [hidden], q
/// [D, hidden], k and v [C, hidden], o [hidden, D], gate and up [intermediate, hidden], down
/// [hidden, intermediate]; a bias has its matrix's rows. Norms before attention and MLP and the
/// gate are empty where the config has none. Heads of q and k that are rotated in part have their
/// rows in the order of formats::RowView::rotary.
struct LayerWeights {
  Weight attnNorm;
  Weight q, k, v, o;
  std::optional<Weight> qBias, kBias, vBias, oBias;
  Weight mlpNorm;
  Weight gate, up, down;
  std::optional<Weight> gateBias, upBias, downBias;
  std::optional<Weight> attnNormBias, mlpNormBias;
  /// Of the results of attention and MLP [hidden], and of q and k: [D] and [C], or [headDim] where
  /// heads are normalised.
  std::optional<Weight> attnPostNorm, mlpPostNorm, qNorm, kNorm;
};

struct Weights {
  /// [vocab, hidden].
  Weight tokenEmbedding;
  /// [contextLength, hidden].
  std::optional<Weight> positionEmbedding;
  std::vector<LayerWeights> layers;
  /// [hidden].
  Weight outputNorm;
  std::optional<Weight> outputNormBias;
  /// [vocab, hidden]; absent when the embedding is the head.
  std::optional<Weight> head;
};

/// In the results of the functions below, `scores` and `types` are empty or as long as `tokens`.
using runtime::GgufTokenizer;

struct TokenizerSource {
  /// Full paths, empty when the folder lacks the file. Both may be there; they then describe the
  /// same tokenizer.
  std::string sentencePieceModel; ///< tokenizer.model
  std::string huggingFaceJson;    ///< tokenizer.json
  std::optional<GgufTokenizer> gguf;

  bool empty() const { return sentencePieceModel.empty() && huggingFaceJson.empty() && !gguf; }
};

struct ModelFiles {
  enum class Format { HuggingFace, GGUF };
  Format format = Format::HuggingFace;
  /// The path given to openModel().
  std::string path;
  /// The folder that TensorRef::file is relative to.
  std::string root;
  ModelConfig config;
  /// Valid only if weightsPresent.
  Weights weights;
  bool weightsPresent = false;
  /// If not weightsPresent: one line that says what was looked for.
  std::string weightsAbsentReason;
  TokenizerSource tokenizer;
  /// Opens TensorRefs; keeps what is already mapped.
  std::shared_ptr<FileSet> files;
  /// One line each: unexpected tensors that are ignored, a context limited by
  /// a sliding window. Whatever would change the model's results is an error instead.
  std::vector<std::string> warnings;
};

/// Opens a model. `path` is a GGUF file, a Hugging Face folder (config.json with model.safetensors
/// or model.safetensors.index.json), or a config.json alone, which gives no weights. Every weight
/// of the result has the shape that the config demands, a usable type and bounds inside its file.
llvm::Expected<ModelFiles> openModel(llvm::StringRef path);

/// The tokenizer of a GGUF file, whose tensors may be missing; nothing if it has no tokenizer.
llvm::Expected<std::optional<GgufTokenizer>> openGGUFTokenizer(llvm::StringRef path);

} // namespace sluice

#endif // SLUICE_IMPORT_MODELFILES_H
