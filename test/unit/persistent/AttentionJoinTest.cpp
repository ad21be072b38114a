// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Parts of attention that ranks made up, joined in the emulator, against what they add up to.

#include "KernelText.h"

#include "lib/Conversion/FusedToGpu/AttentionJoin.h"

#include "sluice-support/Float16.h"
#include "sluice/Emulator/Emulator.h"
#include "sluice/Target/GpuDevice.h"

#include "gtest/gtest.h"

#include <cmath>

using namespace sluice;
using namespace sluice::fused;
using device::DeviceBuilder;
using mlir::Value;

namespace {

constexpr int64_t warps = 2, rounds = 3;

PersistentPlan planOf(int64_t queryHeads, int64_t heads, int64_t dim, int64_t clusterBlocks,
                      int64_t attentionClusters) {
  DecoderShape decoder;
  decoder.width = 256;
  decoder.queryHeads = queryHeads;
  decoder.heads = heads;
  decoder.dim = dim;
  decoder.inner = 128 * clusterBlocks * attentionClusters;
  decoder.vocabulary = 64;
  decoder.layers = rounds;
  decoder.setUnits(WeightUnit::ofGroup(8));
  decoder.piecePositions = 32;
  decoder.pieceBytes = 16384;
  return llvm::cantFail(PersistentPlan::get(decoder,
                                            {.clusters = attentionClusters,
                                             .clusterBlocks = clusterBlocks,
                                             .attentionClusters = attentionClusters,
                                             .warps = warps,
                                             .stages = 2,
                                             .attentionInFlight = 1,
                                             .mlpInFlight = 1},
                                            gpuDevice(llvm::cantFail(loadTarget("h100")))));
}

/// Numbers of a block's part, the same in the kernel and here: of -48 to 48.
int64_t madeUp(int64_t salt) { return salt * 37 % 97 - 48; }

void emit(const PersistentPlan &plan, bool separates, DeviceBuilder &k, Value shared,
          mlir::ValueRange arguments) {
  Value thread = k.thread(), block = k.block();
  device::AttentionJoin join(k, plan, shared, thread);
  k.ifThen(k.equal(thread, k.constI32(0)), [&] {
    join.initBarriers();
    k.fenceBarrierInit();
  });
  k.clusterArrive();
  k.clusterWait();
  auto number = [&](Value salt, double factor) {
    Value integer = k.sub(k.rem(k.mul(salt, 37), 97), 48);
    return k.mulF(k.toFloat(integer), k.number(factor));
  };
  int64_t bytes =
      plan.attendedGroups() * (PersistentPlan::kGroupBytes + PersistentPlan::kStepBytes);
  k.loop(k.constI32(0), k.constI32(rounds), 1, [&](Value round) {
    Value salt = k.add(k.mul(block, 13), k.mul(round, 29));
    join.send(
        [&](Value set, Value column) {
          DeviceBuilder::Values x;
          for (int64_t i = 0; i < 4; ++i)
            x.push_back(number(k.add(salt, k.add(k.mul(set, 7), k.add(column, i))), 0.03));
          return x;
        },
        [&](Value set, Value head) {
          Value place = k.add(salt, k.add(k.mul(set, 5), k.mul(head, 3)));
          return std::pair(number(place, 0.1), k.addF(number(place, 0.01), k.number(1.0)));
        });
    join.finish(round);
    join.receive(round);
    Value to = k.at(arguments[0], k.add(k.mul(round, plan.blocks()), block), bytes);
    auto copy = [&](SharedRange from, int64_t at) {
      k.loop(k.shl(thread, 2), k.constI32(from.bytes), warps * device::kWarp * 4, [&](Value byte) {
        k.store(k.load(k.i32(), k.offset(k.offset(shared, from.offset), byte), 4),
                k.offset(k.offset(to, at), byte), 4);
      });
    };
    copy(plan.attended, 0);
    copy(plan.attendedMeta, plan.attended.bytes);
    // In a step, other exchanges come between two of these.
    if (separates) {
      k.clusterArrive();
      k.clusterWait();
    }
  });
  k.clusterArrive();
  k.clusterWait();
}

std::string run(const PersistentPlan &plan, uint64_t seed = 1, bool separates = true) {
  std::string text =
      test::kernelText(1, warps * device::kWarp,
                       [&](DeviceBuilder &k, Value shared, mlir::ValueRange arguments) {
                         emit(plan, separates, k, shared, arguments);
                       })
          .text;
  test::EmulatedStep step(text, seed);
  int64_t bytes =
      plan.attendedGroups() * (PersistentPlan::kGroupBytes + PersistentPlan::kStepBytes);
  std::vector<uint8_t> records(rounds * plan.blocks() * bytes, 0);
  step.add("records", records);
  fused::GpuLaunch launch = plan.launch();
  launch.block = warps * device::kWarp;
  if (std::string fault = step.run(launch); !fault.empty())
    return fault;

  int64_t ranks = plan.schedule.clusterBlocks, heads = plan.joinedHeads(), dim = plan.shape.dim,
          all = plan.clusterHeads() * plan.shape.group();
  for (int64_t round = 0; round < rounds; ++round)
    for (int64_t block = 0; block < plan.blocks(); ++block) {
      const uint8_t *record = &records[(round * plan.blocks() + block) * bytes];
      for (int64_t column = 0; column < plan.attendedGroups() * 128; ++column) {
        int64_t head = column / dim, set = head / heads, inSet = column - set * heads * dim;
        double numerator = 0, denominator = 0;
        for (int64_t from = 0; from < ranks; ++from) {
          int64_t salt = (plan.clusterOf(block) * ranks + from) * 13 + round * 29;
          int64_t place = salt + set * 5 + head % heads * 3;
          double weight = std::exp2(madeUp(place) * 0.1);
          numerator += madeUp(salt + set * 7 + inSet) * 0.03 * weight;
          denominator += (madeUp(place) * 0.01 + 1) * weight;
        }
        double expected = head < all ? numerator / denominator : 0;
        int64_t group = column / 128;
        float scale;
        std::memcpy(&scale, record + plan.attended.bytes + group * 8, 4);
        int64_t at = column / 32 * 64 + column % 16 / 4 * 8 + column % 32 / 16 * 4 + column % 4;
        double found = (256 * int8_t(record[at]) + int8_t(record[at + 32])) * double(scale);
        // Rounded to f16, then to a step of the group.
        EXPECT_NEAR(found, expected, std::fabs(expected) * 0x1p-10 + scale)
            << "round " << round << ", block " << block << ", column " << column;
      }
    }
  return "";
}

} // namespace

TEST(AttentionJoin, AddsUpWhatRanksHave) {
  for (uint64_t seed = 1; seed <= 4; ++seed)
    EXPECT_EQ(run(planOf(8, 2, 128, 4, 2), seed), "") << "seed " << seed;
}

TEST(AttentionJoin, HeadsThatAreNoWholeGroups) {
  EXPECT_EQ(run(planOf(8, 2, 64, 2, 2)), "");
  EXPECT_EQ(run(planOf(9, 3, 64, 4, 1)), ""); // the last set has one head of two
  EXPECT_EQ(run(planOf(4, 4, 256, 2, 2)), "");
}

TEST(AttentionJoin, RanksThatFinishNothing) { EXPECT_EQ(run(planOf(2, 2, 128, 8, 2)), ""); }

TEST(AttentionJoin, BuffersUsedTooEarly) {
  bool found = false;
  for (uint64_t seed = 1; seed <= 8 && !found; ++seed)
    found = llvm::StringRef(run(planOf(8, 2, 128, 4, 2), seed, /*separates=*/false))
                .contains("of shared memory");
  EXPECT_TRUE(found);
}
