// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "../compiler/CachedAttention.h"
#include "GpuKernels.h"

#include <gtest/gtest.h>

#include <numeric>

using namespace sluice;
using namespace sluice::test;

namespace {

/// How the kernels run.
struct Schedule {
  int64_t warps = 4, stages = 2, columns = 64;
  std::string target = "h200";
  int64_t appendWarps = 3, splits = 1;
};

/// A part of a prompt: `tokens` tokens, from position `first` on.
struct Part {
  int64_t tokens, first;
};

constexpr double tolerance = 6e-4; // as for single tokens

std::string text(const CachedAttention &attention, const Schedule &schedule) {
  int64_t parts = llvm::divideCeil(attention.group, schedule.warps);
  int64_t tiles = std::min<int64_t>(schedule.warps / llvm::divideCeil(attention.group, parts),
                                    llvm::divideCeil(*attention.rows, 16));
  int64_t blocks = attention.heads * parts * llvm::divideCeil(*attention.rows, 16 * tiles);
  return attention.text(
      gpuSchedule(blocks * schedule.splits, schedule.warps, schedule.stages, 1, schedule.columns,
                  schedule.splits, "cache"),
      true,
      gpuSchedule(*attention.rows * attention.heads, schedule.appendWarps, 1, 1, 1, 1, "none"));
}

/// Compares each part with the definition.
void run(CachedAttention attention, const Schedule &schedule, const std::vector<Part> &all) {
  std::unique_ptr<GpuKernels> kernels =
      GpuKernels::compile(text(attention, schedule), schedule.target);
  ASSERT_TRUE(kernels);
  ASSERT_EQ(kernels->dispatches.size(), attention.appends ? 2u : 1u);
  Random random(1);
  uint64_t seed = 0;
  for (const Part &part : all) {
    SCOPED_TRACE(std::to_string(part.tokens) + " tokens from " + std::to_string(part.first));
    attention.tokens = part.tokens;
    CachedAttention::Data data = attention.data(random);
    std::vector<int32_t> positions(part.tokens);
    std::iota(positions.begin(), positions.end(), static_cast<int32_t>(part.first));
    CachedAttention::Step step = attention.step(data, positions, /*isGpu=*/true);
    ++seed;
    if (attention.appends) {
      kernels->runAll({step.appendArguments(), step.attentionArguments()}, seed, /*caches=*/2);
    } else {
      kernels->run(0, step.arguments(), seed);
    }
    if (!testing::Test::HasFailure())
      attention.check(step, tolerance);
    if (testing::Test::HasFailure())
      return;
  }
}

struct Shape {
  int64_t dim, heads, group, rows, positions;
  Schedule schedule;
  std::optional<int64_t> window = std::nullopt;
  std::vector<Part> parts = {};

  CachedAttention attention() const {
    CachedAttention result{dim, heads, group, 1, 1, positions};
    result.rows = rows;
    result.window = window;
    return result;
  }
};

class GpuPrefillAttention : public testing::TestWithParam<Shape> {};

/// Names of formats of keys and values.
class GpuPrefillFormats : public testing::TestWithParam<CachePair> {};

} // namespace

// A product's epilogue appended keys and values.
TEST_P(GpuPrefillAttention, F16) {
  const Shape &shape = GetParam();
  run(shape.attention().caches("f16", "f16"), shape.schedule, shape.parts);
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, GpuPrefillAttention,
    testing::Values(
        // Blocks of one tile of tokens and of several; all rows, one, and in between.
        Shape{64, 2, 4, 16, 128, {4, 2, 32}, std::nullopt, {{1, 0}, {16, 0}, {16, 70}}},
        Shape{32, 1, 1, 64, 192, {4, 3, 64}, std::nullopt, {{1, 0}, {31, 0}, {64, 0}, {64, 100}}},
        Shape{16, 1, 2, 64, 192, {4, 2, 32}, std::nullopt, {{16, 0}, {64, 127}}},
        // Query heads that fill their blocks and that do not; heads that are padded, the longest.
        Shape{128, 1, 4, 16, 128, {4, 4, 32}, std::nullopt, {{16, 100}}},
        Shape{256, 1, 2, 16, 64, {4, 2, 32}, std::nullopt, {{16, 20}}},
        Shape{20, 2, 3, 32, 64, {4, 2, 32}, std::nullopt, {{31, 20}}},
        Shape{6, 1, 5, 16, 64, {4, 2, 64}, std::nullopt, {{5, 2}}},
        Shape{90, 1, 16, 16, 64, {4, 2, 64}, std::nullopt, {{16, 33}}},
        Shape{80, 1, 7, 20, 128, {8, 3, 64}, std::nullopt, {{17, 64}}},
        // Windows: of one position, within a stage, over several, as long as the cache.
        Shape{32, 1, 2, 16, 128, {4, 2, 64}, 1, {{16, 0}, {16, 60}}},
        Shape{32, 1, 1, 64, 256, {4, 2, 64}, 20, {{64, 0}, {50, 130}}},
        Shape{32, 1, 2, 32, 320, {4, 3, 64}, 77, {{32, 280}}},
        Shape{32, 1, 4, 16, 128, {4, 2, 64}, 128, {{16, 112}}},
        // Positions divided among blocks, of which some have none.
        Shape{64, 2, 4, 16, 320, {4, 2, 32, "h200", 3, 8}, std::nullopt, {{11, 0}, {16, 300}}},
        Shape{20, 1, 3, 32, 192, {4, 2, 64, "h200", 3, 3}, 100, {{32, 150}}}),
    [](const auto &info) { return "shape" + std::to_string(info.index); });

