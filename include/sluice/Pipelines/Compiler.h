// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Model file in, artifact directory out. No MLIR type appears here, so that tools need none.

#ifndef SLUICE_PIPELINES_COMPILER_H
#define SLUICE_PIPELINES_COMPILER_H

#include "sluice-runtime/Tokenizer.h"

#include "llvm/Support/Error.h"

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace sluice {

struct CompileOptions {
  /// A GGUF file, a Hugging Face directory, or (with syntheticWeights) a config.json. May be empty
  /// with fromIr, whose module names its own.
  std::string model;
  /// The artifact directory. Replaced if it is an artifact already, made if it does not exist;
  /// anything else there is an error. Empty: no artifact is written (the stages still run).
  std::string output;
  /// Name or path of a target description. Empty: "host", or what fromIr's module was compiled for.
  std::string target;
  /// What is asked for the weights (formats::WeightScheme). Empty: auto, or what fromIr's module
  /// was compiled for.
  std::string weights;
  /// A file of statistics (calibration::Statistics) that weights are planned and rounded
  /// by. Empty: none, or
  /// what fromIr's module was compiled with.
  std::string stats;
  /// Formats of cached keys and values (formats::CacheScheme). Empty: auto, or what fromIr's module
  /// was compiled for.
  std::string keyCache, valueCache;
  /// What a plan minimises within which limit (planner::Goal). Empty: the default.
  std::string goal;
  /// Positions that a plan takes attention to read; 0: half of the cache.
  int64_t planContext = 0;
  /// A file of decisions about weights and caches: a plan.json, or one written by hand. What it
  /// does not name is as `weights`, `keyCache` and `valueCache` say; these are then keep and f16 by
  /// default. May be empty.
  std::string plan;
  /// Positions of the cache; 0 takes the smaller of the model's and 4096.
  int64_t context = 0;
  /// Sequences that are decoded together, 1 to 64, each with caches of its own.
  int64_t batch = 1;
  /// Pages of 32 positions that several sequences share, at most what all of them need together,
  /// which 0 stands for. With fromIr 0 is what its module was compiled for.
  int64_t cachePages = 0;
  /// The greatest numbers of tokens of the steps that read prompts, separated by commas, or "none".
  /// Empty: what the target says, or what fromIr's module was compiled for.
  std::string prefill;
  /// How a token's step runs on a GPU: "graph", "persistent" or "auto". Empty: auto, or what
  /// fromIr's module was compiled for.
  std::string launch;
  /// Directory that gets every stage's file; empty for none.
  std::string emitIr;
  /// A stage's file to go on from, instead of reading the model's.
  std::string fromIr;
  /// GPU kernels that compute-sanitizer's racecheck can follow, which are slower: every lane of a
  /// warp arrives at barriers, where the first one's arrival would do.
  bool racecheck = false;
  /// Compile for weights that do not exist; the runtime generates them.
  bool syntheticWeights = false;
  /// Called with what is being done and how much of it (0 to 1). May be empty.
  std::function<void(llvm::StringRef what, double done)> progress;
  /// Called with each warning about the model's files. May be empty.
  std::function<void(llvm::StringRef line)> warn;
};

/// Compiles. The error is one line, and then nothing is left behind in `output`.
llvm::Error compile(const CompileOptions &options);

namespace report {
struct StageText;
}

/// How an explanation is shown.
struct ExplainOptions {
  bool json = false;
  /// In a table, every decision instead of their number by format. JSON always has all.
  bool decisions = false;
  /// A page to write; may be empty. `layer` is the one that it shows stage by stage.
  std::string html;
  int64_t layer = 0;
};

/// The bytes that a step moves, part by part, before and after fusing, the least time that it can
/// take on options.target, and what was decided of weights and caches, as a table or as JSON. The
/// model may be a config.json alone. options.context is the number of positions that attention
/// reads (0: 512).
llvm::Expected<std::string> explainModel(const CompileOptions &options,
                                         const ExplainOptions &explain);

/// Uniform formats of weights and caches, and the planner's choice, from the best on: those whose
/// predicted error is within the budget of options.goal by time, then the others by error. As a
/// table, or as JSON. options.weights and the caches' formats are not looked at.
llvm::Expected<std::string> recommendFormats(const CompileOptions &options, bool json);

/// What the stages' files that --emit-ir wrote into a directory say of a layer, in their order;
/// empty if there are none.
llvm::Expected<std::vector<report::StageText>> stageTexts(const std::string &directory,
                                                          int64_t layer);

/// Writes a file that appears under its name when it is complete.
llvm::Error writeTextFile(const std::string &path, llvm::StringRef text);

/// Reads the tokenizer of a model, or a tokenizer.json or tokenizer.model. Does not read weights: a
/// GGUF file may be cut off after its metadata.
llvm::Expected<runtime::Tokenizer> modelTokenizer(llvm::StringRef model);

} // namespace sluice

#endif // SLUICE_PIPELINES_COMPILER_H
