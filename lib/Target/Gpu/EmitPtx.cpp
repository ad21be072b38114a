// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Target/GpuTarget.h"

#include "mlir/Conversion/NVVMToLLVM/NVVMToLLVM.h"
#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/Dialect/LLVMIR/NVVMDialect.h"
#include "mlir/IR/Diagnostics.h"
#include "mlir/Pass/PassManager.h"
#include "mlir/Target/LLVMIR/Dialect/Builtin/BuiltinToLLVMIRTranslation.h"
#include "mlir/Target/LLVMIR/Dialect/GPU/GPUToLLVMIRTranslation.h"
#include "mlir/Target/LLVMIR/Dialect/LLVMIR/LLVMToLLVMIRTranslation.h"
#include "mlir/Target/LLVMIR/Dialect/NVVM/NVVMToLLVMIRTranslation.h"
#include "mlir/Target/LLVMIR/Export.h"
#include "llvm/IR/LLVMContext.h"
#include "llvm/IR/LegacyPassManager.h"
#include "llvm/IR/Module.h"
#include "llvm/MC/TargetRegistry.h"
#include "llvm/Passes/PassBuilder.h"
#include "llvm/Support/TargetSelect.h"
#include "llvm/Target/TargetMachine.h"

using namespace mlir;
using namespace sluice;
using llvm::createStringError;
using llvm::Expected;

void nvidia::registerGpuTranslations(DialectRegistry &registry) {
  registry.insert<mlir::gpu::GPUDialect, LLVM::LLVMDialect, NVVM::NVVMDialect>();
  registerBuiltinDialectTranslation(registry);
  registerGPUDialectTranslation(registry);
  registerLLVMDialectTranslation(registry);
  registerNVVMDialectTranslation(registry);
}

static Expected<NVVM::NVVMTargetAttr> targetOf(mlir::gpu::GPUModuleOp kernels) {
  ArrayAttr targets = kernels.getTargetsAttr();
  if (!targets || targets.size() != 1 || !isa<NVVM::NVVMTargetAttr>(targets[0]))
    return createStringError("gpu.module @" + kernels.getName() +
                             " must have one #nvvm.target, found " +
                             std::to_string(targets ? targets.size() : 0));
  return cast<NVVM::NVVMTargetAttr>(targets[0]);
}

Expected<std::string> nvidia::archOf(mlir::gpu::GPUModuleOp kernels) {
  Expected<NVVM::NVVMTargetAttr> target = targetOf(kernels);
  if (!target)
    return target.takeError();
  return target->getChip().str();
}

static Expected<std::unique_ptr<llvm::TargetMachine>>
createTargetMachine(NVVM::NVVMTargetAttr attr) {
  static std::once_flag initialised;
  std::call_once(initialised, [] {
    LLVMInitializeNVPTXTargetInfo();
    LLVMInitializeNVPTXTarget();
    LLVMInitializeNVPTXTargetMC();
    LLVMInitializeNVPTXAsmPrinter();
  });
  std::string message;
  llvm::Triple triple(attr.getTriple());
  const llvm::Target *target = llvm::TargetRegistry::lookupTarget(triple, message);
  if (!target)
    return createStringError("LLVM cannot compile for " + triple.str() + ": " + message);
  // Products and sums are rounded one by one: a fused multiply-add is one only where it is written.
  std::unique_ptr<llvm::TargetMachine> machine(
      target->createTargetMachine(triple, attr.getChip(), attr.getFeatures(), llvm::TargetOptions(),
                                  std::nullopt, std::nullopt, llvm::CodeGenOptLevel::Aggressive));
  if (!machine)
    return createStringError("LLVM cannot make a target machine for " + attr.getChip());
  return machine;
}

static void optimise(llvm::Module &module, llvm::TargetMachine &machine) {
  llvm::LoopAnalysisManager loops;
  llvm::FunctionAnalysisManager functions;
  llvm::CGSCCAnalysisManager components;
  llvm::ModuleAnalysisManager modules;
  llvm::PipelineTuningOptions tuning;
  // The generators have unrolled already; the order of loads and waits is theirs.
  tuning.LoopVectorization = false;
  tuning.SLPVectorization = false;
  llvm::PassBuilder builder(&machine, tuning);
  builder.registerModuleAnalyses(modules);
  builder.registerCGSCCAnalyses(components);
  builder.registerFunctionAnalyses(functions);
  builder.registerLoopAnalyses(loops);
  builder.crossRegisterProxies(loops, functions, components, modules);
  builder.buildPerModuleDefaultPipeline(llvm::OptimizationLevel::O3).run(module, modules);
}

Expected<std::string> nvidia::emitPtx(mlir::gpu::GPUModuleOp kernels, std::string *llvmIr) {
  Expected<NVVM::NVVMTargetAttr> attr = targetOf(kernels);
  if (!attr)
    return attr.takeError();
  Expected<std::unique_ptr<llvm::TargetMachine>> machine = createTargetMachine(*attr);
  if (!machine)
    return machine.takeError();

  // Diagnostics of the passes and the translation become the error.
  std::string message;
  ScopedDiagnosticHandler handler(kernels.getContext(), [&](Diagnostic &diagnostic) {
    if (message.empty() && diagnostic.getSeverity() == mlir::DiagnosticSeverity::Error)
      message = diagnostic.str();
    return success();
  });
  auto fail = [&](StringRef step) {
    return createStringError("cannot " + step + " GPU kernels" +
                             (message.empty() ? "" : ": " + message));
  };
  OwningOpRef<ModuleOp> copy = ModuleOp::create(kernels.getLoc());
  copy->getBody()->push_back(kernels->clone());
  PassManager passes(kernels.getContext());
  passes.nest<mlir::gpu::GPUModuleOp>().addPass(createConvertNVVMToLLVMPass());
  if (failed(passes.run(*copy)))
    return fail("lower");
  llvm::LLVMContext context;
  Operation *lowered = &copy->getBody()->front();
  std::unique_ptr<llvm::Module> module = translateModuleToLLVMIR(lowered, context);
  if (!module)
    return fail("translate");
  module->setTargetTriple(llvm::Triple(attr->getTriple()));
  module->setDataLayout((*machine)->createDataLayout());
  optimise(*module, **machine);
  if (llvmIr) {
    llvm::raw_string_ostream os(*llvmIr);
    module->print(os, nullptr);
  }

  llvm::SmallString<0> text;
  llvm::raw_svector_ostream os(text);
  llvm::legacy::PassManager codegen;
  if ((*machine)->addPassesToEmitFile(codegen, os, nullptr, llvm::CodeGenFileType::AssemblyFile))
    return fail("write PTX of");
  codegen.run(*module);
  return text.str().str();
}
