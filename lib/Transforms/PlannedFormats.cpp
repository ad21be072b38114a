// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "PlannedFormats.h"

#include "mlir/IR/Builders.h"
#include "llvm/Support/Format.h"

using namespace llvm;
using namespace mlir;
using namespace sluice;
using planner::Decision;
using planner::ModelPlan;
using planner::Request;

Expected<Request> sluice::plannerRequest(const PlannerOptionTexts &texts) {
  auto prefixed = [](StringRef option, StringRef text, Error error) {
    return createStringError(option + " " + text + ": " + toString(std::move(error)));
  };
  Request request;
  Expected<TargetDescription> target = loadTarget(texts.target);
  if (!target)
    return target.takeError();
  request.target = std::move(*target);
  Expected<planner::Goal> goal = planner::Goal::parse(texts.goal);
  if (!goal)
    return goal.takeError();
  request.goal = *goal;
  Expected<formats::WeightScheme> weights = formats::WeightScheme::parse(texts.scheme);
  if (!weights)
    return prefixed("--weights", texts.scheme, weights.takeError());
  request.weights = std::move(*weights);
  Expected<formats::CacheScheme> keys = formats::CacheScheme::parse(texts.keys, /*rotates=*/true);
  if (!keys)
    return prefixed("--k-cache", texts.keys, keys.takeError());
  request.keys = std::move(*keys);
  Expected<formats::CacheScheme> values =
      formats::CacheScheme::parse(texts.values, /*rotates=*/false);
  if (!values)
    return prefixed("--v-cache", texts.values, values.takeError());
  request.values = std::move(*values);
  if (texts.context < 0)
    return createStringError("--plan-context " + Twine(texts.context) +
                             ": expected a number above 0");
  request.context = texts.context;
  request.statistics = texts.statistics;
  return request;
}

static std::string costs(const planner::Totals &totals) {
  std::string text;
  raw_string_ostream(text) << format("%.2ge-3 nats, %.3g us", 1e3 * totals.divergence,
                                     1e6 * totals.seconds);
  return text;
}

std::string sluice::plannedReason(const Decision &decision) {
  if (!decision.note.empty())
    return "planned: " + decision.note;
  std::string reason = "planned: error " + costs(decision.chosen.totals);
  if (decision.next)
    reason += "; next " + decision.next->format + ": " + costs(decision.next->totals);
  if (!decision.rounding.empty())
    reason += "; " + decision.rounding;
  return reason;
}

StringMap<const Decision *> sluice::plannedByName(ArrayRef<Decision> decisions) {
  StringMap<const Decision *> byName;
  for (const Decision &decision : decisions)
    if (!decision.fixed)
      byName[decision.name] = &decision;
  return byName;
}

static DictionaryAttr attributeOf(Builder &builder, const planner::Option &option) {
  return builder.getDictionaryAttr(
      {builder.getNamedAttr("format", builder.getStringAttr(option.format)),
       builder.getNamedAttr("divergence", builder.getF64FloatAttr(option.totals.divergence)),
       builder.getNamedAttr("seconds", builder.getF64FloatAttr(option.totals.seconds)),
       builder.getNamedAttr("bytes", builder.getF64FloatAttr(option.totals.bytes))});
}

static ArrayAttr attributeOf(Builder &builder, ArrayRef<Decision> decisions) {
  SmallVector<mlir::Attribute> list;
  for (const Decision &decision : decisions) {
    NamedAttrList attributes;
    attributes.set("name", builder.getStringAttr(decision.name));
    attributes.set("chosen", attributeOf(builder, decision.chosen));
    if (decision.next)
      attributes.set("next", attributeOf(builder, *decision.next));
    if (decision.fixed)
      attributes.set("fixed", builder.getBoolAttr(true));
    list.push_back(attributes.getDictionary(builder.getContext()));
  }
  return builder.getArrayAttr(list);
}

void sluice::recordPlan(ModuleOp module, const ModelPlan &plan, const Request &request) {
  Builder builder(module.getContext());
  NamedAttrList attributes(module->getAttrOfType<DictionaryAttr>(planner::kPlanAttr));
  auto number = [&](double value) { return builder.getF64FloatAttr(value); };
  if (!plan.caches.empty())
    attributes.set("caches", attributeOf(builder, plan.caches));
  if (!plan.weights.empty())
    attributes.set("weights", attributeOf(builder, plan.weights));
  // Of weights and caches together, or of what was planned alone.
  if (!attributes.get("price")) {
    attributes.set("goal", builder.getStringAttr(request.goal.name()));
    attributes.set("basis", builder.getStringAttr(plan.basis));
    attributes.set("context", builder.getI64IntegerAttr(plan.context));
    attributes.set("price", number(plan.price));
    attributes.set("divergence", number(plan.totals.divergence));
    attributes.set("seconds", number(plan.totals.seconds));
    attributes.set("bytes", number(plan.totals.bytes));
    attributes.set("bits_per_weight", number(plan.bitsPerWeight()));
    SmallVector<mlir::Attribute> frontier;
    for (auto [divergence, seconds] : plan.frontier)
      frontier.push_back(builder.getF64ArrayAttr({divergence, seconds}));
    attributes.set("frontier", builder.getArrayAttr(frontier));
  }
  module->setAttr(planner::kPlanAttr, attributes.getDictionary(module.getContext()));
}

std::optional<double> sluice::recordedPrice(ModuleOp module) {
  auto attributes = module->getAttrOfType<DictionaryAttr>(planner::kPlanAttr);
  auto price = attributes ? attributes.getAs<FloatAttr>("price") : FloatAttr();
  return price ? std::optional(price.getValueAsDouble()) : std::nullopt;
}
