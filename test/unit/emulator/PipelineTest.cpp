// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Asynchronous copies: a ring of bulk copies with a producer and consumers, cp.async, and what goes
// wrong when one of its waits is missing.

#include "EmulatorTest.h"

using namespace sluice::emulator;

namespace {

/// What may be left out of the ring.
struct Ring {
  bool waitFull = true, waitEmpty = true, syncBeforeArrive = true, fence = true;
  std::string expect = "%bytes", copied = "%bytes", source = "%from", parity = "%parity";
  bool arriveEmpty = true;
};

// Two consumer warps and a copying warp; four stages of 256 bytes; `count` pieces. Stage i is at
// byte 256 i; its barriers "full" and "empty" are at 1024 + 8 i and 1088 + 8 i. A consumer thread
// sums its word of each piece.
std::string ringKernel(const Ring &ring) {
  std::string text = R"(
    %count = llvm.mlir.constant(19 : i32) : i32
    %bytes = llvm.mlir.constant(256 : i32) : i32
    %half = llvm.mlir.constant(240 : i32) : i32
    %ticks = llvm.mlir.constant(1000 : i32) : i32
    %full0 = llvm.getelementptr %s[1024] : (!llvm.ptr<3>) -> !llvm.ptr<3>, i8
    %empty0 = llvm.getelementptr %s[1088] : (!llvm.ptr<3>) -> !llvm.ptr<3>, i8
    %leader = llvm.icmp "eq" %tid, %c0 : i32
    llvm.cond_br %leader, ^init(%c0 : i32), ^ready
  ^init(%i: i32):
    %fi = llvm.getelementptr %full0[%i] : (!llvm.ptr<3>, i32) -> !llvm.ptr<3>, i64
    %ei = llvm.getelementptr %empty0[%i] : (!llvm.ptr<3>, i32) -> !llvm.ptr<3>, i64
    nvvm.mbarrier.init %fi, %c1 : !llvm.ptr<3>, i32
    nvvm.mbarrier.init %ei, %c2 : !llvm.ptr<3>, i32
    %in = llvm.add %i, %c1 : i32
    %more = llvm.icmp "ult" %in, %c4 : i32
    llvm.cond_br %more, ^init(%in : i32), ^inited
  ^inited:
    nvvm.fence.mbarrier.init
    llvm.br ^ready
  ^ready:
)";
  if (ring.fence)
    text += "    nvvm.barrier0\n";
  text += R"(
    %copies = llvm.icmp "uge" %tid, %c64 : i32
    llvm.cond_br %copies, ^copying, ^consume(%c0, %c0 : i32, i32)
  ^copying:
    %one = llvm.icmp "eq" %tid, %c64 : i32
    llvm.cond_br %one, ^produce(%c0 : i32), ^end
  ^produce(%n: i32):
    %slot = llvm.urem %n, %c4 : i32
    %round = llvm.udiv %n, %c4 : i32
    %odd = llvm.and %round, %c1 : i32
    %free = llvm.xor %odd, %c1 : i32
    %e = llvm.getelementptr %empty0[%slot] : (!llvm.ptr<3>, i32) -> !llvm.ptr<3>, i64
    %f = llvm.getelementptr %full0[%slot] : (!llvm.ptr<3>, i32) -> !llvm.ptr<3>, i64
    %stage_offset = llvm.mul %slot, %bytes : i32
    %stage = llvm.getelementptr %s[%stage_offset] : (!llvm.ptr<3>, i32) -> !llvm.ptr<3>, i8
    %cluster_stage = llvm.addrspacecast %stage : !llvm.ptr<3> to !llvm.ptr<7>
    %from_offset = llvm.mul %n, %bytes : i32
    %from = llvm.getelementptr %a0[%from_offset] : (!llvm.ptr<1>, i32) -> !llvm.ptr<1>, i8
    %shifted = llvm.getelementptr %from[8] : (!llvm.ptr<1>) -> !llvm.ptr<1>, i8
)";
  if (ring.waitEmpty)
    text += "    nvvm.mbarrier.try_wait.parity %e, %free, %ticks : !llvm.ptr<3>, i32, i32\n";
  text += "    nvvm.mbarrier.arrive.expect_tx %f, " + ring.expect +
          " : !llvm.ptr<3>, i32\n"
          "    nvvm.cp.async.bulk.shared.cluster.global %cluster_stage, " +
          ring.source + ", %f, " + ring.copied + " : !llvm.ptr<7>, !llvm.ptr<1>\n";
  text += R"(
    %nn = llvm.add %n, %c1 : i32
    %again = llvm.icmp "ult" %nn, %count : i32
    llvm.cond_br %again, ^produce(%nn : i32), ^drain(%c0 : i32)
  ^drain(%d: i32):
    llvm.br ^end
  ^consume(%m: i32, %sum: i32):
    %cslot = llvm.urem %m, %c4 : i32
    %cround = llvm.udiv %m, %c4 : i32
    %parity = llvm.and %cround, %c1 : i32
    %cf = llvm.getelementptr %full0[%cslot] : (!llvm.ptr<3>, i32) -> !llvm.ptr<3>, i64
    %ce = llvm.getelementptr %empty0[%cslot] : (!llvm.ptr<3>, i32) -> !llvm.ptr<3>, i64
    llvm.br ^wait
  ^wait:
)";
  if (ring.waitFull)
    text += "    %done = nvvm.mbarrier.try_wait %cf, " + ring.parity +
            " : !llvm.ptr<3>, i32 -> i1\n"
            "    llvm.cond_br %done, ^use, ^wait\n";
  else
    text += "    llvm.br ^use\n";
  text += R"(
  ^use:
    %cstage_offset = llvm.mul %cslot, %c64 : i32
    %word = llvm.add %cstage_offset, %tid : i32
    %at = llvm.getelementptr %s[%word] : (!llvm.ptr<3>, i32) -> !llvm.ptr<3>, i32
    %x = llvm.load %at {alignment = 4 : i64} : !llvm.ptr<3> -> i32
    %next_sum = llvm.add %sum, %x : i32
)";
  if (ring.syncBeforeArrive)
    text += "    nvvm.bar.warp.sync %full : i32\n";
  text += R"(
    %first = llvm.icmp "eq" %lane, %c0 : i32
    llvm.cond_br %first, ^arrive, ^used
  ^arrive:
)";
  if (ring.arriveEmpty)
    text += "    %state = nvvm.mbarrier.arrive %ce : !llvm.ptr<3> -> i64\n";
  text += R"(
    llvm.br ^used
  ^used:
    %mm = llvm.add %m, %c1 : i32
    %go = llvm.icmp "ult" %mm, %count : i32
    llvm.cond_br %go, ^consume(%mm, %next_sum : i32, i32), ^result
  ^result:
    %to = llvm.getelementptr %a1[%tid] : (!llvm.ptr<1>, i32) -> !llvm.ptr<1>, i32
    llvm.store %next_sum, %to : i32, !llvm.ptr<1>
    llvm.br ^end
  ^end:
    llvm.return)";
  return kernel("k", 2, text);
}

