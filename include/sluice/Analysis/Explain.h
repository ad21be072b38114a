// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Where the bytes of a token go, before and after fusing, and how fast a device could be at best.

#ifndef SLUICE_ANALYSIS_EXPLAIN_H
#define SLUICE_ANALYSIS_EXPLAIN_H

#include "sluice/Analysis/TimeModel.h"
#include "sluice/Analysis/Traffic.h"
#include "sluice/Target/TargetDescription.h"

#include "mlir/IR/BuiltinOps.h"
#include "llvm/Support/Error.h"
#include "llvm/Support/raw_ostream.h"

#include <array>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

namespace sluice {

/// What a byte of a decode step belongs to.
enum class ModelPart { Embedding, AttentionProjections, AttentionCache, Mlp, Norms, Head };
inline constexpr size_t kModelParts = 6;
/// "embedding", "attention projections", ...
llvm::StringRef modelPartName(ModelPart part);

/// Traffic of one decode step (of `batch` tokens) by part, at the explanation's context
/// (Traffic::at): keys and values are bytes, not bytes a position.
struct PartTraffic {
  std::array<Traffic, kModelParts> parts;
  Traffic total;
  /// Operations that were counted. Each stands for one kernel launch.
  int64_t kernels = 0;

  Traffic &operator[](ModelPart part) { return parts[static_cast<size_t>(part)]; }
  const Traffic &operator[](ModelPart part) const { return parts[static_cast<size_t>(part)]; }
};

/// The least time of a step: bytes over the target's bandwidth or, if that is longer, operations
/// over its f16 rate.
struct Floor {
  int64_t bytes = 0, operations = 0;
  double seconds = 0, tokensPerSecond = 0;
  bool boundByMemory = true;
};

/// Figures of one layer as papers give them, averaged over the layers.
struct LayerFigures {
  /// Bytes of elements; scales and zero points apart.
  double mlpWeights = 0, mlpScales = 0, attentionWeights = 0, attentionScales = 0;
  /// Operations of the MLP's products for one step.
  double mlpOperations = 0;
  /// The MLP's inputs and results, each distinct value once, at 16 bits.
  double mlpActivations = 0;
  /// mlpOperations over mlpWeights + mlpActivations.
  double intensity = 0;
};

/// The caches of layers that follow each other and are alike.
struct CacheFigures {
  int64_t firstLayer = 0, lastLayer = 0;
  /// The formats, "int4-h32-rot", and why they were chosen.
  std::string keys, values, keysReason, valuesReason;
  /// Bytes of one position of a layer, scales included; of a layer read by a step at the
  /// explanation's context and batch; of the memory of a layer's caches, without padding, for as
  /// many positions as they have.
  int64_t keysPerPosition = 0, valuesPerPosition = 0, read = 0, memory = 0;
  /// Positions that attention reads at most; 0: all.
  int64_t window = 0;
};

struct Explanation {
  std::string model;
  /// The weights' formats that fused kernels read, by bytes, most first: "int8-g128".
  llvm::SmallVector<std::pair<std::string, int64_t>> formats;
  TargetDescription target;
  /// Positions that attention reads, the token's own included; tokens of a step, each with caches
  /// of its own.
  int64_t context = 0, batch = 1;
  /// Tokens of the module's own step.
  int64_t stepTokens = 1;
  int64_t layers = 0;
  llvm::SmallVector<CacheFigures> caches;
  /// Pages of 32 positions that several sequences share, those included that stand for places
  /// without a sequence; 0 where caches are not in pages.
  int64_t cachePages = 0;
  PartTraffic unfused, fused;
  Floor unfusedFloor, fusedFloor;
  /// What a step of the fused module is predicted to take.
  KernelTime predicted;
  /// The steps that read a prompt, ascending: their tokens, and the predicted seconds of reading so
  /// many, none before them.
  llvm::SmallVector<std::pair<int64_t, double>> prompts;
  /// Of a decode step that was considered as one kernel: "persistent" or "graph", and why.
  std::optional<std::pair<std::string, std::string>> launch;
  LayerFigures layer;
  /// Dequantizing the most common integer format in a pass of its own, to float32 and to 16 bits.
  /// Absent where no weight is an integer.
  std::optional<DequantizePass> dequantizeToF32, dequantizeToF16;
};

/// Counts the traffic of @decode in a module whose operations are each a kernel of their own (stage
/// quantized: weights are dequantized in front of the layers) and in the same module after fusing.
/// Activations, cache and operations are scaled to `batch` tokens; weights, scales, gains and
/// biases are read once whatever the batch. Errors: no @decode or no layers in a module, context or
/// batch below 1 or beyond 2^31, a batch that is no multiple of the modules' own.
llvm::Expected<Explanation> explain(mlir::ModuleOp unfused, mlir::ModuleOp fused,
                                    const TargetDescription &target, int64_t context,
                                    int64_t batch);

/// Adds what only the module at stage scheduled tells: the times of steps for prompts, and of a
/// step of several sequences (if the module's has as many as the explanation), whose caches are in
/// pages.
void addScheduled(Explanation &explanation, mlir::ModuleOp scheduled);

/// The same as a table for people. Byte for byte the same for the same explanation.
void printExplanation(const Explanation &explanation, llvm::raw_ostream &os);
nlohmann::json explanationJson(const Explanation &explanation);

} // namespace sluice

#endif // SLUICE_ANALYSIS_EXPLAIN_H
