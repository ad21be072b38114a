// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Analysis/TimeFit.h"
#include "sluice/Analysis/TimeModel.h"
#include "sluice/Target/GpuDevice.h"

#include "dialects/Plan/Plan.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Parser/Parser.h"

#include <cmath>
#include <gtest/gtest.h>

using namespace mlir;
using namespace sluice;
using formats::CacheEncoding;
using formats::Encoding;

namespace {

Encoding encoding(llvm::StringRef name) { return *Encoding::fromName(name); }
CacheEncoding cache(llvm::StringRef name) { return *CacheEncoding::fromName(name); }

/// Ten multiprocessors and round numbers.
TargetDescription gpu() {
  TargetDescription target;
  target.kind = TargetDescription::Kind::Gpu;
  target.multiprocessors.value = 10;
  target.gpuTuning.attentionSplits.value = 2;
  target.gpuTuning.longRingBytes.value = 100000;
  GpuTime &time = target.gpuTime;
  time.productBandwidth.value = 1e12;
  time.cacheBandwidth.value = 0.5e12;
  time.blockBandwidth.value = 0.2e12;
  time.productGap.value = 1e-6;
  time.productWait.value = 2e-6;
  time.productColumn.value = 1e-9;
  time.productStage.value = 0.2e-6;
  time.productSum.value = 0.3e-6;
  time.productRival.value = 2e-6;
  time.attentionWait.value = 3e-6;
  time.attentionPart.value = 0.4e-6;
  time.besideSaving.value = 1.5e-6;
  time.besideSlowdown.value = 0.5;
  time.roomSaving.value = 0.9e-6;
  time.append.value = 0.3e-6;
  time.matmulWait.value = 5e-6;
  time.matmulStage.value = 1e-8;
  time.unpackIntegers.value = 20e12;
  time.unpackFloats.value = 40e12;
  time.unpackRecords.value = 10e12;
  time.warpIntegers.value = 100e12;
  time.warpFloats.value = 200e12;
  time.warpgroupIntegers.value = 250e12;
  time.warpgroupRecords.value = 400e12;
  time.l2Bandwidth.value = 5e12;
  time.l2BlockBandwidth.value = 1e12;
  time.rowsBandwidth.value = 2e12;
  time.smallKernel.value = 1.5e-6;
  time.samplingLogit.value = 1e-11;
  time.step.value = 10e-6;
  time.alone.value = 4e-6;
  target.productRates["int8-g128"].value = 1e12;
  target.productRates["int4-g128"].value = 2e12;
  target.productRates["iq4_nl"].value = 0.5e12;
  target.attentionRates["f16"].value = 1e12;
  target.attentionRates["int8"].value = 4e12;
  return target;
}

double norm8(double a, double b) { return std::pow(std::pow(a, 8) + std::pow(b, 8), 0.125); }
double norm3(double a, double b) { return std::cbrt(a * a * a + b * b * b); }

/// A CPU with round numbers.
TargetDescription cpu() {
  TargetDescription target;
  target.readCeiling = Sourced<double>{10e9, ""};
  CpuTime &time = target.cpuTime;
  time.productBandwidth.value = 9e9;
  time.cacheBandwidth.value = 8e9;
  time.rowsBandwidth.value = 4e9;
  time.launch.value = 5e-6;
  time.productColumn.value = 2e-9;
  time.step.value = 100e-6;
  target.productRates["int8-g128"].value = 20e9;
  target.productRates["q6_k"].value = 15e9;
  target.matmulRates["int8-g128"].value = 200e9;
  target.attentionRates["f16"].value = 100e9;
  target.attentionRates["int8"].value = 200e9;
  target.attentionOperandRates["f16"].value = 50e9;
  target.attentionOperandRates["int8"].value = 150e9;
  return target;
}

TEST(TimeModel, ProductOfAGpu) {
  TargetDescription target = gpu();
  TimeModel model(target, 512);
  // 40 tiles, four a block; a row has 1000 columns and eight f16 scales.
  WeightLoad weight{encoding("int8-g128"), 640, 1000};
  double bytes = 640 * 1016.0, stream = bytes / 1e12, work = 640 * 1000 / 1e12;
  double chain = 2e-6 + 1000 * 1e-9 + work;
  KernelTime time = model.product(weight).at(1);
  EXPECT_NEAR(time.seconds(), norm8(stream + 1e-6, chain), 1e-15);
  EXPECT_NEAR(time.memory, stream, 1e-15);
  EXPECT_NEAR(model.product(weight).alone, 4e-6, 1e-15);
  // 41 tiles: one block has five of them, as if all had.
  weight.rows = 656;
  stream = 50.0 / 40 * bytes / 1e12;
  chain = 3e-6 + 50.0 / 40 * work;
  EXPECT_NEAR(model.productSeconds(weight), norm8(stream + 1e-6, chain), 1e-15);
  // One tile: one block's bandwidth and arithmetic.
  weight.rows = 16;
  stream = 16 * 1016 / 0.2e12;
  chain = 3e-6 + 16 * 1000 / 0.1e12;
  EXPECT_NEAR(model.productSeconds(weight), norm8(stream + 1e-6, chain), 1e-15);
  // Two weights in one kernel are one product.
  WeightLoad halves[] = {{encoding("int8-g128"), 320, 1000}, {encoding("int8-g128"), 320, 1000}};
  weight.rows = 640;
  EXPECT_NEAR(model.productSeconds(halves), model.productSeconds(weight), 1e-15);
}

TEST(TimeModel, ProductsOfOtherSchedules) {
  TargetDescription target = gpu();
  TimeModel model(target, 512);
  WeightLoad weight{encoding("int8-g128"), 16000, 1024};
  double stream = 16000 * 1040 / 1e12, chain = 3.024e-6 + 16000 * 1024 / 1e12;
  auto seconds = [&](const ProductSchedule &schedule) {
    return model.product(weight, ProductPlace::BehindProduct, 1, schedule).at(1).seconds();
  };
  ProductSchedule schedule;
  double best = seconds(schedule);
  EXPECT_NEAR(best, norm8(stream + 1e-6, chain), 1e-15);
  schedule.stages = 7;
  schedule.wantedStages = 10;
  EXPECT_NEAR(seconds(schedule) - best, 3 * 0.2e-6, 1e-15);
  schedule.sums = 3;
  EXPECT_NEAR(seconds(schedule) - best, 3 * 0.2e-6 + 2 * 0.3e-6, 1e-15);
  schedule = {};
  schedule.hasRoomForRival = true;
  EXPECT_NEAR(seconds(schedule) - best, 2e-6, 1e-15);
  // Two copies under way where there should be three: half as long again.
  schedule = {};
  schedule.underWay = 2;
  schedule.wantedUnderWay = 3;
  EXPECT_NEAR(seconds(schedule), norm8(1.5 * stream + 1e-6, chain), 1e-15);
  // A product that shares multiprocessors with attention reads half as long again, and saves 1.5
  // us: worth it for small ones.
  EXPECT_NEAR(model.besideAttentionSeconds(weight), 0.5 * stream - 1.5e-6, 1e-15);
  weight.rows = 1600;
  EXPECT_LT(model.besideAttentionSeconds(weight), 0);
}

TEST(TimeModel, AttentionOfOtherSchedules) {
  TargetDescription target = gpu();
  TimeModel model(target, 1000);
  AttentionLoad load{cache("int8"), cache("int8"), 1, 1, 64};
  double longRing = model.attentionSeconds(load);
  // Stages of 64 positions have 8448 bytes: the long ring has 11 of them.
  load.stages = 11;
  load.mostStages = 100;
  load.stagePositions = 64;
  EXPECT_NEAR(model.attentionSeconds(load), longRing, 1e-13);
  load.stages = 4;
  double work = 64 * 4 * (2 / 4e12) * 5;
  EXPECT_NEAR(model.attentionSeconds(load), 3e-6 + 1000 * norm8(132 / (0.4e12 * 4 / 11), work),
              1e-13);
  double shortRing = model.attentionSeconds(load);
  load.leavesRoom = true;
  EXPECT_NEAR(model.attentionSeconds(load), shortRing - 0.9e-6, 1e-13);
  // A ring with all that a block reads lacks nothing.
  load.leavesRoom = false;
  load.mostStages = 4;
  EXPECT_NEAR(model.attentionSeconds(load), longRing, 1e-13);
  // One block instead of two, with its arithmetic and its bandwidth. It has less to join.
  load = {cache("int8"), cache("int8"), 1, 1, 64};
  load.splits = 1;
  double one = 1000 * norm8(132 / 0.2e12, 2 * work);
  EXPECT_NEAR(model.attentionSeconds(load), 2.6e-6 + one, 1e-13);
  // Joining takes no less than nothing.
  target.gpuTime.attentionPart.value = 4e-6;
  EXPECT_NEAR(TimeModel(target, 1000).attentionSeconds(load), one, 1e-13);
  // What a prompt's parts have to join is not known.
  load.rows = 2;
  double prompt = TimeModel(target, 1000).attentionSeconds(load);
  target.gpuTime.attentionPart.value = 0;
  EXPECT_EQ(TimeModel(target, 1000).attentionSeconds(load), prompt);
}

/// Parts of a key/value head of an 8B model on an H100.
TEST(TimeModel, FewBytesAreReadByFewParts) {
  llvm::Expected<TargetDescription> target = loadTarget("h100");
  ASSERT_TRUE(bool(target)) << llvm::toString(target.takeError());
  auto saves = [&](llvm::StringRef keys, llvm::StringRef values, int64_t context) {
    AttentionLoad four{cache(keys), cache(values), 8, 32, 128};
    four.splits = 4;
    AttentionLoad eight = four;
    eight.splits = 8;
    TimeModel model(*target, context);
    return model.attentionSeconds(eight) - model.attentionSeconds(four);
  };
  // Measured a layer: 0.42 us less, 0.24 and 0.32 us more (docs/cost-model.md).
  EXPECT_GT(saves("int4", "int4", 512), 0);
  EXPECT_LT(saves("int8", "int8", 512), 0);
  EXPECT_LT(saves("f16", "f16", 512), 0);
  for (int64_t context : {2000, 8192, 32768})
    for (llvm::StringRef format : {"int4", "int8", "f16"})
      EXPECT_LT(saves(format, format, context), 0) << format.str() << " at " << context;
}

/// Steps of an H100 whose layers are one kernel that spills nothing, f16 caches: tokens a second
/// measured (docs/kernels.md) and predicted.
TEST(TimeModel, StepsAsOneKernel) {
  llvm::Expected<TargetDescription> target = loadTarget("h100");
  ASSERT_TRUE(bool(target)) << llvm::toString(target.takeError());
  fused::DecoderShape llama8, llama1, smol;
  llama8.width = 4096, llama8.queryHeads = 32, llama8.heads = 8, llama8.dim = 128;
  llama8.inner = 14336, llama8.vocabulary = 128256, llama8.layers = 32;
  llama1 = llama8;
  llama1.width = 2048, llama1.dim = 64, llama1.inner = 8192, llama1.layers = 16;
  smol.width = 576, smol.queryHeads = 9, smol.heads = 3, smol.dim = 64;
  smol.inner = 1536, smol.vocabulary = 49152, smol.layers = 30;
  struct Measured {
    const char *name;
    const fused::DecoderShape &shape;
    int64_t bits, positions;
    double rate;
    const char *caches = "f16";
    const char *records = nullptr;
  };
  for (const Measured &step : {Measured{"8B int4", llama8, 4, 512, 727.9},
                               Measured{"8B int4", llama8, 4, 2000, 688.1},
                               Measured{"8B int4", llama8, 4, 8192, 550.0},
                               Measured{"8B int4", llama8, 4, 32768, 334.3},
                               Measured{"8B int4", llama8, 4, 512, 718.2, "int8"},
                               Measured{"8B int4", llama8, 4, 2000, 709.1, "int8"},
                               Measured{"8B int4", llama8, 4, 8192, 614.8, "int8"},
                               Measured{"8B int4", llama8, 4, 32768, 442.1, "int8"},
                               Measured{"8B int4", llama8, 4, 512, 717.4, "int4"},
                               Measured{"8B int4", llama8, 4, 2000, 713.3, "int4"},
                               Measured{"8B int4", llama8, 4, 8192, 641.4, "int4"},
                               Measured{"8B int4", llama8, 4, 32768, 468.0, "int4"},
                               Measured{"8B int8", llama8, 8, 512, 391.1},
                               Measured{"8B int8", llama8, 8, 512, 387.4, "int8"},
                               Measured{"1B int4", llama1, 4, 512, 3159},
                               Measured{"1B int8", llama1, 8, 512, 2045},
                               Measured{"SmolLM2 int8", smol, 8, 512, 2147},
                               Measured{"8B int4-g32", llama8, 4, 512, 682.7, "f16", "int4-g32"},
                               Measured{"8B IQ4_XS", llama8, 4, 512, 678.0, "f16", "iq4_xs"},
                               Measured{"8B Q6_K", llama8, 6, 512, 460.9, "f16", "q6_k"}}) {
    fused::DecoderShape shape = step.shape;
    shape.setUnits(step.records ? fused::WeightUnit::ofRecord(encoding(step.records))
                                : fused::WeightUnit::ofGroup(step.bits));
    const formats::CacheEncoding caches = cache(step.caches);
    shape.piecePositions = caches.isInteger() ? 64 : 32;
    shape.pieceBytes = 2 * shape.piecePositions * caches.bytesPerVector(shape.dim);
    fused::GpuDevice device = gpuDevice(*target);
    auto schedule = fused::choosePersistentSchedule(shape, persistentLimits(*target), device);
    ASSERT_TRUE(bool(schedule)) << llvm::toString(schedule.takeError());
    auto plan = fused::PersistentPlan::get(shape, *schedule, device);
    ASSERT_TRUE(bool(plan)) << llvm::toString(plan.takeError());
    TimeModel model(*target, step.positions);
    AttentionLoad load{caches, caches, shape.heads, shape.queryHeads, shape.dim};
    const char *weights = step.records ? step.records : step.bits == 4 ? "int4-g128" : "int8-g128";
    std::optional<TimeFormula> layer = model.persistentLayer(
        *plan, load,
        step.records ? model.productWork({{encoding(weights),
                                           shape.width + 2 * shape.heads * shape.dim, shape.width},
                                          {encoding(weights), shape.width, shape.width},
                                          {encoding(weights), 3 * shape.inner, shape.width}})
                     : 0);
    ASSERT_TRUE(layer.has_value());
    KernelLoad sampling, embedding;
    sampling.kind = KernelLoad::Kind::Sampling;
    sampling.logits = shape.vocabulary;
    embedding.bytes = 2 * shape.width * 4;
    double seconds =
        static_cast<double>(shape.layers) * layer->at(step.positions).seconds() +
        model.productSeconds(WeightLoad{encoding(weights), shape.vocabulary, shape.width}) +
        model.formula(sampling).at(1).seconds() + model.formula(embedding).at(1).seconds() +
        model.stepSeconds();
    RecordProperty(std::string(step.name) + step.caches + std::to_string(step.positions),
                   std::to_string(1 / seconds));
    EXPECT_NEAR(1 / seconds / step.rate, 1, step.records ? 0.025 : 0.05)
        << step.name << ", " << step.caches << " at " << step.positions;
  }
  // Other targets do not tell.
  target->persistent->time.reset();
  fused::PersistentPlan none;
  EXPECT_FALSE(TimeModel(*target, 512).persistentLayer(none, {}).has_value());
}

TEST(TimeModel, OneKernelOfAGpu) {
  TargetDescription target = gpu();
  PersistentTime &time = target.persistent.emplace().time.emplace();
  time.bandwidth.value = 0.8e12;
  time.cacheBandwidth.value = 0.3e12;
  time.wait.value = 7e-6;
  time.integerWait.value = 1e-6;
  time.integers.value = 1e11;
  fused::PersistentPlan plan;
  plan.shape.width = 256, plan.shape.queryHeads = 4, plan.shape.heads = 2, plan.shape.dim = 64;
  plan.shape.inner = 768;
  plan.shape.setUnits(fused::WeightUnit::ofGroup(8));
  plan.schedule.clusters = 3, plan.schedule.clusterBlocks = 2, plan.schedule.attentionClusters = 1;
  // Two blocks have half of 32 tiles of 2 groups and of 16 tiles of 2; six have one of 6 inner
  // groups, which are 16 tiles of 2 groups, and half of 16 tiles of their cluster's 2.
  double unit = 2048 + 32, stream = 2 * 48 * unit / 0.4e12 + 6 * 48 * unit / 0.8e12;
  AttentionLoad load{cache("f16"), cache("int8"), 2, 4, 64};
  TimeFormula formula = *TimeModel(target, 1000).persistentLayer(plan, load);
  // Values of 64 integers for four query heads, on two blocks.
  double position = norm8(2 * (128 + 66) / 0.3e12, 64 * 4 / 2e11);
  EXPECT_NEAR(formula.at(1000).seconds(), std::hypot(stream, 7e-6) + 1e-6 + 1000 * position, 1e-13);
  EXPECT_NEAR(formula.fixed.memory, stream, 1e-15);
  load.window = 100;
  formula = *TimeModel(target, 1000).persistentLayer(plan, load);
  EXPECT_NEAR(formula.at(1000).seconds(), std::hypot(stream, 7e-6) + 1e-6 + 100 * position, 1e-13);
  load.values = load.keys;
  // Weights in records have a bandwidth of their own, here the six blocks', and arithmetic that it
  // does not hide.
  time.recordBandwidth.value = 1.6e12;
  time.recordArithmetic.value = 0.25;
  formula = *TimeModel(target, 1000).persistentLayer(plan, load, 8e-6);
  double records = 2 * 48 * unit / 0.4e12 + 6 * 48 * unit / 1.2e12;
  EXPECT_NEAR(formula.fixed.arithmetic, 2e-6, 1e-15);
  EXPECT_NEAR(formula.at(0).seconds(), std::hypot(records + 2e-6, 7e-6), 1e-13);
  formula = *TimeModel(target, 1000).persistentLayer(plan, load);
  EXPECT_NEAR(formula.at(1000).seconds(), std::hypot(stream, 7e-6) + 100 * 2 * 256 / 0.3e12, 1e-13);
}

TEST(TimeModel, ProductBehindAttention) {
  TargetDescription target = gpu();
  TimeModel model(target, 512);
  WeightLoad weight{encoding("int8-g128"), 16000, 1024};
  double stream = 16000 * 1040 / 1e12, chain = 2e-6 + 1.024e-6 + 16000 * 1024 / 1e12;
  TimeFormula formula = model.product(weight, ProductPlace::BehindAttention);
  double behind = norm8(stream - 3e-6 + 1e-6, chain);
  EXPECT_NEAR(formula.at(1).seconds(), behind, 1e-15);
  // By itself it has to read everything.
  EXPECT_NEAR(formula.at(1).seconds() + formula.alone, norm8(stream + 1e-6, chain) + 4e-6, 1e-15);
}

TEST(TimeModel, AttentionOfAGpu) {
  TargetDescription target = gpu();
  AttentionLoad load{cache("f16"), cache("int8"), 5, 15, 64};
  // Ten blocks; three query heads of a key/value head count as four.
  double bytes = 5 * (128 + 66), stream = bytes / 0.5e12;
  double work = 5 * 64 * 4 * (1 / 1e12 + 1 / 4e12);
  double position = norm8(stream, work);
  TimeModel model(target, 1000);
  EXPECT_NEAR(model.attentionSeconds(load), 3e-6 + 1000 * position, 1e-13);
  load.window = 100;
  EXPECT_NEAR(model.attentionSeconds(load), 3e-6 + 100 * position, 1e-13);
  // One key/value head: two blocks.
  AttentionLoad few{cache("int8"), cache("int8"), 1, 1, 64};
  stream = 132 / 0.4e12;
  work = 64 * 4 * (2 / 4e12) * 5;
  EXPECT_NEAR(model.attentionSeconds(few), 3e-6 + 1000 * norm8(stream, work), 1e-13);
}

TEST(TimeModel, Host) {
  TargetDescription target = cpu();
  TimeModel model(target, 100);
  WeightLoad weight{encoding("int8-g128"), 1000, 1024};
  double beside = 5e-6 + 1024 * 2e-9;
  EXPECT_NEAR(model.productSeconds(weight), beside + norm3(1000 * 1040 / 9e9, 1024e3 / 20e9),
              1e-12);
  // Numbers become operands once for the three query heads of a key/value head.
  AttentionLoad load{cache("f16"), cache("f16"), 2, 6, 64};
  double operands = 2 * 64 * 2 / 50e9;
  EXPECT_NEAR(model.attentionSeconds(load),
              5e-6 + 100 * norm3(2 * 256 / 8e9, operands + 2 * 64 * 3 * 2 / 100e9), 1e-12);
  // Of a prompt's 20 tokens once for each eight; they attend to 90.5 positions on average.
  load.rows = 20;
  double position = norm3(2 * 256 / 8e9, 3 * operands + 2 * 64 * 60 * 2 / 100e9);
  EXPECT_NEAR(model.attentionSeconds(load),
              5e-6 + 100 * position - 9.5 * (position - 2 * 256 / 8e9), 1e-12);
  MatmulLoad many;
  many.weights = {weight};
  many.tokens = 64;
  EXPECT_NEAR(model.matmul(many).at(1).seconds(),
              beside + norm3(1000 * 1040 / 9e9, 64 * 1024e3 / 200e9), 1e-12);
  KernelLoad rows;
  rows.bytes = 8000;
  EXPECT_NEAR(model.formula(rows).at(1).seconds(), 5e-6 + 8000 / 4e9, 1e-12);
  EXPECT_EQ(model.stepSeconds(), 100e-6);
}

TEST(TimeModel, ManyTokensOfAGpu) {
  TargetDescription target = gpu();
  TimeModel model(target, 1);
  // 32 tiles of 128 rows by 64 tokens: four rounds of ten blocks, of which two have none in the
  // last.
  MatmulLoad load;
  load.weights = {{encoding("int8-g128"), 2048, 1024}};
  load.tokens = 128;
  load.tileTokens = 64;
  load.blocks = 10;
  load.warpgroups = true;
  double copied = (128 * 1040.0 + 1024 * 2 * 64) / 0.5e12;
  double tile =
      norm8(128 * 64 * 1024 / 25e12 + 128 * 1024 / 2e12, copied) + 8 * 1e-8 + 8 * 128 * 64 / 0.5e12;
  double stream = 40.0 / 32 * 2048 * 1040 / 1e12;
  TimeFormula formula = model.matmul(load);
  EXPECT_NEAR(formula.at(1).seconds(), 5e-6 + norm8(stream + 1e-6, 4 * tile), 1e-12);
  EXPECT_NEAR(formula.alone, 4e-6, 1e-15);
  // Other rates for single warps, and for what is unpacked from records.
  load.warpgroups = false;
  double slower = model.matmul(load).at(1).seconds();
  EXPECT_GT(slower, formula.at(1).seconds());
  load.arithmetic = MatmulLoad::Arithmetic::Floats;
  EXPECT_LT(model.matmul(load).at(1).seconds(), slower);
  // Two blocks that share a tile take half of the columns each, exchange half of the sums and
  // finish the other half. They copy as one block can.
  load.weights = {{encoding("int8-g128"), 128, 1024}};
  load.tokens = 64;
  load.warpgroups = true;
  load.arithmetic = MatmulLoad::Arithmetic::Records;
  load.splits = 2;
  load.blocks = 2;
  tile = norm8(128 * 64 * 512 / 40e12 + 128 * 512 / 1e12, (128 * 520.0 + 512 * 2 * 64) / 1e12) +
         4 * 1e-8 + 8 * 128 * 64 / 1e12;
  stream = 128 * 1040 / 0.4e12;
  EXPECT_NEAR(model.matmul(load).at(1).seconds(), 5e-6 + norm8(stream + 1e-6, tile), 1e-12);
}

TEST(TimeModel, TokensAttendToThoseBeforeThem) {
  TargetDescription target = gpu();
  AttentionLoad load{cache("f16"), cache("f16"), 5, 20, 64};
  load.rows = 101;
  TimeModel model(target, 1000);
  TimeFormula formula = model.attention(load);
  // 50 of the step's own tokens are later ones, on average.
  EXPECT_NEAR(formula.at(1000).arithmetic, 950 * formula.perPosition.arithmetic, 1e-12);
  EXPECT_EQ(formula.at(20).arithmetic, 0);
  // Sequences have caches of their own.
  AttentionLoad one{cache("f16"), cache("f16"), 5, 20, 64}, three = one;
  three.sequences = 3;
  EXPECT_NEAR(model.attentionSeconds(three) - 3e-6, 3 * (model.attentionSeconds(one) - 3e-6),
              1e-12);
}

TEST(TimeModel, SamplingGoesInRoundsOfBlocks) {
  TargetDescription target = gpu();
  target.gpuTuning.sampleSplits.value = 2;
  TimeModel model(target, 1);
  KernelLoad load;
  load.kind = KernelLoad::Kind::Sampling;
  load.logits = 1000;
  load.tokens = 5;
  EXPECT_NEAR(model.formula(load).at(1).seconds(), 1.5e-6 + 1e-8, 1e-15);
  load.tokens = 6;
  EXPECT_NEAR(model.formula(load).at(1).seconds(), 1.5e-6 + 2e-8, 1e-15);
}

TEST(TimeModel, RateOfTheMostSimilarFormat) {
  TargetDescription target = gpu();
  TimeModel model(target, 1);
  EXPECT_EQ(model.productRate(encoding("int4-g128")), 2e12);
  EXPECT_EQ(model.productRate(encoding("int4-g32")), 2e12);
  EXPECT_EQ(model.productRate(encoding("int8-channel")), 1e12);
  EXPECT_EQ(model.productRate(encoding("iq4_xs")), 0.5e12);
  EXPECT_EQ(model.attentionRate(cache("bf16")), 1e12);
  EXPECT_EQ(model.attentionRate(cache("int4-h32")), 4e12);
}

TEST(TimeModel, NeverFasterWithMore) {
  for (const char *name : {"h100", "a100", "host-avx512-vnni"}) {
    llvm::Expected<TargetDescription> target = loadTarget(name);
    ASSERT_TRUE(static_cast<bool>(target));
    TimeModel model(*target, 512);
    double last = 0;
    for (int64_t rows = 256; rows <= 65536; rows *= 2) {
      double seconds = model.productSeconds(WeightLoad{encoding("int4-g128"), rows, 4096});
      EXPECT_GE(seconds, last) << name << " " << rows;
      last = seconds;
      EXPECT_GT(model.productSeconds(WeightLoad{encoding("int8-g128"), 8 * rows, 4096}), 0);
    }
    EXPECT_LT(model.productSeconds(WeightLoad{encoding("int4-g128"), 65536, 4096}),
              model.productSeconds(WeightLoad{encoding("int8-g128"), 65536, 4096}));
    AttentionLoad load{cache("int8"), cache("int8"), 8, 32, 128};
    last = 0;
    for (int64_t context = 1; context <= 1 << 20; context *= 4) {
      double seconds = TimeModel(*target, context).attentionSeconds(load);
      EXPECT_GT(seconds, last) << name << " " << context;
      last = seconds;
    }
  }
}

TEST(TimeModel, KernelsHaveTheTimesOfTheirDescriptions) {
  DialectRegistry registry;
  registry.insert<fused::FusedDialect, model::ModelDialect, quantized::QuantizedDialect,
                  func::FuncDialect>();
  MLIRContext context(registry);
  context.loadAllAvailableDialects();
  auto module = parseSourceString<ModuleOp>(R"(
    model.cache @k : !quantized.cache<1x2048x2x64xi8>
    model.cache @v : !quantized.cache<1x2048x2x64xf16>
    func.func @decode(%q: tensor<1x256xf16>, %w: !quantized.tensor<512x256xi8, group = 128>, %u: tensor<512x256xf16>, %p: tensor<1xi32>) -> tensor<1x512xf32> {
      %y = fused.attention %q, @k, @v at %p scale 0.125 window 300 : tensor<1x256xf16>, tensor<1xi32> -> tensor<1x256xf16>
      %r:2 = fused.matvec %y weights(%w, %u) segments [512, 512]
        : tensor<1x256xf16>, !quantized.tensor<512x256xi8, group = 128>, tensor<512x256xf16> -> tensor<1x512xf32>, tensor<1x512xf32>
      %z = fused.rows -> tensor<1x512xf32> body {
        %s = arith.addf %r#0, %r#1 : tensor<1x512xf32>
        fused.yield %s : tensor<1x512xf32>
      }
      return %z : tensor<1x512xf32>
    })",
                                            &context);
  ASSERT_TRUE(static_cast<bool>(module));
  TargetDescription target = gpu();
  TimeModel model(target, 1000);
  AttentionLoad load{cache("int8"), cache("f16"), 2, 4, 64, 300};
  WeightLoad weights[] = {{encoding("int8-g128"), 512, 256}, {encoding("f16"), 512, 256}};
  double attention = model.attentionSeconds(load),
         product = model.productSeconds(weights, ProductPlace::BehindAttention);
  // Two rows are read, one is written.
  double rows = target.gpuTime.smallKernel.value + 3 * 512 * 4 / 2e12;
  double total = target.gpuTime.step.value + attention + product + rows;
  EXPECT_NEAR(model.step(*module).seconds(), total, 1e-15);
}

