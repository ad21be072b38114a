// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The plans of well-known models' steps on an H100, whose parts cover everything once, and what
// does not fit.

#include "dialects/Fused/PersistentPlan.h"

#include "sluice/Target/GpuDevice.h"

#include "gtest/gtest.h"

using namespace sluice;
using namespace sluice::fused;

namespace {

DecoderShape shapeOf(int64_t width, int64_t queryHeads, int64_t heads, int64_t dim, int64_t inner,
                     int64_t vocabulary, int64_t layers, int64_t bits) {
  DecoderShape shape;
  shape.width = width;
  shape.queryHeads = queryHeads;
  shape.heads = heads;
  shape.dim = dim;
  shape.inner = inner;
  shape.vocabulary = vocabulary;
  shape.layers = layers;
  shape.setUnits(WeightUnit::ofGroup(bits));
  shape.piecePositions = 32;
  shape.pieceBytes = 2 * 32 * dim * 2;
  return shape;
}

struct Model {
  const char *name;
  DecoderShape shape;
  /// Clusters, blocks of each, and clusters that attend.
  int64_t clusters, clusterBlocks, attentionClusters;
};

const Model models[] = {
    {"Llama-3-8B", shapeOf(4096, 32, 8, 128, 14336, 128256, 32, 4), 14, 8, 8},
    {"Llama-3-8B int8", shapeOf(4096, 32, 8, 128, 14336, 128256, 32, 8), 14, 8, 8},
    {"Llama-2-7B", shapeOf(4096, 32, 32, 128, 11008, 32000, 32, 4), 11, 8, 8},
    {"Llama-3.2-1B", shapeOf(2048, 32, 8, 64, 8192, 128256, 16, 4), 8, 8, 8},
    {"Llama-3.2-1B f16", shapeOf(2048, 32, 8, 64, 8192, 128256, 16, 16), 8, 8, 8},
    {"Llama-3-70B", shapeOf(8192, 64, 8, 128, 28672, 128256, 80, 4), 14, 8, 8},
    {"Qwen3-32B", shapeOf(5120, 64, 8, 128, 25600, 151936, 64, 4), 13, 8, 8},
    {"SmolLM2-135M", shapeOf(576, 9, 3, 64, 1536, 49152, 30, 8), 6, 8, 1},
    {"llama-4m", shapeOf(256, 4, 2, 64, 768, 2048, 4, 8), 6, 8, 2},
};

constexpr int64_t residentClusters[] = {132, 66, 30, 14};

const GpuDevice &h100() {
  static const GpuDevice device = gpuDevice(llvm::cantFail(loadTarget("h100")));
  return device;
}

PersistentLimits limits() {
  PersistentLimits limits;
  limits.residentClusters = residentClusters;
  limits.bandwidth = 3.26e12;
  limits.blockBandwidth = 48.3e9;
  limits.warps = 16;
  limits.attentionInFlight = 3;
  limits.mlpInFlight = 4;
  return limits;
}

std::string problemOf(const DecoderShape &shape, const PersistentSchedule &schedule) {
  return llvm::toString(PersistentPlan::get(shape, schedule, h100()).takeError());
}

/// That the ranges follow each other from 0 to `total`.
void expectCovered(llvm::ArrayRef<IndexRange> ranges, int64_t total) {
  int64_t next = 0;
  for (IndexRange range : ranges) {
    EXPECT_EQ(range.begin, next);
    EXPECT_LE(range.begin, range.end);
    next = range.end;
  }
  EXPECT_EQ(next, total);
}

} // namespace

