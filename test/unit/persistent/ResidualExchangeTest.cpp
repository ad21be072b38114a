// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The residual stream of a persistent kernel, generated and emulated: layers that add numbers made
// of the input's place instead of products. Every block must receive, bit for bit, what the
// definitions of sums and activations say.

#include "lib/Conversion/FusedToGpu/ResidualExchange.h"

#include "KernelText.h"

#include "sluice/Emulator/Emulator.h"
#include "sluice/Formats/Activations.h"
#include "sluice/Formats/FixedSum.h"
#include "sluice/Target/GpuDevice.h"

#include "gtest/gtest.h"

using namespace sluice;
using namespace sluice::fused;
using device::DeviceBuilder;
using mlir::Value;

namespace {

struct Shape {
  int64_t width, clusters, clusterBlocks, attentionClusters, layers;
};

/// What may be left out of the kernel.
struct Faults {
  bool separates = true; ///< a barrier of the cluster between two inputs
  bool addsAll = true;   ///< all additions of cluster 1
  bool missesTheEmbedding = false;
  int64_t nanLayer = -1; ///< adds what is no number in this layer
};

constexpr int64_t warps = 2;

PersistentPlan planOf(const Shape &shape) {
  DecoderShape decoder;
  decoder.width = shape.width;
  decoder.queryHeads = decoder.heads = shape.attentionClusters;
  decoder.dim = 128;
  decoder.inner = 128 * shape.clusters * shape.clusterBlocks;
  decoder.vocabulary = 64;
  decoder.layers = shape.layers;
  decoder.setUnits(WeightUnit::ofGroup(8));
  decoder.piecePositions = 32;
  decoder.pieceBytes = 16384;
  return llvm::cantFail(PersistentPlan::get(decoder,
                                            {.clusters = shape.clusters,
                                             .clusterBlocks = shape.clusterBlocks,
                                             .attentionClusters = shape.attentionClusters,
                                             .warps = warps,
                                             .stages = 2,
                                             .attentionInFlight = 1,
                                             .mlpInFlight = 1},
                                            gpuDevice(llvm::cantFail(loadTarget("h100")))));
}

/// Bytes that a block writes of each input that it receives: groups, then scales and squares.
int64_t recordBytes(const PersistentPlan &plan) {
  return plan.widthGroups() * (PersistentPlan::kGroupBytes + PersistentPlan::kStepBytes);
}

void emit(const PersistentPlan &plan, const Faults &faults, DeviceBuilder &k, Value shared,
          mlir::ValueRange arguments) {
  Value thread = k.thread(), block = k.block();
  int64_t ranks = plan.schedule.clusterBlocks;
  Value cluster = k.div(block, ranks), rank = k.rankInCluster();
  device::ResidualExchange exchange(k, plan, {shared, arguments[0], arguments[2], arguments[3]},
                                    thread);
  auto barrier = [&] {
    k.clusterArrive();
    k.clusterWait();
  };
  k.ifThen(k.equal(thread, k.constI32(0)), [&] {
    exchange.initBarrier();
    k.fenceBarrierInit();
  });
  barrier();
  if (!faults.missesTheEmbedding)
    exchange.start();
  // Records of a block, and the rounds of inputs, which clusters without heads have fewer of.
  int64_t bytes = recordBytes(plan), inputs = 2 * plan.shape.layers + 1;
  Value records = k.at(arguments[4], block, inputs * bytes);
  auto receive = [&](Value round, Value number) {
    exchange.receive(round);
    Value to = k.at(records, number, bytes);
    int64_t groups = plan.widthGroups() * PersistentPlan::kGroupBytes,
            meta = plan.widthGroups() * PersistentPlan::kStepBytes;
    auto copy = [&](SharedRange from, int64_t at, int64_t size) {
      k.loop(k.shl(thread, 2), k.constI32(size), warps * device::kWarp * 4, [&](Value byte) {
        k.store(k.load(k.i32(), k.offset(k.offset(shared, from.offset), byte), 4),
                k.offset(k.offset(to, at), byte), 4);
      });
    };
    copy(plan.input, 0, groups);
    copy(plan.inputMeta, groups, meta);
    if (faults.separates)
      barrier();
  };
  // A rank's rows: those of its tiles.
  Value firstRow = k.shl(k.div(k.mul(rank, plan.widthTiles()), ranks), 4),
        endRow = k.shl(k.div(k.mul(k.add(rank, 1), plan.widthTiles()), ranks), 4);
  auto addRows = [&](Value layer, int64_t kind) {
    Value salt = k.add(k.add(k.mul(layer, 3), kind), k.mul(cluster, 5));
    auto all = [&] {
      k.loop(k.add(firstRow, thread), endRow, warps * device::kWarp, [&](Value row) {
        Value number = k.sub(k.rem(k.add(k.mul(row, 7), k.mul(salt, 11)), 97), 48);
        Value value = k.mulF(k.toFloat(number), k.number(0.0371));
        if (faults.nanLayer >= 0 && kind == 1) {
          Value bad =
              k.bitAnd(k.equal(layer, k.constI32(faults.nanLayer)), k.equal(row, k.constI32(5)));
          value = k.select(bad, k.number(std::numeric_limits<double>::quiet_NaN()), value);
        }
        kind ? exchange.addMlp(layer, row, value) : exchange.addAttention(row, value);
      });
    };
    if (faults.addsAll)
      return all();
    // Of cluster 1, those of the last layer are missing.
    Value missing = k.bitAnd(k.equal(cluster, k.constI32(1)),
                             k.equal(layer, k.constI32(plan.shape.layers - 1)));
    k.ifElse(missing, [] {}, all);
  };
  Value gains = arguments[1],
        attends = k.less(cluster, k.constI32(plan.schedule.attentionClusters));
  Value layers = k.constI32(plan.shape.layers), zero = k.constI32(0);
  auto end2 = k.loop(zero, layers, 1, {zero}, [&](Value layer, mlir::ValueRange carried) {
    Value round = carried[0];
    exchange.readMlp(k.sub(layer, 1), gains, attends);
    Value next = k.ifElseYield(
        attends,
        [&] {
          receive(round, k.shl(layer, 1));
          addRows(layer, 0);
          return DeviceBuilder::Values{k.add(round, 1)};
        },
        [&] { return DeviceBuilder::Values{round}; })[0];
    exchange.readAttention(layer, gains);
    receive(next, k.add(k.shl(layer, 1), 1));
    addRows(layer, 1);
    return DeviceBuilder::Values{k.add(next, 1)};
  });
  exchange.readMlp(k.sub(layers, 1), gains);
  receive(end2[0], k.constI32(inputs - 1));
  barrier();
}

/// The kernel's module as text. Arguments: embedding, gains, sums, poison, records.
std::string kernelOf(const PersistentPlan &plan, const Faults &faults) {
  return test::kernelText(5, warps * device::kWarp,
                          [&](DeviceBuilder &k, Value shared, mlir::ValueRange arguments) {
                            emit(plan, faults, k, shared, arguments);
                          })
      .text;
}

/// What the definitions say: the records of all blocks.
class Expected {
public:
  Expected(const PersistentPlan &plan, llvm::ArrayRef<float> embedding, llvm::ArrayRef<float> gains)
      : plan(plan), embedding(embedding), gains(gains), attention(embedding.size(), 0),
        mlps{attention, attention} {
    int64_t layers = plan.shape.layers;
    for (int64_t layer = 0; layer < layers; ++layer) {
      records.push_back(record(layer));
      add(layer, 0);
      records.push_back(record(layer));
      add(layer, 1);
    }
    records.push_back(record(layers));
  }
  /// By input; those of products with heads are at even places.
  std::vector<std::vector<uint8_t>> records;

private:
  void add(int64_t layer, int64_t kind) {
    int64_t clusters = kind ? plan.schedule.clusters : plan.schedule.attentionClusters,
            all = kind ? plan.mlpAdditions() * int64_t(llvm::divideCeil(plan.shape.layers, 2))
                       : plan.attentionAdditions() * plan.shape.layers;
    std::vector<uint64_t> &words = kind ? mlps[layer % 2] : attention;
    for (int64_t cluster = 0; cluster < clusters; ++cluster)
      for (size_t row = 0; row < words.size(); ++row) {
        int64_t salt = layer * 3 + kind + cluster * 5;
        float value = static_cast<float>((int64_t(row) * 7 + salt * 11) % 97 - 48) * 0.0371f;
        words[row] +=
            formats::fixedSumIncrement(*formats::fixedSumTerm(value, formats::fixedSumLimit(all)));
      }
    (kind ? mlpAdditions[layer % 2] : attentionAdditions) += clusters;
  }

