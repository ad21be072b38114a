// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What the plan of a kernel has to know of a GPU, and what launching the kernel takes.

#ifndef SLUICE_DIALECTS_FUSED_GPULAUNCH_H
#define SLUICE_DIALECTS_FUSED_GPULAUNCH_H

#include <cstdint>
#include <string>

namespace sluice::fused {

/// What a target description says of a GPU, as far as plans depend on it.
struct GpuDevice {
  /// "sm_90".
  std::string arch;
  /// Bytes of shared memory that a block may have.
  int64_t sharedBytes = 0;
  /// Whether blocks form clusters, and single threads copy whole stages.
  bool bulkCopies = false;
  /// Whether warpgroups multiply (`wgmma`): sm_90a.
  bool warpgroups = false;
};

/// How a kernel is launched, except for its name.
struct GpuLaunch {
  /// Blocks, threads of a block, bytes of dynamic shared memory, blocks of a cluster.
  int64_t grid = 1, block = 1, shared = 0, cluster = 1;
  /// Blocks that a multiprocessor's registers should suffice for (minnctapersm); 0: left to ptxas.
  int64_t resident = 0;
  /// Whether the kernel may start before its predecessor has ended.
  bool overlap = false;
  /// Whether all blocks must live at the same time.
  bool cooperative = false;
};

} // namespace sluice::fused

#endif // SLUICE_DIALECTS_FUSED_GPULAUNCH_H
