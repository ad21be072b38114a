// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Transforms/Passes.h"

#include "dialects/Fused/PersistentPlan.h"
#include "sluice/Target/GpuDevice.h"
#include "sluice/Target/LoadTarget.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/IR/Remarks.h"
#include "llvm/Support/FormatVariadic.h"

#define DEBUG_TYPE "fused-plan-persistent"

namespace sluice {
#define GEN_PASS_DEF_FUSEDPLANPERSISTENT
#include "lib/Transforms/Passes.h.inc"

namespace {
using namespace mlir;

struct FusedPlanPersistent : impl::FusedPlanPersistentBase<FusedPlanPersistent> {
  using FusedPlanPersistentBase::FusedPlanPersistentBase;

  void runOnOperation() override {
    FailureOr<TargetDescription> description = loadTarget(getOperation(), target);
    if (failed(description))
      return signalPassFailure();
    auto decode = getOperation().lookupSymbol<func::FuncOp>("decode");
    if (!description->isGpu() || !decode || !decode.getBody().hasOneBlock())
      return markAllAnalysesPreserved();
    auto given = decode->getAttrOfType<fused::PersistentScheduleAttr>(fused::kPersistentAttr);
    llvm::Expected<fused::PersistentPlan> plan = makePlan(decode, *description, given);
    std::string reason;
    if (plan) {
      const fused::PersistentSchedule &schedule = plan->schedule;
      decode->setAttr(fused::kPersistentAttr,
                      fused::PersistentScheduleAttr::get(
                          &getContext(), schedule.clusters, schedule.clusterBlocks,
                          schedule.attentionClusters, schedule.warps, schedule.stages,
                          schedule.attentionInFlight, schedule.mlpInFlight));
      reason = describe(*plan);
      ++planned;
    } else {
      reason = llvm::toString(plan.takeError());
      if (given) {
        decode.emitError() << fused::kPersistentAttr << " does not suit the step: " << reason;
        return signalPassFailure();
      }
      remark::missed(decode.getLoc(), remark::RemarkOpts::name("persistent").category(DEBUG_TYPE))
          << remark::reason("{0}", reason);
    }
    decode->setAttr(fused::kPersistentReasonAttr, StringAttr::get(&getContext(), reason));
  }

  llvm::Expected<fused::PersistentPlan> makePlan(func::FuncOp decode,
                                                 const TargetDescription &description,
                                                 fused::PersistentScheduleAttr given) {
    llvm::Expected<fused::DecoderStep> step = fused::DecoderStep::match(decode.getBody().front());
    if (!step)
      return step.takeError();
    fused::GpuDevice device = gpuDevice(description);
    if (given)
      return fused::PersistentPlan::get(step->shape, fused::PersistentSchedule::get(given), device);
    fused::PersistentLimits limits;
    limits.bandwidth = description.gpuTime.productBandwidth.value;
    limits.blockBandwidth = description.gpuTime.blockBandwidth.value;
    if (const std::optional<PersistentTuning> &tuning = description.persistent) {
      limits.residentClusters = tuning->residentClusters.value;
      limits.warps = tuning->warps.value;
      limits.attentionInFlight = tuning->attentionInFlight.value;
      limits.mlpInFlight = tuning->mlpInFlight.value;
    }
    llvm::Expected<fused::PersistentSchedule> schedule =
        fused::choosePersistentSchedule(step->shape, limits, device);
    if (!schedule)
      return schedule.takeError();
    return fused::PersistentPlan::get(step->shape, *schedule, device);
  }

  static std::string describe(const fused::PersistentPlan &plan) {
    const fused::PersistentSchedule &schedule = plan.schedule;
    int64_t ranks = schedule.clusterBlocks;
    auto most = [](int64_t all, int64_t parts) { return llvm::divideCeil(all, parts); };
    return llvm::formatv(
        "{0} clusters of {1} blocks, {2} of them with {3} key/value head{4} each; in a layer a "
        "block multiplies at most {5} tiles of query, key and value by {6} columns, {7} tiles of "
        "the residual stream by {8} columns of attention's output, the gate and up rows of {9} of "
        "the MLP's inner values, and {7} tiles by {10} of these; a row gets {11} additions from "
        "attention and {12} from the MLP; a ring of {13} x {14} bytes, {15} bytes of shared memory "
        "in all",
        schedule.clusters, ranks, schedule.attentionClusters, plan.clusterHeads(),
        plan.clusterHeads() == 1 ? "" : "s",
        most(plan.clusterHeads() * plan.shape.projectionRows() / fused::PersistentPlan::kTile,
             ranks),
        plan.shape.width, most(plan.widthTiles(), ranks),
        plan.attendedGroups() * fused::PersistentPlan::kGroup,
        plan.mostInnerGroups() * fused::PersistentPlan::kGroup,
        plan.mostClusterInnerGroups() * fused::PersistentPlan::kGroup, plan.attentionAdditions(),
        plan.mlpAdditions(), schedule.stages, plan.stageBytes, plan.shared);
  }
};
} // namespace
} // namespace sluice