TEST(PersistentPlan, KnownModels) {
  for (const Model &model : models) {
    SCOPED_TRACE(model.name);
    auto schedule = choosePersistentSchedule(model.shape, limits(), h100());
    ASSERT_TRUE(bool(schedule)) << llvm::toString(schedule.takeError());
    EXPECT_EQ(schedule->clusters, model.clusters);
    EXPECT_EQ(schedule->clusterBlocks, model.clusterBlocks);
    EXPECT_EQ(schedule->attentionClusters, model.attentionClusters);
    auto plan = PersistentPlan::get(model.shape, *schedule, h100());
    ASSERT_TRUE(bool(plan)) << llvm::toString(plan.takeError());
    EXPECT_LE(plan->shared, h100().sharedBytes);
    // One stage more would not fit.
    PersistentSchedule more = *schedule;
    ++more.stages;
    EXPECT_NE(problemOf(model.shape, more), "");

    int64_t ranks = schedule->clusterBlocks;
    llvm::SmallVector<IndexRange> input, projections, sums, inner, heads, vocabulary, clusters;
    int64_t sets = 0;
    for (int64_t rank = 0; rank < ranks; ++rank) {
      input.push_back(plan->inputGroups(rank));
      projections.push_back(plan->projectionTiles(0, rank));
      sums.push_back(plan->sumTiles(rank));
      sets += plan->ownSets(rank);
    }
    for (int64_t block = 0; block < plan->blocks(); ++block) {
      inner.push_back(plan->innerGroups(block));
      vocabulary.push_back(plan->headTiles(block));
      EXPECT_LE(inner.back().size(), plan->mostInnerGroups());
    }
    for (int64_t cluster = 0; cluster < schedule->clusters; ++cluster) {
      clusters.push_back(plan->clusterInnerGroups(cluster));
      if (cluster < schedule->attentionClusters)
        heads.push_back(plan->heads(cluster));
    }
    expectCovered(input, llvm::divideCeil(model.shape.width, 128));
    expectCovered(projections, plan->clusterHeads() * model.shape.projectionRows() / 16);
    expectCovered(sums, model.shape.width / 16);
    expectCovered(inner, model.shape.inner / 128);
    expectCovered(clusters, model.shape.inner / 128);
    expectCovered(heads, model.shape.heads);
    expectCovered(vocabulary, model.shape.vocabulary / 16);
    EXPECT_EQ(sets, plan->joinedSets());
    // All bytes of a layer are read once.
    int64_t bytes = 0;
    for (int64_t block = 0; block < plan->blocks(); ++block) {
      const DecoderShape::Weights &weights = model.shape.kinds.front();
      bytes += plan->projectionBytes(block, weights) + plan->outputBytes(block, weights) +
               plan->gateBytes(block, weights) + plan->downBytes(block, weights);
    }
    const WeightUnit &unit = model.shape.kinds.front().gates;
    auto unitsOf = [&](int64_t rows, int64_t columns) {
      return rows / 16 * int64_t(llvm::divideCeil(columns, unit.columns)) * unit.bytes;
    };
    EXPECT_EQ(bytes, unitsOf(model.shape.heads * model.shape.projectionRows(), model.shape.width) +
                         unitsOf(model.shape.width, model.shape.queryHeads * model.shape.dim) +
                         unitsOf(2 * model.shape.inner, model.shape.width) +
                         unitsOf(model.shape.width, model.shape.inner));
  }
}

TEST(PersistentPlan, Llama8B) {
  const DecoderShape &shape = models[0].shape;
  auto schedule = choosePersistentSchedule(shape, limits(), h100());
  ASSERT_TRUE(bool(schedule));
  auto plan = PersistentPlan::get(shape, *schedule, h100());
  ASSERT_TRUE(bool(plan));
  EXPECT_EQ(WeightUnit::ofGroup(4).inStage(16), 16);
  EXPECT_EQ(WeightUnit::ofGroup(8).inStage(16), 8);
  EXPECT_EQ(WeightUnit::ofGroup(16).inStage(16), 4);
  EXPECT_EQ(plan->stageBytes, 16 * (16 * 64 + 32));
  EXPECT_EQ(schedule->stages, 11);
  EXPECT_EQ(plan->warpGroups(), 2);
  EXPECT_EQ(plan->joinedHeads(), 1);
  EXPECT_EQ(plan->joinedSets(), 4);
  EXPECT_EQ(plan->inputGroups(1), (IndexRange{4, 8}));
  EXPECT_EQ(plan->projectionTiles(0, 2), (IndexRange{12, 18}));
  EXPECT_EQ(plan->sumTiles(7), (IndexRange{224, 256}));
  EXPECT_EQ(plan->innerGroups(111), (IndexRange{111, 112}));
  EXPECT_EQ(plan->attendedGroups(), 4);
  EXPECT_EQ(plan->attentionAdditions(), 8);
  EXPECT_EQ(plan->mlpAdditions(), 14);
  GpuLaunch launch = plan->launch();
  EXPECT_EQ(launch.grid, 112);
  EXPECT_EQ(launch.block, 640);
  EXPECT_EQ(launch.cluster, 8);
  EXPECT_FALSE(plan->attends(64));
  const DecoderShape::Weights &weights = shape.kinds.front();
  EXPECT_EQ(plan->projectionBytes(64, weights), 0);
  // A layer of a block without keys and values, as units of a product each.
  EXPECT_EQ(plan->gateBytes(64, weights), 16 * 32 * (16 * 64 + 32));
  EXPECT_EQ(plan->downBytes(64, weights), 32 * 8 * (16 * 64 + 32));
}