  /// Before `layer` has added to its MLP's sums.
  std::vector<uint8_t> record(int64_t layer) const {
    std::vector<float> x(plan.widthGroups() * 128, 0), squares = x;
    for (size_t row = 0; row < embedding.size(); ++row) {
      int64_t latest = (layer + 1) % 2;
      float stream = (embedding[row] + formats::fixedSumValue(attention[row], attentionAdditions)) +
                     (formats::fixedSumValue(mlps[latest][row], mlpAdditions[latest]) +
                      formats::fixedSumValue(mlps[1 - latest][row], mlpAdditions[1 - latest]));
      squares[row] = stream;
      x[row] = stream * gains[row];
    }
    std::vector<int16_t> fixed(x.size());
    std::vector<float> scales(plan.widthGroups());
    formats::quantizeActivations(x, fixed, scales);
    std::vector<uint8_t> bytes(recordBytes(plan));
    for (size_t column = 0; column < x.size(); ++column) {
      size_t at = column / 32 * 64 + column % 16 / 4 * 8 + column % 32 / 16 * 4 + column % 4;
      bytes[at] = formats::highByte(fixed[column]);
      bytes[at + 32] = formats::lowByte(fixed[column]);
    }
    for (int64_t group = 0; group < plan.widthGroups(); ++group) {
      // In the order in which a warp adds: four neighbours, then by halves.
      float lanes[32];
      for (int64_t lane = 0; lane < 32; ++lane) {
        const float *s = &squares[group * 128 + lane * 4];
        lanes[lane] = s[0] * s[0];
        for (int64_t i = 1; i < 4; ++i)
          lanes[lane] = std::fma(s[i], s[i], lanes[lane]);
      }
      for (int64_t distance = 16; distance; distance /= 2) {
        float next[32];
        for (int64_t lane = 0; lane < 32; ++lane)
          next[lane] = lanes[lane] + lanes[lane ^ distance];
        std::copy_n(next, 32, lanes);
      }
      float meta[2] = {scales[group], lanes[0]};
      std::memcpy(&bytes[plan.widthGroups() * 256 + group * 8], meta, 8);
    }
    return bytes;
  }

