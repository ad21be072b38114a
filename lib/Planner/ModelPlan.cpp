// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Planner/ModelPlan.h"
#include "ErrorModel.h"

#include "sluice/Analysis/Merging.h"
#include "sluice/Analysis/TimeModel.h"
#include "sluice/Planner/Allocation.h"

#include "dialects/Quantized/Quantized.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "llvm/ADT/MapVector.h"
#include "llvm/Support/Format.h"
#include "llvm/Support/FormatVariadic.h"

#include <cmath>

using namespace llvm;
using namespace mlir;
using namespace sluice;
using namespace sluice::planner;
using formats::CacheChoice;
using formats::Encoding;

/// Formats of weights that are worth a try on any device: what each more bit buys, and what a
/// smaller group. A target's prices decide among them.
static constexpr StringLiteral kWeightFormats[] = {
    "int8-g128",   "q6_k",        "int6-g128", "int6-g64", "int6-g32-n8", "int5-g128",
    "int5-g64",    "int5-g32-n8", "iq4_nl",    "iq4_xs",   "iq4-g64",     "iq4-g128",
    "iq4-channel", "int4-g128",   "int4-g64",  "int3-g64", "int3-g32-n8"};
static constexpr StringLiteral kKeyFormats[] = {"f16",  "int8",     "fp8",          "int4-h32",
                                                "int4", "int8-rot", "int4-h32-rot", "int4-rot"};
static constexpr StringLiteral kValueFormats[] = {"f16", "int8", "fp8", "int4-h32", "int4"};

Totals &Totals::operator+=(const Totals &other) {
  seconds += other.seconds;
  divergence += other.divergence;
  bits += other.bits;
  bytes += other.bytes;
  return *this;
}

//===----------------------------------------------------------------------===//
// Goal
//===----------------------------------------------------------------------===//

namespace {
struct GoalName {
  StringLiteral name;
  Quantity least, limited;
  /// What a unit on the command line is.
  double unit;
};
} // namespace

static constexpr GoalName kGoals[] = {
    {"error-budget", Quantity::Seconds, Quantity::Divergence, 1e-3},
    {"max-bits", Quantity::Divergence, Quantity::Bits, 1},
    {"max-bytes", Quantity::Divergence, Quantity::Bytes, 1},
    {"max-time", Quantity::Divergence, Quantity::Seconds, 1e-3}};

Expected<Goal> Goal::parse(StringRef text) {
  auto [name, number] = text.split('=');
  const GoalName *found = find_if(kGoals, [&](const GoalName &goal) { return goal.name == name; });
  if (found == std::end(kGoals))
    return createStringError("unknown goal '" + text +
                             "': expected error-budget, max-bits, max-bytes or max-time, then "
                             "=NUMBER");
  double value;
  if (number.getAsDouble(value) || !std::isfinite(value) || value <= 0)
    return createStringError("--" + name + " " + number + ": expected a number above 0");
  return Goal{found->least, found->limited, value * found->unit};
}

std::string Goal::name() const {
  const GoalName *found =
      find_if(kGoals, [&](const GoalName &goal) { return goal.limited == limited; });
  return formatv("{0}={1}", found->name, limit / found->unit);
}

static double quantityOf(const Totals &totals, Quantity quantity) {
  switch (quantity) {
  case Quantity::Seconds:
    return totals.seconds;
  case Quantity::Divergence:
    return totals.divergence;
  case Quantity::Bits:
    return totals.bits;
  case Quantity::Bytes:
    return totals.bytes;
  }
  llvm_unreachable("unknown quantity");
}

//===----------------------------------------------------------------------===//
// Choices of a model
//===----------------------------------------------------------------------===//