TEST(TimeFit, FindsWhatPredictsPrompts) {
  TargetDescription truth = gpu(), start = gpu();
  truth.gpuTime.matmulWait.value = 8e-6;
  truth.gpuTime.warpIntegers.value = 70e12;
  truth.gpuTime.warpgroupIntegers.value = 330e12;
  truth.gpuTime.unpackIntegers.value = 12e12;
  truth.gpuTime.l2Bandwidth.value = 6e12;
  truth.gpuTime.rowsBandwidth.value = 1.5e12;
  TimeModel model(truth, 1);
  std::vector<StepMeasurement> steps;
  for (const char *name : {"int8-g128", "int4-g128"})
    for (int64_t tokens : {16, 32, 64, 128, 512}) {
      StepMeasurement &step = steps.emplace_back();
      step.context = tokens;
      step.seconds = model.stepSeconds();
      auto add = [&](const KernelLoad &load) {
        TimeFormula formula = model.formula(load);
        step.kernels.push_back(load);
        step.alone.push_back(formula.at(tokens).seconds() + formula.alone);
        step.seconds += formula.at(tokens).seconds();
      };
      KernelLoad product, rows;
      product.kind = KernelLoad::Kind::Matmul;
      product.matmul.tokens = tokens;
      product.matmul.blocks = 10;
      product.matmul.warpgroups = tokens >= 64;
      product.matmul.tileTokens = std::min<int64_t>(tokens, 64);
      for (int64_t height : {1024, 4096}) {
        product.matmul.weights = {{encoding(name), height, 2048}};
        add(product);
      }
      rows.bytes = tokens * 2048 * 6;
      add(rows);
    }
  EXPECT_GT(predictionErrors(start, steps).kernel, 0.05);
  TargetDescription fitted = fitTime(start, steps, "measured");
  FitErrors errors = predictionErrors(fitted, steps);
  EXPECT_LT(errors.kernel, 0.01);
  EXPECT_LT(errors.worstStep, 0.02);
  for (auto number : {&GpuTime::matmulWait, &GpuTime::warpIntegers, &GpuTime::warpgroupIntegers,
                      &GpuTime::unpackIntegers})
    EXPECT_EQ((fitted.gpuTime.*number).source, "measured");
  // No record was multiplied.
  EXPECT_EQ(fitted.gpuTime.warpgroupRecords.value, start.gpuTime.warpgroupRecords.value);
  EXPECT_NE(fitted.gpuTime.unpackRecords.source, "measured");
}

