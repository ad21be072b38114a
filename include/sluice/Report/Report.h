// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The page that `explain --html` writes: one file that needs nothing else, whose tables are there
// without JavaScript and whose figures are drawn from data inside it. The template, its style and
// its script are lib/Report/page.

#ifndef SLUICE_REPORT_REPORT_H
#define SLUICE_REPORT_REPORT_H

#include "sluice/Analysis/TimeModel.h"
#include "sluice/Planner/ModelPlan.h"
#include "sluice/Target/TargetDescription.h"

#include "dialects/Fused/Traffic.h"

#include "mlir/IR/BuiltinOps.h"
#include "llvm/Support/Error.h"

#include <array>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace sluice::report {

/// What a second of a step is spent on.
enum class TimeClass { Weights, Scales, Keys, Values, Activations, Arithmetic, Boundaries };
inline constexpr size_t kTimeClasses = 7;
/// "weights", "scales", ...
llvm::StringRef timeClassName(TimeClass timeClass);

/// A kernel of a step.
struct Kernel {
  std::string label;
  /// Counted from 0; nothing if it belongs to none: embedding, head, sampling.
  std::optional<int64_t> layer;
  Traffic traffic;
  TimeFormula time;
  /// The weights that it multiplies by, of the model's files.
  std::vector<std::string> weights;
  /// Seconds by itself, from `bench --per-kernel --json`, and what was predicted for that.
  std::optional<double> measured;

  /// Seconds by class: fixed, and for each position of context that is read.
  std::array<std::pair<double, double>, kTimeClasses> byClass() const;
};

/// What was decided of a weight, or of a layer's keys or values. Seconds, and nats a token, as far
/// as they are known.
struct Choice {
  std::string what, format, reason;
  double bytes = 0;
  std::optional<double> seconds, divergence;
  std::optional<std::string> nextFormat;
  double nextBytes = 0, nextSeconds = 0, nextDivergence = 0;
  bool isCache = false, planned = false;
};

/// The lines of a layer at one stage.
struct StageText {
  struct Operation {
    std::string text;
    /// Of the weights and caches that it comes of.
    std::vector<std::string> origins;
  };
  std::string name;
  std::vector<Operation> operations;
};

struct Report {
  std::string model, weights;
  /// The longest context that the figures go to; the one of the tables.
  int64_t longest = 0, context = 0, batch = 1;
  TargetDescription target;
  std::vector<Kernel> kernels;
  /// What a step takes beside its kernels, seconds.
  double stepSeconds = 0;
  /// False if times are bytes over the bandwidth alone.
  bool timed = true;
  std::vector<Choice> choices;
  /// The module attribute `sluice.plan`, or null.
  nlohmann::json plan;
  /// explanationJson(): what fusing removed; null for an artifact.
  nlohmann::json explanation;
  /// What `bench --per-kernel --json` printed, or null.
  nlohmann::json measured;
  int64_t layer = 0;
  std::vector<StageText> stages;

  /// Of a step at `context`, by class.
  std::array<double, kTimeClasses> secondsByClass(int64_t context) const;
  double seconds(int64_t context) const;
};

/// The layer that the name of a weight or cache, or a launch's label, is of ("blk.3.attn_q",
/// "cache.k.3").
std::optional<int64_t> layerOf(llvm::StringRef name);

/// The kernels of @decode at stage fused or scheduled.
std::vector<Kernel> kernelsOf(mlir::ModuleOp module, const TimeModel &model);

/// What was decided in a module at stage quantized, in the order of the model; `plan` is its
/// attribute `sluice.plan`, or null.
std::vector<Choice> choicesOf(mlir::ModuleOp module, const nlohmann::json &plan);

/// The same of the lists "decisions" and "plan" of a plan.json.
std::vector<Choice> choicesOf(const nlohmann::json &artifactPlan);

/// Sets the times of choices that no plan has predicted: their shares of their kernels' times.
void shareTimes(Report &report);

/// What a module of any stage says of one layer.
StageText stageText(mlir::ModuleOp module, llvm::StringRef name, int64_t layer);

/// What the price of a plan means, in words.
std::string priceText(const nlohmann::json &plan);

/// Counts of choices by format, totals and price of the plan, and with `all` every choice.
void printChoices(const Report &report, bool all, llvm::raw_ostream &os);
nlohmann::json choicesJson(const Report &report);

/// Ranked formats. `otherSeconds`: of a step, beside products and attention.
void printRecommendation(llvm::StringRef model, const planner::Recommendation &recommendation,
                         const planner::Goal &goal, const TargetDescription &target,
                         double otherSeconds, bool asJson, llvm::raw_ostream &os);

/// The page.
std::string page(const Report &report);

} // namespace sluice::report

#endif // SLUICE_REPORT_REPORT_H
