// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "../compiler/CachedAttention.h"
#include "GpuKernels.h"

#include <cmath>
#include <gtest/gtest.h>

using namespace sluice;
using namespace sluice::test;

namespace {

/// How the kernel runs.
struct Schedule {
  int64_t warps = 4, stages = 2, inFlight = 2, columns = 64, splits = 2;
  std::string target = "h200";
  std::string early = "cache";

  std::string text(const CachedAttention &attention) const {
    return gpuSchedule(attention.tokens * attention.heads * splits, warps, stages, inFlight,
                       columns, splits, early);
  }
};

/// Runs a step with its tokens at `positions` and compares.
void run(const CachedAttention &attention, GpuKernels &kernels, const CachedAttention::Data &data,
         const std::vector<int32_t> &positions, double tolerance, uint64_t seed = 1) {
  SCOPED_TRACE("position " + std::to_string(positions.front()));
  CachedAttention::Step step = attention.step(data, positions, /*isGpu=*/true);
  kernels.run(0, step.arguments(), seed, /*caches=*/attention.appends ? 2 : 0);
  if (!testing::Test::HasFailure())
    attention.check(step, tolerance);
}

/// At positions around the ends of tiles, blocks and the cache.
void runAll(const CachedAttention &attention, const Schedule &schedule, double tolerance) {
  std::unique_ptr<GpuKernels> kernels =
      GpuKernels::compile(attention.text(schedule.text(attention), true), schedule.target);
  ASSERT_TRUE(kernels);
  ASSERT_EQ(kernels->dispatches.size(), 1u);
  Random random(1);
  CachedAttention::Data data = attention.data(random);
  uint64_t seed = 0;
  for (int64_t last : {int64_t(0), int64_t(30), int64_t(31), int64_t(32), int64_t(63), int64_t(64),
                       attention.positions / 2 + 5, attention.positions - 1}) {
    std::vector<int32_t> positions;
    for (int64_t token = 0; token < attention.tokens; ++token)
      positions.push_back(static_cast<int32_t>(std::max<int64_t>(0, last - 37 * token)));
    if (last < attention.positions)
      run(attention, *kernels, data, positions, tolerance, ++seed);
    if (testing::Test::HasFailure())
      return;
  }
}

struct Shape {
  int64_t dim, heads, group, tokens, sequences, positions;
  Schedule schedule;
  std::optional<int64_t> window = std::nullopt;

  CachedAttention attention() const {
    CachedAttention result{dim, heads, group, tokens, sequences, positions};
    result.window = window;
    return result;
  }
};

class GpuAttention : public testing::TestWithParam<Shape> {};

/// Names of formats of keys and values.
class GpuAttentionFormats : public testing::TestWithParam<CachePair> {};

/// About twice what is measured: the result is rounded to f16, 2e-4; weights of values that are
/// floats are, too.
constexpr double tolerance = 6e-4;

} // namespace

// A product's epilogue appended the step's key and value.
TEST_P(GpuAttention, F16) {
  const Shape &shape = GetParam();
  runAll(shape.attention().caches("f16", "f16"), shape.schedule, tolerance);
}

TEST_P(GpuAttention, Int8AndInt4) {
  const Shape &shape = GetParam();
  CachedAttention attention = shape.attention();
  attention.appends = shape.sequences == shape.tokens;
  runAll(attention.caches("int8", "int4-h32"), shape.schedule, tolerance);
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, GpuAttention,
    testing::Values(
        // Heads that fill operands and that do not, groups of one to four passes, rings that are
        // reused and not, copies that wait for the oldest, more blocks than stages.
        Shape{16, 1, 1, 1, 1, 64, {4, 2, 2, 64, 8}}, Shape{64, 2, 2, 1, 1, 320, {4, 2, 2, 64, 8}},
        Shape{128, 2, 4, 1, 1, 1024, {4, 2, 2, 128, 2}},
        Shape{128, 1, 8, 1, 1, 1536, {8, 3, 2, 64, 2}},
        Shape{48, 2, 3, 1, 1, 256, {3, 3, 1, 64, 2}}, Shape{80, 1, 5, 1, 1, 256, {4, 2, 2, 128, 1}},
        Shape{20, 2, 1, 1, 1, 128, {2, 1, 1, 64, 2}}, Shape{96, 1, 13, 1, 1, 192, {6, 3, 3, 64, 4}},
        Shape{256, 1, 16, 1, 1, 256, {4, 1, 1, 64, 2}},
        // Heads that are padded, of whole words only; more query heads than a warp takes.
        Shape{6, 1, 3, 2, 1, 64, {4, 2, 1, 64, 1}}, Shape{100, 1, 4, 1, 1, 192, {4, 4, 2, 64, 4}},
        Shape{90, 1, 9, 1, 1, 128, {8, 2, 2, 64, 2}},
        Shape{64, 1, 71, 1, 1, 192, {20, 2, 2, 64, 4}},
        Shape{24, 1, 17, 1, 1, 128, {31, 4, 4, 64, 1, "a100"}},
        // A number of outputs that the blocks cannot share evenly; several tokens, of one sequence
        // and of several.
        Shape{16, 2, 1, 1, 1, 128, {2, 1, 1, 64, 7}}, Shape{32, 2, 2, 3, 1, 192, {4, 2, 2, 64, 2}},
        Shape{64, 2, 3, 2, 2, 192, {4, 2, 2, 64, 2}},
        // Without clusters and bulk copies.
        Shape{64, 2, 2, 2, 2, 512, {4, 4, 2, 64, 1, "a100"}},
        // Windows: of one position, within a tile, over several stages, as long as the cache; more
        // passes; several tokens.
        Shape{32, 1, 2, 1, 1, 128, {4, 2, 2, 64, 2}, 1},
        Shape{64, 2, 4, 1, 1, 256, {4, 2, 2, 64, 4}, 20},
        Shape{64, 1, 8, 2, 1, 320, {4, 2, 2, 128, 2}, 77},
        Shape{32, 1, 12, 1, 1, 192, {4, 2, 2, 64, 2}, 45},
        Shape{32, 1, 1, 1, 1, 128, {4, 2, 2, 64, 8}, 128},
        Shape{64, 2, 3, 2, 2, 256, {4, 2, 2, 128, 2}, 100},
        Shape{64, 2, 2, 1, 1, 256, {4, 4, 2, 128, 1, "a100"}, 33}),
    [](const auto &info) {
      const Shape &shape = info.param;
      return "dim" + std::to_string(shape.dim) + "heads" + std::to_string(shape.heads) + "group" +
             std::to_string(shape.group) + "tokens" + std::to_string(shape.tokens) + "sequences" +
             std::to_string(shape.sequences) + "splits" + std::to_string(shape.schedule.splits) +
             shape.schedule.target + (shape.window ? "window" + std::to_string(*shape.window) : "");
    });