namespace {

/// One way to store a weight.
struct WeightOption {
  Encoding encoding;
  double divergence = 0;
};

/// A weight of a linear layer.
struct PlannedWeight {
  std::string name;
  model::WeightOp symbol; ///< null if the weight is computed
  int64_t rows = 0, columns = 0;
  /// What the model's file has, and what there is before this plan.
  Encoding source, present;
  bool fixed = false;
  std::vector<WeightOption> options;
};

/// Products of one input. `parts` are products that have to agree on a format if they are to be
/// one kernel on any device: gate and up; a lone product is a part of its own.
struct Products {
  SmallVector<SmallVector<size_t, 2>, 4> parts; ///< indices of weights
  ProductPlace place = ProductPlace::BehindProduct;
};

/// The caches of a layer.
struct LayerCaches {
  model::CacheOp keys, values;
  AttentionLoad load;
  int64_t positions = 0;
  std::vector<std::pair<CacheChoice, double>> keyOptions, valueOptions; ///< and divergences
  bool keysFixed = false, valuesFixed = false;
  /// Why they stay as they are, if the plan's context is too short for anything else.
  std::string note;
};

/// A group of an allocation: what its alternatives stand for.
struct Choices {
  /// An index into the options of every part (products), or into those of keys and values.
  std::vector<SmallVector<unsigned, 4>> picks;
  std::vector<Totals> totals;

  void add(ArrayRef<unsigned> pick, const Totals &total) {
    picks.emplace_back(pick);
    totals.push_back(total);
  }
  /// Leaves what is least in one of the quantities for some value of the other.
  void prune(Quantity a, Quantity b);
  Group group(const Goal &goal, bool byPrice) const;
};

class Planning {
public:
  Planning(ModuleOp module, const Request &request, std::function<void(double)> progress)
      : module(module), request(request), progress(std::move(progress)),
        gpu(request.target.isGpu()) {}

  Error collect();
  Error predict();
  Expected<ModelPlan> solve();

private:
  Error collectWeights(func::FuncOp decode);
  Error collectCaches(func::FuncOp decode);
  Choices choicesOf(const Products &products) const;
  Choices choicesOf(const LayerCaches &layer) const;
  double secondsOf(const Products &products, ArrayRef<unsigned> pick) const;
  void decide(ModelPlan &plan, const Products &products, const Choices &choices, unsigned chosen,
              const Goal &goal) const;
  void decide(ModelPlan &plan, const LayerCaches &layer, const Choices &choices, unsigned chosen,
              const Goal &goal) const;
  /// Leaves a layer's caches as they are if nothing else saves a noticeable part of the step.
  void dropUnnoticeable(LayerCaches &layer, Choices &choices, double stepSeconds) const;

  ModuleOp module;
  const Request &request;
  std::function<void(double)> progress;
  bool gpu;
  std::optional<ErrorModel> errors;
  std::optional<TimeModel> time;
  int64_t context = 0;
  std::vector<PlannedWeight> weights;
  std::vector<Products> products;
  std::vector<LayerCaches> layers;
  /// Kernels of the same products in the same formats take the same time.
  mutable StringMap<double> knownSeconds;
};

} // namespace

//===----------------------------------------------------------------------===//
// Collecting
//===----------------------------------------------------------------------===//

/// The weight that a linear layer reads, behind what quantized or dequantized it before.
static PlannedWeight describe(model::LinearOp linear, ModuleOp module) {
  PlannedWeight weight;
  auto type = cast<RankedTensorType>(linear.getWeight().getType());
  weight.rows = type.getDimSize(0);
  weight.columns = type.getDimSize(1);
  weight.present = quantized::EncodingAttr::of(type.getElementType()).getValue();
  weight.name = "a weight";
  mlir::Value value = linear.getWeight();
  bool first = true;
  while (Operation *op = value.getDefiningOp()) {
    if (auto stored = dyn_cast<quantized::QuantizedTensorType>(value.getType()); stored && first) {
      weight.present = stored.getEncoding().getValue();
      first = false;
    }
    if (auto stored = dyn_cast<quantized::QuantizedTensorType>(value.getType()))
      weight.source = stored.getEncoding().getValue();
    else
      weight.source =
          quantized::EncodingAttr::of(cast<RankedTensorType>(value.getType()).getElementType())
              .getValue();
    weight.fixed |= isa<quantized::QuantizeOp>(op) || op->hasAttr("sluice.decision");
    if (auto parameter = dyn_cast<model::ParameterOp>(op)) {
      weight.name = parameter.getWeight().str();
      weight.symbol = module.lookupSymbol<model::WeightOp>(parameter.getWeight());
      break;
    }
    if (!isa<quantized::QuantizeOp, quantized::DequantizeOp>(op))
      break;
    value = op->getOperand(0);
  }
  return weight;
}

