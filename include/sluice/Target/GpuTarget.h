// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// NVIDIA GPUs as a target: the way from kernels in the llvm and nvvm dialects to PTX, and from PTX
// to a cubin.

#ifndef SLUICE_TARGET_GPUTARGET_H
#define SLUICE_TARGET_GPUTARGET_H

#include "mlir/Dialect/GPU/IR/GPUDialect.h"
#include "mlir/IR/DialectRegistry.h"
#include "llvm/Support/Error.h"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace sluice::nvidia {

/// The resources of a kernel, as ptxas reports them.
struct KernelResources {
  std::string name;
  int64_t registers = 0; ///< per thread
  /// Bytes of a thread's local memory: its stack, and what did not fit in registers.
  int64_t stackBytes = 0, spillStoreBytes = 0, spillLoadBytes = 0;
  int64_t staticSharedBytes = 0;
  int64_t barriers = 0;

  bool operator==(const KernelResources &) const = default;
};

struct GpuCode {
  std::string arch; ///< "sm_90"
  std::string ptx;
  /// Empty where there is no ptxas: the driver compiles the PTX then.
  std::string cubin;
  std::vector<KernelResources> resources;
};

/// Emits PTX of a `gpu.module` with one `#nvvm.target`, whose kernels are in the llvm and nvvm
/// dialects. The module is left as it is; the same module gives the same text. `llvmIr`, if given,
/// receives the optimised LLVM IR.
llvm::Expected<std::string> emitPtx(mlir::gpu::GPUModuleOp kernels, std::string *llvmIr = nullptr);

/// A store of 8 or 16 bits of a register that an instruction of float32 results wrote, if there is
/// one in PTX that LLVM wrote. It means the register's low bits. But registers that LLVM declares
/// are of no type (.b32), and ptxas (13.0) takes them for what the instruction makes: it converts
/// the number to an integer of 8 or 16 bits, without a word (docs/traps.md).
std::optional<std::string> findConvertedStore(llvm::StringRef ptx);

/// The chip of the module's target, "sm_90".
llvm::Expected<std::string> archOf(mlir::gpu::GPUModuleOp kernels);

/// Finds ptxas: the file that SLUICE_PTXAS in the environment names, else on the PATH, else of a
/// CUDA toolkit (CUDA_HOME, CUDA_PATH, /usr/local/cuda), else of the PyPI package nvidia-cuda-nvcc
/// among the user's Python packages, else where it was when Sluice was configured. The error says
/// where it was looked for.
llvm::Expected<std::string> findPtxas();

/// Runs ptxas on code.ptx and sets code.cubin and code.resources. Errors carry its first message.
llvm::Error assemble(GpuCode &code, llvm::StringRef ptxas);

/// Parses the output of `ptxas -v`; the result is in the order of the kernels.
llvm::Expected<std::vector<KernelResources>> parseResources(llvm::StringRef log);

/// Calls emitPtx, and assemble if there is a ptxas; else `remark` receives why there is none.
llvm::Expected<GpuCode> compileKernels(mlir::gpu::GPUModuleOp kernels,
                                       std::string *remark = nullptr);

/// Adds the dialects and translations to LLVM IR that emitPtx needs.
void registerGpuTranslations(mlir::DialectRegistry &registry);

} // namespace sluice::nvidia

#endif // SLUICE_TARGET_GPUTARGET_H
