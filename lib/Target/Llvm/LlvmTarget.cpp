// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Target/LlvmTarget.h"

#include "mlir/IR/Diagnostics.h"
#include "mlir/Target/LLVMIR/Dialect/Builtin/BuiltinToLLVMIRTranslation.h"
#include "mlir/Target/LLVMIR/Dialect/LLVMIR/LLVMToLLVMIRTranslation.h"
#include "mlir/Target/LLVMIR/Export.h"
#include "llvm/IR/LegacyPassManager.h"
#include "llvm/MC/TargetRegistry.h"
#include "llvm/Passes/PassBuilder.h"
#include "llvm/Support/TargetSelect.h"

#include <mutex>

using namespace sluice;
using llvm::createStringError;
using llvm::Expected;

void sluice::registerLlvmTranslations(mlir::DialectRegistry &registry) {
  mlir::registerBuiltinDialectTranslation(registry);
  mlir::registerLLVMDialectTranslation(registry);
}

static void initialiseTargets() {
  static std::once_flag initialised;
  std::call_once(initialised, [] {
    LLVMInitializeX86TargetInfo();
    LLVMInitializeX86Target();
    LLVMInitializeX86TargetMC();
    LLVMInitializeX86AsmPrinter();
    LLVMInitializeNVPTXTargetInfo();
    LLVMInitializeNVPTXTarget();
    LLVMInitializeNVPTXTargetMC();
    LLVMInitializeNVPTXAsmPrinter();
  });
}

Expected<std::unique_ptr<llvm::TargetMachine>>
sluice::createTargetMachine(llvm::StringRef tripleName, llvm::StringRef cpu,
                            llvm::StringRef features,
                            std::optional<llvm::Reloc::Model> relocation) {
  initialiseTargets();
  std::string message;
  llvm::Triple triple(tripleName);
  const llvm::Target *target = llvm::TargetRegistry::lookupTarget(triple, message);
  if (!target)
    return createStringError("LLVM cannot compile for " + tripleName + ": " + message);
  // TargetOptions by default round products and sums one by one: a fused multiply-add is one only
  // where it is written.
  std::unique_ptr<llvm::TargetMachine> machine(
      target->createTargetMachine(triple, cpu, features, llvm::TargetOptions(), relocation,
                                  std::nullopt, llvm::CodeGenOptLevel::Aggressive));
  if (!machine)
    return createStringError("LLVM cannot make a target machine for " + tripleName + ", " + cpu);
  return machine;
}

Expected<llvm::orc::JITTargetMachineBuilder> sluice::detectJitTarget() {
  initialiseTargets();
  Expected<llvm::orc::JITTargetMachineBuilder> target =
      llvm::orc::JITTargetMachineBuilder::detectHost();
  if (target)
    target->setCodeGenOptLevel(llvm::CodeGenOptLevel::Default);
  return target;
}

Expected<std::unique_ptr<llvm::Module>> sluice::translateKernels(mlir::Operation *kernels,
                                                                 llvm::LLVMContext &context) {
  std::string message;
  mlir::ScopedDiagnosticHandler handler(kernels->getContext(), [&](mlir::Diagnostic &diagnostic) {
    if (message.empty() && diagnostic.getSeverity() == mlir::DiagnosticSeverity::Error)
      message = diagnostic.str();
    return mlir::success();
  });
  std::unique_ptr<llvm::Module> module = mlir::translateModuleToLLVMIR(kernels, context, "kernels");
  if (!module)
    return createStringError("kernels cannot be translated to LLVM IR" +
                             (message.empty() ? "" : ": " + message));
  return module;
}

void sluice::optimiseKernels(llvm::Module &module, llvm::TargetMachine &machine,
                             llvm::OptimizationLevel level) {
  module.setTargetTriple(machine.getTargetTriple());
  module.setDataLayout(machine.createDataLayout());
  llvm::LoopAnalysisManager loops;
  llvm::FunctionAnalysisManager functions;
  llvm::CGSCCAnalysisManager components;
  llvm::ModuleAnalysisManager modules;
  llvm::PipelineTuningOptions tuning;
  tuning.LoopVectorization = false;
  tuning.SLPVectorization = false;
  llvm::PassBuilder builder(&machine, tuning);
  builder.registerModuleAnalyses(modules);
  builder.registerCGSCCAnalyses(components);
  builder.registerFunctionAnalyses(functions);
  builder.registerLoopAnalyses(loops);
  builder.crossRegisterProxies(loops, functions, components, modules);
  builder.buildPerModuleDefaultPipeline(level).run(module, modules);
}

Expected<llvm::SmallString<0>> sluice::emitKernels(llvm::Module &module,
                                                   llvm::TargetMachine &machine,
                                                   llvm::CodeGenFileType type) {
  llvm::SmallString<0> code;
  llvm::raw_svector_ostream os(code);
  llvm::legacy::PassManager passes;
  if (machine.addPassesToEmitFile(passes, os, nullptr, type))
    return createStringError(
        "LLVM cannot write " +
        llvm::Twine(type == llvm::CodeGenFileType::AssemblyFile ? "assembly" : "an object file") +
        " for " + machine.getTargetTriple().str());
  passes.run(module);
  return code;
}
