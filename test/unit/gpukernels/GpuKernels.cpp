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

std::unique_ptr<GpuKernels> GpuKernels::compile(const std::string &text,
                                                const std::string &target) {
  mlir::DialectRegistry registry;
  registry.insert<model::ModelDialect, quantized::QuantizedDialect, fused::FusedDialect,
                  plan::PlanDialect, mlir::func::FuncDialect, mlir::arith::ArithDialect>();
  mlir::MLIRContext context(registry, mlir::MLIRContext::Threading::DISABLED);
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
  auto kernels = module->lookupSymbol<mlir::gpu::GPUModuleOp>(kKernelsModule);
  if (!kernels) {
    ADD_FAILURE() << "there are no kernels";
    return nullptr;
  }
  llvm::raw_string_ostream(result->text) << *kernels;
  return result;
}

void GpuKernels::run(size_t dispatch, const std::vector<Buffer *> &arguments, uint64_t seed,
                     size_t caches) {
  ASSERT_LT(dispatch, dispatches.size());
  emulator::Options options;
  options.seed = seed;
  auto machine = emulator::Emulator::create(text, "kernels.mlir", options);
  ASSERT_TRUE(bool(machine)) << llvm::toString(machine.takeError());
  emulator::Launch launch = dispatches[dispatch];
  for (auto [number, argument] : llvm::enumerate(arguments)) {
    size_t behind = arguments.size() - 1 - number;
    auto kind = behind == 0        ? emulator::MemoryKind::Scratch
                : behind <= caches ? emulator::MemoryKind::Persistent
                                   : emulator::MemoryKind::Constant;
    std::string name = "argument " + std::to_string(launch.buffers.size());
    uint32_t memory = (*machine)->addMemory(name, argument->as<void>(), argument->size(), kind);
    launch.buffers.push_back((*machine)->addBuffer(name, memory, 0, argument->size()));
  }
  llvm::Error error = (*machine)->run(launch);
  EXPECT_FALSE(bool(error)) << llvm::toString(std::move(error));
  for (auto [number, argument] : llvm::enumerate(arguments))
    EXPECT_TRUE(argument->intact()) << launch.kernel << " wrote outside argument " << number;
}