  const PersistentPlan &plan;
  llvm::ArrayRef<float> embedding, gains;
  std::vector<uint64_t> attention, mlps[2];
  uint64_t attentionAdditions = 0, mlpAdditions[2] = {0, 0};
};

struct Outcome {
  std::string fault;
  int32_t poison = 0;
};

Outcome run(const Shape &shape, uint64_t seed = 1, const Faults &faults = {}) {
  PersistentPlan plan = planOf(shape);
  test::EmulatedStep step(kernelOf(plan, faults), seed);
  std::vector<float> embedding(shape.width), gains(shape.width);
  for (int64_t i = 0; i < shape.width; ++i) {
    embedding[i] = static_cast<float>(i * 31 % 101 - 50) * 0.02f;
    gains[i] = 1.0f + static_cast<float>(i * 17 % 29 - 14) * 0.03f;
  }
  int64_t inputs = 2 * shape.layers + 1, bytes = recordBytes(plan);
  std::vector<uint64_t> sums(PersistentPlan::kSumArrays * plan.widthTiles() * 16, 0);
  std::vector<int32_t> poison(4, 0);
  std::vector<uint8_t> records(plan.blocks() * inputs * bytes, 0);
  step.add("embedding", embedding, emulator::MemoryKind::Constant);
  step.add("gains", gains, emulator::MemoryKind::Constant);
  step.add("sums", sums);
  step.add("poison", poison);
  step.add("records", records);
  fused::GpuLaunch launch = plan.launch();
  launch.block = warps * device::kWarp;
  Outcome outcome;
  outcome.fault = step.run(launch);
  outcome.poison = poison[0];
  if (!outcome.fault.empty() || faults.nanLayer >= 0)
    return outcome;
  Expected expected(plan, embedding, gains);
  for (int64_t block = 0; block < plan.blocks(); ++block)
    for (int64_t input = 0; input < inputs; ++input) {
      if (input % 2 == 0 && input + 1 < inputs && !plan.attends(block))
        continue;
      llvm::ArrayRef<uint8_t> found(records.data() + (block * inputs + input) * bytes, bytes);
      EXPECT_EQ(found, llvm::ArrayRef(expected.records[input]))
          << "block " << block << ", input " << input;
    }
  return outcome;
}

constexpr Shape small{256, 3, 2, 2, 4};

} // namespace

TEST(ResidualExchange, GivesWhatTheDefinitionsSay) {
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    Outcome outcome = run(small, seed);
    ASSERT_EQ(outcome.fault, "") << "seed " << seed;
    EXPECT_EQ(outcome.poison, 0);
  }
}

// Groups that are not whole, more groups than warps, ranks without a group.
TEST(ResidualExchange, UnevenShares) {
  EXPECT_EQ(run({576, 2, 2, 1, 2}).fault, "");
  EXPECT_EQ(run({576, 2, 1, 2, 3}).fault, "");
  EXPECT_EQ(run({256, 2, 4, 1, 2}).fault, "");
}

TEST(ResidualExchange, WhatSumsDoNotHoldIsTold) {
  Faults faults;
  faults.nanLayer = 1;
  Outcome outcome = run(small, 1, faults);
  EXPECT_EQ(outcome.fault, "");
  EXPECT_EQ(outcome.poison, 1);
}

TEST(ResidualExchange, InputUsedTooEarly) {
  Faults faults;
  faults.separates = false;
  bool found = false;
  for (uint64_t seed = 1; seed <= 8 && !found; ++seed)
    found = llvm::StringRef(run(small, seed, faults).fault).contains("of shared memory");
  EXPECT_TRUE(found);
}

TEST(ResidualExchange, MissingAdditions) {
  Faults faults;
  faults.addsAll = false;
  std::string fault = run(small, 1, faults).fault;
  EXPECT_TRUE(llvm::StringRef(fault).contains("poll byte ")) << fault;
  EXPECT_TRUE(llvm::StringRef(fault).contains("of buffer 'sums'")) << fault;
}

TEST(ResidualExchange, StreamWithoutItsBeginning) {
  Faults faults;
  faults.missesTheEmbedding = true;
  std::string fault = run(small, 1, faults).fault;
  EXPECT_TRUE(llvm::StringRef(fault).contains("was never written (uninitialised)")) << fault;
}
