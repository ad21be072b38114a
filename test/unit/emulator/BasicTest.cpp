// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Loads, stores, arithmetic, registers; what is refused before anything runs.

#include "EmulatorTest.h"

using namespace sluice::emulator;

// y[i] = 2 x[i], i over all threads of all blocks.
static const std::string twice = kernel("twice", 2, R"(
  %ntid = nvvm.read.ptx.sreg.ntid.x : i32
  %first = llvm.mul %block, %ntid : i32
  %i = llvm.add %first, %tid : i32
  %from = llvm.getelementptr %a0[%i] : (!llvm.ptr<1>, i32) -> !llvm.ptr<1>, f32
  %x = llvm.load %from {alignment = 4 : i64} : !llvm.ptr<1> -> f32
  %y = llvm.fadd %x, %x : f32
  %to = llvm.getelementptr %a1[%i] : (!llvm.ptr<1>, i32) -> !llvm.ptr<1>, f32
  llvm.store %y, %to {alignment = 4 : i64} : f32, !llvm.ptr<1>
  llvm.return)");

TEST(Basic, RunsAllThreadsOfAllBlocks) {
  Bench bench(twice);
  std::vector<float> x(4 * 96);
  for (size_t i = 0; i < x.size(); ++i)
    x[i] = float(i);
  uint32_t in = bench.buffer("x", x, MemoryKind::Constant),
           out = bench.buffer("y", std::vector<float>(x.size()), MemoryKind::Scratch);
  bench.launch("twice", 4, 96, 0, {in, out});
  ASSERT_EQ(bench.run(), "");
  for (size_t i = 0; i < x.size(); ++i)
    EXPECT_EQ(bench.at<float>(out)[i], 2 * x[i]);
}

TEST(Basic, GlobalOutOfBounds) {
  Bench bench(twice);
  uint32_t in = bench.buffer("x", std::vector<float>(96), MemoryKind::Constant),
           out = bench.buffer("y", std::vector<float>(95));
  bench.launch("twice", 1, 96, 0, {in, out});
  std::string fault = bench.run();
  EXPECT_FAULT(fault, "kernel 'twice' (launch 0), block 0, thread 95: llvm.store at test.mlir:");
  EXPECT_FAULT(fault,
               "writes 4 bytes of global memory outside of the launch's buffers: at byte 380 "
               "of buffer 'y', which has 380");
}

TEST(Basic, WriteToConstant) {
  Bench bench(twice);
  uint32_t in = bench.buffer("x", std::vector<float>(32), MemoryKind::Constant),
           out = bench.buffer("y", std::vector<float>(32), MemoryKind::Constant);
  bench.launch("twice", 1, 32, 0, {in, out});
  EXPECT_FAULT(bench.run(), "of buffer 'y', which is constant");
}

TEST(Basic, UninitialisedScratch) {
  Bench bench(twice);
  uint32_t in = bench.buffer("x", std::vector<float>(32), MemoryKind::Constant),
           middle = bench.buffer("m", std::vector<float>(64), MemoryKind::Scratch),
           out = bench.buffer("y", std::vector<float>(64), MemoryKind::Scratch);
  bench.launch("twice", 1, 32, 0, {in, middle});
  bench.launch("twice", 1, 32, 0, {middle, out});
  ASSERT_EQ(bench.run(), "");
  // What the step before has written does not count.
  bench.launch("twice", 1, 32, 0, {middle, out});
  EXPECT_FAULT(bench.run(), "of buffer 'm', which was never written in this step");
}

TEST(Basic, MisalignedVector) {
  std::string text = kernel("load", 2, R"(
    %from = llvm.getelementptr %a0[%tid] : (!llvm.ptr<1>, i32) -> !llvm.ptr<1>, vector<2xi32>
    %x = llvm.load %from {alignment = 16 : i64} : !llvm.ptr<1> -> vector<4xi32>
    %to = llvm.getelementptr %a1[%tid] : (!llvm.ptr<1>, i32) -> !llvm.ptr<1>, vector<4xi32>
    llvm.store %x, %to {alignment = 16 : i64} : vector<4xi32>, !llvm.ptr<1>
    llvm.return)");
  Bench bench(text);
  uint32_t in = bench.buffer("x", std::vector<int>(16)),
           out = bench.buffer("y", std::vector<int>(16));
  bench.launch("load", 1, 1, 0, {in, out});
  EXPECT_EQ(bench.run(), "");
  bench.launch("load", 1, 2, 0, {in, out});
  std::string fault = bench.run();
  EXPECT_FAULT(fault, "thread 1: llvm.load at test.mlir:");
  EXPECT_FAULT(fault, "reads 16 bytes misaligned: the address is 8 bytes past a multiple of 16");
}