Error Planning::collectWeights(func::FuncOp decode) {
  llvm::MapVector<mlir::Value, SmallVector<model::LinearOp>> readers;
  decode.walk([&](model::LinearOp linear) { readers[linear.getInput()].push_back(linear); });
  for (auto &[input, linears] : readers) {
    Products group;
    if (input.getDefiningOp<model::AttentionOp>())
      group.place = ProductPlace::BehindAttention;
    SmallVector<SmallVector<model::LinearOp, 2>> parts;
    for (model::LinearOp linear : linears) {
      PlannedWeight weight = describe(linear, module);
      bool automatic = request.weights.isAutomatic(weight.name);
      if (std::optional<Encoding> asked = request.weights.formatOf(weight.name);
          asked && !weight.fixed)
        weight.present = *asked;
      weight.fixed |= !automatic || !weight.symbol;
      auto part = find_if(parts, [&](ArrayRef<model::LinearOp> part) {
        return any_of(part, [&](model::LinearOp other) { return areCombined(linear, other); });
      });
      if (part == parts.end()) {
        parts.emplace_back();
        group.parts.emplace_back();
        part = std::prev(parts.end());
      }
      part->push_back(linear);
      group.parts[part - parts.begin()].push_back(weights.size());
      weights.push_back(std::move(weight));
    }
    products.push_back(std::move(group));
  }
  return Error::success();
}

Error Planning::collectCaches(func::FuncOp decode) {
  SmallVector<model::AttentionOp> attentions;
  decode.walk([&](model::AttentionOp attention) { attentions.push_back(attention); });
  for (auto [number, attention] : enumerate(attentions)) {
    LayerCaches layer;
    layer.keys = module.lookupSymbol<model::CacheOp>(attention.getKeysAttr().getAttr());
    layer.values = module.lookupSymbol<model::CacheOp>(attention.getValuesAttr().getAttr());
    quantized::CacheType type = layer.keys.getCacheType();
    layer.positions = type.getPositions();
    layer.load.kvHeads = type.getHeads();
    layer.load.headDim = type.getHeadDim();
    layer.load.queryHeads = attention.getQuery().getType().getDimSize(1) / type.getHeadDim();
    layer.load.window = attention.getWindow().value_or(0);
    auto collect = [&](model::CacheOp cache, const CacheChoice &asked,
                       ArrayRef<StringLiteral> names, auto predicted, auto &options, bool &fixed) {
      CacheChoice present;
      present.encoding = cache.getCacheType().getEncoding();
      fixed = cache->hasAttr("sluice.decision") || !asked.automatic;
      if (fixed)
        present = cache->hasAttr("sluice.decision") ? present : asked;
      // What is there costs nothing, whatever it is: errors count from the model as it came. What
      // is asked for costs what was measured.
      double cost = 0;
      if (fixed && present.encoding != cache.getCacheType().getEncoding())
        cost = predicted(present).value_or(0);
      options.emplace_back(present, cost);
      if (fixed)
        return;
      for (StringRef name : names) {
        CacheChoice choice;
        choice.rotated = name.consume_back("-rot");
        choice.encoding = *formats::CacheEncoding::fromName(name);
        if (choice.rotated && layer.load.headDim % 2)
          continue;
        if (std::optional<double> divergence = predicted(choice);
            divergence && choice.encoding != present.encoding)
          options.emplace_back(choice, *divergence);
      }
    };
    collect(
        layer.keys, request.keys.layer(number), kKeyFormats,
        [&](const CacheChoice &choice) { return errors->keys(number, choice); }, layer.keyOptions,
        layer.keysFixed);
    collect(
        layer.values, request.values.layer(number), kValueFormats,
        [&](const CacheChoice &choice) { return errors->values(number, choice); },
        layer.valueOptions, layer.valuesFixed);
    layers.push_back(std::move(layer));
  }
  return Error::success();
}

