// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Blocks that wait for each other: counted sums in global memory, release and acquire, stores to
// the shared memory of a cluster's blocks, and what goes wrong when one part of a protocol is
// missing.

#include "EmulatorTest.h"

#include "sluice/Target/InlinePtx.h"

using namespace sluice::emulator;

namespace {

/// What a block adds to the sum, and how it waits for it.
struct Sum {
  /// Additions of block 3, in place of one.
  int additions = 1;
  std::string order = "syncscope(\"device\") monotonic";
  std::string reset;
};

constexpr int sumBlocks = 8;

// Each block adds (its number << 8) + 1 to a word: the low byte counts the additions. All wait
// until it says that they are complete.
std::string sumKernel(const Sum &sum) {
  std::string add = "    %o = llvm.atomicrmw add %a0, %term syncscope(\"device\") monotonic : "
                    "!llvm.ptr<1>, i64\n";
  std::string text = R"(
    %wide = llvm.zext %block : i32 to i64
    %eight = llvm.mlir.constant(8 : i64) : i64
    %one = llvm.mlir.constant(1 : i64) : i64
    %mask = llvm.mlir.constant(255 : i64) : i64
    %zero = llvm.mlir.constant(0 : i64) : i64
    %high = llvm.shl %wide, %eight : i64
    %term = llvm.add %high, %one : i64
    %special = llvm.icmp "eq" %block, %c3 : i32
    llvm.cond_br %special, ^three, ^others
  ^three:
)";
  for (int i = 0; i < sum.additions; ++i)
    text +=
        "    %t" + std::to_string(i) +
        " = llvm.atomicrmw add %a0, %term syncscope(\"device\") monotonic : !llvm.ptr<1>, i64\n";
  text += R"(
    llvm.br ^poll
  ^others:
)" + add +
          R"(
    llvm.br ^poll
  ^poll:
    %x = llvm.load %a0 atomic )" +
          sum.order + R"( {alignment = 8 : i64} : !llvm.ptr<1> -> i64
    %count = llvm.and %x, %mask : i64
    %complete = llvm.icmp "eq" %count, %eight : i64
    llvm.cond_br %complete, ^done, ^poll
  ^done:
    %value = llvm.ashr %x, %eight : i64
    %to = llvm.getelementptr %a1[%block] : (!llvm.ptr<1>, i32) -> !llvm.ptr<1>, i64
    llvm.store %value, %to : i64, !llvm.ptr<1>
)" + sum.reset +
          "    llvm.return";
  return kernel("k", 2, text);
}

std::string runSum(const Sum &sum, uint64_t seed = 1, bool cooperative = true) {
  Bench bench(sumKernel(sum), seed);
  if (!bench.error.empty())
    return bench.error;
  uint32_t word = bench.buffer("sum", std::vector<int64_t>(1)),
           out = bench.buffer("y", std::vector<int64_t>(sumBlocks));
  bench.launch("k", sumBlocks, 1, 0, {word, out}, false, 1, cooperative);
  std::string fault = bench.run();
  if (fault.empty())
    for (int block = 0; block < sumBlocks; ++block)
      EXPECT_EQ(bench.at<int64_t>(out)[block], sumBlocks * (sumBlocks - 1) / 2);
  return fault;
}

/// How one block hands a number to another one.
struct Message {
  std::string store = "release", load = "acquire", scope = "device";
  std::string fenceBefore, fenceAfter;
  /// The writer uses the buffer again, after or without an answer.
  bool reuses = false, answers = true;
};

