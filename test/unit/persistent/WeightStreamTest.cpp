// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// MLPs of a persistent kernel, generated and emulated: residual stream, gate and up products
// through the ring, inner values exchanged in the cluster, down products added to the sums.

#include "KernelText.h"

#include "lib/Conversion/FusedToGpu/ResidualExchange.h"
#include "lib/Conversion/FusedToGpu/WeightStream.h"

#include "sluice-support/Float16.h"
#include "sluice/Emulator/Emulator.h"
#include "sluice/Formats/FixedSum.h"
#include "sluice/Target/GpuDevice.h"

#include "gtest/gtest.h"

#include <random>

using namespace sluice;
using namespace sluice::fused;
using device::DeviceBuilder;
using device::GroupExchange;
using device::StreamedPart;
using mlir::Value;

namespace {

struct Shape {
  int64_t width, inner, clusters, clusterBlocks, layers, warps, stages;
  formats::Encoding::Element element = formats::Encoding::Element::I8;
  /// Columns of a chunk of packed weights.
  int64_t chunk = 256;
  int64_t vocabulary = 416;
  /// In records, with scales for groups of 32.
  bool records = false;

  formats::Encoding encoding() const { return {element, records ? 32 : 128}; }
  formats::Layout layout() const {
    return {records ? formats::Layout::Kind::Records : formats::Layout::Kind::Mma, chunk};
  }
  WeightUnit unit() const {
    return records ? WeightUnit::ofRecord(encoding()) : WeightUnit::ofGroup(encoding().bits());
  }
};

struct Faults {
  bool waitsForInner = true;
};

constexpr double epsilon = 1e-5;

PersistentPlan planOf(const Shape &shape) {
  DecoderShape decoder;
  decoder.width = shape.width;
  decoder.queryHeads = 2;
  decoder.heads = 1;
  decoder.dim = 128;
  decoder.inner = shape.inner;
  decoder.vocabulary = shape.vocabulary;
  decoder.layers = shape.layers;
  decoder.setUnits(shape.unit());
  decoder.piecePositions = 32;
  decoder.pieceBytes = 16384;
  return llvm::cantFail(PersistentPlan::get(decoder,
                                            {.clusters = shape.clusters,
                                             .clusterBlocks = shape.clusterBlocks,
                                             .attentionClusters = 1,
                                             .warps = shape.warps,
                                             .stages = shape.stages,
                                             .attentionInFlight = 1,
                                             .mlpInFlight = 2},
                                            gpuDevice(llvm::cantFail(loadTarget("h100")))));
}

/// Integers with scales, and the same packed.
struct Matrix {
  Matrix(int64_t rows, int64_t columns, const Shape &shape, unsigned seed)
      : format(shape.encoding()),
        packed(llvm::cantFail(formats::PackedShape::get(format, shape.layout(), rows, columns))) {
    std::mt19937 random(seed);
    int64_t groups = packed.groups(), top = format.qMax();
    q.resize(rows * columns);
    for (int8_t &value : q)
      value = static_cast<int8_t>(int64_t(random() % (2 * top + 1)) - top);
    scales.resize(rows * groups);
    for (uint32_t &scale : scales)
      scale = support::floatToF16(static_cast<float>(1 + random() % 8) /
                                  (8.0f * static_cast<float>(top) * 16.0f));
    bytes.resize(packed.bytes() + 16);
    for (int64_t tile = 0; tile < packed.tiles(); ++tile) {
      std::vector<formats::PackRow> all;
      for (int64_t row = tile * 16; row < tile * 16 + 16; ++row) {
        formats::PackRow entry;
        entry.elements = &q[row * columns];
        entry.scales = &scales[row * groups];
        all.push_back(entry);
      }
      formats::packTile(packed, all,
                        llvm::MutableArrayRef<uint8_t>(bytes).slice(tile * packed.tileBytes(),
                                                                    packed.tileBytes()));
    }
  }
  double product(int64_t row, llvm::ArrayRef<double> x) const {
    double sum = 0;
    int64_t columns = packed.columns(), groups = packed.groups();
    for (int64_t column = 0; column < columns; ++column)
      sum += q[row * columns + column] *
             double(support::f16ToFloat(scales[row * groups + packed.groupOf(column)])) * x[column];
    return sum;
  }

