// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Hyper-parameters of a decoder-only transformer, from a Hugging Face config.json or GGUF metadata.

#ifndef SLUICE_IMPORT_MODELCONFIG_H
#define SLUICE_IMPORT_MODELCONFIG_H

#include "sluice/Import/CheckpointScheme.h"

#include "llvm/ADT/SmallVector.h"
#include "llvm/ADT/StringRef.h"
#include "llvm/Support/Error.h"

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace sluice {

class GGUFFile;

/// Each is one entry of the table in lib/Import/Families.cpp. GGUF calls Mistral "llama".
enum class ModelFamily {
  Llama,
  Mistral,
  Qwen2,
  Qwen3,
  Gpt2,
  GptNeoX,
  Phi3,
  Gemma,
  Gemma2,
  Gemma3,
  Olmo2,
  StableLm,
  Granite,
  SmolLm3,
};

llvm::StringRef familyName(ModelFamily family);

/// How the rotary frequencies theta^(-2i/d) are scaled.
struct RopeScaling {
  enum class Kind {
    None,
    /// Each divided by `factor`.
    Linear,
    /// Llama 3.1's: long wavelengths divided by `factor`, short ones kept, a ramp between
    /// (transformers, modeling_rope_utils.py, _compute_llama3_parameters).
    Llama3,
    /// Each divided by its own entry of `factors` (GGUF's rope_freqs.weight).
    Factors,
    /// YaRN (transformers, modeling_rope_utils.py, _compute_yarn_parameters).
    Yarn,
    /// Each divided by its own entry of `factors`, or of `longFactors` if the context is longer
    /// than `originalContext` positions.
    LongRope,
  };
  Kind kind = Kind::None;
  double factor = 1.0;
  double lowFreqFactor = 1.0;
  double highFreqFactor = 4.0;
  int64_t originalContext = 0;
  double betaFast = 32.0, betaSlow = 1.0;
  /// Positive divisors, one for each rotated pair.
  std::vector<float> factors, longFactors;
  /// What cosines and sines are multiplied by.
  double magnitude = 1.0;

  /// The scaling for a cache of `context` positions as the model dialect and
  /// formats::ropeFrequencies() take it: "none", "linear", "llama3", "factors" or "yarn", and the
  /// values that belong to it.
  llvm::StringRef name() const;
  llvm::SmallVector<double> values(int64_t context) const;
};

enum class NormKind {
  Rms,
  /// RMS norm whose gains are stored less 1.
  RmsPlusOne,
  Layer,
};

/// Where a layer's norms stand: before attention and MLP, after them (before the residual is
/// added), or both.
enum class NormPlaces { Before, After, Both };

enum class Activation { Silu, Gelu, GeluTanh };

struct ModelConfig {
  ModelFamily family = ModelFamily::Llama;
  std::string name;

  int64_t vocabSize = 0;
  int64_t hiddenSize = 0;
  int64_t intermediateSize = 0;
  int64_t layers = 0;
  int64_t heads = 0;
  /// Divides `heads`.
  int64_t kvHeads = 0;
  /// Even. heads * headDim need not be hiddenSize.
  int64_t headDim = 0;

  NormKind norm = NormKind::Rms;
  /// Of layer norms.
  bool normBias = false;
  NormPlaces normPlaces = NormPlaces::Before;
  float normEps = 1e-6f;
  /// Whether queries and keys are normalised as whole rows, before they are rotated.
  bool rowQkNorm = false;
  /// Whether the MLP reads what attention reads, instead of attention's result.
  bool parallelResidual = false;

  Activation activation = Activation::Silu;
  /// Whether the MLP is down(activation(gate x) * up x) instead of down(activation(up x)).
  bool gatedMlp = true;

  /// Whether the position is a row of a table that is added to the embedding, instead of a rotation
  /// of queries and keys.
  bool learnedPositions = false;
  /// How many elements of a head are rotated, the first ones; 0 is all. Even.
  int64_t rotaryDims = 0;
  /// Layers whose queries and keys are not rotated; no entries are none.
  llvm::SmallVector<bool> withoutRotary;
  /// Layers that turn by `localRopeTheta` and no scaling; no entries are none.
  llvm::SmallVector<bool> localRotary;
  double localRopeTheta = 0.0;
  double ropeTheta = 10000.0;
  RopeScaling ropeScaling;

  /// What embeddings, results of attention and MLP, and logits are multiplied by.
  double embeddingScale = 1.0, residualScale = 1.0, logitScale = 1.0;
  /// What scores are multiplied by; 0 is 1 / sqrt(headDim).
  double attentionScale = 0.0;
  /// c of c tanh(x / c) for scores and for logits; 0 is none.
  double scoreCap = 0.0, logitCap = 0.0;

  /// Whether the head is the token embedding.
  bool tiedEmbeddings = false;
  bool qBias = false;
  bool kBias = false;
  bool vBias = false;
  bool oBias = false;
  /// Of gate (if there is one), up and down.
  bool mlpBias = false;
  /// Whether every head of q and k is normalised before it turns, with a weight of headDim elements
  /// for all heads of a layer's q and one for those of its k.
  bool qkNorms = false;

  /// Positions that the model was made for.
  int64_t contextLength = 0;
  /// Of each layer: how many of the latest positions, a token's own included, attention reads, less
  /// than contextLength; 0 is all. No entries are all for every layer.
  llvm::SmallVector<int64_t> windows;

  /// What config.json says about quantized weights, if it does.
  std::optional<QuantizationConfig> quantization;

  std::optional<int64_t> bosId;
  /// Any of them ends generation.
  llvm::SmallVector<int64_t, 4> eosIds;
};

/// Parses a config.json, `text`; `path` names it in errors. `warnings` gets one line for each thing
/// that is read but has no effect (a scaling without type).
llvm::Expected<ModelConfig> configFromJson(llvm::StringRef text, llvm::StringRef path,
                                           std::vector<std::string> &warnings);

/// Adds the end-of-sequence ids of a generation_config.json, `text`, where chat models list those
/// that config.json lacks.
llvm::Error addGenerationConfig(llvm::StringRef text, llvm::StringRef path, ModelConfig &config);

/// Reads a GGUF file of an architecture that the table of families has. Biases, a tied head and
/// rotary factors show in GGUF only as tensors that are there or not, so the tensor list is
/// consulted too.
llvm::Expected<ModelConfig> configFromGGUF(const GGUFFile &file,
                                           std::vector<std::string> &warnings);

} // namespace sluice

#endif // SLUICE_IMPORT_MODELCONFIG_H