// Every encoding with every other, of a key and of a value that attention itself appends.
TEST_P(GpuAttentionFormats, AppendAndAttend) {
  CachedAttention attention{64, 1, 2, 1, 1, 320};
  attention.appends = true;
  attention.caches(GetParam().first, GetParam().second);
  std::unique_ptr<GpuKernels> kernels =
      GpuKernels::compile(attention.text(Schedule().text(attention), true), "h200");
  ASSERT_TRUE(kernels);
  Random random(2);
  CachedAttention::Data data = attention.data(random);
  for (int32_t last : {0, 30, 31, 32, 299})
    run(attention, *kernels, data, {last}, tolerance);
}

INSTANTIATE_TEST_SUITE_P(Pairs, GpuAttentionFormats, testing::ValuesIn(allCachePairs()),
                         [](const auto &info) { return cachePairName(info.param); });

namespace {
class GpuAttentionPrologue : public testing::TestWithParam<std::tuple<int64_t, const char *>> {};
} // namespace

// Norms of heads and rotary embedding before keys are rotated and rounded: lanes that have both
// elements of a pair, and heads whose pairs are in different lanes; both orders of pairs.
TEST_P(GpuAttentionPrologue, NormsAndRotary) {
  using Rotary = CachedAttention::Rotary;
  auto [dim, format] = GetParam();
  for (Rotary rotary : {Rotary::Halves, Rotary::Interleaved}) {
    SCOPED_TRACE(rotary == Rotary::Halves ? "halves" : "interleaved");
    CachedAttention attention{dim, 2, 3, 1, 1, 128};
    attention.appends = true;
    attention.norms = true;
    attention.rotary = rotary;
    attention.caches(format, llvm::StringRef(format).take_until([](char c) { return c == '-'; }));
    std::unique_ptr<GpuKernels> kernels =
        GpuKernels::compile(attention.text(Schedule().text(attention), true), "h200");
    ASSERT_TRUE(kernels);
    Random random(5);
    CachedAttention::Data data = attention.data(random);
    for (int32_t last : {0, 30, 31, 32, 127})
      run(attention, *kernels, data, {last}, tolerance);
  }
}

INSTANTIATE_TEST_SUITE_P(Heads, GpuAttentionPrologue,
                         testing::Combine(testing::Values(64, 128, 20, 6, 80, 100),
                                          testing::Values("f16", "bf16", "int8", "int4-rot",
                                                          "fp8")),
                         [](const auto &info) {
                           std::string name = std::get<1>(info.param);
                           std::replace(name.begin(), name.end(), '-', '_');
                           return "dim" + std::to_string(std::get<0>(info.param)) + "_" + name;
                         });

// Each of them alone, of several sequences each at its own position; without clusters.
TEST(GpuAttentionOf, NormsOrRotary) {
  using Rotary = CachedAttention::Rotary;
  for (bool norms : {false, true}) {
    CachedAttention attention{48, 2, 2, 3, 3, 128};
    attention.appends = true;
    attention.norms = norms;
    attention.rotary = norms ? Rotary::None : Rotary::Halves;
    attention.caches("f16", "f16");
    runAll(attention, {4, 2, 2, 64, 2}, tolerance);
    runAll(attention, {4, 2, 2, 64, 1, "a100", "none"}, tolerance);
  }
}