  formats::Encoding format;
  formats::PackedShape packed;
  std::vector<int8_t> q;
  std::vector<uint32_t> scales;
  std::vector<uint8_t> bytes;
};

void emit(const PersistentPlan &plan, const Faults &faults, const formats::PackedShape &gateShape,
          const formats::PackedShape &downShape, const formats::PackedShape &headShape,
          DeviceBuilder &k, Value shared, mlir::ValueRange arguments) {
  int64_t ranks = plan.schedule.clusterBlocks, warps = plan.schedule.warps,
          threads = warps * device::kWarp;
  Value thread = k.thread(), block = k.block(), lane = k.bitAnd(thread, device::kWarp - 1),
        warp = k.shr(thread, 5), cluster = k.div(block, ranks), rank = k.rankInCluster();
  device::ResidualExchange exchange(k, plan, {shared, arguments[0], arguments[2], arguments[3]},
                                    thread);
  device::WeightStream stream(k, plan, shared);
  GroupExchange inner{k, plan, shared, PersistentPlan::Inner, plan.inner, plan.innerMeta};
  // The block's parts, from shared memory wherever they are needed.
  auto number = [&](int64_t index) {
    return k.load(k.i32(), k.offset(shared, plan.extents.offset + index * 4), 4);
  };
  struct Part {
    Value begin, count;
  };
  auto partOf = [&](int64_t index) -> Part { return {number(2 * index), number(2 * index + 1)}; };
  auto ownPart = [&] { return partOf(0); };
  auto clusterPart = [&] { return partOf(1); };
  auto tilePart = [&] { return partOf(2); };
  auto wordPart = [&] { return partOf(3); };
  auto storeParts = [&] {
    int64_t index = 0;
    auto store = [&](Value begin, Value count) {
      for (Value value : {begin, count})
        k.store(value, k.offset(shared, plan.extents.offset + 4 * index++), 4);
    };
    device::InnerParts inner(k, plan, cluster, rank);
    store(inner.begin, inner.count);
    store(inner.clusterBegin, inner.clusterCount);
    for (device::PartOf part :
         {device::PartOf(k, plan.widthTiles(), ranks, rank),
          device::PartOf(k, llvm::divideCeil(plan.shape.vocabulary, PersistentPlan::kTile),
                         plan.blocks(), block)})
      store(part.begin, k.sub(part.end, part.begin));
  };
  auto innerBytes = [&](Value clusterCount) {
    Value bytes = k.mul(clusterCount, inner.groupBytes());
    if (plan.mostInnerGroups() > 1)
      return bytes;
    return k.add(bytes, k.mul(k.sub(k.constI32(ranks), clusterCount), PersistentPlan::kTokenBytes));
  };

  StreamedPart gate(gateShape, plan.widthGroups(), plan),
      down(downShape, plan.mostClusterInnerGroups(), plan),
      head(headShape, plan.widthGroups(), plan);
  Value zero = k.constI32(0), layers = k.constI32(plan.shape.layers);
  constexpr int64_t tilesOfGroup = 2 * PersistentPlan::kGroup / PersistentPlan::kTile;
  Value allGroups = k.constI32(plan.widthGroups());
  auto gateExtent = [&]() -> StreamedPart::Extent {
    Part own = ownPart();
    return {arguments[4], k.mul(own.begin, tilesOfGroup), k.mul(own.count, tilesOfGroup), zero,
            allGroups};
  };
  auto downExtent = [&]() -> StreamedPart::Extent {
    Part tiles = tilePart(), inner = clusterPart();
    return {arguments[5], tiles.begin, tiles.count, inner.begin, inner.count};
  };
  auto headExtent = [&]() -> StreamedPart::Extent {
    Part words = wordPart();
    return {arguments[6], words.begin, words.count, zero, allGroups};
  };

  k.ifThen(k.equal(thread, zero), [&] {
    exchange.initBarrier();
    storeParts();
    inner.init(innerBytes(number(3)));
    stream.initBarriers();
    k.fenceBarrierInit();
  });
  k.clusterArrive();
  k.clusterWait();
  auto copy = [&] {
    auto layersCopied = k.loop(zero, layers, 1, {zero, zero}, [&](Value, mlir::ValueRange carried) {
      StreamedPart::Extent gates = gateExtent();
      device::WeightStream::Later later{gate, gates};
      auto after = stream.copy(gate, gates, plan.schedule.mlpInFlight,
                               {carried[0], carried[1], zero}, lane, &later);
      after = stream.copy(down, downExtent(), plan.schedule.mlpInFlight, after, lane);
      return DeviceBuilder::Values{after[0], after[1]};
    });
    stream.copy(head, headExtent(), plan.schedule.mlpInFlight,
                {layersCopied[0], layersCopied[1], zero}, lane);
  };
  auto compute = [&] {
    k.loop(thread, k.constI32(plan.zeros.bytes / 4), threads,
           [&](Value i) { k.store(zero, k.at(k.offset(shared, plan.zeros.offset), i, 4), 4); });
    exchange.start();
    Value place = k.at(k.offset(shared, plan.scratch.offset), warp, PersistentPlan::kGroupBytes);
    auto passedLayers = k.loop(zero, layers, 1, {zero}, [&](Value layer, mlir::ValueRange carried) {
      Value passed = carried[0];
      exchange.readMlp(k.sub(layer, 1));
      // Not before the sums of the layer before are complete, which others read meanwhile.
      k.barrier(1, threads);
      // Attention adds nothing, but as often as it must.
      k.ifThen(k.equal(cluster, zero), [&] {
        Part tiles = tilePart();
        k.loop(k.add(k.shl(tiles.begin, 4), thread), k.shl(k.add(tiles.begin, tiles.count), 4),
               threads, [&](Value row) { exchange.addAttention(row, k.number(0.0)); });
      });
      exchange.readAttention(layer, arguments[1]);
      exchange.receive(layer);
      GroupExchange input = exchange.exchange();
      Value factor = exchange.normFactor(epsilon);
      Value values = k.offset(shared, plan.innerValues.offset);
      passed = stream.forBatches(
          gate, gateExtent(), plan.mostInnerGroups() * tilesOfGroup, passed,
          [&](const StreamedPart::Extent &batch, Value firstTile, Value before) {
            stream.multiply(gate, batch, before, warp, lane, input);
            k.barrier(1, threads);
            stream.finish(gate, batch, thread, threads,
                          [&](Value tile, Value row, Value low, Value high) {
                            Value value = k.mulF(k.mulF(low, factor), k.mulF(high, factor));
                            Value place = k.add(k.shl(k.add(firstTile, tile), 3), row);
                            k.store(k.narrow(value, k.f16()), k.at(values, place, 2), 2);
                          });
            k.barrier(1, threads);
          });
      Part own = ownPart(), ofCluster = clusterPart();
      k.loop(warp, own.count, warps, [&](Value group) {
        Value at = k.offset(k.at(values, group, PersistentPlan::kGroup * 2), k.shl(lane, 3));
        DeviceBuilder::Values x;
        for (Value half : k.lanes(k.load(k.vec(4, k.f16()), at, 8)))
          x.push_back(k.widen(half));
        inner.send(x, k.number(0.0), k.add(k.sub(own.begin, ofCluster.begin), group), place, lane);
      });
      k.ifThen(k.equal(own.count, zero), [&] { inner.sendToken(rank, thread); });
      if (faults.waitsForInner)
        inner.receive(layer, innerBytes(ofCluster.count), thread);
      passed = stream.forBatches(
          down, downExtent(), llvm::divideCeil(plan.widthTiles(), ranks), passed,
          [&](const StreamedPart::Extent &batch, Value, Value before) {
            stream.multiply(down, batch, before, warp, lane, inner);
            k.barrier(1, threads);
            stream.finish(down, batch, thread, threads,
                          [&](Value tile, Value row, Value low, Value high) {
                            Value first = k.add(k.shl(k.add(batch.firstTile, tile), 4), row);
                            exchange.addMlp(layer, first, low);
                            exchange.addMlp(layer, k.add(first, 8), high);
                          });
            k.barrier(1, threads); // before other sums come to the same place
          });
      return DeviceBuilder::Values{passed};
    });
    exchange.readMlp(k.sub(layers, 1), arguments[1]);
    exchange.receive(layers);
    GroupExchange input = exchange.exchange();
    Value factor = exchange.normFactor(epsilon);
    stream.forBatches(
        head, headExtent(),
        llvm::divideCeil(llvm::divideCeil(plan.shape.vocabulary, PersistentPlan::kTile),
                         plan.blocks()),
        passedLayers[0], [&](const StreamedPart::Extent &batch, Value, Value before) {
          stream.multiply(head, batch, before, warp, lane, input);
          k.barrier(1, threads);
          stream.finish(head, batch, thread, threads,
                        [&](Value tile, Value row, Value low, Value high) {
                          Value first = k.add(k.shl(k.add(batch.firstTile, tile), 4), row);
                          Value to = k.at(arguments[7], first, 4);
                          k.store(k.mulF(low, factor), to, 4);
                          k.store(k.mulF(high, factor), k.offset(to, 32), 4);
                        });
          k.barrier(1, threads);
        });
  };
  device::computeAndCopy(k, plan, thread, compute, copy);
  k.clusterArrive();
  k.clusterWait();
}

std::string run(const Shape &shape, uint64_t seed = 1, const Faults &faults = {}) {
  PersistentPlan plan = planOf(shape);
  Matrix gate(2 * shape.inner, shape.width, shape, 1), down(shape.width, shape.inner, shape, 2),
      head(shape.vocabulary, shape.width, shape, 3);
  std::string text =
      test::kernelText(8, plan.launch().block,
                       [&](DeviceBuilder &k, Value shared, mlir::ValueRange arguments) {
                         emit(plan, faults, gate.packed, down.packed, head.packed, k, shared,
                              arguments);
                       })
          .text;
  test::EmulatedStep step(text, seed);
  std::vector<float> embedding(shape.width), gains(shape.width);
  for (int64_t i = 0; i < shape.width; ++i) {
    embedding[i] = static_cast<float>(i * 31 % 101 - 50) * 0.02f;
    gains[i] = 1.0f + static_cast<float>(i * 17 % 29 - 14) * 0.03f;
  }
  std::vector<uint64_t> sums(PersistentPlan::kSumArrays * shape.width, 0);
  std::vector<int32_t> poison(4, 0);
  std::vector<float> logits(shape.vocabulary, 0);
  step.add("embedding", embedding, emulator::MemoryKind::Constant);
  step.add("gains", gains, emulator::MemoryKind::Constant);
  step.add("sums", sums);
  step.add("poison", poison);
  step.add("gate", gate.bytes, emulator::MemoryKind::Constant);
  step.add("down", down.bytes, emulator::MemoryKind::Constant);
  step.add("head", head.bytes, emulator::MemoryKind::Constant);
  step.add("logits", logits);
  if (std::string fault = step.run(plan.launch()); !fault.empty())
    return fault;
  EXPECT_EQ(poison[0], 0);

  // The same in double precision.
  std::vector<double> stream(embedding.begin(), embedding.end());
  auto normed = [&] {
    double squares = 0;
    for (double x : stream)
      squares += x * x;
    double factor = 1 / std::sqrt(squares / double(shape.width) + epsilon);
    std::vector<double> x;
    for (int64_t i = 0; i < shape.width; ++i)
      x.push_back(stream[i] * gains[i] * factor);
    return x;
  };
  for (int64_t layer = 0; layer < shape.layers; ++layer) {
    std::vector<double> x = normed(), inner;
    for (int64_t i = 0; i < shape.inner; ++i) {
      int64_t row = i / 8 * 16 + i % 8;
      inner.push_back(gate.product(row, x) * gate.product(row + 8, x));
    }
    for (int64_t i = 0; i < shape.width; ++i)
      stream[i] += down.product(i, inner);
  }
  double difference = 0, norm = 0;
  auto compare = [&](double found, double expected, double less) {
    difference += (found - expected) * (found - expected);
    norm += (expected - less) * (expected - less);
  };
  for (int64_t i = 0; i < shape.width; ++i) {
    double found = embedding[i];
    for (int64_t parity = 0; parity < std::min<int64_t>(shape.layers, 2); ++parity) {
      int64_t rounds = (shape.layers - parity + 1) / 2;
      found +=
          formats::fixedSumValue(sums[(1 + parity) * shape.width + i], rounds * shape.clusters);
    }
    compare(found, stream[i], embedding[i]);
  }
  EXPECT_GT(norm, 0);
  // Inner values are f16.
  EXPECT_LT(std::sqrt(difference / norm), 1e-3) << "sums";
  difference = norm = 0;
  std::vector<double> x = normed();
  for (int64_t i = 0; i < shape.vocabulary; ++i)
    compare(logits[i], head.product(i, x), 0);
  EXPECT_LT(std::sqrt(difference / norm), 1e-3) << "logits";
  return "";
}

} // namespace