Error Planning::collect() {
  auto decode = module.lookupSymbol<func::FuncOp>("decode");
  if (!decode)
    return createStringError("the module has no function @decode");
  Expected<ErrorModel> made = ErrorModel::create(module, request.statistics);
  if (!made)
    return made.takeError();
  errors = std::move(*made);
  if (Error error = collectCaches(decode))
    return error;
  int64_t positions = 0;
  for (const LayerCaches &layer : layers)
    positions = std::max(positions, layer.positions);
  context = request.context ? request.context : std::max<int64_t>(1, positions / 2);
  if (positions && context > positions)
    return createStringError("--plan-context " + Twine(context) + ": caches have " +
                             Twine(positions) + " positions");
  time.emplace(request.target, context);
  return collectWeights(decode);
}

/// Finds every option's error.
Error Planning::predict() {
  std::vector<RoundingTask> tasks;
  std::vector<size_t> owners;
  for (auto [index, weight] : enumerate(weights)) {
    weight.options.push_back({weight.present, 0});
    RoundingTask task{weight.symbol, weight.rows, weight.columns, {}, {}};
    if (weight.fixed) {
      // Its error counts. At a price that is known errors of weights do not matter.
      if (weight.symbol && weight.present != weight.source && weight.present.isInteger() &&
          !request.price) {
        task.encodings.push_back(weight.present);
        tasks.push_back(std::move(task));
        owners.push_back(index);
      }
      continue;
    }
    // Without statistics nobody knows what a file's maker weighed when it was quantized.
    if (!errors->hasStatistics() && weight.present.bits() < 16) {
      weight.fixed = true;
      continue;
    }
    for (StringRef name : kWeightFormats) {
      std::optional<Encoding> encoding = Encoding::fromName(name);
      assert(encoding && "a format of the planner's is none");
      if (encoding->bytesPerRow(weight.columns) < weight.present.bytesPerRow(weight.columns) &&
          encoding->fitsColumns(weight.columns))
        task.encodings.push_back(*encoding);
    }
    if (task.encodings.empty()) {
      weight.fixed = true;
      continue;
    }
    tasks.push_back(std::move(task));
    owners.push_back(index);
  }
  if (Error error = errors->predict(tasks, progress))
    return error;
  for (auto [task, owner] : zip_equal(tasks, owners))
    for (auto [encoding, divergence] : zip_equal(task.encodings, task.divergences))
      if (weights[owner].fixed)
        weights[owner].options.front().divergence = divergence;
      else
        weights[owner].options.push_back({encoding, divergence});
  return Error::success();
}

//===----------------------------------------------------------------------===//
// Choosing
//===----------------------------------------------------------------------===//

void Choices::prune(Quantity a, Quantity b) {
  std::vector<size_t> order(totals.size());
  std::iota(order.begin(), order.end(), 0);
  auto key = [&](size_t i) {
    return std::tuple(quantityOf(totals[i], a), quantityOf(totals[i], b), totals[i].bytes);
  };
  sort(order, [&](size_t i, size_t j) { return key(i) < key(j); });
  Choices kept;
  double least = std::numeric_limits<double>::infinity();
  for (size_t i : order) {
    double value = quantityOf(totals[i], b);
    if (value >= least)
      continue;
    least = value;
    kept.add(picks[i], totals[i]);
  }
  *this = std::move(kept);
}

Group Choices::group(const Goal &goal, bool byPrice) const {
  Group group;
  group.byPrice = byPrice;
  for (const Totals &total : totals)
    group.alternatives.push_back({quantityOf(total, goal.least), quantityOf(total, goal.limited)});
  return group;
}

/// The kernels that products of one input become, with one format picked for every part.
double Planning::secondsOf(const Products &products, ArrayRef<unsigned> pick) const {
  // Weights of one format are one kernel, whatever parts they are of; on GPUs also those of
  // different formats that a kernel can read side by side.
  SmallVector<SmallVector<WeightLoad>> kernels;
  for (auto [part, option] : zip_equal(products.parts, pick))
    for (size_t index : part) {
      const PlannedWeight &weight = weights[index];
      const Encoding &encoding = weight.options[weight.fixed ? 0 : option].encoding;
      auto kernel = find_if(kernels, [&](ArrayRef<WeightLoad> kernel) {
        return all_of(kernel, [&](const WeightLoad &load) { return load.encoding == encoding; }) ||
               (gpu && mergesWithOtherFormats(encoding) &&
                all_of(kernel, [](const WeightLoad &load) {
                  return mergesWithOtherFormats(load.encoding);
                }));
      });
      if (kernel == kernels.end())
        kernel = &kernels.emplace_back();
      kernel->push_back({encoding, weight.rows, weight.columns});
    }
  std::string key = products.place == ProductPlace::BehindAttention ? "attention " : "";
  for (ArrayRef<WeightLoad> kernel : kernels) {
    for (const WeightLoad &load : kernel)
      key += formatv("{0}:{1}x{2} ", load.encoding.name(), load.rows, load.columns);
    key += "/";
  }
  auto [known, isNew] = knownSeconds.try_emplace(key, 0.0);
  if (isNew)
    for (ArrayRef<WeightLoad> kernel : kernels)
      known->second += time->productSeconds(kernel, products.place);
  return known->second;
}