std::string messageKernel(const Message &message) {
  std::string scope = "syncscope(\"" + message.scope + "\") ";
  std::string text = R"(
    %flag = llvm.getelementptr %a0[8] : (!llvm.ptr<1>) -> !llvm.ptr<1>, i8
    %answer = llvm.getelementptr %a0[16] : (!llvm.ptr<1>) -> !llvm.ptr<1>, i8
    %writes = llvm.icmp "eq" %block, %c0 : i32
    llvm.cond_br %writes, ^write, ^read
  ^write:
    llvm.store %c5, %a0 : i32, !llvm.ptr<1>
)" + message.fenceBefore +
                     "    llvm.store %c1, %flag atomic " + scope + message.store +
                     " {alignment = 4 : i64} : i32, !llvm.ptr<1>\n";
  if (message.reuses && message.answers)
    text += R"(
    llvm.br ^again
  ^again:
    %a = llvm.load %answer atomic syncscope("device") acquire {alignment = 4 : i64} : !llvm.ptr<1> -> i32
    %answered = llvm.icmp "eq" %a, %c1 : i32
    llvm.cond_br %answered, ^reuse, ^again
  ^reuse:
)";
  if (message.reuses)
    text += "    llvm.store %c8, %a0 : i32, !llvm.ptr<1>\n";
  text += R"(
    llvm.br ^end
  ^read:
    %f = llvm.load %flag atomic )" +
          scope + message.load + R"( {alignment = 4 : i64} : !llvm.ptr<1> -> i32
    %there = llvm.icmp "eq" %f, %c1 : i32
    llvm.cond_br %there, ^take, ^read
  ^take:
)" + message.fenceAfter +
          R"(
    %x = llvm.load %a0 : !llvm.ptr<1> -> i32
    llvm.store %x, %a1 : i32, !llvm.ptr<1>
    llvm.store %c1, %answer atomic syncscope("device") release {alignment = 4 : i64} : i32, !llvm.ptr<1>
    llvm.br ^end
  ^end:
    llvm.return)";
  return kernel("k", 2, text);
}

std::string runMessage(const Message &message, uint64_t seed = 1) {
  Bench bench(messageKernel(message), seed);
  if (!bench.error.empty())
    return bench.error;
  uint32_t mail = bench.buffer("mail", std::vector<int>(8)),
           out = bench.buffer("y", std::vector<int>(1));
  bench.launch("k", 2, 1, 0, {mail, out}, false, 1, true);
  std::string fault = bench.run();
  if (fault.empty())
    EXPECT_EQ(bench.at<int>(out)[0], 5);
  return fault;
}

/// Exchanges among the four blocks of a cluster.
struct Gather {
  /// The blocks wait for each other's second exchange before they send into the first one's
  /// buffer again.
  bool waitsBetween = true, waits = true;
  std::string expected = "%bytes", scope = ", scope = #nvvm.mem_scope<cluster>";
  /// Peers that block 2 sends to.
  int peers = 4;
};

