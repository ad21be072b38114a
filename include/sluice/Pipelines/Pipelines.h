// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The pass pipelines between two stages, shared by `sluice compile` and `sluice-opt`.

#ifndef SLUICE_PIPELINES_PIPELINES_H
#define SLUICE_PIPELINES_PIPELINES_H

#include "mlir/IR/BuiltinOps.h"
#include "mlir/IR/DialectRegistry.h"
#include "mlir/Pass/PassManager.h"
#include "mlir/Pass/PassOptions.h"

#include <array>
#include <functional>
#include <optional>
#include <string>

namespace sluice {

/// The stages of compilation, in order; a stage's file is called "1-model.mlir" and so on. Every
/// stage is valid, verified, printable IR from which compilation can go on.
enum class Stage { Model, Quantized, Fused, Scheduled, Device, Plan };

inline constexpr std::array<Stage, 6> kStages = {Stage::Model,     Stage::Quantized, Stage::Fused,
                                                 Stage::Scheduled, Stage::Device,    Stage::Plan};

/// "model", "quantized", ...
llvm::StringRef stageName(Stage stage);
std::optional<Stage> stageFromName(llvm::StringRef name);

/// The module attribute that says which stage a module is at.
inline constexpr llvm::StringLiteral kStageAttr = "sluice.stage";
/// The module attribute that holds the choices of the command line that later stages need.
inline constexpr llvm::StringLiteral kOptionsAttr = "sluice.options";

/// Options of all pipelines; each uses what concerns it.
struct PipelineOptions : mlir::PassPipelineOptions<PipelineOptions> {
  Option<std::string> weights{*this, "weights",
                              llvm::cl::desc("Number format of the weights: auto, keep, f16, bf16, "
                                             "f32, int8-g128, int4-g32-zp, int8-channel, ..."),
                              llvm::cl::init("keep")};
  Option<std::string> stats{
      *this, "stats",
      llvm::cl::desc("A file of statistics that formats are planned, and weights rounded, by")};
  Option<std::string> keyCache{*this, "k-cache",
                               llvm::cl::desc("Number format of cached keys: auto, f16, bf16, fp8, "
                                              "int8, int4, with -h64, -h32 and -rot; "
                                              "LAYERS=FORMAT for single layers"),
                               llvm::cl::init("auto")};
  Option<std::string> valueCache{*this, "v-cache",
                                 llvm::cl::desc("Number format of cached values, without -rot"),
                                 llvm::cl::init("auto")};
  Option<std::string> goal{*this, "goal",
                           llvm::cl::desc("What a plan of formats is for: error-budget=X, "
                                          "max-bits=X, max-bytes=N or max-time=X"),
                           llvm::cl::init("error-budget=1")};
  Option<int64_t> planContext{*this, "plan-context",
                              llvm::cl::desc("Positions that a plan takes attention to read; 0: "
                                             "half of the caches"),
                              llvm::cl::init(0)};
  Option<std::string> placement{*this, "placement",
                                llvm::cl::desc("Where rotary embeddings and appends go that a "
                                               "product's epilogue can compute: auto, epilogue, "
                                               "prologue"),
                                llvm::cl::init("auto")};
  Option<std::string> launch{*this, "launch",
                             llvm::cl::desc("How a token's step runs on a GPU: graph (of "
                                            "kernels), persistent (its layers as one kernel), or "
                                            "auto"),
                             llvm::cl::init("auto")};
  ListOption<int64_t> prefill{*this, "prefill",
                              llvm::cl::desc("Tokens of the steps that read a prompt; without it, "
                                             "what the target says")};
  Option<int64_t> cachePages{*this, "cache-pages",
                             llvm::cl::desc("Pages that several sequences share; 0: as many as all "
                                            "of them need together"),
                             llvm::cl::init(0)};
  Option<std::string> target{*this, "target",
                             llvm::cl::desc("Name or path of a target description"),
                             llvm::cl::init("host")};
  Option<bool> racecheck{*this, "racecheck",
                         llvm::cl::desc("GPU kernels whose order compute-sanitizer's racecheck "
                                        "can follow"),
                         llvm::cl::init(false)};
};

/// Is told what a pass that takes long is doing, and how much of it (0 to 1) is done.
using PassProgress = std::function<void(llvm::StringRef what, double done)>;

/// Adds the passes that lead to `stage` from the one before it.
void buildStagePipeline(mlir::OpPassManager &pm, Stage stage, const PipelineOptions &options,
                        const PassProgress &progress = {});

/// Makes every stage's pipeline known by name (`--sluice-to-fused`), and `--sluice-compile`, all of
/// them.
void registerPipelines();

/// Registers every dialect and interface that the pipelines use, translation to LLVM IR included.
void registerDialects(mlir::DialectRegistry &registry);

} // namespace sluice

#endif // SLUICE_PIPELINES_PIPELINES_H