Choices Planning::choicesOf(const Products &products) const {
  // Options of a part: those of its first weight that all its weights have. Weights of a part are
  // alike in all but their numbers, unless some are fixed.
  SmallVector<unsigned, 4> counts, pick(products.parts.size(), 0);
  for (ArrayRef<size_t> part : products.parts) {
    unsigned count = 1;
    for (size_t index : part)
      count = std::max<unsigned>(count, weights[index].options.size());
    counts.push_back(count);
  }
  Choices choices;
  while (true) {
    Totals total;
    bool valid = true;
    for (auto [part, option] : zip_equal(products.parts, pick))
      for (size_t index : part) {
        const PlannedWeight &weight = weights[index];
        unsigned own = weight.fixed ? 0 : option;
        if (own >= weight.options.size()) {
          valid = false;
          continue;
        }
        const WeightOption &chosen = weight.options[own];
        double bytes = static_cast<double>(chosen.encoding.bytesPerRow(weight.columns)) *
                       static_cast<double>(weight.rows);
        total.divergence += chosen.divergence;
        total.bits += 8 * bytes;
        total.bytes += bytes;
      }
    if (valid) {
      total.seconds = secondsOf(products, pick);
      choices.add(pick, total);
    }
    size_t digit = 0;
    while (digit < pick.size() && ++pick[digit] == counts[digit])
      pick[digit++] = 0;
    if (digit == pick.size())
      return choices;
  }
}

Choices Planning::choicesOf(const LayerCaches &layer) const {
  Choices choices;
  AttentionLoad load = layer.load;
  for (auto [k, keys] : enumerate(layer.keyOptions))
    for (auto [v, values] : enumerate(layer.valueOptions)) {
      load.keys = keys.first.encoding;
      load.values = values.first.encoding;
      Totals total;
      total.seconds = time->attentionSeconds(load);
      total.divergence = keys.second + values.second;
      total.bytes = static_cast<double>(
          layer.positions * load.kvHeads *
          (load.keys.bytesPerVector(load.headDim) + load.values.bytesPerVector(load.headDim)));
      choices.add({static_cast<unsigned>(k), static_cast<unsigned>(v)}, total);
    }
  return choices;
}

/// The best other choice at the plan's price in which `differs` from the chosen one.
template <typename Differs>
static std::optional<size_t> runnerUp(const Choices &choices, const Goal &goal, double price,
                                      Differs differs) {
  std::optional<size_t> best;
  double least = std::numeric_limits<double>::infinity();
  for (size_t i = 0; i < choices.totals.size(); ++i) {
    if (!differs(choices.picks[i]))
      continue;
    double value = quantityOf(choices.totals[i], goal.least) +
                   price * quantityOf(choices.totals[i], goal.limited);
    if (value < least) {
      least = value;
      best = i;
    }
  }
  return best;
}

