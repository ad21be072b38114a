// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// How kernels in MLIR's llvm dialect become machine code: the set-up of LLVM that host kernels, GPU
// kernels and the emulator share. Every function may be called from several threads.

#ifndef SLUICE_TARGET_LLVMTARGET_H
#define SLUICE_TARGET_LLVMTARGET_H

#include "mlir/IR/DialectRegistry.h"
#include "mlir/IR/Operation.h"
#include "llvm/ADT/SmallString.h"
#include "llvm/ExecutionEngine/Orc/JITTargetMachineBuilder.h"
#include "llvm/IR/Module.h"
#include "llvm/Passes/OptimizationLevel.h"
#include "llvm/Support/Error.h"
#include "llvm/Target/TargetMachine.h"

#include <memory>
#include <optional>

namespace sluice {

/// Adds the translations to LLVM IR that every kernel needs: the builtin and the llvm dialect's.
void registerLlvmTranslations(mlir::DialectRegistry &registry);

/// A target machine that generates code at LLVM's highest level. The error names `triple` or `cpu`
/// if LLVM cannot compile for it.
llvm::Expected<std::unique_ptr<llvm::TargetMachine>>
createTargetMachine(llvm::StringRef triple, llvm::StringRef cpu, llvm::StringRef features = "",
                    std::optional<llvm::Reloc::Model> relocation = std::nullopt);

/// Describes this machine, its CPU and features, for code that runs in this process. Compile time
/// matters there, so code is generated at the default level.
llvm::Expected<llvm::orc::JITTargetMachineBuilder> detectJitTarget();

/// Translates `kernels`, a module operation, to LLVM IR. Its context must have the translations.
/// The error is the first one that MLIR reports.
llvm::Expected<std::unique_ptr<llvm::Module>> translateKernels(mlir::Operation *kernels,
                                                               llvm::LLVMContext &context);

/// Gives `module` the machine's triple and data layout and runs LLVM's standard pipeline without
/// the vectorisers: generated kernels are vectorised and unrolled already, and the order of their
/// loads and waits is deliberate.
void optimiseKernels(llvm::Module &module, llvm::TargetMachine &machine,
                     llvm::OptimizationLevel level);

/// Generates assembly text or an object file.
llvm::Expected<llvm::SmallString<0>> emitKernels(llvm::Module &module, llvm::TargetMachine &machine,
                                                 llvm::CodeGenFileType type);

} // namespace sluice

#endif // SLUICE_TARGET_LLVMTARGET_H
