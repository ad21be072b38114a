// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Launches that overlap, and clusters.

#include "EmulatorTest.h"

using namespace sluice::emulator;

/// Adds one to each element of %a0 and stores it to %a1; `before` and `between` surround the load.
static std::string increment(const std::string &name, const std::string &before,
                             const std::string &between = "") {
  return kernel(name, 2, before + R"(
    %ntid = nvvm.read.ptx.sreg.ntid.x : i32
    %base = llvm.mul %block, %ntid : i32
    %i = llvm.add %base, %tid : i32
    %from = llvm.getelementptr %a0[%i] : (!llvm.ptr<1>, i32) -> !llvm.ptr<1>, i32
    %x = llvm.load %from : !llvm.ptr<1> -> i32
    %y = llvm.add %x, %c1 : i32
    %to = llvm.getelementptr %a1[%i] : (!llvm.ptr<1>, i32) -> !llvm.ptr<1>, i32
)" + between + R"(
    llvm.store %y, %to : i32, !llvm.ptr<1>
    llvm.return)");
}

static const std::string triggerText = "    nvvm.griddepcontrol launch_dependents\n",
                         waitText = "    nvvm.griddepcontrol wait\n";

/// Three launches in a chain, x -> m -> n -> y, all with dependent launch; the middle kernel given.
static std::string chain(const std::string &middle, uint64_t seed) {
  Bench bench(increment("first", triggerText + waitText) + middle +
                  increment("last", triggerText + waitText),
              seed);
  if (!bench.error.empty())
    return bench.error;
  std::vector<int> zeros(40 * 32);
  uint32_t x = bench.buffer("x", zeros, MemoryKind::Constant),
           m = bench.buffer("m", zeros, MemoryKind::Scratch),
           n = bench.buffer("n", zeros, MemoryKind::Scratch),
           y = bench.buffer("y", zeros, MemoryKind::Scratch);
  bench.launch("first", 40, 32, 0, {x, m}, true);
  bench.launch("middle", 40, 32, 0, {m, n}, true);
  bench.launch("last", 40, 32, 0, {n, y}, true);
  std::string fault = bench.run();
  if (fault.empty())
    for (int i = 0; i < 40 * 32; ++i)
      EXPECT_EQ(bench.at<int>(y)[i], 3);
  return fault;
}

TEST(DependentLaunch, WaitMakesItClean) {
  for (uint64_t seed = 1; seed <= 20; ++seed)
    EXPECT_EQ(chain(increment("middle", triggerText + waitText), seed), "");
}

TEST(DependentLaunch, ReadBeforeTheWait) {
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    std::string fault = chain(increment("middle", triggerText, waitText), seed);
    EXPECT_FAULT(fault, "kernel 'middle' (launch 1)");
    // Found whether or not the kernel before was faster this time.
    EXPECT_TRUE(
        contains(fault, "which launch 0 ('first') has written, before the dependency wait") ||
        contains(fault, "which was never written in this step"))
        << fault;
  }
}

TEST(DependentLaunch, NoWaitInBetweenLeavesTheLaunchBeforeUncovered) {
  // `middle` does not wait and reads nothing of the step: whoever waits for it has not waited for
  // the first launch.
  std::string middle = kernel("middle", 0, triggerText + "    llvm.return");
  bool found = false;
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    Bench bench(increment("first", triggerText + waitText) + middle + increment("last", waitText),
                seed);
    std::vector<int> zeros(40 * 32);
    uint32_t x = bench.buffer("x", zeros, MemoryKind::Constant), m = bench.buffer("m", zeros),
             y = bench.buffer("y", zeros);
    bench.launch("first", 40, 32, 0, {x, m});
    bench.launch("middle", 4, 32, 0, {}, true);
    bench.launch("last", 40, 32, 0, {m, y}, true);
    found |= contains(bench.run(), "which is not covered by the dependency wait");
  }
  EXPECT_TRUE(found);
}

TEST(DependentLaunch, WriteBeforeTheWait) {
  // Writes what the launch before reads.
  std::string early = kernel("early", 1, triggerText + R"(
    %ntid = nvvm.read.ptx.sreg.ntid.x : i32
    %base = llvm.mul %block, %ntid : i32
    %i = llvm.add %base, %tid : i32
    %to = llvm.getelementptr %a0[%i] : (!llvm.ptr<1>, i32) -> !llvm.ptr<1>, i32
    llvm.store %c5, %to : i32, !llvm.ptr<1>
)" + waitText + "    llvm.return");
  std::string late = kernel("late", 1, triggerText + waitText + R"(
    %to = llvm.getelementptr %a0[%tid] : (!llvm.ptr<1>, i32) -> !llvm.ptr<1>, i32
    llvm.store %c5, %to : i32, !llvm.ptr<1>
    llvm.return)");
  auto run = [&](const std::string &name, bool overlap) {
    Bench bench(increment("first", triggerText + waitText) + early + late);
    EXPECT_EQ(bench.error, "");
    std::vector<int> zeros(32);
    uint32_t x = bench.buffer("x", zeros), y = bench.buffer("y", zeros);
    bench.launch("first", 1, 32, 0, {x, y});
    bench.launch(name, 1, 32, 0, {x}, overlap);
    return bench.run();
  };
  EXPECT_FAULT(run("early", true),
               "before the dependency wait (griddepcontrol.wait), while launch 0 "
               "('first') may still use 'x'");
  EXPECT_EQ(run("late", true), "");
  EXPECT_EQ(run("early", false), "");
}