TEST_P(GpuPrefillAttention, Int8AndInt4) {
  const Shape &shape = GetParam();
  CachedAttention attention = shape.attention();
  attention.appends = true;
  Schedule schedule = shape.schedule;
  schedule.columns = 64;
  run(attention.caches("int8-h64", "int4-h32"), schedule, shape.parts);
}

// Every encoding with every other.
TEST_P(GpuPrefillFormats, AppendAndAttend) {
  CachedAttention attention{64, 1, 4, 1, 1, 192};
  attention.rows = 16;
  attention.appends = true;
  run(attention.caches(GetParam().first, GetParam().second), {4, 2, 64}, {{14, 90}});
}

INSTANTIATE_TEST_SUITE_P(Pairs, GpuPrefillFormats, testing::ValuesIn(allCachePairs()),
                         [](const auto &info) { return cachePairName(info.param); });

namespace {
class GpuAppend : public testing::TestWithParam<std::tuple<int64_t, const char *>> {};
} // namespace

// Norms of heads and rotary embedding before keys are rotated and rounded; both orders of pairs.
TEST_P(GpuAppend, NormsAndRotary) {
  using Rotary = CachedAttention::Rotary;
  auto [dim, format] = GetParam();
  for (Rotary rotary : {Rotary::Halves, Rotary::Interleaved}) {
    SCOPED_TRACE(rotary == Rotary::Halves ? "halves" : "interleaved");
    CachedAttention attention{dim, 2, 3, 1, 1, 128};
    attention.rows = 16;
    attention.appends = true;
    attention.norms = true;
    attention.rotary = rotary;
    attention.caches(format, llvm::StringRef(format).take_until([](char c) { return c == '-'; }));
    run(attention, {3, 2, 64, "h200", rotary == Rotary::Halves ? 5 : 2}, {{15, 30}});
  }
}

INSTANTIATE_TEST_SUITE_P(Heads, GpuAppend,
                         testing::Combine(testing::Values(64, 20, 6),
                                          testing::Values("f16", "int8", "int4-rot", "fp8")),
                         [](const auto &info) {
                           std::string name = std::get<1>(info.param);
                           std::replace(name.begin(), name.end(), '-', '_');
                           return "dim" + std::to_string(std::get<0>(info.param)) + "_" + name;
                         });

TEST(GpuPrefillAttentionOf, SoftCap) {
  for (const char *format : {"bf16", "int8"}) {
    CachedAttention attention{160, 1, 2, 1, 1, 128};
    attention.rows = 16;
    attention.softCap = 5.0;
    run(attention.caches(format, format), {4, 2, 64}, {{9, 60}});
  }
}

TEST(GpuPrefillAttentionOf, FormatsWithoutBulkCopies) {
  for (const char *format : {"f16", "int8", "int4-h32"}) {
    SCOPED_TRACE(format);
    CachedAttention attention{48, 1, 3, 1, 1, 192};
    attention.rows = 32;
    attention.appends = true;
    run(attention.caches(format, format), {4, 2, 64, "a100"}, {{20, 100}});
  }
}

TEST(GpuPrefillAttentionOf, PositionsOutsideTheCacheAreClamped) {
  CachedAttention attention{16, 1, 1, 16, 1, 64};
  attention.rows = 16;
  attention.caches("f16", "f16");
  std::unique_ptr<GpuKernels> kernels = GpuKernels::compile(text(attention, Schedule()), "h200");
  ASSERT_TRUE(kernels);
  Random random(2);
  CachedAttention::Data data = attention.data(random);
  // The first beyond the end, the number of tokens beyond the rows.
  CachedAttention::Step step = attention.step(data, std::vector<int32_t>(16, 63), true);
  step.buffers[1].as<int32_t>()[0] = 1000000;
  step.buffers[2].as<int32_t>()[0] = 17;
  kernels->run(0, step.arguments(), 1);
  attention.check(step, tolerance);
}

