// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What plans of kernels have to know of a GPU, from its description.

#ifndef SLUICE_TARGET_GPUDEVICE_H
#define SLUICE_TARGET_GPUDEVICE_H

#include "dialects/Fused/PersistentPlan.h"
#include "sluice/Target/TargetDescription.h"

namespace sluice {

inline fused::GpuDevice gpuDevice(const TargetDescription &target) {
  return {target.arch, target.sharedBytesPerBlock.value, target.hasBulkCopies(),
          target.hasWarpgroups()};
}

/// What the choice of a persistent schedule depends on. `target` must outlive it.
inline fused::PersistentLimits persistentLimits(const TargetDescription &target) {
  fused::PersistentLimits limits;
  limits.bandwidth = target.gpuTime.productBandwidth.value;
  limits.blockBandwidth = target.gpuTime.blockBandwidth.value;
  if (const std::optional<PersistentTuning> &tuning = target.persistent) {
    limits.residentClusters = tuning->residentClusters.value;
    limits.warps = tuning->warps.value;
    limits.attentionInFlight = tuning->attentionInFlight.value;
    limits.mlpInFlight = tuning->mlpInFlight.value;
  }
  return limits;
}

} // namespace sluice

#endif // SLUICE_TARGET_GPUDEVICE_H
