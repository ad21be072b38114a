// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Transforms/Passes.h"

#include "sluice/Analysis/TimeModel.h"
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
    bool hasTimes = description->persistent && description->persistent->time;
    if (!description->isGpu() || !decode || !decode.getBody().hasOneBlock() ||
        (whereFaster && !hasTimes))
      return markAllAnalysesPreserved();
    auto given = decode->getAttrOfType<fused::PersistentScheduleAttr>(fused::kPersistentAttr);
    llvm::Expected<Planned> found = makePlan(decode, *description, given);
    std::string reason;
    if (found) {
      bool taken = true;
      std::string prediction;
      if (std::optional<Times> times = predict(decode, *description, *found))
        taken = compare(decode, *times, prediction) || !whereFaster || given;
      if (taken)
        reason = describe(found->plan) + (prediction.empty() ? "" : "; ");
      reason += prediction;
      if (taken) {
        const fused::PersistentSchedule &schedule = found->plan.schedule;
        decode->setAttr(fused::kPersistentAttr,
                        fused::PersistentScheduleAttr::get(
                            &getContext(), schedule.clusters, schedule.clusterBlocks,
                            schedule.attentionClusters, schedule.warps, schedule.stages,
                            schedule.attentionInFlight, schedule.mlpInFlight));
        ++planned;
      }
    } else {
      reason = llvm::toString(found.takeError());
      if (given) {
        decode.emitError() << fused::kPersistentAttr << " does not suit the step: " << reason;
        return signalPassFailure();
      }
      remark::missed(decode.getLoc(), remark::RemarkOpts::name("persistent").category(DEBUG_TYPE))
          << remark::reason("{0}", reason);
    }
    decode->setAttr(fused::kPersistentReasonAttr, StringAttr::get(&getContext(), reason));
  }

  struct Planned {
    fused::DecoderStep step;
    fused::PersistentPlan plan;
  };
  llvm::Expected<Planned> makePlan(func::FuncOp decode, const TargetDescription &description,
                                   fused::PersistentScheduleAttr given) {
    llvm::Expected<fused::DecoderStep> step = fused::DecoderStep::match(decode.getBody().front());
    if (!step)
      return step.takeError();
    fused::GpuDevice device = gpuDevice(description);
    llvm::Expected<fused::PersistentSchedule> schedule =
        given ? fused::PersistentSchedule::get(given)
              : fused::choosePersistentSchedule(step->shape, persistentLimits(description), device);
    if (!schedule)
      return schedule.takeError();
    llvm::Expected<fused::PersistentPlan> plan =
        fused::PersistentPlan::get(step->shape, *schedule, device);
    if (!plan)
      return plan.takeError();
    return Planned{std::move(*step), std::move(*plan)};
  }

  /// Seconds of a step at `positions`, and what its layers take as one kernel.
  struct Times {
    int64_t positions;
    double graph, persistent;
    TimeFormula layers;
  };
  std::optional<Times> predict(func::FuncOp decode, const TargetDescription &description,
                               const Planned &planned) {
    fused::AttentionOp attention = planned.step.layers.front().attention;
    int64_t positions = context;
    if (!positions) {
      auto keys =
          SymbolTable::lookupNearestSymbolFrom<model::CacheOp>(attention, attention.getKeysAttr());
      positions = std::max<int64_t>(keys.getCacheType().getPositions() / 2, 1);
    }
    TimeModel model(description, positions);
    std::optional<TimeFormula> layers = model.persistentLayers(planned.step, planned.plan);
    if (!layers)
      return std::nullopt;
    double graph = model.step(decode).seconds(), persistent = graph;
    for (const fused::DecoderStep::Layer &layer : planned.step.layers)
      for (Operation *op : layer.operations())
        persistent -= model.kernel(cast<fused::KernelOp>(op)).seconds();
    return Times{positions, graph, persistent + layers->at(positions).seconds(), *layers};
  }

  /// Whether one kernel is faster by more than predictions are off. Says so in `prediction`,
  /// and in the step's attributes.
  bool compare(func::FuncOp decode, const Times &times, std::string &prediction) {
    constexpr double margin = 0.02;
    Builder b(&getContext());
    auto dictionary =
        b.getDictionaryAttr({b.getNamedAttr("graph", b.getF64FloatAttr(times.graph)),
                             b.getNamedAttr("layers", times.layers.toAttribute(&getContext())),
                             b.getNamedAttr("persistent", b.getF64FloatAttr(times.persistent)),
                             b.getNamedAttr("positions", b.getI64IntegerAttr(times.positions))});
    decode->setAttr(fused::kPersistentTimesAttr, dictionary);
    bool faster = times.persistent * (1 + margin) < times.graph;
    const char *what = faster ? "one kernel is faster"
                       : times.persistent < times.graph
                           ? "one kernel is faster by less than predictions are off"
                           : "the graph is faster";
    prediction = llvm::formatv("predicted at {0} positions: {1:F1} us as one kernel, {2:F1} us as "
                               "a graph, {3}",
                               times.positions, times.persistent * 1e6, times.graph * 1e6, what);
    return faster;
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
