// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "GpuScheduler.h"
#include "sluice/Transforms/Passes.h"

#include "sluice/Target/LoadTarget.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "llvm/ADT/TypeSwitch.h"
#include "llvm/Support/DebugLog.h"
#include "llvm/Support/FormatVariadic.h"

#define DEBUG_TYPE "fused-assign-schedules"

namespace sluice {
#define GEN_PASS_DEF_FUSEDASSIGNSCHEDULES
#include "lib/Transforms/Passes.h.inc"

namespace {
using namespace mlir;
using llvm::formatv;

struct FusedAssignSchedules : impl::FusedAssignSchedulesBase<FusedAssignSchedules> {
  using FusedAssignSchedulesBase::FusedAssignSchedulesBase;
  void runOnOperation() override;

private:
  LogicalResult assign(fused::KernelOp op);
  FailureOr<ScheduleChoice> chooseHost(Operation *op);
  void prefetch(fused::MatvecOp op, fused::MatvecOp next);
  void predict();

  TargetDescription description;
  fused::GpuDevice device;
  std::optional<GpuScheduler> scheduler;
};

FailureOr<ScheduleChoice> FusedAssignSchedules::chooseHost(Operation *op) {
  if (auto product = dyn_cast<fused::ProductOp>(op))
    if (auto type =
            dyn_cast<quantized::QuantizedTensorType>(product.getWeights().front().getType());
        type && type.getLayout().isForGpu())
      return op->emitOpError() << "reads weights packed for a GPU (" << type << "), target "
                               << description.name << " is a CPU";
  if (isa<fused::SampleOp>(op))
    return op->emitOpError() << "is for GPUs, target " << description.name
                             << " is a CPU, where the runtime chooses tokens";
  int64_t positions =
      isa<fused::AttentionOp>(op) ? description.cpuTuning.positions.value : int64_t(0);
  return ScheduleChoice{fused::HostScheduleAttr::get(&getContext(), description.isa,
                                                     description.cpuTuning.accumulators.value,
                                                     positions),
                        formatv("{0} is what target {1} has", description.isa, description.name)};
}

LogicalResult FusedAssignSchedules::assign(fused::KernelOp op) {
  if (std::optional<Attribute> schedule = op.getSchedule()) {
    bool fits = description.isGpu() ? isa<fused::GpuScheduleAttr>(*schedule)
                                    : isa<fused::HostScheduleAttr>(*schedule);
    if (!fits)
      return op.emitOpError() << "has the schedule " << *schedule << ", but target "
                              << description.name << " is a "
                              << (description.isGpu() ? "GPU" : "CPU");
    return success();
  }
  FailureOr<ScheduleChoice> choice = failure();
  if (!description.isGpu())
    choice = chooseHost(op);
  else
    choice = llvm::TypeSwitch<Operation *, FailureOr<ScheduleChoice>>(op)
                 .Case<fused::EmbeddingOp, fused::MatvecOp, fused::PrepareOp, fused::MatmulOp,
                       fused::AttentionOp, fused::RowsOp, fused::SampleOp, fused::AppendOp,
                       fused::LastRowOp>([&](auto kernel) { return scheduler->choose(kernel); })
                 .Default([](Operation *op) -> FailureOr<ScheduleChoice> {
                   return op->emitOpError() << "has no kernel for GPUs";
                 });
  if (failed(choice))
    return failure();
  op.setScheduleAttr(choice->schedule);
  op->setDiscardableAttr("sluice.schedule_reason", StringAttr::get(&getContext(), choice->reason));
  LDBG() << op->getName() << ": " << choice->schedule << ", " << choice->reason;
  return success();
}

/// Between two products the memory is idle while blocks end and start. Once a block of `op` has all
/// its own weights, it has the first bytes that `next` reads brought into L2.
void FusedAssignSchedules::prefetch(fused::MatvecOp op, fused::MatvecOp next) {
  int64_t most = description.gpuTuning.productPrefetchBytes.value;
  auto schedule = dyn_cast_if_present<fused::GpuScheduleAttr>(next.getScheduleAttr());
  auto parameter = next.getWeights().front().getDefiningOp<model::ParameterOp>();
  // Weights that are no symbols have no name to prefetch by.
  if (!schedule || !parameter || !device.bulkCopies || most < 16)
    return;
  FailureOr<fused::ProductPlan> plan = fused::ProductPlan::get(next, schedule, device);
  if (failed(plan))
    return;
  // Tiles are multiples of 16 bytes.
  int64_t stride = plan->shape.tileBytes(), bytes = std::min(most - most % 16, stride);
  // Blocks whose first tile is the first weight's.
  int64_t blocks = std::min(plan->grid, plan->shape.tiles());
  op.setPrefetchAttr(
      fused::PrefetchAttr::get(&getContext(), parameter.getWeightAttr(), blocks, stride, bytes));
  // Names no weight, so that layers still share their kernels.
  std::string reason =
      formatv("{0} of the {1} bytes of a block's first tile in the next product, for the time "
              "between two kernels",
              bytes, stride);
  op->setDiscardableAttr("sluice.prefetch_reason", StringAttr::get(&getContext(), reason));
  LDBG() << "prefetch " << parameter.getWeight() << ": " << reason;
}

/// Writes down how long every kernel takes, and what a step takes beside its kernels.
void FusedAssignSchedules::predict() {
  TimeModel model(description, /*context=*/1);
  getOperation().walk([&](func::FuncOp function) {
    bool hasKernels = false;
    function.walk([&](fused::KernelOp op) {
      hasKernels = true;
      op->setDiscardableAttr(fused::kTimeAttr, model.formula(op).toAttribute(&getContext()));
    });
    TimeFormula step;
    step.fixed.boundary = model.stepSeconds();
    if (hasKernels)
      function->setDiscardableAttr(fused::kTimeAttr, step.toAttribute(&getContext()));
  });
}

void FusedAssignSchedules::runOnOperation() {
  FailureOr<TargetDescription> loaded = loadTarget(getOperation(), target);
  if (failed(loaded))
    return signalPassFailure();
  description = std::move(*loaded);
  device = gpuDevice(description);
  if (description.isGpu())
    scheduler.emplace(description, context);
  // A product that came with a schedule keeps its prefetch, too, or that it has none.
  fused::MatvecOp last;
  bool lastIsNew = false;
  WalkResult walk = getOperation().walk([&](fused::KernelOp op) {
    if (isa<fused::AttentionOp>(op.getOperation()))
      return WalkResult::advance();
    bool isNew = !op.getSchedule();
    if (failed(assign(op)))
      return WalkResult::interrupt();
    auto product = dyn_cast<fused::MatvecOp>(op.getOperation());
    if (!product)
      return WalkResult::advance();
    // Attention may lie between the two. Its own first bytes are not prefetched: they depend on the
    // position, and its ring is filled early anyway.
    if (last && lastIsNew && last->getBlock() == product->getBlock())
      prefetch(last, product);
    last = product;
    lastIsNew = isNew;
    return WalkResult::advance();
  });
  if (walk.wasInterrupted())
    return signalPassFailure();
  // What the products leave decides how much attention takes.
  walk = getOperation().walk([&](fused::AttentionOp op) {
    return failed(assign(op)) ? WalkResult::interrupt() : WalkResult::advance();
  });
  if (walk.wasInterrupted())
    return signalPassFailure();
  predict();
}
} // namespace
} // namespace sluice
