// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_TEST_UNIT_PERSISTENT_KERNELTEXT_H
#define SLUICE_TEST_UNIT_PERSISTENT_KERNELTEXT_H

#include "lib/Conversion/FusedToGpu/DeviceBuilder.h"

#include "sluice/Target/GpuTarget.h"

#include "llvm/ADT/STLFunctionalExtras.h"

#include <string>

namespace sluice::test {

/// A module as the emulator takes it, and what ptxas says of its kernel; nothing without ptxas.
struct KernelText {
  std::string text;
  std::vector<nvidia::KernelResources> resources;
};

/// A module with the kernel `step` for blocks of so many threads. `body` gets the start of shared
/// memory and the kernel's pointers to global memory.
KernelText kernelText(int64_t arguments, int64_t threads,
                      llvm::function_ref<void(device::DeviceBuilder &k, mlir::Value shared,
                                              mlir::ValueRange arguments)>
                          body);

} // namespace sluice::test

#endif // SLUICE_TEST_UNIT_PERSISTENT_KERNELTEXT_H