void Planning::decide(ModelPlan &plan, const Products &products, const Choices &choices,
                      unsigned chosen, const Goal &goal) const {
  ArrayRef<unsigned> pick = choices.picks[chosen];
  for (auto [number, part] : enumerate(products.parts)) {
    // Only this part another way; its other parts as they were chosen.
    std::optional<size_t> other =
        runnerUp(choices, goal, plan.price, [&](ArrayRef<unsigned> other) {
          for (auto [i, option] : enumerate(other))
            if ((option != pick[i]) != (i == number))
              return false;
          return true;
        });
    for (size_t index : part) {
      const PlannedWeight &weight = weights[index];
      auto describe = [&](ArrayRef<unsigned> picked, const Totals &totals) {
        const WeightOption &option = weight.options[weight.fixed ? 0 : picked[number]];
        double own = static_cast<double>(option.encoding.bytesPerRow(weight.columns)) *
                     static_cast<double>(weight.rows);
        return Option{option.encoding.name(),
                      {totals.seconds * own / totals.bytes, option.divergence, 8 * own, own}};
      };
      Decision decision;
      decision.name = weight.name;
      decision.fixed = weight.fixed;
      if (pick[number] != 0 && !weight.fixed)
        decision.rounding = errors->roundingOf(weight.name);
      decision.chosen = describe(pick, choices.totals[chosen]);
      if (other && !weight.fixed) {
        decision.next = describe(choices.picks[*other], choices.totals[*other]);
        // A kernel's time is shared by its weights; what this one's format changes is its own.
        decision.next->totals.seconds = decision.chosen.totals.seconds +
                                        choices.totals[*other].seconds -
                                        choices.totals[chosen].seconds;
      }
      plan.weights.push_back(std::move(decision));
    }
  }
}

void Planning::decide(ModelPlan &plan, const LayerCaches &layer, const Choices &choices,
                      unsigned chosen, const Goal &goal) const {
  ArrayRef<unsigned> pick = choices.picks[chosen];
  auto side = [&](model::CacheOp cache, unsigned number, const auto &options, bool fixed) {
    std::optional<size_t> other =
        runnerUp(choices, goal, plan.price, [&](ArrayRef<unsigned> other) {
          return other[number] != pick[number] && other[1 - number] == pick[1 - number];
        });
    auto describe = [&](ArrayRef<unsigned> picked, const Totals &totals) {
      const auto &[choice, divergence] = options[picked[number]];
      double own = static_cast<double>(layer.positions * layer.load.kvHeads *
                                       choice.encoding.bytesPerVector(layer.load.headDim));
      return Option{choice.name(), {totals.seconds * own / totals.bytes, divergence, 0, own}};
    };
    Decision decision;
    decision.name = cache.getSymName().str();
    decision.fixed = fixed;
    decision.note = layer.note;
    decision.chosen = describe(pick, choices.totals[chosen]);
    if (other && !fixed) {
      decision.next = describe(choices.picks[*other], choices.totals[*other]);
      decision.next->totals.seconds = decision.chosen.totals.seconds +
                                      choices.totals[*other].seconds -
                                      choices.totals[chosen].seconds;
    }
    plan.caches.push_back(std::move(decision));
  };
  side(layer.keys, 0, layer.keyOptions, layer.keysFixed);
  side(layer.values, 1, layer.valueOptions, layer.valuesFixed);
}

/// What all layers' caches together have to save of a step for it to be worth an error: less than
/// what the time model can tell apart.
static constexpr double kNoticeable = 0.005;

void Planning::dropUnnoticeable(LayerCaches &layer, Choices &choices, double stepSeconds) const {
  const double present = choices.totals.front().seconds;
  const double least = kNoticeable * stepSeconds / static_cast<double>(layers.size());
  double saved = 0;
  Choices kept;
  for (auto [pick, total] : zip_equal(choices.picks, choices.totals)) {
    bool isPresent = all_of(pick, [](unsigned option) { return option == 0; });
    saved = std::max(saved, present - total.seconds);
    if (isPresent || present - total.seconds >= least)
      kept.add(pick, total);
  }
  if (kept.totals.size() == 1 && choices.totals.size() > 1)
    raw_string_ostream(layer.note)
        << "weights dominate at " << context << " positions: "
        << format("fewer bits would save %.2g us of a step's %.3g us",
                  1e6 * saved * static_cast<double>(layers.size()), 1e6 * stepSeconds);
  choices = std::move(kept);
}

