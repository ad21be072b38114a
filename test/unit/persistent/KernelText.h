// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_TEST_UNIT_PERSISTENT_KERNELTEXT_H
#define SLUICE_TEST_UNIT_PERSISTENT_KERNELTEXT_H

#include "lib/Conversion/FusedToGpu/DeviceBuilder.h"

#include "llvm/ADT/STLFunctionalExtras.h"

#include <string>

namespace sluice::test {

/// A module with the kernel `step` as the emulator takes it. `body` gets the start of shared memory
/// and the kernel's pointers to global memory.
std::string kernelText(int64_t arguments,
                       llvm::function_ref<void(device::DeviceBuilder &k, mlir::Value shared,
                                               mlir::ValueRange arguments)>
                           body);

} // namespace sluice::test

#endif // SLUICE_TEST_UNIT_PERSISTENT_KERNELTEXT_H
