// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Warpgroups that divide a block's registers.

#include "EmulatorTest.h"

using namespace sluice::emulator;

/// A block of `threads` threads, those below `computing` of which do `first` and the others
/// `second`. With 640 threads each has 96 registers.
static std::string runBlock(uint32_t threads, uint32_t computing, const std::string &first,
                            const std::string &second, uint64_t seed = 1) {
  Bench bench(kernel("k", 1,
                     "  %limit = llvm.mlir.constant(" + std::to_string(computing) +
                         " : i32) : i32\n  %is = llvm.icmp \"ult\" %tid, %limit : i32\n"
                         "  llvm.cond_br %is, ^first, ^second\n^first:\n" +
                         first + "  llvm.br ^end\n^second:\n" + second +
                         "  llvm.br ^end\n^end:\n  nvvm.barrier0\n  llvm.return",
                     "nvvm.maxntid = array<i32: " + std::to_string(threads) + ">"),
              seed);
  if (!bench.error.empty())
    return bench.error;
  bench.launch("k", 1, threads, 0, {bench.buffer("y", std::vector<int>(1))});
  return bench.run();
}

static std::string set(const std::string &action, int count) {
  return "  nvvm.setmaxregister " + action + " " + std::to_string(count) + "\n";
}

TEST(Registers, WhatSomeGiveUpOthersGet) {
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    EXPECT_EQ(runBlock(640, 512, set("increase", 104), set("decrease", 64), seed), "");
    EXPECT_EQ(runBlock(640, 512, set("increase", 112), set("decrease", 32), seed), "");
    EXPECT_EQ(runBlock(384, 256, set("increase", 232), set("decrease", 40), seed), "");
  }
}

TEST(Registers, MoreThanTheBlockHas) {
  EXPECT_FAULT(runBlock(640, 512, set("increase", 112), set("decrease", 64)),
               "wait for 16 registers more a thread, of which the block's other warpgroups have "
               "given up 0");
  EXPECT_FAULT(runBlock(640, 512, set("increase", 104), ""),
               "wait for 8 registers more a thread, of which the block's other warpgroups have "
               "given up 0");
}

TEST(Registers, AWarpgroupWhoseWarpsDoDifferentThings) {
  EXPECT_FAULT(runBlock(640, 480, set("increase", 104), set("decrease", 64)),
               "divergent change of registers: other threads of the warpgroup wait at ");
  EXPECT_FAULT(runBlock(640, 480, set("increase", 104), ""),
               "wait for the other threads of the warpgroup");
  EXPECT_FAULT(runBlock(544, 512, "", set("decrease", 64)),
               "changes the registers of less than four warps");
}

TEST(Registers, InTheWrongDirection) {
  EXPECT_FAULT(runBlock(640, 512, set("increase", 88), ""), "increases registers from 96 to 88");
  EXPECT_FAULT(runBlock(640, 512, set("decrease", 104), ""), "decreases registers from 96 to 104");
}