TEST(Basic, CallsFunctionsOfTheModule) {
  std::string text = R"(llvm.func @square(%x: i32) -> i32 {
      %y = llvm.mul %x, %x : i32
      llvm.return %y : i32
    }
)" + kernel("run", 1, R"(
    %y = llvm.call @square(%tid) : (i32) -> i32
    %to = llvm.getelementptr %a0[%tid] : (!llvm.ptr<1>, i32) -> !llvm.ptr<1>, i32
    llvm.store %y, %to : i32, !llvm.ptr<1>
    llvm.return)");
  Bench bench(text);
  uint32_t out = bench.buffer("y", std::vector<int>(32));
  bench.launch("run", 1, 32, 0, {out});
  ASSERT_EQ(bench.run(), "");
  EXPECT_EQ(bench.at<int>(out)[31], 961);
}

TEST(Basic, TheModuleMayStandAlone) {
  auto created = Emulator::create("gpu.module @kernels { llvm.func @k() attributes {gpu.kernel} { "
                                  "llvm.return } }",
                                  "kernels.mlir");
  ASSERT_TRUE(bool(created)) << toString(created.takeError());
  EXPECT_EQ((*created)->kernels(), std::vector<std::string>{"k"});
  Launch launch;
  launch.kernel = "k";
  EXPECT_FALSE(bool((*created)->run(launch)));
}

TEST(Basic, LaunchesAreChecked) {
  auto fault = [](uint32_t grid, uint32_t block, uint32_t shared, uint32_t cluster,
                  unsigned buffers, const std::string &name = "twice") {
    Bench bench(twice);
    std::vector<uint32_t> arguments;
    for (unsigned i = 0; i < buffers; ++i)
      arguments.push_back(bench.buffer("b", std::vector<int>(1)));
    bench.launch(name, grid, block, shared, arguments, false, cluster);
    return bench.run();
  };
  EXPECT_FAULT(fault(1, 32, 0, 1, 2, "thrice"), "the module has no such kernel");
  EXPECT_FAULT(fault(1, 32, 0, 1, 1), "has 1 buffers, but the kernel takes 2");
  EXPECT_FAULT(fault(1, 1025, 0, 1, 2), "has blocks of 1025 threads, expected 1 to 1024");
  EXPECT_FAULT(fault(1, 32, 300000, 1, 2), "needs 300000 bytes of shared memory");
  EXPECT_FAULT(fault(3, 32, 0, 2, 2), "a grid of 3 blocks in clusters of 2");
}

TEST(Basic, OperationsWithoutSemanticsAreErrors) {
  auto refused = [](const std::string &body) { return Bench(kernel("k", 1, body)).error; };
  EXPECT_FAULT(refused("  nvvm.breakpoint\n llvm.return"),
               "kernel 'k': nvvm.breakpoint at test.mlir:");
  EXPECT_FAULT(refused("  nvvm.breakpoint\n llvm.return"), "has no semantics in the emulator");
  EXPECT_FAULT(refused("  nvvm.inline_ptx \"bar.sync 0;\"\n llvm.return"), "\"bar.sync 0;\"");
  EXPECT_FAULT(refused("  %x = nvvm.read.ptx.sreg.smid : i32\n llvm.return"),
               "nvvm.read.ptx.sreg.smid");
  EXPECT_FAULT(refused("  %x = llvm.call_intrinsic \"llvm.nvvm.fmin.f\"(%tid, %tid) : (i32, i32) "
                       "-> i32\n llvm.return"),
               "'llvm.nvvm.fmin.f'");
  EXPECT_FAULT(refused("  llvm.inline_asm \"x\", \"\" : () -> ()\n llvm.return"),
               "llvm.inline_asm");
  EXPECT_FAULT(toString(Emulator::create("module {}", "empty.mlir").takeError()),
               "empty.mlir: holds 0 gpu.modules, expected 1");
  EXPECT_FAULT(Bench("llvm.func @f() {").error, "test.mlir:");
}
