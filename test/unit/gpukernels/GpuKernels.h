// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Compiles fused operations to GPU kernels and runs them in the emulator.

#ifndef SLUICE_TEST_UNIT_GPUKERNELS_GPUKERNELS_H
#define SLUICE_TEST_UNIT_GPUKERNELS_GPUKERNELS_H

#include "../compiler/HostKernels.h"

#include "sluice/Emulator/Emulator.h"
#include "sluice/Target/GpuTarget.h"

namespace sluice::test {

/// `schedule(#fused.gpu_schedule<...>)`.
std::string gpuSchedule(int64_t blocks, int64_t warps, int64_t stages, int64_t inFlight,
                        int64_t columns, int64_t splits, const std::string &early);

/// The kernels of a module's fused operations.
class GpuKernels {
public:
  /// A failure is a failure of the test, and null.
  static std::unique_ptr<GpuKernels> compile(const std::string &text, const std::string &target);
  /// What ptxas says of the kernels.
  static std::vector<nvidia::KernelResources> assemble(const std::string &text,
                                                       const std::string &target);

  /// The dispatches in the module, in order; without buffers.
  std::vector<emulator::Launch> dispatches;

  /// Runs a dispatch on its buffers, of which the last is written, and the `caches` before it. A
  /// fault, or a write beyond a buffer, is a failure of the test.
  void run(size_t dispatch, const std::vector<Buffer *> &arguments, uint64_t seed,
           size_t caches = 0);
  /// Runs all dispatches as one step, each on its buffers as above.
  void runAll(const std::vector<std::vector<Buffer *>> &arguments, uint64_t seed,
              size_t caches = 0);

private:
  void run(llvm::ArrayRef<emulator::Launch> launches,
           llvm::ArrayRef<std::vector<Buffer *>> arguments, uint64_t seed, size_t caches);

  std::string text;
};

} // namespace sluice::test

#endif // SLUICE_TEST_UNIT_GPUKERNELS_GPUKERNELS_H
