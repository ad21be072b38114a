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

/// Families that share the Llama graph. GGUF calls Mistral "llama".
enum class ModelFamily { Llama, Mistral, Qwen2 };

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
  };
  Kind kind = Kind::None;
  double factor = 1.0;
  double lowFreqFactor = 1.0;
  double highFreqFactor = 4.0;
  int64_t originalContext = 0;
  /// headDim / 2 positive divisors.
  std::vector<float> factors;

  /// The scaling as the model dialect and formats::ropeFrequencies() take it: "none", "linear",
  /// "llama3" or "factors", and the values that belong to it.
  llvm::StringRef name() const;
  llvm::SmallVector<double> values() const;
};

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

  /// RMS norm: x / sqrt(mean(x^2) + normEps) * weight.
  float normEps = 1e-6f;
  double ropeTheta = 10000.0;
  RopeScaling ropeScaling;

  /// Whether the head is the token embedding.
  bool tiedEmbeddings = false;
  bool qBias = false;
  bool kBias = false;
  bool vBias = false;
  bool oBias = false;
  /// Of gate, up and down.
  bool mlpBias = false;

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

/// Reads a GGUF file of architecture "llama" or "qwen2". Biases, a tied head and rotary factors
/// show in GGUF only as tensors that are there or not, so the tensor list is consulted too.
llvm::Expected<ModelConfig> configFromGGUF(const GGUFFile &file,
                                           std::vector<std::string> &warnings);

} // namespace sluice

#endif // SLUICE_IMPORT_MODELCONFIG_H