TEST(WeightStream, MlpsAreWhatTheyShouldBe) {
  for (uint64_t seed = 1; seed <= 3; ++seed)
    ASSERT_EQ(run({256, 768, 3, 2, 3, 8, 4}, seed), "") << "seed " << seed;
}

TEST(WeightStream, FourBits) {
  EXPECT_EQ(run({256, 768, 3, 2, 2, 16, 4, formats::Encoding::Element::I4}), "");
}

// A width that is not in whole groups; more tiles than find room for their sums.
TEST(WeightStream, PartsOfGroupsAndBatches) {
  EXPECT_EQ(run({576, 512, 2, 2, 2, 8, 3}), "");
  EXPECT_EQ(run({576, 512, 2, 2, 2, 16, 3, formats::Encoding::Element::I4}), "");
  EXPECT_EQ(run({1152, 1024, 2, 1, 1, 8, 3}), "");
}

// The MLPs of an 8B model's step: everything in registers.
TEST(WeightStream, LargeModelsSpillNothing) {
  for (auto element : {formats::Encoding::Element::I4, formats::Encoding::Element::I8}) {
    bool int4 = element == formats::Encoding::Element::I4;
    Shape shape{4096, 14336, 14, 8, 32, 16, 10, element, int4 ? 2048 : 1024, 128256};
    PersistentPlan plan = planOf(shape);
    auto packed = [&](int64_t rows, int64_t columns) {
      return llvm::cantFail(
          formats::PackedShape::get(shape.encoding(), shape.layout(), rows, columns));
    };
    std::vector<nvidia::KernelResources> resources =
        test::kernelText(8, plan.launch().block,
                         [&](DeviceBuilder &k, Value shared, mlir::ValueRange arguments) {
                           emit(plan, {}, packed(2 * shape.inner, shape.width),
                                packed(shape.width, shape.inner),
                                packed(shape.vocabulary, shape.width), k, shared, arguments);
                         })
            .resources;
    if (resources.empty())
      GTEST_SKIP() << "there is no ptxas";
    RecordProperty("registers_" + std::to_string(plan.shape.kinds.front().gates.bits),
                   static_cast<int>(resources[0].registers));
    EXPECT_EQ(resources[0].spillStoreBytes, 0);
    EXPECT_EQ(resources[0].spillLoadBytes, 0);
  }
}

