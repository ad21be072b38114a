// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Emulator/Emulator.h"

#include "Compile.h"

#include "mlir/Dialect/DLTI/DLTI.h"
#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/Dialect/LLVMIR/NVVMDialect.h"
#include "mlir/Parser/Parser.h"
#include "llvm/Support/MemoryBuffer.h"
#include "llvm/Support/SourceMgr.h"

using namespace mlir;
using namespace sluice::emulator;
using llvm::createStringError;
using llvm::Expected;

struct Emulator::Impl {
  explicit Impl(const Options &options) : machine(options, locations) {}

  std::vector<std::string> locations;
  std::unique_ptr<llvm::orc::LLJIT> jit;
  Machine machine;
};

Emulator::Emulator(std::unique_ptr<Impl> impl) : impl(std::move(impl)) {}
Emulator::~Emulator() = default;

/// The only gpu.module of a module.
static Expected<gpu::GPUModuleOp> findKernels(ModuleOp module, llvm::StringRef name) {
  gpu::GPUModuleOp found;
  unsigned count = 0;
  module.walk([&](gpu::GPUModuleOp candidate) {
    found = candidate;
    ++count;
  });
  if (count != 1)
    return createStringError(name + ": holds " + llvm::Twine(count) + " gpu.modules, expected 1");
  return found;
}

Expected<std::unique_ptr<Emulator>> Emulator::create(llvm::StringRef text, llvm::StringRef name,
                                                     const Options &options) {
  if (options.residentBlocks == 0)
    return createStringError("emulator: at least one block must be resident");
  MLIRContext context(MLIRContext::Threading::DISABLED);
  context.loadDialect<gpu::GPUDialect, LLVM::LLVMDialect, NVVM::NVVMDialect, DLTIDialect>();
  std::string diagnostics;
  ScopedDiagnosticHandler handler(&context, [&](Diagnostic &diagnostic) {
    if (diagnostics.empty()) {
      llvm::raw_string_ostream os(diagnostics);
      if (auto place = dyn_cast<FileLineColLoc>(diagnostic.getLocation()))
        os << place.getLine() << ":" << place.getColumn() << ": ";
      os << diagnostic;
    }
    return success();
  });
  llvm::SourceMgr sources;
  sources.AddNewSourceBuffer(llvm::MemoryBuffer::getMemBufferCopy(text, name), llvm::SMLoc());
  OwningOpRef<ModuleOp> module = parseSourceFile<ModuleOp>(sources, &context);
  if (!module)
    return createStringError(name + ":" + llvm::StringRef(diagnostics).split('\n').first);
  Expected<gpu::GPUModuleOp> kernels = findKernels(*module, name);
  if (!kernels)
    return kernels.takeError();
  Expected<Lowered> lowered = lower(*kernels);
  if (!lowered)
    return lowered.takeError();
  auto impl = std::make_unique<Impl>(options);
  auto jit = compile(*lowered, impl->machine.constants);
  if (!jit)
    return jit.takeError();
  impl->jit = std::move(*jit);
  impl->locations = std::move(lowered->locations);
  impl->machine.kernels = std::move(lowered->kernels);
  return std::unique_ptr<Emulator>(new Emulator(std::move(impl)));
}

uint32_t Emulator::addMemory(std::string name, void *data, uint64_t bytes, MemoryKind kind) {
  return impl->machine.addMemory(std::move(name), data, bytes, kind);
}

uint32_t Emulator::addBuffer(std::string name, uint32_t memory, uint64_t offset, uint64_t bytes) {
  return impl->machine.addBuffer(std::move(name), memory, offset, bytes);
}

llvm::Error Emulator::run(llvm::ArrayRef<Launch> step, std::vector<double> *seconds) {
  // Kernels are compiled where they are launched first. What is wrong with a launch, the machine
  // says.
  for (const Launch &launch : step)
    for (Kernel &kernel : impl->machine.kernels)
      if (!kernel.entry && kernel.name == launch.kernel)
        if (llvm::Error error = compileEntry(*impl->jit, kernel))
          return error;
  std::string error = impl->machine.run(step, seconds);
  return error.empty() ? llvm::Error::success() : createStringError(error);
}

std::vector<std::string> Emulator::kernels() const {
  std::vector<std::string> names;
  for (const Kernel &kernel : impl->machine.kernels)
    names.push_back(kernel.name);
  return names;
}
