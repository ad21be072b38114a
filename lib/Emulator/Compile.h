// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// From a gpu.module to machine code for the host that calls the emulator for everything that the
// device does differently.

#ifndef SLUICE_LIB_EMULATOR_COMPILE_H
#define SLUICE_LIB_EMULATOR_COMPILE_H

#include "Machine.h"

#include "mlir/Dialect/GPU/IR/GPUDialect.h"
#include "mlir/IR/BuiltinOps.h"
#include "mlir/IR/OwningOpRef.h"
#include "llvm/ExecutionEngine/Orc/LLJIT.h"

namespace sluice::emulator {

/// The module's kernels in the llvm dialect, for the host.
struct Lowered {
  mlir::OwningOpRef<mlir::ModuleOp> module;
  std::vector<Kernel> kernels;
  /// Constant tables: symbol and bytes.
  std::vector<std::pair<std::string, uint64_t>> constants;
  /// By location id: the operation and its place.
  std::vector<std::string> locations;
};

/// Replaces what the host has no instruction for and adds a check to each access to memory. An
/// operation that has no semantics here is an error that names it.
llvm::Expected<Lowered> lower(mlir::gpu::GPUModuleOp module);

/// Compiles at -O2 and finds the kernels' addresses.
llvm::Expected<std::unique_ptr<llvm::orc::LLJIT>>
compile(Lowered &lowered, std::vector<std::pair<const std::byte *, uint64_t>> &constants);

} // namespace sluice::emulator

#endif // SLUICE_LIB_EMULATOR_COMPILE_H