/// Least times for errors from nearly none to that of the fewest bits.
static std::vector<std::pair<double, double>> frontierOf(ArrayRef<Group> groups) {
  std::vector<std::pair<double, double>> frontier;
  double most = 0;
  for (const Group &group : groups)
    most += group.alternatives[bestAt(group, 0)].use;
  double least = leastUse(groups);
  if (most <= least)
    return frontier;
  constexpr int kPoints = 24;
  double low = std::max(least, most * 1e-5);
  for (int i = 0; i <= kPoints; ++i) {
    double limit = low * std::pow(most / low, static_cast<double>(i) / kPoints);
    std::optional<Allocation> allocation = allocate(groups, limit * (1 + 1e-9));
    if (allocation && (frontier.empty() || allocation->use > frontier.back().first * (1 + 1e-9)))
      frontier.emplace_back(allocation->use, allocation->cost);
  }
  return frontier;
}

Expected<ModelPlan> Planning::solve() {
  Goal goal = request.goal;
  // A margin for what is not known.
  if (goal.limited == Quantity::Divergence)
    goal.limit /= errors->margin();
  ModelPlan plan;
  plan.context = context;
  plan.basis = errors->basis();
  for (const PlannedWeight &weight : weights)
    plan.elements += static_cast<double>(weight.rows) * static_cast<double>(weight.columns);
  if (goal.limited == Quantity::Bits)
    goal.limit *= plan.elements;

  std::vector<Choices> choices, all;
  for (const Products &group : products)
    all.push_back(choicesOf(group));
  double stepSeconds = 0;
  for (const Choices &group : all)
    stepSeconds += min_element(group.totals, [](const Totals &a, const Totals &b) {
                     return a.seconds < b.seconds;
                   })->seconds;
  std::vector<Choices> cacheChoices;
  for (const LayerCaches &layer : layers) {
    cacheChoices.push_back(choicesOf(layer));
    stepSeconds += cacheChoices.back().totals.front().seconds;
  }
  for (auto [layer, group] : zip_equal(layers, cacheChoices)) {
    if (goal.least == Quantity::Seconds)
      dropUnnoticeable(layer, group, stepSeconds);
    all.push_back(std::move(group));
  }
  std::vector<Group> groups, timeGroups;
  for (auto [index, group] : enumerate(all)) {
    choices.push_back(group);
    choices.back().prune(goal.least, goal.limited);
    groups.push_back(choices.back().group(goal, /*byPrice=*/index >= products.size()));
    Choices times = group;
    times.prune(Quantity::Seconds, Quantity::Divergence);
    timeGroups.push_back(times.group({Quantity::Seconds, Quantity::Divergence, 0}, false));
  }
  std::optional<Allocation> allocation;
  if (request.price) {
    allocation.emplace();
    allocation->price = *request.price;
    for (const Group &group : groups)
      allocation->choices.push_back(bestAt(group, *request.price));
  } else {
    allocation = allocate(groups, goal.limit);
    // What may be chosen can stay without an error, so it is what was asked for that exceeds the
    // budget: nothing is added to it.
    if (!allocation && goal.limited == Quantity::Divergence)
      allocation = allocate(groups, leastUse(groups) * (1 + 1e-9));
  }
  if (!allocation) {
    Goal possible = request.goal;
    possible.limit = leastUse(groups);
    if (goal.limited == Quantity::Bits)
      possible.limit /= plan.elements;
    return createStringError("--" + StringRef(request.goal.name()).split('=').first + " " +
                             StringRef(request.goal.name()).split('=').second +
                             ": cannot be met, the least that the formats can have is " +
                             StringRef(possible.name()).split('=').second);
  }
  plan.price = allocation->price;
  for (auto [index, chosen] : enumerate(allocation->choices)) {
    plan.totals += choices[index].totals[chosen];
    // Runners-up are looked for among all that could be had.
    const Choices &full = all[index];
    auto same =
        find_if(full.picks, [&](const auto &pick) { return pick == choices[index].picks[chosen]; });
    unsigned place = same - full.picks.begin();
    if (index < products.size())
      decide(plan, products[index], full, place, goal);
    else
      decide(plan, layers[index - products.size()], full, place, goal);
  }
  plan.frontier = frontierOf(timeGroups);
  return plan;
}

Expected<ModelPlan> planner::planModel(ModuleOp module, const Request &request,
                                       std::function<void(double)> progress) {
  Planning planning(module, request, std::move(progress));
  if (Error error = planning.collect())
    return error;
  if (Error error = planning.predict())
    return error;
  return planning.solve();
}

//===----------------------------------------------------------------------===//
// Recommending
//===----------------------------------------------------------------------===//