namespace {

WeightUnit recordOf(const char *encoding) {
  return WeightUnit::ofRecord(*formats::Encoding::fromName(encoding));
}

/// An 8B model whose values and down products are Q6_K in the first half of the layers, everything
/// else Q4_K.
DecoderShape llamaOfRecords() {
  DecoderShape shape = models[0].shape;
  WeightUnit q4 = recordOf("q4_k"), q6 = recordOf("q6_k");
  shape.projections = {5 * 128, 128};
  shape.kinds = {{{q4, q6}, q4, q4, q6}, {{q4, q4}, q4, q4, q4}};
  shape.kindOf.assign(16, 0);
  shape.kindOf.append(16, 1);
  return shape;
}

} // namespace

TEST(PersistentPlan, Records) {
  DecoderShape shape = llamaOfRecords();
  auto schedule = choosePersistentSchedule(shape, limits(), h100());
  ASSERT_TRUE(bool(schedule)) << llvm::toString(schedule.takeError());
  EXPECT_EQ(schedule->clusters, 14);
  auto plan = PersistentPlan::get(shape, *schedule, h100());
  ASSERT_TRUE(bool(plan)) << llvm::toString(plan.takeError());
  const DecoderShape::Weights &better = shape.kinds[0], &other = shape.kinds[1];
  const WeightUnit q4 = other.gates, q6 = better.down;
  EXPECT_EQ(q4.bytes, 16 * 144);
  EXPECT_EQ(q6.bytes, 16 * 210);
  EXPECT_EQ(q4.inStage(16), 8);
  EXPECT_EQ(q6.inStage(16), 4);
  EXPECT_EQ(recordOf("int8-g32").inStage(16), 4);
  EXPECT_EQ(plan->stageBytes, 8 * q4.bytes);
  // Each rank has its share of both weights.
  EXPECT_EQ(plan->projectionTiles(0, 7), (IndexRange{35, 40}));
  EXPECT_EQ(plan->projectionTiles(1, 7), (IndexRange{7, 8}));
  EXPECT_EQ(plan->projectionCount(7), 6);
  EXPECT_EQ(plan->projectionBytes(7, better), 16 * (5 * q4.bytes + q6.bytes));
  EXPECT_EQ(plan->projectionBytes(7, other), 16 * 6 * q4.bytes);
  EXPECT_EQ(plan->outputBytes(7, better), 32 * 2 * q4.bytes);
  EXPECT_EQ(plan->gateBytes(7, better), 16 * 16 * q4.bytes);
  EXPECT_EQ(plan->downBytes(7, better), 32 * 4 * q6.bytes);
  EXPECT_EQ(plan->downBytes(7, other), 32 * 4 * q4.bytes);
  // A word for each layer says which weights it has.
  EXPECT_EQ(plan->kinds.bytes, 32 * 4);
  auto order = plan->inputOrder(PersistentPlan::Input);
  EXPECT_TRUE(order.records);
  EXPECT_EQ(order.sumColumns, 32);
  EXPECT_EQ(order.metaBytes(), 8 + 4 * 4);
  // Half of the layers read as much as if all did.
  DecoderShape alike = shape;
  alike.kinds.pop_back();
  alike.kindOf.clear();
  double most =
      llvm::cantFail(PersistentPlan::get(alike, *schedule, h100())).readSeconds(3e12, 5e10);
  alike.kinds = {other};
  auto least = PersistentPlan::get(alike, *schedule, h100());
  ASSERT_TRUE(bool(least)) << llvm::toString(least.takeError());
  EXPECT_EQ(least->kinds.bytes, 0);
  EXPECT_NEAR(plan->readSeconds(3e12, 5e10), (most + least->readSeconds(3e12, 5e10)) / 2, 1e-12);

  // Sums of 16 columns serve offsets of 32, too; without offsets there are none.
  alike.kinds.front().projections[0] = recordOf("q2_k");
  alike.kinds.front().output = alike.kinds.front().down = recordOf("iq4_xs");
  schedule->stages = 8; // of Q2_K 16 records are a stage, 21 KB
  plan = PersistentPlan::get(alike, *schedule, h100());
  ASSERT_TRUE(bool(plan)) << llvm::toString(plan.takeError());
  EXPECT_EQ(plan->inputOrder(PersistentPlan::Input).sums(), 8);
  EXPECT_EQ(plan->inputOrder(PersistentPlan::Attended).sums(), 0);
  EXPECT_TRUE(plan->inputOrder(PersistentPlan::Inner).records);

  // Clusters have whole records.
  alike.inner = 11008;
  schedule->clusters = 12;
  plan = PersistentPlan::get(alike, *schedule, h100());
  ASSERT_TRUE(bool(plan)) << llvm::toString(plan.takeError());
  EXPECT_EQ(plan->clusterInnerGroups(1), (IndexRange{6, 14}));
  EXPECT_EQ(plan->innerGroups(8 + 7), (IndexRange{13, 14}));
  EXPECT_EQ(plan->innerGroups(7), (IndexRange{5, 6}));
  EXPECT_EQ(plan->innerGroups(0), (IndexRange{0, 0}));
}

