// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Compile.h"
#include "Operations.h"

#include "sluice/Target/LlvmTarget.h"

#include "llvm/ExecutionEngine/Orc/AbsoluteSymbols.h"
#include "llvm/IR/LLVMContext.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::emulator;
using llvm::createStringError;
using llvm::Expected;

Expected<std::unique_ptr<llvm::orc::LLJIT>>
sluice::emulator::compile(Lowered &lowered,
                          std::vector<std::pair<const std::byte *, uint64_t>> &constants) {
  MLIRContext &mlirContext = *lowered.module->getContext();
  DialectRegistry registry;
  registerLlvmTranslations(registry);
  mlirContext.appendDialectRegistry(registry);
  auto context = std::make_unique<llvm::LLVMContext>();
  Expected<std::unique_ptr<llvm::Module>> module = translateKernels(*lowered.module, *context);
  if (!module)
    return module.takeError();

  Expected<llvm::orc::JITTargetMachineBuilder> target = detectJitTarget();
  if (!target)
    return target.takeError();
  Expected<std::unique_ptr<llvm::TargetMachine>> machine = target->createTargetMachine();
  if (!machine)
    return machine.takeError();
  optimiseKernels(**module, **machine, llvm::OptimizationLevel::O2);

  Expected<std::unique_ptr<llvm::orc::LLJIT>> jit =
      llvm::orc::LLJITBuilder().setJITTargetMachineBuilder(*target).create();
  if (!jit)
    return jit.takeError();
  llvm::orc::SymbolMap symbols;
  for (const HostFunction &function : hostFunctions())
    symbols[(*jit)->mangleAndIntern(function.name)] = {
        llvm::orc::ExecutorAddr::fromPtr(function.address), llvm::JITSymbolFlags::Exported};
  if (llvm::Error error =
          (*jit)->getMainJITDylib().define(llvm::orc::absoluteSymbols(std::move(symbols))))
    return error;
  // Kernels call functions of the C library: exp2f and the like.
  auto process = llvm::orc::DynamicLibrarySearchGenerator::GetForCurrentProcess(
      (*jit)->getDataLayout().getGlobalPrefix());
  if (!process)
    return process.takeError();
  (*jit)->getMainJITDylib().addGenerator(std::move(*process));
  if (llvm::Error error =
          (*jit)->addIRModule(llvm::orc::ThreadSafeModule(std::move(*module), std::move(context))))
    return error;
  for (Kernel &kernel : lowered.kernels) {
    Expected<llvm::orc::ExecutorAddr> address = (*jit)->lookup("entry." + kernel.name);
    if (!address)
      return address.takeError();
    kernel.entry = address->toPtr<KernelEntry>();
  }
  for (const auto &[name, bytes] : lowered.constants) {
    Expected<llvm::orc::ExecutorAddr> address = (*jit)->lookup(name);
    if (!address)
      return address.takeError();
    constants.push_back({address->toPtr<const std::byte *>(), bytes});
  }
  return jit;
}