/// Steps of a CPU with these parameters, measured while memory was now slower and now faster than
/// its ceiling. Other programs made a share of the launches ten times as long.
std::vector<StepMeasurement> hostSteps(const TargetDescription &truth, double disturbed) {
  std::vector<StepMeasurement> steps;
  int64_t launches = 0;
  for (const char *weights : {"int8-g128", "q6_k"})
    for (const char *format : {"f16", "int8"})
      for (int64_t group : {1, 4})
        for (int64_t context : {512, 8192}) {
          StepMeasurement &step = steps.emplace_back();
          step.context = context;
          double share = steps.size() % 2 ? 0.8 : 1.1;
          step.readBandwidth = share * truth.bandwidth();
          TargetDescription now = truth;
          for (auto bandwidth :
               {&CpuTime::productBandwidth, &CpuTime::cacheBandwidth, &CpuTime::rowsBandwidth})
            (now.cpuTime.*bandwidth).value *= share;
          TimeModel model(now, 1);
          step.seconds = model.stepSeconds();
          auto add = [&](const KernelLoad &load) {
            for (int layer = 0; layer < 4; ++layer) {
              double seconds = model.formula(load).at(context).seconds();
              bool isDisturbed =
                  std::fmod(static_cast<double>(launches++) * 0.618, 1.0) < disturbed;
              step.kernels.push_back(load);
              step.alone.push_back(isDisturbed ? 10 * seconds : seconds);
              step.seconds += step.alone.back();
            }
          };
          KernelLoad product, attention, rows;
          product.kind = KernelLoad::Kind::Product;
          for (auto [height, columns] : {std::pair(64, 2048), {2048, 512}, {4096, 8192}}) {
            product.weights = {{encoding(weights), height, columns}};
            add(product);
          }
          attention.kind = KernelLoad::Kind::Attention;
          attention.attention = {cache(format), cache(format), 8, 8 * group, 128};
          add(attention);
          rows.bytes = 1 << 20;
          add(rows);
        }
  return steps;
}

