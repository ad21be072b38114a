// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "KernelText.h"

#include "sluice/Conversion/Passes.h"

#include "mlir/Dialect/GPU/IR/GPUDialect.h"
#include "mlir/Pass/PassManager.h"

#include "gtest/gtest.h"

using namespace mlir;
using namespace sluice;

test::KernelText
test::kernelText(int64_t arguments, int64_t threads,
                 llvm::function_ref<void(device::DeviceBuilder &, Value, ValueRange)> body) {
  MLIRContext context(MLIRContext::Threading::DISABLED);
  DialectRegistry registry;
  nvidia::registerGpuTranslations(registry);
  context.appendDialectRegistry(registry);
  context.loadDialect<gpu::GPUDialect, LLVM::LLVMDialect, NVVM::NVVMDialect, arith::ArithDialect,
                      scf::SCFDialect>();
  Location loc = UnknownLoc::get(&context);
  OwningOpRef<ModuleOp> module = ModuleOp::create(loc);
  OpBuilder b = OpBuilder::atBlockEnd(module->getBody());
  auto target = NVVM::NVVMTargetAttr::get(&context, /*optLevel=*/3, "nvptx64-nvidia-cuda", "sm_90a",
                                          "+ptx83");
  auto kernels = gpu::GPUModuleOp::create(b, loc, "kernels", b.getArrayAttr({target}));
  b.setInsertionPointToStart(kernels.getBody());
  LLVM::GlobalOp::create(b, loc, LLVM::LLVMArrayType::get(b.getI8Type(), 0), /*isConstant=*/false,
                         LLVM::Linkage::External, "shared", Attribute(), /*alignment=*/1024,
                         /*addrSpace=*/3);
  auto function = LLVM::LLVMFuncOp::create(
      b, loc, "step",
      LLVM::LLVMFunctionType::get(
          LLVM::LLVMVoidType::get(&context),
          SmallVector<Type>(arguments, LLVM::LLVMPointerType::get(&context, 1))));
  function->setAttr("gpu.kernel", b.getUnitAttr());
  function->setAttr("nvvm.kernel", b.getUnitAttr());
  function->setAttr(NVVM::NVVMDialect::getMaxntidAttrName(),
                    b.getDenseI32ArrayAttr({static_cast<int32_t>(threads)}));
  Block *entry = function.addEntryBlock(b);
  b.setInsertionPointToStart(entry);
  auto end = LLVM::ReturnOp::create(b, loc, ValueRange());
  b.setInsertionPoint(end);
  device::DeviceBuilder k(b, loc, 90);
  Value shared =
      LLVM::AddressOfOp::create(b, loc, LLVM::LLVMPointerType::get(&context, 3), "shared");
  body(k, shared, entry->getArguments());

  PassManager pm(&context);
  buildGpuLowerKernelsPipeline(pm);
  EXPECT_TRUE(succeeded(pm.run(*module)));
  // That the instructions exist, the assembler says where there is one.
  llvm::Expected<nvidia::GpuCode> code = nvidia::compileKernels(kernels);
  EXPECT_TRUE(bool(code)) << llvm::toString(code.takeError());
  KernelText result;
  if (code)
    result.resources = code->resources;
  llvm::raw_string_ostream(result.text) << *module;
  return result;
}

test::EmulatedStep::EmulatedStep(const std::string &text, uint64_t seed) {
  emulator::Options options;
  options.seed = seed;
  if (auto made = emulator::Emulator::create(text, "step.mlir", options))
    machine = std::move(*made);
  else
    fault = llvm::toString(made.takeError());
  launch.kernel = "step";
  launch.cooperative = true;
}

void test::EmulatedStep::add(const char *name, void *data, uint64_t bytes,
                             emulator::MemoryKind kind) {
  if (machine)
    launch.buffers.push_back(
        machine->addBuffer(name, machine->addMemory(name, data, bytes, kind), 0, bytes));
}

std::string test::EmulatedStep::run(const fused::GpuLaunch &planned) {
  if (!machine)
    return fault;
  launch.grid = planned.grid;
  launch.block = planned.block;
  launch.shared = planned.shared;
  launch.cluster = planned.cluster;
  return llvm::toString(machine->run({launch}));
}
