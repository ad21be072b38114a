// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The layers of a decode step as one kernel (docs/kernels.md, "A step as one kernel").

#ifndef SLUICE_LIB_CONVERSION_FUSEDTOGPU_STEPKERNEL_H
#define SLUICE_LIB_CONVERSION_FUSEDTOGPU_STEPKERNEL_H

#include "Kernels.h"

#include "dialects/Fused/PersistentPlan.h"

namespace sluice::device {

/// What the kernel of a step's layers reads and writes.
class StepInterface {
public:
  /// An error says why the step cannot be one kernel. Removes from the operations of the layers
  /// what tells apart those that differ as kernels of their own only (schedules, prefetches).
  static llvm::Expected<StepInterface> get(fused::DecoderStep step,
                                           const fused::PersistentSchedule &schedule,
                                           const fused::GpuDevice &device);

  /// The kernel's pointers: the embedding, the sums, the position, what layers read, caches, and
  /// the residual stream.
  int64_t pointerCount() const { return 3 + constants.size() + caches.size() + 1; }
  static constexpr int64_t kEmbedding = 0, kSums = 1, kPositions = 2, kConstants = 3;

  /// Words of the sums, i64; zero before the kernel starts. The last one tells of numbers that sums
  /// do not hold.
  int64_t sumWords() const {
    return fused::PersistentPlan::kSumArrays * plan.widthTiles() * fused::PersistentPlan::kTile + 1;
  }
  mlir::Value positions() { return step.layers.front().attention.getPositions(); }

  fused::DecoderStep step;
  fused::PersistentPlan plan;
  /// What layers read that no operation computes, each once; the caches of all layers.
  llvm::SetVector<mlir::Value> constants;
  llvm::SmallVector<mlir::Attribute> caches;

private:
  StepInterface(fused::DecoderStep step, fused::PersistentPlan plan)
      : step(std::move(step)), plan(std::move(plan)) {}
  llvm::Error checkProducts();
  llvm::Error checkLayers();
};

/// Fills the body of the kernel.
mlir::LogicalResult emitStep(DeviceBuilder &k, StepInterface &interface, mlir::Value shared,
                             const fused::GpuDevice &device, mlir::ValueRange arguments);

} // namespace sluice::device

#endif // SLUICE_LIB_CONVERSION_FUSEDTOGPU_STEPKERNEL_H