TEST(TimeFit, FindsWhatPredictsAHost) {
  TargetDescription truth = cpu(), start = cpu();
  truth.readCeiling->value = start.readCeiling->value = 24e9;
  CpuTime &time = truth.cpuTime;
  time.productBandwidth.value = 21e9;
  time.cacheBandwidth.value = 26e9;
  time.rowsBandwidth.value = 17e9;
  time.launch.value = 9e-6;
  time.productColumn.value = 4e-9;
  time.step.value = 300e-6;
  truth.productRates["q6_k"].value = 25e9;
  truth.attentionRates["f16"].value = 60e9;
  truth.attentionOperandRates["f16"].value = 30e9;
  for (double disturbed : {0.0, 0.3}) {
    std::vector<StepMeasurement> steps = hostSteps(truth, disturbed);
    EXPECT_GT(predictionErrors(start, steps).kernel, 0.05);
    TargetDescription fitted = fitTime(start, steps, "measured");
    EXPECT_LT(predictionErrors(fitted, steps).kernel, 0.01);
    for (auto number : {&CpuTime::productBandwidth, &CpuTime::cacheBandwidth,
                        &CpuTime::rowsBandwidth, &CpuTime::launch, &CpuTime::step}) {
      EXPECT_NEAR((fitted.cpuTime.*number).value / (time.*number).value, 1, 0.05);
      EXPECT_EQ((fitted.cpuTime.*number).source, "measured");
    }
    EXPECT_NEAR(fitted.productRates["q6_k"].value / 25e9, 1, 0.05);
    EXPECT_NEAR(fitted.attentionRates["f16"].value / 60e9, 1, 0.1);
    EXPECT_NEAR(fitted.attentionOperandRates["f16"].value / 30e9, 1, 0.1);
  }
}