std::string runRing(const Ring &ring, uint64_t seed = 1, unsigned pieces = 19) {
  Bench bench(ringKernel(ring), seed);
  if (!bench.error.empty())
    return bench.error;
  std::vector<int> x(pieces * 64);
  for (size_t i = 0; i < x.size(); ++i)
    x[i] = int(i * 7919 % 1000);
  uint32_t in = bench.buffer("x", x, MemoryKind::Constant),
           out = bench.buffer("y", std::vector<int>(64), MemoryKind::Scratch);
  bench.launch("k", 1, 96, 1152, {in, out});
  std::string fault = bench.run();
  if (!fault.empty())
    return fault;
  for (int tid = 0; tid < 64; ++tid) {
    int sum = 0;
    for (unsigned piece = 0; piece < pieces; ++piece)
      sum += x[piece * 64 + tid];
    EXPECT_EQ(bench.at<int>(out)[tid], sum);
  }
  return "";
}

} // namespace

TEST(Pipeline, RingIsClean) {
  for (uint64_t seed = 1; seed <= 25; ++seed)
    ASSERT_EQ(runRing(Ring(), seed), "") << "seed " << seed;
}

TEST(Pipeline, ReadBeforeTheCopyHasCompleted) {
  Ring ring;
  ring.waitFull = false;
  // Never written, in flight, or not waited for: a fault in any case.
  for (uint64_t seed = 1; seed <= 10; ++seed)
    EXPECT_FAULT(runRing(ring, seed), "llvm.load at test.mlir:");
}

