// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The host CPU as a target: the instruction sets that kernels are generated for, and the way from
// kernels in the llvm dialect to a shared object.

#ifndef SLUICE_TARGET_HOSTTARGET_H
#define SLUICE_TARGET_HOSTTARGET_H

#include "mlir/IR/BuiltinOps.h"
#include "mlir/IR/DialectRegistry.h"
#include "llvm/ADT/ArrayRef.h"
#include "llvm/Support/Error.h"

#include <optional>
#include <string>

namespace sluice::host {

/// Instruction sets that kernels may use; each contains the ones before it.
enum class Isa {
  Avx2,       ///< x86-64-v3: AVX2, FMA, F16C
  Avx512,     ///< x86-64-v4: AVX-512 F, BW, CD, DQ, VL
  Avx512Vnni, ///< and the 16-bit dot products of AVX512_VNNI
};

/// The target triple of shared objects, a part of their file's name.
inline constexpr llvm::StringLiteral triple = "x86_64-linux-gnu";

/// "avx2", "avx512", "avx512_vnni".
llvm::StringRef isaName(Isa isa);
std::optional<Isa> isaFromName(llvm::StringRef name);

/// LLVM's name of the CPU that an instruction set stands for: "x86-64-v3", "x86-64-v4".
llvm::StringRef isaCpu(Isa isa);
/// The features that a machine must have to run such kernels, by LLVM's names (which
/// __builtin_cpu_supports knows, too).
llvm::ArrayRef<llvm::StringRef> isaFeatures(Isa isa);

/// The best instruction set of this machine; nothing if it lacks AVX2.
std::optional<Isa> detectIsa();

/// The instruction set that the kernels of `kernels` were generated for: the highest of its
/// functions'.
llvm::Expected<Isa> kernelsIsa(mlir::ModuleOp kernels);

/// The linker that compileKernels runs: `ld.lld-22`, `ld.lld` or `ld`, found on the PATH or where
/// it was when Sluice was configured. The error says that none was found and what was looked for.
llvm::Expected<std::string> findLinker();

/// Compiles `kernels`, a module of llvm.func operations in the llvm dialect, to a shared object
/// that exports them and depends on no other one. The same module gives the same bytes. Each
/// function is optimised for the CPU and features in its attributes. `llvmIr`, if given, receives
/// the optimised LLVM IR as text.
llvm::Expected<std::string> compileKernels(mlir::ModuleOp kernels, std::string *llvmIr = nullptr);

/// Adds the translations to LLVM IR that compileKernels needs.
void registerHostTranslations(mlir::DialectRegistry &registry);

} // namespace sluice::host

#endif // SLUICE_TARGET_HOSTTARGET_H
