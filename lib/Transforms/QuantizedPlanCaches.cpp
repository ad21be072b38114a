// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "FormatDecisions.h"
#include "PlannedFormats.h"
#include "sluice/Transforms/Passes.h"

#include "llvm/Support/DebugLog.h"

#define DEBUG_TYPE "quantized-plan-caches"

namespace sluice {
#define GEN_PASS_DEF_QUANTIZEDPLANCACHES
#include "lib/Transforms/Passes.h.inc"

namespace {
using namespace mlir;

struct QuantizedPlanCaches : impl::QuantizedPlanCachesBase<QuantizedPlanCaches> {
  using QuantizedPlanCachesBase::QuantizedPlanCachesBase;
  void runOnOperation() override;
};

void QuantizedPlanCaches::runOnOperation() {
  auto fail = [&](llvm::Error error) {
    emitError(getOperation().getLoc()) << llvm::toString(std::move(error));
    signalPassFailure();
  };
  llvm::Expected<planner::Request> request =
      plannerRequest({target, scheme, keys, values, goal, context, statistics});
  if (!request)
    return fail(request.takeError());
  request->price = recordedPrice(getOperation());
  // Weights are counted, and were chosen before.
  request->weights = *formats::WeightScheme::parse("keep");
  llvm::Expected<planner::ModelPlan> plan = planner::planModel(getOperation(), *request);
  if (!plan)
    return fail(plan.takeError());

  llvm::StringMap<const planner::Decision *> decisions = plannedByName(plan->caches);
  auto decide = [&](FlatSymbolRefAttr name) {
    const planner::Decision *decision = decisions.lookup(name.getValue());
    if (!decision)
      return false;
    formats::CacheChoice choice =
        formats::CacheScheme::parse(decision->chosen.format, true)->common;
    std::string reason = request->statistics.empty()
                             ? "planned: without statistics caches stay as they are"
                             : plannedReason(*decision);
    LDBG() << decision->name << ": " << choice.name() << ", " << reason;
    decideCache(getOperation().lookupSymbol<model::CacheOp>(name.getAttr()), choice, reason);
    return choice.rotated;
  };
  getOperation().walk([&](model::AttentionOp attention) {
    decide(attention.getValuesAttr());
    if (decide(attention.getKeysAttr()))
      rotateKeys(attention);
  });
  plan->weights.clear();
  recordPlan(getOperation(), *plan, *request);
}
} // namespace
} // namespace sluice