TEST(Pipeline, WaitForAnotherCopy) {
  auto text = [](const std::string &waited) {
    return kernel("k", 1,
                  R"(
    %ticks = llvm.mlir.constant(1000 : i32) : i32
    %b0 = llvm.getelementptr %s[64] : (!llvm.ptr<3>) -> !llvm.ptr<3>, i8
    %b1 = llvm.getelementptr %s[72] : (!llvm.ptr<3>) -> !llvm.ptr<3>, i8
    %s1 = llvm.getelementptr %s[16] : (!llvm.ptr<3>) -> !llvm.ptr<3>, i8
    %x1 = llvm.getelementptr %a0[16] : (!llvm.ptr<1>) -> !llvm.ptr<1>, i8
    nvvm.mbarrier.init %b0, %c1 : !llvm.ptr<3>, i32
    nvvm.mbarrier.init %b1, %c1 : !llvm.ptr<3>, i32
    nvvm.mbarrier.arrive.expect_tx %b0, %c16 : !llvm.ptr<3>, i32
    nvvm.mbarrier.arrive.expect_tx %b1, %c16 : !llvm.ptr<3>, i32
    nvvm.cp.async.bulk.shared.cluster.global %s, %a0, %b0, %c16 : !llvm.ptr<3>, !llvm.ptr<1>
    nvvm.cp.async.bulk.shared.cluster.global %s1, %x1, %b1, %c16 : !llvm.ptr<3>, !llvm.ptr<1>
    nvvm.mbarrier.try_wait.parity )" +
                      waited + R"(, %c0, %ticks : !llvm.ptr<3>, i32, i32
    %x = llvm.load %s : !llvm.ptr<3> -> i32
    nvvm.mbarrier.try_wait.parity %b0, %c0, %ticks : !llvm.ptr<3>, i32, i32
    nvvm.mbarrier.try_wait.parity %b1, %c0, %ticks : !llvm.ptr<3>, i32, i32
    llvm.return)");
  };
  bool inFlight = false, notWaited = false;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    auto run = [&](const std::string &waited) {
      Bench bench(text(waited), seed);
      if (!bench.error.empty())
        return bench.error;
      bench.launch("k", 1, 1, 128, {bench.buffer("x", std::vector<int>(8))});
      return bench.run();
    };
    ASSERT_EQ(run("%b0"), "");
    std::string fault = run("%b1");
    inFlight |=
        contains(fault, "is the destination of an asynchronous copy that has not completed");
    notWaited |= contains(fault, "was written by an asynchronous copy (nvvm.cp.async.bulk.shared."
                                 "cluster.global at test.mlir:") &&
                 contains(fault, "whose completion the thread has not waited for");
    EXPECT_TRUE(inFlight || notWaited) << fault;
  }
  EXPECT_TRUE(inFlight);
  EXPECT_TRUE(notWaited);
}

TEST(Pipeline, WrongParityReadsEarly) {
  Ring ring;
  ring.parity = "%c1";
  for (uint64_t seed = 1; seed <= 10; ++seed)
    EXPECT_FAULT(runRing(ring, seed), "llvm.load at test.mlir:");
}

TEST(Pipeline, StageIsOverwrittenTooEarly) {
  Ring ring;
  ring.waitEmpty = false;
  for (uint64_t seed = 1; seed <= 10; ++seed)
    EXPECT_FAULT(runRing(ring, seed), "nvvm.");
  ring = Ring();
  ring.syncBeforeArrive = false;
  bool found = false;
  for (uint64_t seed = 1; seed <= 25; ++seed)
    found |= contains(runRing(ring, seed), "copies 256 bytes of shared memory; byte ");
  EXPECT_TRUE(found);
}

TEST(Pipeline, MissingArriveDeadlocks) {
  Ring ring;
  ring.arriveEmpty = false;
  std::string fault = runRing(ring);
  EXPECT_FAULT(fault, "deadlock: no thread can run: ");
  EXPECT_FAULT(fault, "nvvm.mbarrier.try_wait.parity at test.mlir:");
  EXPECT_FAULT(fault,
               "wait for the mbarrier at byte 1088 (phase 0: 2 arrivals and 0 bytes missing)");
}

TEST(Pipeline, WrongByteCountDeadlocks) {
  Ring ring;
  ring.copied = "%half";
  // The words that did not come are uninitialised, if anybody came that far.
  EXPECT_FAULT(runRing(ring), "16 bytes missing");
}

TEST(Pipeline, MbarrierWithoutInitialisation) {
  Ring ring;
  ring.fence = false;
  bool found = false;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    std::string fault = runRing(ring, seed);
    found |= contains(fault, "there is no initialised mbarrier") ||
             contains(fault, "without waiting for its initialisation by thread 0");
  }
  EXPECT_TRUE(found);
}

