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
#include "llvm/ADT/StringExtras.h"
#include "llvm/ADT/StringSet.h"
#include "llvm/IR/IRBuilder.h"
#include "llvm/IR/InlineAsm.h"
#include "llvm/IR/InstIterator.h"
#include "llvm/IR/LLVMContext.h"
#include "llvm/Support/Regex.h"

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

/// Puts an instruction of integers between float32 numbers and stores of their low bits, which
/// ptxas otherwise converts (findConvertedStore). Last, because optimisation leaves nothing of what
/// does not change those bits.
static void keepLowBits(llvm::Module &module) {
  auto *half = llvm::Type::getInt16Ty(module.getContext());
  auto *low = llvm::InlineAsm::get(
      llvm::FunctionType::get(half, llvm::Type::getInt32Ty(module.getContext()), false),
      "cvt.u16.u32 $0, $1;", "=h,r", /*hasSideEffects=*/false);
  for (llvm::Function &function : module)
    for (llvm::Instruction &instruction :
         llvm::make_early_inc_range(llvm::instructions(function))) {
      auto *truncate = dyn_cast<llvm::TruncInst>(&instruction);
      if (!truncate || truncate->getType()->getScalarSizeInBits() > 16)
        continue;
      auto *bits = dyn_cast<llvm::BitCastInst>(truncate->getOperand(0));
      if (!bits || !bits->getSrcTy()->isFloatTy())
        continue;
      llvm::IRBuilder<> builder(truncate);
      llvm::Value *kept = builder.CreateCall(low, bits);
      truncate->replaceAllUsesWith(builder.CreateTrunc(kept, truncate->getType()));
      truncate->eraseFromParent();
    }
}

std::optional<std::string> nvidia::findConvertedStore(llvm::StringRef ptx) {
  // An instruction's first type is its result's; mov has none of its own.
  static const llvm::Regex result(
      "^[[:space:]]*(@!?%p[0-9]+[[:space:]]+)?[a-z0-9_]+(\\.[a-z][a-z_]*[0-9]?)*"
      "\\.f32(\\.[a-z0-9]+)*[[:space:]]+(%r[0-9]+),");
  static const llvm::Regex store(
      "[[:space:]]st(\\.[a-z0-9_:]+)*\\.[bu](8|16)[[:space:]]+\\[[^]]*\\],"
      "[[:space:]]*([^;]*);");
  static const llvm::Regex entry("\\.(entry|func) ");
  llvm::StringSet<> floats;
  llvm::SmallVector<llvm::StringRef> parts;
  for (llvm::StringRef line : llvm::split(ptx, '\n')) {
    if (entry.match(line))
      floats.clear();
    else if (result.match(line, &parts))
      floats.insert(parts.back());
    else if (store.match(line, &parts))
      for (llvm::StringRef operand : llvm::split(parts.back(), ','))
        if (floats.contains(operand.trim(" {}")))
          return line.trim().str();
  }
  return std::nullopt;
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
  keepLowBits(**module);
  if (llvmIr) {
    llvm::raw_string_ostream os(*llvmIr);
    (*module)->print(os, nullptr);
  }

  Expected<llvm::SmallString<0>> text =
      emitKernels(**module, **machine, llvm::CodeGenFileType::AssemblyFile);
  if (!text)
    return text.takeError();
  if (std::optional<std::string> store = findConvertedStore(*text))
    return createStringError("ptxas would convert the float that '" + *store +
                             "' stores the low bits of");
  return text->str().str();
}
