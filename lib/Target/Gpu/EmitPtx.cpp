// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Target/GpuTarget.h"
#include "sluice/Target/LlvmTarget.h"

#include "mlir/Conversion/NVVMToLLVM/NVVMToLLVM.h"
#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/Dialect/LLVMIR/NVVMDialect.h"
#include "mlir/IR/Diagnostics.h"
#include "mlir/Pass/PassManager.h"
#include "mlir/Target/LLVMIR/Dialect/GPU/GPUToLLVMIRTranslation.h"
#include "mlir/Target/LLVMIR/Dialect/NVVM/NVVMToLLVMIRTranslation.h"
#include "llvm/IR/LLVMContext.h"

using namespace mlir;
using namespace sluice;
using llvm::createStringError;
using llvm::Expected;

void nvidia::registerGpuTranslations(DialectRegistry &registry) {
  registry.insert<mlir::gpu::GPUDialect, LLVM::LLVMDialect, NVVM::NVVMDialect>();
  registerLlvmTranslations(registry);
  registerGPUDialectTranslation(registry);
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

/// Operations that become inline PTX.
static llvm::Error lowerNvvm(ModuleOp module) {
  std::string message;
  ScopedDiagnosticHandler handler(module.getContext(), [&](Diagnostic &diagnostic) {
    if (message.empty() && diagnostic.getSeverity() == mlir::DiagnosticSeverity::Error)
      message = diagnostic.str();
    return success();
  });
  PassManager passes(module.getContext());
  passes.nest<mlir::gpu::GPUModuleOp>().addPass(createConvertNVVMToLLVMPass());
  if (failed(passes.run(module)))
    return createStringError("cannot lower GPU kernels" + (message.empty() ? "" : ": " + message));
  return llvm::Error::success();
}

Expected<std::string> nvidia::emitPtx(mlir::gpu::GPUModuleOp kernels, std::string *llvmIr) {
  Expected<NVVM::NVVMTargetAttr> attr = targetOf(kernels);
  if (!attr)
    return attr.takeError();
  Expected<std::unique_ptr<llvm::TargetMachine>> machine =
      createTargetMachine(attr->getTriple(), attr->getChip(), attr->getFeatures());
  if (!machine)
    return machine.takeError();

  OwningOpRef<ModuleOp> copy = ModuleOp::create(kernels.getLoc());
  copy->getBody()->push_back(kernels->clone());
  if (llvm::Error error = lowerNvvm(*copy))
    return std::move(error);
  llvm::LLVMContext context;
  Expected<std::unique_ptr<llvm::Module>> module =
      translateKernels(&copy->getBody()->front(), context);
  if (!module)
    return createStringError("GPU " + llvm::toString(module.takeError()));
  optimiseKernels(**module, **machine, llvm::OptimizationLevel::O3);
  if (llvmIr) {
    llvm::raw_string_ostream os(*llvmIr);
    (*module)->print(os, nullptr);
  }

  Expected<llvm::SmallString<0>> text =
      emitKernels(**module, **machine, llvm::CodeGenFileType::AssemblyFile);
  if (!text)
    return text.takeError();
  return text->str().str();
}
