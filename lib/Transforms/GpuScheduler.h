// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// How fused operations run on a GPU: the choices of fused-assign-schedules.

#ifndef SLUICE_LIB_TRANSFORMS_GPUSCHEDULER_H
#define SLUICE_LIB_TRANSFORMS_GPUSCHEDULER_H

#include "dialects/Fused/GpuPlan.h"
#include "sluice/Analysis/TimeModel.h"
#include "sluice/Target/GpuDevice.h"

#include <string>
#include <vector>

namespace sluice {

/// A schedule and why it was chosen.
struct ScheduleChoice {
  mlir::Attribute schedule;
  std::string reason;
};

/// Every way to run an operation that fits the target is compared by the time model. Of ways that
/// take the same time the first one is chosen.
class GpuScheduler {
public:
  /// Attention is compared where it reads `context` positions; 0: half of the cache or window. The
  /// target must outlive the scheduler.
  GpuScheduler(const TargetDescription &target, int64_t context)
      : description(target), device(gpuDevice(target)), model(target, /*context=*/1),
        context(context) {}

  // Each fails, with an error at `op`, if nothing fits.
  mlir::FailureOr<ScheduleChoice> choose(fused::EmbeddingOp op);
  mlir::FailureOr<ScheduleChoice> choose(fused::MatvecOp op);
  mlir::FailureOr<ScheduleChoice> choose(fused::PrepareOp op);
  mlir::FailureOr<ScheduleChoice> choose(fused::MatmulOp op);
  /// After the products before and behind it, which decide how much room there is beside it.
  mlir::FailureOr<ScheduleChoice> choose(fused::AttentionOp op);
  mlir::FailureOr<ScheduleChoice> choose(fused::AppendOp op);
  mlir::FailureOr<ScheduleChoice> choose(fused::LastRowOp op);
  mlir::FailureOr<ScheduleChoice> choose(fused::RowsOp op);
  mlir::FailureOr<ScheduleChoice> choose(fused::SampleOp op);

private:
  // Products of one token.
  bool canStandBesideAttention(fused::MatvecOp op);
  bool standsBesideAttention(fused::MatvecOp op);

  /// A way to divide a product of many tokens.
  struct Tiles {
    fused::GpuScheduleAttr schedule;
    fused::MatmulPlan plan;
  };
  mlir::FailureOr<std::vector<Tiles>> tilesOfWarpgroups(fused::MatmulOp op);
  mlir::FailureOr<std::vector<Tiles>> tilesOfWarps(fused::MatmulOp op, bool any);

  // Attention.
  mlir::FailureOr<ScheduleChoice> choosePrefill(fused::AttentionOp op);
  /// Bytes of shared memory that a block of `op` may have to stand beside one of the products
  /// before and after it, which start before their predecessors have ended.
  int64_t roomBesideProducts(fused::AttentionOp op);
  /// The schedule with a ring of at most `ringBytes`; nothing if no stage fits.
  std::optional<fused::GpuScheduleAttr> withRing(fused::AttentionOp op,
                                                 const fused::AttentionPlan &least, int64_t splits,
                                                 int64_t ringBytes);

  const TargetDescription &description;
  fused::GpuDevice device;
  TimeModel model;
  int64_t context;
};

/// An attribute of what every GPU schedule has.
inline fused::GpuScheduleAttr gpuSchedule(mlir::Operation *op, int64_t blocks, int64_t warps,
                                          int64_t stages, int64_t inFlight, int64_t columns,
                                          int64_t splits, llvm::StringRef early, int64_t held = 0,
                                          int64_t resident = 1, int64_t rows = 0,
                                          int64_t tokens = 0, int64_t warpgroups = 0) {
  return fused::GpuScheduleAttr::get(op->getContext(), blocks, warps, stages, inFlight, columns,
                                     splits, early, held, resident, rows, tokens, warpgroups);
}

} // namespace sluice

#endif // SLUICE_LIB_TRANSFORMS_GPUSCHEDULER_H