TEST(PersistentPlan, RecordsThatDoNotFit) {
  PersistentSchedule schedule =
      llvm::cantFail(choosePersistentSchedule(llamaOfRecords(), limits(), h100()));
  auto shaped = [&](auto change) {
    DecoderShape shape = llamaOfRecords();
    change(shape);
    return problemOf(shape, schedule);
  };
  EXPECT_EQ(shaped([](DecoderShape &) {}), "");
  EXPECT_EQ(shaped([](DecoderShape &s) { s.inner = 14336 + 128; }),
            "an MLP of 14464 inner values is not in whole records of 256");
  EXPECT_EQ(shaped([](DecoderShape &s) { s.width = 4096 + 128; }),
            "a width of 4224 is not in whole records of 256");
  EXPECT_EQ(shaped([](DecoderShape &s) { s.queryHeads = 8; }),
            "a cluster's 128 columns of the attention output are not in whole records of 256");
  EXPECT_EQ(shaped([](DecoderShape &s) { s.inner = 13 * 256; }),
            "13 records of the MLP's inner values for 14 clusters");
  EXPECT_EQ(shaped([](DecoderShape &s) { s.kinds[1].gates = WeightUnit::ofGroup(4); }),
            "products of the residual stream have weights in both layouts, records and mma");
  EXPECT_EQ(shaped([](DecoderShape &s) { s.kinds[0].down = WeightUnit::ofGroup(4); }),
            "products of inner values have weights in both layouts, records and mma");
  // Attention's output and the inner values are inputs of their own.
  EXPECT_EQ(shaped([](DecoderShape &s) {
              for (DecoderShape::Weights &weights : s.kinds)
                weights.output = weights.down = WeightUnit::ofGroup(8);
            }),
            "");
}