TEST(Pipeline, MisalignedOrShortSource) {
  Ring ring;
  ring.source = "%shifted";
  EXPECT_FAULT(runRing(ring), "misaligned source of a bulk copy");
  EXPECT_FAULT(runRing(Ring(), 1, 18),
               "reads 256 bytes of global memory outside of the launch's buffers: at byte 4608 of "
               "buffer 'x', which has 4608");
}

TEST(Pipeline, PrefetchIsCheckedLikeARead) {
  auto run = [](const std::string &offset) {
    Bench bench(kernel("k", 1,
                       R"(
    %from = llvm.getelementptr %a0[)" +
                           offset +
                           R"(] : (!llvm.ptr<1>) -> !llvm.ptr<1>, i8
    nvvm.cp.async.bulk.prefetch %from, %c16 : !llvm.ptr<1>
    llvm.return)"));
    EXPECT_EQ(bench.error, "");
    bench.launch("k", 1, 1, 0, {bench.buffer("x", std::vector<int>(8))});
    return bench.run();
  };
  EXPECT_EQ(run("16"), "");
  EXPECT_FAULT(run("32"), "prefetches 16 bytes outside of the launch's buffers");
  EXPECT_FAULT(run("8"), "misaligned prefetch");
}

TEST(Pipeline, BlockEndsBeforeItsCopy) {
  std::string text = kernel("k", 1, R"(
    nvvm.mbarrier.init %s, %c1 : !llvm.ptr<3>, i32
    %stage = llvm.getelementptr %s[16] : (!llvm.ptr<3>) -> !llvm.ptr<3>, i8
    nvvm.mbarrier.arrive.expect_tx %s, %c16 : !llvm.ptr<3>, i32
    nvvm.cp.async.bulk.shared.cluster.global %stage, %a0, %s, %c16 : !llvm.ptr<3>, !llvm.ptr<1>
    llvm.return)");
  bool found = false;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    Bench bench(text, seed);
    ASSERT_EQ(bench.error, "");
    bench.launch("k", 1, 1, 64, {bench.buffer("x", std::vector<int>(4))});
    found |= contains(bench.run(), "the block has ended while this copy to its shared memory was "
                                   "in flight");
  }
  EXPECT_TRUE(found);
}

// cp.async: each thread copies 16 bytes, waits (or not), and reads its neighbour's after a barrier.
static std::string asyncKernel(const std::string &wait) {
  return kernel("k", 2, R"(
    %from = llvm.getelementptr %a0[%tid] : (!llvm.ptr<1>, i32) -> !llvm.ptr<1>, vector<4xi32>
    %stage = llvm.getelementptr %s[%tid] : (!llvm.ptr<3>, i32) -> !llvm.ptr<3>, vector<4xi32>
    nvvm.cp.async.shared.global %stage, %from, 16, cache = cg : !llvm.ptr<3>, !llvm.ptr<1>
    nvvm.cp.async.commit.group
)" + wait + R"(
    nvvm.barrier0
    %other = llvm.xor %tid, %c1 : i32
    %at = llvm.getelementptr %s[%other] : (!llvm.ptr<3>, i32) -> !llvm.ptr<3>, vector<4xi32>
    %x = llvm.load %at : !llvm.ptr<3> -> vector<4xi32>
    %to = llvm.getelementptr %a1[%tid] : (!llvm.ptr<1>, i32) -> !llvm.ptr<1>, vector<4xi32>
    llvm.store %x, %to : vector<4xi32>, !llvm.ptr<1>
    llvm.return)");
}

TEST(Pipeline, CpAsync) {
  auto run = [](const std::string &wait) {
    Bench bench(asyncKernel(wait));
    std::vector<int> x(256);
    for (int i = 0; i < 256; ++i)
      x[i] = i;
    uint32_t in = bench.buffer("x", x, MemoryKind::Constant),
             out = bench.buffer("y", std::vector<int>(256));
    bench.launch("k", 1, 64, 1024, {in, out});
    std::string fault = bench.run();
    if (fault.empty()) {
      EXPECT_EQ(bench.at<int>(out)[5], 1);
      EXPECT_EQ(bench.at<int>(out)[252], 248);
    }
    return fault;
  };
  EXPECT_EQ(run("    nvvm.cp.async.wait.group 0"), "");
  EXPECT_FAULT(run("    nvvm.cp.async.wait.group 1"),
               "is the destination of an asynchronous copy that has not completed");
  EXPECT_FAULT(run(""), "is the destination of an asynchronous copy that has not completed");
}
