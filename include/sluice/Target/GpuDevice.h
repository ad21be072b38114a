// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What plans of kernels have to know of a GPU, from its description.

#ifndef SLUICE_TARGET_GPUDEVICE_H
#define SLUICE_TARGET_GPUDEVICE_H

#include "dialects/Fused/GpuLaunch.h"
#include "sluice/Target/TargetDescription.h"

namespace sluice {

inline fused::GpuDevice gpuDevice(const TargetDescription &target) {
  return {target.arch, target.sharedBytesPerBlock.value, target.hasBulkCopies(),
          target.hasWarpgroups()};
}

} // namespace sluice

#endif // SLUICE_TARGET_GPUDEVICE_H