// Of records the next team has the next stage, also of the same tile: two and four stages of a tile
// by two teams and by four, three stages by two, parts of a tile; more tiles than find room.
TEST(WeightStream, Records) {
  auto shape = [](int64_t width, int64_t inner, int64_t clusters, int64_t warps, int64_t stages,
                  formats::Encoding::Element element = formats::Encoding::Element::I4) {
    Shape shape{width, inner, clusters, 2, 2, warps, stages, element};
    shape.records = true;
    return shape;
  };
  EXPECT_EQ(run(shape(256, 768, 3, 8, 4)), "");
  EXPECT_EQ(run(shape(4096, 512, 2, 16, 5)), "");
  EXPECT_EQ(run(shape(2048, 512, 1, 16, 5, formats::Encoding::Element::I8)), "");
  EXPECT_EQ(run(shape(1536, 1280, 2, 16, 5, formats::Encoding::Element::I8)), "");
  EXPECT_EQ(run(shape(1536, 1280, 2, 4, 4, formats::Encoding::Element::I8)), "");
}

// Two teams of warps; more groups than a stage has units; chunks that parts begin and end in, and
// whole ones.
TEST(WeightStream, OtherDivisions) {
  EXPECT_EQ(run({256, 512, 2, 2, 2, 16, 3}), "");
  EXPECT_EQ(run({1280, 256, 2, 1, 2, 8, 3, formats::Encoding::Element::I8, 512}), "");
  EXPECT_EQ(run({256, 640, 2, 2, 2, 8, 4, formats::Encoding::Element::I8, 384}), "");
  EXPECT_EQ(run({256, 384, 2, 2, 2, 8, 4}), ""); // a block has no inner values
  EXPECT_EQ(run({1024, 256, 2, 2, 2, 16, 5, formats::Encoding::Element::I8, 1024}), "");
}

TEST(WeightStream, InnerValuesThatAreNotWaitedFor) {
  Faults faults;
  faults.waitsForInner = false;
  EXPECT_NE(run({256, 768, 3, 2, 2, 8, 4}, 1, faults), "");
}