// Every block sends 16 bytes to all, three times: into buffer 0, into buffer 1, and into buffer 0
// again. Buffer i has 64 bytes at 64 i; its barrier is at 128 + 8 i.
std::string gatherKernel(const Gather &gather) {
  std::string text = R"(
    %bytes = llvm.mlir.constant(64 : i32) : i32
    %less = llvm.mlir.constant(48 : i32) : i32
    %rank = nvvm.read.ptx.sreg.cluster.ctarank : i32
    %ten = llvm.mlir.constant(10 : i32) : i32
    %bar0 = llvm.getelementptr %s[128] : (!llvm.ptr<3>) -> !llvm.ptr<3>, i8
    %bar1 = llvm.getelementptr %s[136] : (!llvm.ptr<3>) -> !llvm.ptr<3>, i8
    %buf0 = llvm.getelementptr %s[0] : (!llvm.ptr<3>) -> !llvm.ptr<3>, i8
    %buf1 = llvm.getelementptr %s[64] : (!llvm.ptr<3>) -> !llvm.ptr<3>, i8
    %off = llvm.mul %rank, %c16 : i32
    nvvm.mbarrier.init %bar0, %c1 : !llvm.ptr<3>, i32
    nvvm.mbarrier.init %bar1, %c1 : !llvm.ptr<3>, i32
    nvvm.mbarrier.arrive.expect_tx %bar0, )" +
                     gather.expected + R"( : !llvm.ptr<3>, i32
    nvvm.mbarrier.arrive.expect_tx %bar1, %bytes : !llvm.ptr<3>, i32
    nvvm.cluster.arrive {aligned}
    nvvm.cluster.wait {aligned}
    %two = llvm.icmp "eq" %rank, %c2 : i32
    llvm.br ^send0(%rank : i32)
)";
  auto exchange = [&](int round, const std::string &value) {
    std::string r = std::to_string(round), buffer = std::to_string(round % 2);
    bool waits = round == 1 ? gather.waitsBetween : gather.waits;
    text += "  ^send" + r + "(%v" + r + ": i32):\n    %to" + r + " = llvm.getelementptr %buf" +
            buffer + "[%off] : (!llvm.ptr<3>, i32) -> !llvm.ptr<3>, i8\n";
    for (int peer = 0; peer < 4; ++peer) {
      std::string id = r + "_" + std::to_string(peer),
                  next = "^peer" + r + "_" + std::to_string(peer);
      if (peer == gather.peers) {
        // Block 2 leaves the rest out.
        text += "    llvm.cond_br %two, ^wait" + r + ", " + next + "\n  " + next + ":\n";
      }
      std::string which = "%c" + std::to_string(peer);
      text += "    %p" + id + " = nvvm.mapa %to" + r + ", " + which +
              " : !llvm.ptr<3> -> !llvm.ptr<7>\n    %b" + id + " = nvvm.mapa %bar" + buffer + ", " +
              which + " : !llvm.ptr<3> -> !llvm.ptr<7>\n    %pi" + id + " = llvm.ptrtoint %p" + id +
              " : !llvm.ptr<7> to i32\n    %bi" + id + " = llvm.ptrtoint %b" + id +
              " : !llvm.ptr<7> to i32\n    llvm.inline_asm has_side_effects asm_dialect = att \"" +
              sluice::ptx::remoteStore(4) + "\", \"" + sluice::ptx::remoteStoreConstraints(4) +
              "\" %pi" + id + ", %v" + r + ", %v" + r + ", %v" + r + ", %v" + r + ", %bi" + id +
              " : (i32, i32, i32, i32, i32, i32) -> ()\n";
    }
    std::string parity = round == 2 ? "%c1" : "%c0";
    text += "    llvm.br ^wait" + r + "\n  ^wait" + r + ":\n";
    if (waits)
      text += "    %w" + r + " = nvvm.mbarrier.try_wait %bar" + buffer + ", " + parity + " {" +
              gather.scope.substr(2) + "} : !llvm.ptr<3>, i32 -> i1\n    llvm.cond_br %w" + r +
              ", ^use" + r + ", ^wait" + r + "\n";
    else
      text += "    llvm.br ^use" + r + "\n";
    text += "  ^use" + r + ":\n";
    if (round == 0)
      text += "    nvvm.mbarrier.arrive.expect_tx %bar0, %bytes : !llvm.ptr<3>, i32\n";
    std::string sum = "%c0";
    for (int from = 0; from < 4; ++from) {
      std::string id = r + "_" + std::to_string(from);
      text += "    %q" + id + " = llvm.getelementptr %buf" + buffer + "[" +
              std::to_string(16 * from) + "] : (!llvm.ptr<3>) -> !llvm.ptr<3>, i8\n    %x" + id +
              " = llvm.load %q" + id + " {alignment = 4 : i64} : !llvm.ptr<3> -> i32\n    %s" + id +
              " = llvm.add " + sum + ", %x" + id + " : i32\n";
      sum = "%s" + id;
    }
    text += "    %n" + r + " = llvm.add " + sum + ", " + value + " : i32\n";
    text += round == 2 ? "    llvm.br ^end\n"
                       : "    llvm.br ^send" + std::to_string(round + 1) + "(%n" + r + " : i32)\n";
  };
  exchange(0, "%rank");
  exchange(1, "%c0");
  exchange(2, "%c0");
  text += R"(
  ^end:
    %out = llvm.getelementptr %a0[%block] : (!llvm.ptr<1>, i32) -> !llvm.ptr<1>, i32
    llvm.store %n2, %out : i32, !llvm.ptr<1>
    nvvm.cluster.arrive {aligned}
    nvvm.cluster.wait {aligned}
    llvm.return)";
  return kernel("k", 1, text, "nvvm.cluster_dim = array<i32: 4, 1, 1>");
}