TEST(PersistentPlan, HeadsOf64AreFinishedInPairs) {
  const DecoderShape &shape = models[3].shape;
  auto plan = PersistentPlan::get(shape,
                                  {.clusters = 8,
                                   .clusterBlocks = 8,
                                   .attentionClusters = 8,
                                   .warps = 16,
                                   .stages = 8,
                                   .attentionInFlight = 3,
                                   .mlpInFlight = 3},
                                  h100());
  ASSERT_TRUE(bool(plan)) << llvm::toString(plan.takeError());
  EXPECT_EQ(plan->joinedHeads(), 2);
  EXPECT_EQ(plan->joinedSets(), 2);
  EXPECT_EQ(plan->joinedColumns(1), (IndexRange{128, 256}));
  EXPECT_EQ(plan->ownSets(1), 1);
  EXPECT_EQ(plan->ownSets(2), 0);
}

TEST(PersistentPlan, WhatDoesNotFit) {
  PersistentSchedule schedule{.clusters = 14,
                              .clusterBlocks = 8,
                              .attentionClusters = 8,
                              .warps = 16,
                              .stages = 11,
                              .attentionInFlight = 3,
                              .mlpInFlight = 4};
  const DecoderShape &llama = models[0].shape;
  EXPECT_EQ(problemOf(llama, schedule), "");
  auto with = [&](auto change) {
    PersistentSchedule other = schedule;
    change(other);
    return problemOf(llama, other);
  };
  EXPECT_EQ(with([](PersistentSchedule &s) { s.attentionClusters = 5; }),
            "8 key/value heads on 5 clusters");
  EXPECT_EQ(with([](PersistentSchedule &s) { s.attentionClusters = 15; }),
            "attention_clusters is 15, expected 1 to 14");
  EXPECT_EQ(with([](PersistentSchedule &s) { s.clusterBlocks = 16; }),
            "cluster_blocks is 16, expected 1 to 8");
  EXPECT_EQ(with([](PersistentSchedule &s) { s.clusters = 113; }),
            "112 groups of the MLP's inner values for 113 clusters");
  EXPECT_EQ(with([](PersistentSchedule &s) { s.mlpInFlight = 12; }),
            "mlp_in_flight is 12, expected 1 to 11");
  EXPECT_NE(with([](PersistentSchedule &s) { s.stages = 20; }).find("a ring of 20 stages of 16896"),
            std::string::npos);
  auto shaped = [&](auto change) {
    DecoderShape other = llama;
    change(other);
    return problemOf(other, schedule);
  };
  EXPECT_EQ(shaped([](DecoderShape &s) { s.inner = 14336 + 64; }),
            "an MLP of 14400 inner values is not in whole groups of 128");
  EXPECT_EQ(shaped([](DecoderShape &s) { s.width = 12288; }),
            "an input of 12288 columns is 6 groups a warp, at most 4 find room in registers");
  EXPECT_EQ(shaped([](DecoderShape &s) { s.dim = 100; }),
            "a width of 4096 and heads of 100 elements are not whole tiles of 16 rows");
  EXPECT_EQ(shaped([](DecoderShape &s) { s.dim = 48, s.queryHeads = 8; }),
            "a cluster's 48 columns of the attention output are not in whole groups of 128");
  GpuDevice a100 = gpuDevice(llvm::cantFail(loadTarget("a100")));
  EXPECT_EQ(llvm::toString(PersistentPlan::get(llama, schedule, a100).takeError()),
            "a step as one kernel needs clusters and bulk copies, which sm_80 does not have");
  PersistentLimits none = limits();
  none.residentClusters = {};
  EXPECT_EQ(llvm::toString(choosePersistentSchedule(llama, none, h100()).takeError()),
            "the target does not say how many clusters live at the same time");
}