static Totals sumOf(ArrayRef<Decision> decisions) {
  Totals totals;
  for (const Decision &decision : decisions)
    totals += decision.chosen.totals;
  return totals;
}

Expected<Recommendation> planner::recommend(ModuleOp module, Request request, const Goal &goal,
                                            std::function<void(double)> progress) {
  // Formats that are asked for need no limit.
  request.goal = {Quantity::Seconds, Quantity::Divergence, 1e9};
  constexpr StringLiteral kCaches[][2] = {
      {"f16", "f16"}, {"fp8", "fp8"}, {"int8", "int8"}, {"int8", "int4-h32"}, {"int4-rot", "int4"}};
  constexpr size_t kRuns = std::size(kWeightFormats) + std::size(kCaches) + 3;
  size_t run = 0;
  auto plan = [&](StringRef weights, StringRef keys, StringRef values) -> Expected<ModelPlan> {
    for (auto [target, text, rotates] :
         {std::tuple(&request.keys, keys, true), std::tuple(&request.values, values, false)})
      if (Error error = formats::CacheScheme::parse(text, rotates).moveInto(*target))
        return std::move(error);
    if (Error error = formats::WeightScheme::parse(weights).moveInto(request.weights))
      return std::move(error);
    auto share = [&](double done) {
      if (progress)
        progress((static_cast<double>(run) + done) / kRuns);
    };
    Expected<ModelPlan> result = planModel(module, request, share);
    ++run;
    return result;
  };

  Recommendation result;
  struct Part {
    std::string weights, keys, values;
    Totals totals;
  };
  std::vector<Part> weights, caches;
  double elements = 0;
  SmallVector<StringRef> names = {"keep", "f16"};
  names.append(std::begin(kWeightFormats), std::end(kWeightFormats));
  for (StringRef name : names) {
    Expected<ModelPlan> made = plan(name, "f16", "f16");
    if (!made)
      return made.takeError();
    weights.push_back({name.str(), "", "", sumOf(made->weights)});
    elements = made->elements;
    result.context = made->context;
    result.basis = made->basis;
  }
  for (const auto &[keys, values] : kCaches) {
    Expected<ModelPlan> made = plan("keep", keys, values);
    if (!made)
      return made.takeError();
    // A cache whose error nobody measured is not to be ranked.
    bool known = all_of(made->caches, [](const Decision &decision) {
      return decision.chosen.format == "f16" || decision.chosen.totals.divergence > 0;
    });
    if (known)
      caches.push_back({"", keys.str(), values.str(), sumOf(made->caches)});
  }
  auto add = [&](const Part &weight, const Part &cache) {
    Recommended choice{weight.weights, cache.keys, cache.values, weight.totals, 0, false};
    choice.totals += cache.totals;
    choice.bitsPerWeight = elements ? choice.totals.bits / elements : 0;
    result.choices.push_back(std::move(choice));
  };
  for (const Part &weight : weights)
    for (const Part &cache : caches)
      add(weight, cache);
  request.goal = goal;
  if (Expected<ModelPlan> planned = plan("auto", "auto", "auto"))
    add({"planned", "", "", sumOf(planned->weights)},
        {"", "planned", "planned", sumOf(planned->caches)});
  else
    consumeError(planned.takeError()); // then no choice of formats keeps the limit

  double scale = goal.limited == Quantity::Bits ? elements : 1;
  auto limited = [&](const Recommended &choice) {
    return quantityOf(choice.totals, goal.limited) / scale;
  };
  Expected<ErrorModel> errors = ErrorModel::create(module, request.statistics);
  if (!errors)
    return errors.takeError();
  double margin = goal.limited == Quantity::Divergence ? errors->margin() : 1;
  for (Recommended &choice : result.choices)
    choice.fits = limited(choice) * margin <= goal.limit * (1 + 1e-6);
  auto key = [&](const Recommended &choice) {
    return std::tuple(!choice.fits,
                      choice.fits ? quantityOf(choice.totals, goal.least) : limited(choice),
                      choice.totals.bytes, StringRef(choice.weights), StringRef(choice.keys));
  };
  sort(result.choices, [&](const Recommended &a, const Recommended &b) { return key(a) < key(b); });
  return result;
}
