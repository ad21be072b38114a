// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Compiles products to GPU kernels, runs them in the emulator and asks ptxas about them.

#ifndef SLUICE_TEST_UNIT_COMPILER_GPUKERNELS_H
#define SLUICE_TEST_UNIT_COMPILER_GPUKERNELS_H

#include "HostKernels.h"

#include "sluice/Emulator/Emulator.h"

#include "mlir/IR/BuiltinOps.h"
#include "mlir/IR/MLIRContext.h"
#include "mlir/IR/OwningOpRef.h"

namespace sluice::test {

/// The kernels of a module's fused operations.
class GpuKernels {
public:
  GpuKernels(const std::string &text, const std::string &target);

  /// A launch alone, on memory that the host fills.
  void run(size_t number, const std::vector<Buffer *> &arguments);

  /// No kernel spills or needs more registers than that.
  void checkResources(int64_t mostRegisters);

  mlir::MLIRContext context{mlir::MLIRContext::Threading::DISABLED};
  mlir::OwningOpRef<mlir::ModuleOp> module;
  std::vector<emulator::Launch> launches;
  std::unique_ptr<emulator::Emulator> emulator;
};

/// `tensor<TOKENSxWIDTHxELEMENT>`.
std::string activation(int64_t tokens, int64_t width, const std::string &element);

/// The layout that fused-pack-weights gives an encoding.
formats::Layout gpuLayout(formats::Encoding format, int64_t chunk);
/// `!quantized.tensor<...>` in that layout.
std::string packedType(formats::Encoding format, int64_t rows, int64_t columns,
                       formats::Layout layout);
/// Packs rows, -1 for an empty place.
Buffer packGpu(const Weight &weight, const std::vector<int64_t> &rows, formats::Layout layout);

/// Encodings that layout mma holds.
std::vector<formats::Encoding> allFormats();
/// Encodings that records hold: those of GGUF's blocks, the integers of layout mma, and of the
/// others at least one of each element and of each size of unit.
std::vector<formats::Encoding> recordFormats();

} // namespace sluice::test

#endif // SLUICE_TEST_UNIT_COMPILER_GPUKERNELS_H
