// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Analysis/Arena.h"

#include <gtest/gtest.h>
#include <random>

using namespace sluice;

namespace {

/// Whether two buffers share a byte at some launch, by looking at each launch and byte (in units of
/// `grain`).
bool overlapsByBruteForce(llvm::ArrayRef<ArenaBuffer> buffers, const Arena &arena, int64_t grain) {
  int64_t launches = 0;
  for (const ArenaBuffer &buffer : buffers)
    launches = std::max(launches, buffer.last + 1);
  for (int64_t launch = 0; launch < launches; ++launch) {
    std::vector<bool> used(arena.bytes / grain);
    for (size_t i = 0; i < buffers.size(); ++i) {
      if (launch < buffers[i].first || launch > buffers[i].last)
        continue;
      for (int64_t byte = 0; byte < buffers[i].bytes; byte += grain) {
        size_t place = (arena.offsets[i] + byte) / grain;
        if (place >= used.size() || used[place])
          return true;
        used[place] = true;
      }
    }
  }
  return false;
}

TEST(Arena, RandomLifetimes) {
  std::mt19937 random(7);
  constexpr int64_t alignment = 64;
  int64_t total = 0, bound = 0;
  for (int round = 0; round < 200; ++round) {
    llvm::SmallVector<ArenaBuffer> buffers(1 + random() % 40);
    for (ArenaBuffer &buffer : buffers) {
      buffer.bytes = 1 + random() % 2000;
      buffer.first = random() % 30;
      buffer.last = buffer.first + random() % (random() % 4 ? 3 : 20);
    }
    Arena arena = assignArena(buffers, alignment);
    ASSERT_EQ(arena.offsets.size(), buffers.size());
    for (size_t i = 0; i < buffers.size(); ++i) {
      EXPECT_EQ(arena.offsets[i] % alignment, 0);
      EXPECT_GE(arena.offsets[i], 0);
      EXPECT_LE(arena.offsets[i] + buffers[i].bytes, arena.bytes);
    }
    EXPECT_FALSE(overlapsByBruteForce(buffers, arena, 1)) << "round " << round;
    EXPECT_FALSE(findArenaOverlap(buffers, arena.offsets)) << "round " << round;
    EXPECT_GE(arena.bytes, arenaLowerBound(buffers, alignment));
    total += arena.bytes;
    bound += arenaLowerBound(buffers, alignment);
  }
  // Not required, but what the heuristic is worth: within a tenth of what no assignment can beat.
  EXPECT_LT(static_cast<double>(total), 1.1 * static_cast<double>(bound));
}

TEST(Arena, OverlapIsFound) {
  // The brute force and the check agree on random offsets, too.
  std::mt19937 random(8);
  int found = 0;
  for (int round = 0; round < 300; ++round) {
    llvm::SmallVector<ArenaBuffer> buffers(2 + random() % 4);
    Arena arena;
    for (ArenaBuffer &buffer : buffers) {
      buffer.bytes = 1 + random() % 50;
      buffer.first = random() % 5;
      buffer.last = buffer.first + random() % 3;
      arena.offsets.push_back(random() % 200);
    }
    arena.bytes = 300;
    bool expected = overlapsByBruteForce(buffers, arena, 1);
    EXPECT_EQ(findArenaOverlap(buffers, arena.offsets).has_value(), expected) << "round " << round;
    found += expected;
  }
  EXPECT_GT(found, 50);
  EXPECT_LT(found, 250);
}

TEST(Arena, ChainNeedsTwoBuffers) {
  llvm::SmallVector<ArenaBuffer> chain;
  for (int64_t i = 0; i < 100; ++i)
    chain.push_back({1000, i, i + 1});
  Arena arena = assignArena(chain, 256);
  EXPECT_EQ(arena.bytes, 2 * 1024);
  EXPECT_EQ(arenaLowerBound(chain, 256), 2 * 1024);
}

TEST(Arena, BestGapIsTaken) {
  // 0: [0, 400), 1: [400, 700) dead at 1, 2: [700, 1000), 3: [1000, 1100) dead at 1, 4: [1100,
  // 1200): at launch 2 there are holes of 300 and 100; a buffer of 100 goes into the second.
  llvm::SmallVector<ArenaBuffer> buffers = {{400, 0, 2}, {300, 0, 1}, {300, 0, 2},
                                            {100, 0, 1}, {100, 0, 2}, {100, 2, 2}};
  Arena arena = assignArena(buffers, 1);
  EXPECT_EQ(arena.bytes, 1200);
  EXPECT_FALSE(findArenaOverlap(buffers, arena.offsets));
  EXPECT_EQ(arena.offsets[5], arena.offsets[3]);
}

TEST(Arena, Empty) {
  Arena arena = assignArena({}, 256);
  EXPECT_EQ(arena.bytes, 0);
  EXPECT_TRUE(arena.offsets.empty());
}

} // namespace