// What the checker of protocols finds in a plan's own one.
TEST(PersistentPlan, ItsProtocolNeedsAllItsParts) {
  auto plan = PersistentPlan::get(models[0].shape,
                                  {.clusters = 14,
                                   .clusterBlocks = 8,
                                   .attentionClusters = 8,
                                   .warps = 16,
                                   .stages = 11,
                                   .attentionInFlight = 3,
                                   .mlpInFlight = 4},
                                  h100());
  ASSERT_TRUE(bool(plan));
  auto problem = [&](auto change) {
    Protocol protocol = plan->protocol(4);
    change(protocol);
    return llvm::toString(checkProtocol(protocol));
  };
  EXPECT_EQ(problem([](Protocol &) {}), "");
  // One array for the MLP's sums of all layers: a cluster without keys and values reads them late.
  std::string shared = problem([](Protocol &protocol) {
    for (std::vector<ProtocolEvent> &events : protocol.blocks)
      for (ProtocolEvent &event : events)
        if (event.exchange == PersistentPlan::MlpSums ||
            event.exchange == PersistentPlan::MlpSums + 1) {
          event.round = event.round * 2 + (event.exchange - PersistentPlan::MlpSums);
          event.exchange = PersistentPlan::MlpSums;
          if (event.kind == ProtocolEvent::Kind::WaitSum)
            event.count = (event.round + 1) * 14;
        }
  });
  EXPECT_NE(shared.find("may add to 'MLP sums, even layers' (round 1) before block 64 has read "
                        "round 0"),
            std::string::npos)
      << shared;
  // Any one addition or store less.
  for (auto kind : {ProtocolEvent::Kind::Add, ProtocolEvent::Kind::Send})
    for (int64_t block : {0, 63, 64, 111})
      EXPECT_NE(problem([&](Protocol &protocol) {
                  std::vector<ProtocolEvent> &events = protocol.blocks[block];
                  events.erase(llvm::find_if(
                      events, [&](const ProtocolEvent &event) { return event.kind == kind; }));
                }),
                "");
}

// A reader that waits for a stage knows that the filling before it, in the same slot, has come: it
// has read it, or a filling that was only asked for when that one had come.
TEST(RingReaders, KnowWhatWasInTheirSlot) {
  for (int64_t stages = 1; stages <= 14; ++stages)
    for (int64_t inFlight = 1; inFlight <= stages; ++inFlight)
      for (int64_t most = 1; most <= 16; ++most)
        for (int64_t set = 1; set <= 4; ++set) {
          int64_t readers = ringReaders(stages, inFlight, most, set);
          ASSERT_GE(readers, 1);
          ASSERT_LE(readers, most);
          auto readerOf = [&](int64_t stage) { return stage / set % readers; };
          for (int64_t stage = stages; stage < 4 * stages * readers * set; ++stage) {
            int64_t before = stage - 1;
            while (before >= 0 && readerOf(before) != readerOf(stage))
              --before;
            int64_t inSlot = stage - stages;
            ASSERT_TRUE(readerOf(inSlot) == readerOf(stage) || inSlot <= before - inFlight)
                << stages << " stages, " << inFlight << " in flight, " << readers << " readers of "
                << set << ", stage " << stage;
          }
        }
}

TEST(RingReaders, AsManyAsMayBe) {
  EXPECT_EQ(ringReaders(11, 3, 8), 8);
  EXPECT_EQ(ringReaders(10, 3, 8), 7);
  EXPECT_EQ(ringReaders(8, 3, 8), 8); // each slot has one reader
  EXPECT_EQ(ringReaders(3, 3, 2), 1);
}

// 20 warps begin with 96 registers a thread: what the copying warpgroup gives up is divided among
// the others. Without setmaxnreg, or with warps that are no warpgroups, one warp copies.
TEST(PersistentPlan, Registers) {
  auto planOf = [](const GpuDevice &device, int64_t warps) {
    PersistentLimits chosen = limits();
    chosen.warps = warps;
    PersistentSchedule schedule =
        llvm::cantFail(choosePersistentSchedule(models[0].shape, chosen, device));
    return llvm::cantFail(PersistentPlan::get(models[0].shape, schedule, device));
  };
  PersistentPlan divided = planOf(h100(), 16);
  EXPECT_EQ(divided.registers(), (PersistentPlan::Registers{104, 64}));
  EXPECT_EQ(divided.launch().block, 20 * 32);
  EXPECT_LE(16 * 104 + 4 * 64, 20 * 96);
  PersistentPlan odd = planOf(h100(), 15);
  EXPECT_EQ(odd.registers(), std::nullopt);
  EXPECT_EQ(odd.launch().block, 16 * 32);
  GpuDevice other = h100();
  other.warpgroups = false;
  EXPECT_EQ(planOf(other, 16).registers(), std::nullopt);
  EXPECT_EQ(planOf(other, 16).launch().block, 17 * 32);
}
