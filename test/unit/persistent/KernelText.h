// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_TEST_UNIT_PERSISTENT_KERNELTEXT_H
#define SLUICE_TEST_UNIT_PERSISTENT_KERNELTEXT_H

#include "lib/Conversion/FusedToGpu/DeviceBuilder.h"

#include "dialects/Fused/GpuLaunch.h"
#include "sluice/Emulator/Emulator.h"
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

/// The kernel `step` of such a module in the emulator, with its arguments in order. `seed` decides
/// which thread runs when.
class EmulatedStep {
public:
  EmulatedStep(const std::string &text, uint64_t seed);
  /// `values` must live as long as this.
  template <typename T>
  void add(const char *name, std::vector<T> &values,
           emulator::MemoryKind kind = emulator::MemoryKind::Persistent) {
    add(name, values.data(), values.size() * sizeof(T), kind);
  }
  /// Runs it cooperatively. Returns the fault, nothing if there is none.
  std::string run(const fused::GpuLaunch &planned);

private:
  void add(const char *name, void *data, uint64_t bytes, emulator::MemoryKind kind);

  std::unique_ptr<emulator::Emulator> machine;
  std::string fault;
  emulator::Launch launch;
};

} // namespace sluice::test

#endif // SLUICE_TEST_UNIT_PERSISTENT_KERNELTEXT_H
