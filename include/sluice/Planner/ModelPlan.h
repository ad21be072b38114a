// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Chooses how every weight of a model's linear layers and every layer's keys and values are stored,
// so that one quantity is least while another stays within a limit (docs/planner.md).

#ifndef SLUICE_PLANNER_MODELPLAN_H
#define SLUICE_PLANNER_MODELPLAN_H

#include "sluice/Formats/CacheScheme.h"
#include "sluice/Formats/WeightScheme.h"
#include "sluice/Target/TargetDescription.h"

#include "dialects/Model/Model.h"

#include "mlir/IR/BuiltinOps.h"
#include "llvm/Support/Error.h"

#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace sluice::planner {

/// What a choice costs; sums over a model.
struct Totals {
  /// Predicted time of a step's products and attention.
  double seconds = 0;
  /// Predicted Kullback-Leibler divergence from the unquantized model, in nats a token.
  double divergence = 0;
  /// Stored bits of weights, with their scales; of caches none.
  double bits = 0;
  /// Bytes of memory: weights, and caches of all positions.
  double bytes = 0;

  Totals &operator+=(const Totals &other);
};

/// What is least, and what is limited. Bits are an average over all weights of linear layers.
enum class Quantity { Seconds, Divergence, Bits, Bytes };

struct Goal {
  Quantity least = Quantity::Seconds, limited = Quantity::Divergence;
  double limit = 0;

  /// Parses NAME=NUMBER: `error-budget` (1e-3 nats a token; the time is least), or `max-bits`,
  /// `max-bytes` or `max-time` (milliseconds a token), with which the error is least.
  static llvm::Expected<Goal> parse(llvm::StringRef text);
  std::string name() const;
};

/// The module attribute in which the passes that plan write what they decided.
inline constexpr llvm::StringLiteral kPlanAttr = "sluice.plan";

/// The goal where none is given.
inline constexpr llvm::StringLiteral kDefaultGoal = "error-budget=1";

struct Request {
  TargetDescription target;
  Goal goal;
  /// What is asked for; what is `auto` there is planned, the rest counts as it is.
  formats::WeightScheme weights;
  formats::CacheScheme keys, values;
  /// Positions that attention reads; 0: half of the caches.
  int64_t context = 0;
  /// A file of statistics, or empty.
  std::string statistics;
  /// What a unit of the limited quantity is worth: then caches are chosen at this price, whatever
  /// the limit.
  std::optional<double> price;
};

/// A format and what it costs one weight or cache: the time is its share of its kernel's.
struct Option {
  std::string format;
  Totals totals;
};

/// What was decided of one weight, or of one layer's keys or values.
struct Decision {
  /// The symbol of the weight or cache.
  std::string name;
  Option chosen;
  /// The best of the others at the plan's price.
  std::optional<Option> next;
  /// Of a weight: how it is rounded, for people; empty if it is kept or there are no statistics.
  std::string rounding;
  /// Why there was no choice; empty if there was one.
  std::string note;
  /// Asked for or decided before: counted, not chosen.
  bool fixed = false;
};

struct ModelPlan {
  std::vector<Decision> weights;
  /// Of every layer (a function's i-th attention) keys, then values.
  std::vector<Decision> caches;
  Totals totals;
  /// Elements of all weights of linear layers.
  double elements = 0;
  int64_t context = 0;
  /// What a unit of the limited quantity is worth, in units of the other one.
  double price = 0;
  /// Least times for errors: (divergence, seconds), from the smallest error on.
  std::vector<std::pair<double, double>> frontier;
  /// What errors are predicted from, for people: "statistics of 4096 tokens", ...
  std::string basis;

  double bitsPerWeight() const { return elements ? totals.bits / elements : 0; }
};

/// Plans @decode of a module at stage model or quantized.
/// Errors: files that cannot be read or do not fit the model; a goal that no choice meets, with the
/// least that can be had.
llvm::Expected<ModelPlan> planModel(mlir::ModuleOp module, const Request &request,
                                    std::function<void(double done)> progress = {});

/// Formats for all weights, keys and values of a model, and what they come to.
struct Recommended {
  std::string weights, keys, values; ///< "planned": different ones
  Totals totals;
  double bitsPerWeight = 0;
  /// Whether the goal's limit is kept.
  bool fits = false;
};

struct Recommendation {
  /// From the best on: those that keep the limit by the goal's least quantity, then the others by
  /// the limited one.
  std::vector<Recommended> choices;
  int64_t context = 0;
  /// What errors are predicted from; empty if there was nothing to predict them from.
  std::string basis;
};

/// Compares uniform formats of weights with uniform formats of caches, and the plan for `goal`.
/// Of `request` target, context, and statistics count. Errors as planModel(), but a
/// goal that no plan meets is none.
llvm::Expected<Recommendation> recommend(mlir::ModuleOp module, Request request, const Goal &goal,
                                         std::function<void(double done)> progress = {});

} // namespace sluice::planner

#endif // SLUICE_PLANNER_MODELPLAN_H