TEST(DependentLaunch, ReallyOverlaps) {
  // The second kernel sets a flag before its wait that the first one polls for.
  std::string first = kernel("first", 1, triggerText + R"(
    llvm.br ^poll
  ^poll:
    %x = llvm.load volatile %a0 {alignment = 4 : i64} : !llvm.ptr<1> -> i32
    %set = llvm.icmp "ne" %x, %c0 : i32
    llvm.cond_br %set, ^end, ^poll
  ^end:
    llvm.return)");
  std::string second = kernel("second", 1,
                              "    %old = llvm.atomicrmw add %a0, %c1 monotonic : "
                              "!llvm.ptr<1>, i32\n" +
                                  waitText + "    llvm.return");
  Bench bench(first + second);
  ASSERT_EQ(bench.error, "");
  uint32_t flag = bench.buffer("flag", std::vector<int>(1));
  bench.launch("first", 1, 1, 0, {flag});
  bench.launch("second", 1, 1, 0, {flag}, true);
  // That it gets as far as the store shows it; that the store is too early is the fault.
  EXPECT_FAULT(bench.run(), "kernel 'second' (launch 1), block 0, thread 0: llvm.atomicrmw");
}

TEST(Launches, PollingForNothing) {
  std::string text = kernel("k", 1, R"(
    llvm.br ^poll
  ^poll:
    %x = llvm.load volatile %a0 {alignment = 4 : i64} : !llvm.ptr<1> -> i32
    %set = llvm.icmp "ne" %x, %c0 : i32
    llvm.cond_br %set, ^end, ^poll
  ^end:
    llvm.return)");
  Bench bench(text);
  bench.launch("k", 1, 1, 0, {bench.buffer("flag", std::vector<int>(1))});
  EXPECT_FAULT(bench.run(), "livelock: nothing changes what threads poll for: block 0, thread 0 at "
                            "llvm.load at test.mlir:");
}

TEST(Launches, BlocksOfALaunchRace) {
  std::string text =
      kernel("k", 1, "    llvm.store %block, %a0 : i32, !llvm.ptr<1>\n    llvm.return");
  Bench bench(text);
  bench.launch("k", 2, 1, 0, {bench.buffer("y", std::vector<int>(1))});
  EXPECT_FAULT(bench.run(), "of the same launch has written, with no synchronization between them");
}

// Each block of a cluster writes its rank to its own shared memory and reads that of the next.
static std::string clusterKernel(const std::string &between, const std::string &after) {
  return kernel("k", 1, R"(
    %rank = nvvm.read.ptx.sreg.cluster.ctarank : i32
    %size = nvvm.read.ptx.sreg.cluster.nctarank : i32
    %mine = llvm.getelementptr %s[%tid] : (!llvm.ptr<3>, i32) -> !llvm.ptr<3>, i32
    llvm.store %block, %mine : i32, !llvm.ptr<3>
)" + between + R"(
    %n = llvm.add %rank, %c1 : i32
    %next = llvm.urem %n, %size : i32
    %there = nvvm.mapa %mine, %next : !llvm.ptr<3> -> !llvm.ptr<7>
    %x = llvm.load %there : !llvm.ptr<7> -> i32
    %base = llvm.mul %block, %c32 : i32
    %i = llvm.add %base, %tid : i32
    %to = llvm.getelementptr %a0[%i] : (!llvm.ptr<1>, i32) -> !llvm.ptr<1>, i32
    llvm.store %x, %to : i32, !llvm.ptr<1>
)" + after + "    llvm.return",
                "nvvm.cluster_dim = array<i32: 4, 1, 1>");
}

TEST(Clusters, DistributedSharedMemory) {
  const std::string barrier =
      "    nvvm.cluster.arrive {aligned}\n    nvvm.cluster.wait {aligned}\n";
  auto run = [](const std::string &text, uint64_t seed) {
    Bench bench(text, seed);
    if (!bench.error.empty())
      return bench.error;
    uint32_t out = bench.buffer("y", std::vector<int>(8 * 32));
    bench.launch("k", 8, 32, 128, {out}, false, 4);
    std::string fault = bench.run();
    if (fault.empty())
      for (int block = 0; block < 8; ++block)
        EXPECT_EQ(bench.at<int>(out)[block * 32 + 3], block / 4 * 4 + (block + 1) % 4);
    return fault;
  };
  bool ended = false;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    EXPECT_EQ(run(clusterKernel(barrier, barrier), seed), "");
    EXPECT_NE(run(clusterKernel("", barrier), seed), "");
    EXPECT_NE(run(clusterKernel("    nvvm.barrier0\n", barrier), seed), "");
    // Without the second barrier a block may end while another reads its memory.
    ended |= contains(run(clusterKernel(barrier, ""), seed), "which has ended");
  }
  EXPECT_TRUE(ended);
  EXPECT_FAULT(run(clusterKernel("", barrier), 1), "of block ");
}