// Scores far apart: the running maximum is rescaled, and everything before it becomes nothing.
TEST(GpuPrefillAttentionOf, LateMaximum) {
  for (const char *format : {"f16", "int8"}) {
    CachedAttention attention{32, 1, 2, 4, 1, 256};
    attention.scale = 1.0;
    attention.rows = 16;
    attention.caches(format, format);
    std::unique_ptr<GpuKernels> kernels = GpuKernels::compile(text(attention, Schedule()), "h200");
    ASSERT_TRUE(kernels);
    Random random(3);
    CachedAttention::Data data = attention.data(random);
    for (int64_t position = 0; position < 256; ++position)
      for (int64_t d = 0; d < 32; ++d)
        data.keys[position * 32 + d] = data.query[d] * static_cast<float>(position) / 64;
    CachedAttention::Step step = attention.step(data, {252, 253, 254, 255}, true);
    kernels->run(0, step.arguments(), 1);
    attention.check(step, tolerance);
  }
}

// What is not finite must not become a plausible number.
TEST(GpuPrefillAttentionOf, NotANumberStaysOne) {
  for (bool inKeys : {true, false})
    for (const char *format : {"f16", "int8-h32"}) {
      SCOPED_TRACE(std::string(format) + (inKeys ? " keys" : " values"));
      CachedAttention attention{64, 1, 1, 2, 1, 128};
      attention.rows = 16;
      attention.appends = true;
      attention.caches(format, format);
      std::unique_ptr<GpuKernels> kernels =
          GpuKernels::compile(text(attention, Schedule()), "h200");
      ASSERT_TRUE(kernels);
      Random random(4);
      CachedAttention::Data data = attention.data(random);
      // A new one, and one that is there already.
      for (int64_t position : {inKeys ? 100 : 70}) {
        std::vector<float> &all = inKeys ? data.keys : data.values;
        float before = all[position * 64 + 40];
        all[position * 64 + 40] = NAN;
        CachedAttention::Step step = attention.step(data, {99, 100}, true);
        kernels->runAll({step.appendArguments(), step.attentionArguments()}, 1, 2);
        std::vector<float> y(128);
        std::vector<uint16_t> stored = step.buffers.back().copy<uint16_t>();
        formats::f16ToFloat(llvm::ArrayRef(stored).take_front(y.size()), y);
        EXPECT_TRUE(std::isnan(y[64 + 40])) << "position " << position;
        all[position * 64 + 40] = before;
      }
    }
}

// Whatever verifies computes the same.
TEST(GpuPrefillAttentionOf, EverySchedule) {
  for (int64_t warps = 1; warps <= 8; ++warps) {
    const int64_t stages[] = {2, 3, 5, 7};
    Schedule schedule;
    schedule.warps = warps;
    schedule.stages = stages[warps % 4];
    schedule.columns = warps % 3 ? 32 : 64;
    const int64_t splits[] = {1, 2, 3, 5, 8};
    schedule.splits = splits[warps % 5];
    SCOPED_TRACE(std::to_string(warps) + " warps, " + std::to_string(schedule.stages) +
                 " stages of " + std::to_string(schedule.columns));
    CachedAttention attention{16, 1, 3, 1, 1, 256};
    attention.rows = 40;
    run(attention.caches("f16", "f16"), schedule, {{35, 213}});
    if (HasFailure())
      return;
  }
}

// Heads of an 8B model in registers. Without minctasm ptxas would take as many as it likes.
TEST(GpuPrefillAttentionOf, NothingSpills) {
  struct Case {
    const char *format;
    int64_t dim;
  };
  for (Case one : {Case{"f16", 128}, Case{"bf16", 128}, Case{"int8", 128}, Case{"f16", 256},
                   Case{"int8", 256}}) {
    SCOPED_TRACE(std::string(one.format) + " of " + std::to_string(one.dim));
    CachedAttention attention{one.dim, 8, 4, 1, 1, 1024};
    attention.rows = 64;
    attention.appends = true;
    attention.norms = true;
    attention.rotary = CachedAttention::Rotary::Halves;
    Schedule schedule;
    schedule.splits = 4;
    if (!attention.caches(one.format, one.format).valueChoice.encoding.isInteger())
      schedule.columns = 32;
    std::vector<nvidia::KernelResources> all =
        GpuKernels::assemble(text(attention, schedule), "h100");
    EXPECT_FALSE(all.empty());
    for (const nvidia::KernelResources &kernel : all)
      EXPECT_EQ(kernel.stackBytes + kernel.spillStoreBytes + kernel.spillLoadBytes, 0)
          << kernel.name << ", " << kernel.registers << " registers";
  }
}
