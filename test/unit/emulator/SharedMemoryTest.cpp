// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Shared memory and barriers: each fault beside the kernel without it.

#include "EmulatorTest.h"

using namespace sluice::emulator;

/// After shared memory was cleared, each thread writes its index, `between`, and reads that of
/// thread (tid xor partner).
static std::string exchange(const std::string &between, const std::string &partner = "%c32") {
  return kernel("k", 1,
                R"(
    %mine = llvm.getelementptr %s[%tid] : (!llvm.ptr<3>, i32) -> !llvm.ptr<3>, i32
    llvm.store %c0, %mine {alignment = 4 : i64} : i32, !llvm.ptr<3>
    nvvm.barrier0
    llvm.store %tid, %mine {alignment = 4 : i64} : i32, !llvm.ptr<3>
)" + between + R"(
    %other = llvm.xor %tid, )" +
                    partner + R"( : i32
    %theirs = llvm.getelementptr %s[%other] : (!llvm.ptr<3>, i32) -> !llvm.ptr<3>, i32
    %x = llvm.load %theirs {alignment = 4 : i64} : !llvm.ptr<3> -> i32
    %to = llvm.getelementptr %a0[%tid] : (!llvm.ptr<1>, i32) -> !llvm.ptr<1>, i32
    llvm.store %x, %to : i32, !llvm.ptr<1>
    llvm.return)");
}

static std::string run(const std::string &text, uint32_t shared = 256, uint64_t seed = 1,
                       std::vector<int> *result = nullptr, uint32_t threads = 64) {
  Bench bench(text, seed);
  if (!bench.error.empty())
    return bench.error;
  uint32_t out = bench.buffer("y", std::vector<int>(threads));
  bench.launch("k", 1, threads, shared, {out});
  std::string fault = bench.run();
  if (result)
    result->assign(bench.at<int>(out), bench.at<int>(out) + threads);
  return fault;
}

TEST(SharedMemory, BarrierOrdersBlock) {
  for (uint64_t seed = 1; seed < 20; ++seed) {
    std::vector<int> y;
    ASSERT_EQ(run(exchange("  nvvm.barrier0"), 256, seed, &y), "");
    for (int i = 0; i < 64; ++i)
      EXPECT_EQ(y[i], i ^ 32);
    ASSERT_EQ(run(exchange("  nvvm.barrier id = %c1 number_of_threads = %c64"), 256, seed), "");
    ASSERT_EQ(run(exchange("  nvvm.bar.warp.sync %full : i32", "%c1"), 256, seed), "");
  }
}

TEST(SharedMemory, MissingBarrierIsARace) {
  // In whichever order the threads run.
  for (uint64_t seed = 1; seed < 20; ++seed)
    EXPECT_FAULT(run(exchange(""), 256, seed), " of shared memory; byte ");
  EXPECT_FAULT(run(exchange("")), "races with the ");
  EXPECT_FAULT(run(exchange("")), " by thread ");
  // A warp's barrier does not order another warp; a shuffle orders nothing.
  EXPECT_NE(run(exchange("  nvvm.bar.warp.sync %full : i32")), "");
  EXPECT_FAULT(
      run(exchange("  %v = nvvm.shfl.sync bfly %full, %tid, %c1, %c31 : i32 -> i32", "%c1")),
      "races with the write by thread");
}

TEST(SharedMemory, WriteAfterReadIsARace) {
  // All read byte 0..3, then thread 0 writes it.
  auto text = [](const std::string &between) {
    return kernel("k", 1, R"(
    %first = llvm.icmp "eq" %tid, %c0 : i32
    llvm.cond_br %first, ^init, ^ready
  ^init:
    llvm.store %c5, %s : i32, !llvm.ptr<3>
    llvm.br ^ready
  ^ready:
    nvvm.barrier0
    %x = llvm.load %s : !llvm.ptr<3> -> i32
)" + between + R"(
    llvm.cond_br %first, ^again, ^end
  ^again:
    llvm.store %x, %s : i32, !llvm.ptr<3>
    llvm.br ^end
  ^end:
    llvm.return)");
  };
  EXPECT_EQ(run(text("  nvvm.barrier0")), "");
  bool found = false;
  for (uint64_t seed = 1; seed < 20; ++seed)
    found |= contains(run(text(""), 256, seed), "races with the read by thread ");
  EXPECT_TRUE(found);
}