TEST(TimeFit, FindsWhatPredicts) {
  TargetDescription truth = gpu(), start = gpu();
  // A machine that differs from its description.
  truth.gpuTime.productBandwidth.value = 1.2e12;
  truth.gpuTime.productWait.value = 3e-6;
  truth.gpuTime.alone.value = 5e-6;
  truth.gpuTime.cacheBandwidth.value = 0.4e12;
  truth.productRates["int4-g128"].value = 1.5e12;
  std::vector<StepMeasurement> steps;
  TimeModel model(truth, 1);
  for (const char *name : {"int8-g128", "int4-g128"})
    for (int64_t width : {1024, 2048, 4096})
      for (int64_t context : {512, 8192}) {
        StepMeasurement step;
        step.context = context;
        KernelLoad attention, product;
        attention.kind = KernelLoad::Kind::Attention;
        attention.attention = {cache("f16"), cache("f16"), 8, 32, 128};
        product.kind = KernelLoad::Kind::Product;
        step.seconds = model.stepSeconds();
        auto add = [&](const KernelLoad &load) {
          TimeFormula formula = model.formula(load);
          step.kernels.push_back(load);
          step.alone.push_back(formula.at(context).seconds() + formula.alone);
          step.seconds += formula.at(context).seconds();
        };
        for (int64_t rows : {width, 4 * width, 16 * width}) {
          product.weights = {{encoding(name), rows, width}};
          add(product);
        }
        add(attention);
        steps.push_back(step);
      }
  EXPECT_GT(predictionErrors(start, steps).kernel, 0.05);
  TargetDescription fitted = fitTime(start, steps, "measured");
  FitErrors errors = predictionErrors(fitted, steps);
  EXPECT_LT(errors.kernel, 0.01);
  EXPECT_LT(errors.worstStep, 0.02);
  EXPECT_EQ(fitted.gpuTime.productBandwidth.source, "measured");
  EXPECT_EQ(fitted.productRates["int4-g128"].source, "measured");
  // Table codes were not measured: scaled, and said so.
  EXPECT_NE(fitted.productRates["iq4_nl"].source, "measured");
}

} // namespace