std::string runGather(const Gather &gather, uint64_t seed = 1) {
  Bench bench(gatherKernel(gather), seed);
  if (!bench.error.empty())
    return bench.error;
  uint32_t out = bench.buffer("y", std::vector<int>(8));
  bench.launch("k", 8, 1, 192, {out}, false, 4, true);
  std::string fault = bench.run();
  if (fault.empty())
    for (int block = 0; block < 8; ++block)
      // Ranks add up to 6; each then sends 6 + its rank, 30 together; each sends 30.
      EXPECT_EQ(bench.at<int>(out)[block], 120);
  return fault;
}

} // namespace

TEST(Cooperative, CountedSumsAreComplete) {
  for (uint64_t seed = 1; seed <= 30; ++seed)
    ASSERT_EQ(runSum(Sum(), seed), "") << "seed " << seed;
}

TEST(Cooperative, OtherLaunchesHaveNotAllBlocks) {
  EXPECT_FAULT(runSum(Sum(), 1, /*cooperative=*/false),
               "livelock: nothing changes what threads poll for: ");
}

TEST(Cooperative, MissingAddition) {
  Sum sum;
  sum.additions = 0;
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    std::string fault = runSum(sum, seed);
    EXPECT_FAULT(fault, "livelock: nothing changes what threads poll for: ");
    // 0 + ... + 7 without 3 is 25; seven additions.
    EXPECT_FAULT(fault, "poll byte 0 of buffer 'sum', which holds 6407");
    for (int block = 0; block < sumBlocks; ++block)
      EXPECT_FAULT(fault,
                   "block " + std::to_string(block) + ", thread 0 at llvm.load at test.mlir:");
  }
}

TEST(Cooperative, AdditionTooMany) {
  Sum sum;
  sum.additions = 2;
  bool found = false;
  for (uint64_t seed = 1; seed <= 10; ++seed)
    found |= contains(runSum(sum, seed), "poll byte 0 of buffer 'sum', which holds ");
  EXPECT_TRUE(found);
}

TEST(Cooperative, PlainAccessToASum) {
  // Reset by whoever has read it, while others may still look.
  Sum sum;
  sum.reset = "    llvm.store %zero, %a0 : i64, !llvm.ptr<1>\n";
  EXPECT_FAULT(runSum(sum), "of buffer 'sum', which races with the atomic ");
  // Atomic for the threads of its own block is not atomic for others.
  sum = Sum();
  sum.order = "syncscope(\"block\") monotonic";
  EXPECT_FAULT(runSum(sum), "byte 0 of buffer 'sum', which races with the ");
}

TEST(Cooperative, ReleaseAndAcquire) {
  auto fence = [](const std::string &order) {
    return "    llvm.fence syncscope(\"device\") " + order + "\n";
  };
  const std::string membar = "    nvvm.memory.barrier #nvvm.mem_scope<gpu>\n";
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    Message message;
    EXPECT_EQ(runMessage(message, seed), "");
    message.store = message.load = "monotonic";
    message.fenceBefore = fence("release"), message.fenceAfter = fence("acquire");
    EXPECT_EQ(runMessage(message, seed), "");
    message.fenceBefore = message.fenceAfter = membar;
    EXPECT_EQ(runMessage(message, seed), "");
  }
  const std::string race = "reads byte 0 of buffer 'mail', which races with the write by block 0";
  Message message;
  message.load = "monotonic";
  EXPECT_FAULT(runMessage(message), race);
  message = Message();
  message.store = "monotonic";
  EXPECT_FAULT(runMessage(message), race);
  message.fenceBefore = fence("acquire");
  EXPECT_FAULT(runMessage(message), race);
  message = Message();
  message.scope = "block";
  EXPECT_FAULT(runMessage(message), "races with the ");
}

