// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Compile.h"
#include "Operations.h"

#include "sluice/Target/LlvmTarget.h"

#include "llvm/ExecutionEngine/Orc/AbsoluteSymbols.h"
#include "llvm/IR/InstIterator.h"
#include "llvm/IR/LLVMContext.h"
#include "llvm/Transforms/Utils/Cloning.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::emulator;
using llvm::createStringError;
using llvm::Expected;

/// Adds what `function` calls, and what that calls, to `reached`.
static void reach(llvm::Function &function, llvm::DenseSet<const llvm::GlobalValue *> &reached) {
  if (function.isDeclaration() || !reached.insert(&function).second)
    return;
  for (llvm::Instruction &instruction : llvm::instructions(function))
    if (auto *call = dyn_cast<llvm::CallBase>(&instruction))
      if (llvm::Function *callee = call->getCalledFunction())
        reach(*callee, reached);
}

/// A module of its own for what `entry` reaches. Functions that another kernel calls, too, are in
/// the modules of both.
static std::unique_ptr<llvm::Module> extractKernel(llvm::Function &entry) {
  llvm::DenseSet<const llvm::GlobalValue *> reached;
  reach(entry, reached);
  llvm::ValueToValueMapTy map;
  std::unique_ptr<llvm::Module> kernel =
      llvm::CloneModule(*entry.getParent(), map,
                        [&](const llvm::GlobalValue *value) { return reached.contains(value); });
  for (llvm::Function &function : llvm::make_early_inc_range(*kernel))
    if (function.isDeclaration() && function.use_empty())
      function.eraseFromParent();
    else if (!function.isDeclaration() && function.getName() != entry.getName())
      function.setLinkage(llvm::GlobalValue::InternalLinkage);
  return kernel;
}

Expected<std::unique_ptr<llvm::orc::LLJIT>>
sluice::emulator::compile(Lowered &lowered,
                          std::vector<std::pair<const std::byte *, uint64_t>> &constants) {
  MLIRContext &mlirContext = *lowered.module->getContext();
  DialectRegistry registry;
  registerLlvmTranslations(registry);
  mlirContext.appendDialectRegistry(registry);
  llvm::orc::ThreadSafeContext context(std::make_unique<llvm::LLVMContext>());
  Expected<std::unique_ptr<llvm::Module>> module = context.withContextDo(
      [&](llvm::LLVMContext *unlocked) { return translateKernels(*lowered.module, *unlocked); });
  if (!module)
    return module.takeError();

  Expected<llvm::orc::JITTargetMachineBuilder> target = detectJitTarget();
  if (!target)
    return target.takeError();
  Expected<std::unique_ptr<llvm::TargetMachine>> machine = target->createTargetMachine();
  if (!machine)
    return machine.takeError();

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
  // Each kernel in a module of its own, which is optimised and compiled when it is looked up: a run
  // of a few tokens launches few of the kernels that an artifact has for prompts of every length.
  (*jit)->getIRTransformLayer().setTransform(
      [machine = std::shared_ptr<llvm::TargetMachine>(std::move(*machine))](
          llvm::orc::ThreadSafeModule kernel, llvm::orc::MaterializationResponsibility &) {
        kernel.withModuleDo([&](llvm::Module &module) {
          optimiseKernels(module, *machine, llvm::OptimizationLevel::O2);
        });
        return kernel;
      });
  auto add = [&](std::unique_ptr<llvm::Module> part) {
    return (*jit)->addIRModule(llvm::orc::ThreadSafeModule(std::move(part), context));
  };
  for (const Kernel &kernel : lowered.kernels)
    if (llvm::Error error = add(extractKernel(*(*module)->getFunction(entryName(kernel.name)))))
      return error;
  llvm::ValueToValueMapTy map;
  if (llvm::Error error = add(llvm::CloneModule(**module, map, [](const llvm::GlobalValue *value) {
        return isa<llvm::GlobalVariable>(value);
      })))
    return error;
  for (const auto &[name, bytes] : lowered.constants) {
    Expected<llvm::orc::ExecutorAddr> address = (*jit)->lookup(name);
    if (!address)
      return address.takeError();
    constants.push_back({address->toPtr<const std::byte *>(), bytes});
  }
  return jit;
}

llvm::Error sluice::emulator::compileEntry(llvm::orc::LLJIT &jit, Kernel &kernel) {
  Expected<llvm::orc::ExecutorAddr> address = jit.lookup(entryName(kernel.name));
  if (!address)
    return address.takeError();
  kernel.entry = address->toPtr<KernelEntry>();
  return llvm::Error::success();
}
