// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "FormatDecisions.h"
#include "PlannedFormats.h"
#include "sluice/Transforms/Passes.h"

#include "llvm/Support/DebugLog.h"

#define DEBUG_TYPE "quantized-plan-weights"

namespace sluice {
#define GEN_PASS_DEF_QUANTIZEDPLANWEIGHTS
#include "lib/Transforms/Passes.h.inc"

namespace {
using namespace mlir;

struct QuantizedPlanWeights : impl::QuantizedPlanWeightsBase<QuantizedPlanWeights> {
  using QuantizedPlanWeightsBase::QuantizedPlanWeightsBase;
  QuantizedPlanWeights(const QuantizedPlanWeightsOptions &options,
                       std::function<void(double)> progress)
      : QuantizedPlanWeightsBase(options), progress(std::move(progress)) {}
  void runOnOperation() override;

private:
  std::function<void(double)> progress;
};

void QuantizedPlanWeights::runOnOperation() {
  auto fail = [&](llvm::Error error) {
    emitError(getOperation().getLoc()) << llvm::toString(std::move(error));
    signalPassFailure();
  };
  llvm::Expected<planner::Request> request =
      plannerRequest({target, scheme, keys, values, goal, context, statistics});
  if (!request)
    return fail(request.takeError());
  if (!request->weights.hasAutomatic())
    return markAllAnalysesPreserved();
  llvm::Expected<planner::ModelPlan> plan = planner::planModel(getOperation(), *request, progress);
  if (!plan)
    return fail(plan.takeError());

  llvm::StringMap<const planner::Decision *> decisions = plannedByName(plan->weights);
  if (decisions.empty())
    return markAllAnalysesPreserved();
  DenseMap<Value, Value> replacements;
  getOperation().walk([&](model::LinearOp linear) {
    Value weight = linear.getWeight();
    auto [entry, isNew] = replacements.try_emplace(weight, weight);
    const planner::Decision *decision = decisions.lookup(weightName(weight));
    if (isNew && decision) {
      auto type = cast<RankedTensorType>(weight.getType());
      auto dequantize = weight.getDefiningOp<quantized::DequantizeOp>();
      Value stored = dequantize ? dequantize.getInput() : weight;
      auto encoding = quantized::EncodingAttr::get(
          &getContext(), *formats::Encoding::fromName(decision->chosen.format));
      auto storedType = dyn_cast<quantized::QuantizedTensorType>(stored.getType());
      auto present = storedType ? storedType.getEncoding()
                                : quantized::EncodingAttr::of(type.getElementType());
      std::string reason = plannedReason(*decision);
      LDBG() << decision->name << ": " << decision->chosen.format << ", " << reason;
      if (present == encoding)
        setDecision(stored.getDefiningOp(), encoding.getName(), reason);
      else
        entry->second = quantizeWeight(weight, encoding, reason);
    }
    linear.getWeightMutable().assign(entry->second);
  });
  // What was found for the caches is quantized-plan-caches's to say.
  plan->caches.clear();
  recordPlan(getOperation(), *plan, *request);
}
} // namespace

std::unique_ptr<mlir::Pass> createQuantizedPlanWeights(const QuantizedPlanWeightsOptions &options,
                                                       std::function<void(double)> progress) {
  return std::make_unique<QuantizedPlanWeights>(options, std::move(progress));
}
} // namespace sluice
