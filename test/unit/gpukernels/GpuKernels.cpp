// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "GpuKernels.h"

#include "sluice/Conversion/Passes.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Parser/Parser.h"

#include <gtest/gtest.h>

using namespace sluice;
using namespace sluice::test;

std::string test::gpuSchedule(int64_t blocks, int64_t warps, int64_t stages, int64_t inFlight,
                              int64_t columns, int64_t splits, const std::string &early) {
  return "schedule(#fused.gpu_schedule<blocks = " + std::to_string(blocks) +
         ", warps = " + std::to_string(warps) + ", stages = " + std::to_string(stages) +
         ", in_flight = " + std::to_string(inFlight) + ", columns = " + std::to_string(columns) +
         ", splits = " + std::to_string(splits) + ", early = \"" + early + "\">)";
}

/// The module after conversion; null, a failure of the test, if there is none.
static mlir::OwningOpRef<mlir::ModuleOp>
convert(mlir::MLIRContext &context, const std::string &text, const std::string &target) {
  mlir::DialectRegistry registry;
  registry.insert<model::ModelDialect, quantized::QuantizedDialect, fused::FusedDialect,
                  plan::PlanDialect, mlir::func::FuncDialect, mlir::arith::ArithDialect>();
  nvidia::registerGpuTranslations(registry);
  context.appendDialectRegistry(registry);
  mlir::OwningOpRef<mlir::ModuleOp> module =
      mlir::parseSourceString<mlir::ModuleOp>(text, &context);
  if (!module) {
    ADD_FAILURE() << "cannot parse\n" << text;
    return nullptr;
  }
  mlir::PassManager pm(&context);
  buildGpuCodePipeline(pm, target);
  if (failed(pm.run(*module))) {
    ADD_FAILURE() << "cannot convert\n" << text;
    return nullptr;
  }
  if (!module->lookupSymbol<mlir::gpu::GPUModuleOp>(kKernelsModule)) {
    ADD_FAILURE() << "there are no kernels";
    return nullptr;
  }
  return module;
}

std::unique_ptr<GpuKernels> GpuKernels::compile(const std::string &text,
                                                const std::string &target) {
  mlir::MLIRContext context(mlir::MLIRContext::Threading::DISABLED);
  mlir::OwningOpRef<mlir::ModuleOp> module = convert(context, text, target);
  if (!module)
    return nullptr;
  auto result = std::make_unique<GpuKernels>();
  module->walk([&](plan::DispatchOp dispatch) {
    plan::LaunchAttr launch = dispatch.getLaunch();
    emulator::Launch entry;
    entry.kernel = dispatch.getKernel().getLeafReference().str();
    entry.grid = launch.getGrid();
    entry.block = launch.getBlock();
    entry.shared = launch.getShared();
    entry.cluster = launch.getCluster();
    entry.overlap = launch.getOverlap();
    result->dispatches.push_back(entry);
  });
  llvm::raw_string_ostream(result->text)
      << *module->lookupSymbol<mlir::gpu::GPUModuleOp>(kKernelsModule);
  return result;
}

std::vector<nvidia::KernelResources> GpuKernels::assemble(const std::string &text,
                                                          const std::string &target) {
  mlir::MLIRContext context(mlir::MLIRContext::Threading::DISABLED);
  mlir::OwningOpRef<mlir::ModuleOp> module = convert(context, text, target);
  if (!module)
    return {};
  llvm::Expected<nvidia::GpuCode> code =
      nvidia::compileKernels(module->lookupSymbol<mlir::gpu::GPUModuleOp>(kKernelsModule));
  if (!code) {
    ADD_FAILURE() << llvm::toString(code.takeError());
    return {};
  }
  return code->resources;
}

void GpuKernels::run(size_t dispatch, const std::vector<Buffer *> &arguments, uint64_t seed,
                     size_t caches) {
  ASSERT_LT(dispatch, dispatches.size());
  run(dispatches[dispatch], llvm::ArrayRef<std::vector<Buffer *>>(arguments), seed, caches);
}

void GpuKernels::runAll(const std::vector<std::vector<Buffer *>> &arguments, uint64_t seed,
                        size_t caches) {
  ASSERT_EQ(arguments.size(), dispatches.size());
  run(dispatches, arguments, seed, caches);
}

void GpuKernels::run(llvm::ArrayRef<emulator::Launch> launches,
                     llvm::ArrayRef<std::vector<Buffer *>> arguments, uint64_t seed,
                     size_t caches) {
  emulator::Options options;
  options.seed = seed;
  auto machine = emulator::Emulator::create(text, "kernels.mlir", options);
  ASSERT_TRUE(bool(machine)) << llvm::toString(machine.takeError());
  // What one launch writes another one may read.
  llvm::MapVector<Buffer *, emulator::MemoryKind> kinds;
  for (const std::vector<Buffer *> &all : arguments)
    for (auto [number, argument] : llvm::enumerate(all)) {
      size_t behind = all.size() - 1 - number;
      auto kind = behind == 0        ? emulator::MemoryKind::Scratch
                  : behind <= caches ? emulator::MemoryKind::Persistent
                                     : emulator::MemoryKind::Constant;
      kinds.try_emplace(argument, kind);
    }
  llvm::DenseMap<Buffer *, uint32_t> buffers;
  for (auto [argument, kind] : kinds) {
    std::string name = "argument " + std::to_string(buffers.size());
    uint32_t memory = (*machine)->addMemory(name, argument->as<void>(), argument->size(), kind);
    buffers[argument] = (*machine)->addBuffer(name, memory, 0, argument->size());
  }
  std::vector<emulator::Launch> step = launches.vec();
  for (auto [launch, all] : llvm::zip_equal(step, arguments))
    for (Buffer *argument : all)
      launch.buffers.push_back(buffers.lookup(argument));
  llvm::Error error = (*machine)->run(step);
  EXPECT_FALSE(bool(error)) << llvm::toString(std::move(error));
  for (auto [number, entry] : llvm::enumerate(kinds))
    EXPECT_TRUE(entry.first->intact())
        << step.front().kernel << " wrote outside argument " << number;
}