TEST(Cooperative, BufferUsedAgain) {
  Message message;
  message.reuses = true;
  for (uint64_t seed = 1; seed <= 20; ++seed)
    EXPECT_EQ(runMessage(message, seed), "");
  message.answers = false;
  // Whichever comes first.
  for (uint64_t seed = 1; seed <= 10; ++seed)
    EXPECT_FAULT(runMessage(message, seed), "byte 0 of buffer 'mail', which races with the ");
}

TEST(Cooperative, LoadsOfTheSameWordAreNoPolling) {
  // Block 0 looks at the word eight times before it writes it, while a thread of block 1 never
  // stops to ask a barrier.
  std::string text = kernel("k", 1, R"(
    %first = llvm.icmp "eq" %block, %c0 : i32
    llvm.cond_br %first, ^look(%c0 : i32), ^other
  ^look(%i: i32):
    %x = llvm.load %a0 atomic syncscope("device") monotonic {alignment = 4 : i64} : !llvm.ptr<1> -> i32
    %n = llvm.add %i, %c1 : i32
    %more = llvm.icmp "ult" %n, %c8 : i32
    llvm.cond_br %more, ^look(%n : i32), ^write
  ^write:
    llvm.store %c1, %a0 atomic syncscope("device") monotonic {alignment = 4 : i64} : i32, !llvm.ptr<1>
    llvm.br ^end
  ^other:
    nvvm.mbarrier.init %s, %c1 : !llvm.ptr<3>, i32
    llvm.br ^ask
  ^ask:
    %done = nvvm.mbarrier.test.wait %s, %c0 : !llvm.ptr<3>, i32 -> i1
    %y = llvm.load %a0 atomic syncscope("device") monotonic {alignment = 4 : i64} : !llvm.ptr<1> -> i32
    %set = llvm.icmp "eq" %y, %c1 : i32
    llvm.cond_br %set, ^end, ^ask
  ^end:
    llvm.return)");
  Bench bench(text);
  ASSERT_EQ(bench.error, "");
  bench.launch("k", 2, 1, 64, {bench.buffer("word", std::vector<int>(1))}, false, 1, true);
  EXPECT_EQ(bench.run(), "");
}

TEST(Cooperative, TooManyBlocks) {
  Bench bench(kernel("k", 0, "    llvm.return"));
  bench.launch("k", 4097, 1, 0, {}, false, 1, true);
  EXPECT_FAULT(bench.run(), "a cooperative launch of 4097 blocks, at most 4096 are possible");
}

TEST(RemoteStores, ExchangesAreClean) {
  for (uint64_t seed = 1; seed <= 30; ++seed)
    ASSERT_EQ(runGather(Gather(), seed), "") << "seed " << seed;
}

TEST(RemoteStores, BufferUsedTooEarly) {
  Gather gather;
  gather.waitsBetween = false;
  bool found = false;
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    std::string fault = runGather(gather, seed);
    EXPECT_NE(fault, "");
    found |= contains(fault, "stores 16 bytes of shared memory") ||
             contains(fault, "llvm.load at test.mlir:");
  }
  EXPECT_TRUE(found);
}

TEST(RemoteStores, ReadWithoutWaiting) {
  Gather gather;
  gather.waits = false;
  for (uint64_t seed = 1; seed <= 5; ++seed)
    EXPECT_FAULT(runGather(gather, seed), "of shared memory");
}

TEST(RemoteStores, MissingStore) {
  Gather gather;
  gather.peers = 3;
  std::string fault = runGather(gather);
  EXPECT_FAULT(fault, "block 3, thread 0 at nvvm.mbarrier.try_wait at test.mlir:");
  EXPECT_FAULT(fault, "16 bytes missing)");
}

TEST(RemoteStores, FewerBytesExpectedThanSent) {
  Gather gather;
  gather.expected = "%less";
  EXPECT_NE(runGather(gather), "");
}

TEST(RemoteStores, AcquiredForTheBlockOnly) {
  Gather gather;
  gather.scope = ", scope = #nvvm.mem_scope<cta>";
  EXPECT_FAULT(runGather(gather), "in the scope of the block, while other blocks of the cluster");
}