TEST(GpuAttentionOf, FormatsWithoutClusters) {
  for (const char *format : {"bf16", "fp8", "int8-h64", "int4-h32"}) {
    SCOPED_TRACE(format);
    CachedAttention attention{96, 2, 3, 1, 1, 256};
    attention.appends = true;
    runAll(attention.caches(format, format), {4, 2, 2, 128, 1, "a100"}, tolerance);
  }
}

// Whatever verifies computes the same.
TEST(GpuAttentionOf, EverySchedule) {
  for (int64_t warps = 2; warps <= 31; ++warps) {
    const int64_t stages[] = {1, 2, 3, 5, 7, 12}, splits[] = {1, 2, 3, 5, 8};
    Schedule schedule;
    schedule.warps = warps;
    schedule.stages = stages[warps % 6];
    schedule.inFlight = 1 + warps % schedule.stages;
    schedule.splits = splits[warps % 5];
    schedule.columns = 64 * (1 + warps % std::min<int64_t>(warps / 2, 4));
    schedule.early = warps % 2 ? "none" : "cache";
    SCOPED_TRACE(std::to_string(warps) + " warps, " + std::to_string(schedule.stages) +
                 " stages of " + std::to_string(schedule.columns) + ", " +
                 std::to_string(schedule.inFlight) + " in flight, " +
                 std::to_string(schedule.splits) + " splits");
    CachedAttention attention{16, 2, 3, 1, 1, 448};
    attention.appends = warps % 3 != 0;
    attention.caches(attention.appends ? "int8" : "f16", warps % 3 == 1 ? "int4" : "f16");
    std::unique_ptr<GpuKernels> kernels =
        GpuKernels::compile(attention.text(schedule.text(attention), true), schedule.target);
    ASSERT_TRUE(kernels);
    Random random(4);
    CachedAttention::Data data = attention.data(random);
    run(attention, *kernels, data, {static_cast<int32_t>(447 - 13 * (warps % 3))}, tolerance,
        warps);
    if (HasFailure())
      return;
  }
}

TEST(GpuAttentionOf, PositionsOutsideTheCacheAreClamped) {
  CachedAttention attention{16, 1, 1, 2, 1, 64};
  attention.caches("f16", "f16");
  std::unique_ptr<GpuKernels> kernels =
      GpuKernels::compile(attention.text(Schedule().text(attention), true), "h200");
  ASSERT_TRUE(kernels);
  Random random(2);
  CachedAttention::Data data = attention.data(random);
  CachedAttention::Step step = attention.step(data, {0, 63}, true);
  step.buffers[1].as<int32_t>()[0] = -7;
  step.buffers[1].as<int32_t>()[1] = 1000000;
  kernels->run(0, step.arguments(), 1);
  attention.check(step, tolerance);
}

// Scores far apart: the running maximum is rescaled, and everything before it becomes nothing.
TEST(GpuAttentionOf, LateMaximum) {
  for (const char *format : {"f16", "int8"}) {
    CachedAttention attention{32, 1, 2, 1, 1, 256};
    attention.scale = 1.0;
    attention.caches(format, format);
    std::unique_ptr<GpuKernels> kernels =
        GpuKernels::compile(attention.text(Schedule().text(attention), true), "h200");
    ASSERT_TRUE(kernels);
    Random random(3);
    CachedAttention::Data data = attention.data(random);
    for (int64_t position = 0; position < 256; ++position)
      for (int64_t d = 0; d < 32; ++d)
        data.keys[position * 32 + d] = data.query[d] * static_cast<float>(position) / 64;
    run(attention, *kernels, data, {255}, tolerance);
  }
}

// What is not finite must not become a plausible number.
TEST(GpuAttentionOf, NotANumberStaysOne) {
  for (bool inKeys : {true, false})
    for (const char *format : {"f16", "bf16", "fp8", "int8-h32", "int4"}) {
      SCOPED_TRACE(std::string(format) + (inKeys ? " keys" : " values"));
      CachedAttention attention{64, 1, 1, 1, 1, 128};
      attention.appends = true;
      attention.caches(format, format);
      std::unique_ptr<GpuKernels> kernels =
          GpuKernels::compile(attention.text(Schedule().text(attention), true), "h200");
      ASSERT_TRUE(kernels);
      Random random(4);
      CachedAttention::Data data = attention.data(random);
      for (int64_t position : {100, 70}) { // the new one, and one that is there already
        std::vector<float> &all = inKeys ? data.keys : data.values;
        float before = all[position * 64 + 40];
        all[position * 64 + 40] = NAN;
        CachedAttention::Step step = attention.step(data, {100}, true);
        kernels->run(0, step.arguments(), 1, 2);
        std::vector<float> y(64);
        formats::f16ToFloat(step.buffers.back().copy<uint16_t>(), y);
        // A NaN key makes a score NaN, and with it all elements; a NaN value its own group.
        EXPECT_TRUE(std::isnan(y[40])) << "position " << position;
        all[position * 64 + 40] = before;
      }
    }
}
