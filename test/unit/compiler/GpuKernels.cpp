// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "GpuKernels.h"

#include "sluice/Conversion/Passes.h"
#include "sluice/Target/GpuTarget.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Parser/Parser.h"

#include <gtest/gtest.h>

using namespace sluice;
using namespace sluice::test;
using formats::Encoding;

GpuKernels::GpuKernels(const std::string &text, const std::string &target) {
  mlir::DialectRegistry registry;
  registry.insert<model::ModelDialect, quantized::QuantizedDialect, fused::FusedDialect,
                  plan::PlanDialect, mlir::func::FuncDialect, mlir::arith::ArithDialect>();
  nvidia::registerGpuTranslations(registry);
  context.appendDialectRegistry(registry);
  module = mlir::parseSourceString<mlir::ModuleOp>(text, &context);
  if (!module) {
    ADD_FAILURE() << "cannot parse\n" << text;
    return;
  }
  mlir::PassManager pm(&context);
  buildGpuCodePipeline(pm, target);
  if (failed(pm.run(*module))) {
    ADD_FAILURE() << "cannot convert\n" << text;
    return;
  }
  module->walk([&](plan::DispatchOp dispatch) {
    plan::LaunchAttr launch = dispatch.getLaunch();
    launches.push_back({dispatch.getKernel().getLeafReference().str(),
                        "",
                        uint32_t(launch.getGrid()),
                        uint32_t(launch.getBlock()),
                        uint32_t(launch.getShared()),
                        uint32_t(launch.getCluster()),
                        launch.getOverlap(),
                        {}});
  });
  auto kernels = module->lookupSymbol<mlir::gpu::GPUModuleOp>(kKernelsModule);
  if (!kernels) {
    ADD_FAILURE() << "there are no kernels";
    return;
  }
  std::string printed;
  llvm::raw_string_ostream(printed) << *kernels;
  llvm::Expected<std::unique_ptr<emulator::Emulator>> made =
      emulator::Emulator::create(printed, "kernels.mlir");
  if (!made)
    ADD_FAILURE() << llvm::toString(made.takeError());
  else
    emulator = std::move(*made);
}

void GpuKernels::run(size_t number, const std::vector<Buffer *> &arguments) {
  ASSERT_TRUE(emulator);
  ASSERT_LT(number, launches.size());
  emulator::Launch launch = launches[number];
  for (Buffer *argument : arguments) {
    std::string name = "argument " + std::to_string(launch.buffers.size());
    uint32_t memory = emulator->addMemory(name, argument->as<void>(), argument->size(),
                                          emulator::MemoryKind::Persistent);
    launch.buffers.push_back(emulator->addBuffer(name, memory, 0, argument->size()));
  }
  llvm::Error error = emulator->run(launch);
  EXPECT_FALSE(static_cast<bool>(error)) << llvm::toString(std::move(error));
}

void GpuKernels::checkResources(int64_t mostRegisters) {
  auto kernels = module->lookupSymbol<mlir::gpu::GPUModuleOp>(kKernelsModule);
  llvm::Expected<nvidia::GpuCode> code = nvidia::compileKernels(kernels);
  ASSERT_TRUE(static_cast<bool>(code)) << llvm::toString(code.takeError());
  EXPECT_FALSE(code->resources.empty());
  for (const nvidia::KernelResources &kernel : code->resources) {
    EXPECT_EQ(kernel.stackBytes + kernel.spillStoreBytes + kernel.spillLoadBytes, 0) << kernel.name;
    EXPECT_LE(kernel.registers, mostRegisters) << kernel.name;
  }
}

std::string test::activation(int64_t tokens, int64_t width, const std::string &element) {
  return "tensor<" + std::to_string(tokens) + "x" + std::to_string(width) + "x" + element + ">";
}

formats::Layout test::gpuLayout(Encoding format, int64_t chunk) {
  using Kind = formats::Layout::Kind;
  return {format.isInteger() && !format.isPlainInteger() ? Kind::Records : Kind::Mma, chunk};
}

std::string test::packedType(Encoding format, int64_t rows, int64_t columns,
                             formats::Layout layout) {
  return tensorType(format, rows, columns,
                    layout.name().str() + ", columns = " + std::to_string(layout.columns));
}

Buffer test::packGpu(const Weight &weight, const std::vector<int64_t> &rows,
                     formats::Layout layout) {
  formats::PackedShape shape =
      llvm::cantFail(formats::PackedShape::get(weight.format, layout, rows.size(), weight.columns));
  Buffer packed(shape.bytes());
  for (int64_t tile = 0; tile < shape.tiles(); ++tile) {
    std::vector<formats::PackRow> tileRows;
    for (size_t i = tile * 16; i < std::min<size_t>(rows.size(), (tile + 1) * 16); ++i)
      tileRows.push_back(rows[i] < 0 ? formats::PackRow() : weight.row(rows[i]));
    formats::packTile(shape, tileRows,
                      {packed.as<uint8_t>() + tile * shape.tileBytes(), size_t(shape.tileBytes())});
  }
  return packed;
}

std::vector<Encoding> test::allFormats() {
  std::vector<Encoding> result = {{Encoding::Element::F16}, {Encoding::Element::BF16}};
  for (Encoding::Element element : {Encoding::Element::I8, Encoding::Element::I4})
    for (int64_t group : {int64_t(32), int64_t(64), int64_t(128), int64_t(256), Encoding::channel})
      for (bool zeroPoint : {false, true})
        result.push_back(
            {element, group, zeroPoint ? Encoding::Offset::ZeroPoint : Encoding::Offset::None});
  for (const char *name : {"fp8-g32", "fp8-g64-f32", "fp8-g128", "fp8-g256-f32", "fp8-channel",
                           "int8-g256-f32", "int4-g32-f32", "int4-channel-f32"})
    result.push_back(*Encoding::fromName(name));
  result.push_back({Encoding::Element::I4, 128, Encoding::Offset::ZeroPoint, Encoding::Scale::F32});
  return result;
}

std::vector<Encoding> test::recordFormats() {
  std::vector<Encoding> result;
  for (const char *name :
       {"q4_1",       "q5_0",         "q5_1",          "q2_k",       "q3_k",       "q4_k",
        "q5_k",       "q6_k",         "iq4_nl",        "iq4_xs",     "mxfp4",      "nvfp4",
        "int3-g64",   "int6-channel", "int5-g64-n8",   "iq4-g16-n8", "iq1-g16-n8", "iq1-g32-n8",
        "iq2-g16-n8", "iq2-g32-n8",   "iq3xxs-g32-n8", "iq3s-g32-n8"})
    result.push_back(*Encoding::fromName(name));
  for (Encoding format : allFormats())
    if (formats::RecordShape::problem(format).empty())
      result.push_back(format);
  return result;
}