TEST(SharedMemory, BytesHaveTheirOwnHistory) {
  // Neighbours write bytes of the same word, and read only their own.
  EXPECT_EQ(run(kernel("k", 1, R"(
    %b = llvm.trunc %tid : i32 to i8
    %p = llvm.getelementptr %s[%tid] : (!llvm.ptr<3>, i32) -> !llvm.ptr<3>, i8
    llvm.store %b, %p : i8, !llvm.ptr<3>
    %x = llvm.load %p : !llvm.ptr<3> -> i8
    nvvm.barrier0
    %word = llvm.load %s : !llvm.ptr<3> -> i32
    llvm.return)")),
            "");
}

TEST(SharedMemory, OutOfBounds) {
  std::string fault = run(exchange("  nvvm.barrier0"), 252);
  EXPECT_FAULT(fault, "kernel 'k' (launch 0), block 0, thread 63: llvm.store at test.mlir:");
  EXPECT_FAULT(fault, "writes 4 bytes outside of shared memory: at byte 252 of 252");
}

TEST(SharedMemory, Uninitialised) {
  EXPECT_FAULT(run(kernel("k", 1, R"(
    %x = llvm.load %s : !llvm.ptr<3> -> i32
    llvm.return)")),
               "byte 0 was never written (uninitialised)");
}

TEST(SharedMemory, Misaligned) {
  EXPECT_FAULT(run(kernel("k", 1, R"(
    %p = llvm.getelementptr %s[2] : (!llvm.ptr<3>) -> !llvm.ptr<3>, i32
    %v = llvm.mlir.constant(dense<0> : vector<4xi32>) : vector<4xi32>
    llvm.store %v, %p {alignment = 16 : i64} : vector<4xi32>, !llvm.ptr<3>
    llvm.return)")),
               "writes 16 bytes misaligned: at byte 8 of shared memory, but must be a "
               "multiple of 16");
}

TEST(SharedMemory, AtomicsDoNotRace) {
  EXPECT_EQ(run(kernel("k", 1, R"(
    %first = llvm.icmp "eq" %tid, %c0 : i32
    llvm.cond_br %first, ^init, ^ready
  ^init:
    llvm.store %c0, %s : i32, !llvm.ptr<3>
    llvm.br ^ready
  ^ready:
    nvvm.barrier0
    %old = llvm.atomicrmw add %s, %c1 monotonic : !llvm.ptr<3>, i32
    nvvm.barrier0
    %x = llvm.load %s : !llvm.ptr<3> -> i32
    %to = llvm.getelementptr %a0[%tid] : (!llvm.ptr<1>, i32) -> !llvm.ptr<1>, i32
    llvm.store %x, %to : i32, !llvm.ptr<1>
    llvm.return)")),
            "");
}

TEST(Barriers, DivergentBarrier) {
  auto only = [](const std::string &limit, const std::string &barrier) {
    return kernel("k", 1,
                  R"(
    %some = llvm.icmp "ult" %tid, )" +
                      limit + R"( : i32
    llvm.cond_br %some, ^wait, ^end
  ^wait:
    )" + barrier + R"(
    llvm.br ^end
  ^end:
    llvm.return)");
  };
  EXPECT_FAULT(run(only("%c16", "nvvm.barrier0")), "divergent barrier");
  EXPECT_FAULT(run(only("%c32", "nvvm.barrier0")), "divergent barrier");
  EXPECT_FAULT(run(only("%c16", "nvvm.barrier id = %c1 number_of_threads = %c32")),
               "divergent barrier");
  EXPECT_EQ(run(only("%c32", "nvvm.barrier id = %c1 number_of_threads = %c32")), "");
}

TEST(Barriers, TwoPlaces) {
  // Lanes of one warp at two barriers.
  EXPECT_FAULT(run(kernel("k", 1, R"(
    %some = llvm.icmp "ult" %lane, %c8 : i32
    llvm.cond_br %some, ^one, ^two
  ^one:
    nvvm.barrier0
    llvm.br ^end
  ^two:
    nvvm.barrier0
    llvm.br ^end
  ^end:
    llvm.return)")),
               "divergent barrier: lanes");
}

TEST(Barriers, Deadlock) {
  // The two warps wait at different barriers.
  std::string fault = run(kernel("k", 1, R"(
    %some = llvm.icmp "ult" %tid, %c32 : i32
    llvm.cond_br %some, ^one, ^two
  ^one:
    nvvm.barrier id = %c1 number_of_threads = %c64
    llvm.br ^end
  ^two:
    nvvm.barrier id = %c2 number_of_threads = %c64
    llvm.br ^end
  ^end:
    llvm.return)"));
  EXPECT_FAULT(fault, "kernel 'k' (launch 0): deadlock: no thread can run: block 0, thread ");
  EXPECT_FAULT(fault, "and 31 more at nvvm.barrier at test.mlir:");
  EXPECT_FAULT(fault, "wait at barrier 1 (32 of 64 have arrived)");
}

TEST(Barriers, ArriveAndWait) {
  // Warp 0 produces and goes on, warp 1 waits.
  EXPECT_EQ(run(kernel("k", 1, R"(
    %some = llvm.icmp "ult" %tid, %c32 : i32
    llvm.cond_br %some, ^one, ^two
  ^one:
    %p = llvm.getelementptr %s[%tid] : (!llvm.ptr<3>, i32) -> !llvm.ptr<3>, i32
    llvm.store %tid, %p : i32, !llvm.ptr<3>
    nvvm.barrier.arrive id = %c1 number_of_threads = %c64
    llvm.br ^end
  ^two:
    nvvm.barrier id = %c1 number_of_threads = %c64
    %q = llvm.getelementptr %s[%lane] : (!llvm.ptr<3>, i32) -> !llvm.ptr<3>, i32
    %x = llvm.load %q : !llvm.ptr<3> -> i32
    llvm.br ^end
  ^end:
    llvm.return)")),
            "");
}
