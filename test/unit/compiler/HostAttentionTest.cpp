// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "CachedAttention.h"

#include <cmath>
#include <gtest/gtest.h>

using namespace sluice;
using namespace sluice::test;

namespace {

class HostAttention : public testing::TestWithParam<host::Isa> {
protected:
  /// Runs a step with its tokens at `positions` and compares.
  static void run(const CachedAttention &attention, HostKernels &kernels,
                  const CachedAttention::Data &data, const std::vector<int32_t> &positions,
                  double tolerance) {
    SCOPED_TRACE("position " + std::to_string(positions.front()));
    CachedAttention::Step step = attention.step(data, positions, /*isGpu=*/false);
    kernels.run(0, step.arguments());
    attention.check(step, tolerance);
  }

  void runAll(const CachedAttention &attention, double tolerance) {
    std::unique_ptr<HostKernels> kernels =
        HostKernels::compile(attention.text(schedule(GetParam(), 4, 64), false));
    ASSERT_TRUE(kernels);
    EXPECT_EQ(kernels->dispatches[0].grid, attention.heads * attention.tokens);
    Random random(1);
    CachedAttention::Data data = attention.data(random);
    for (int64_t last : {int64_t(0), int64_t(15), int64_t(16), int64_t(31), int64_t(32),
                         int64_t(63), int64_t(64), attention.positions - 1}) {
      std::vector<int32_t> positions;
      for (int64_t token = 0; token < attention.tokens; ++token)
        positions.push_back(static_cast<int32_t>(std::max<int64_t>(0, last - 5 * token)));
      if (last < attention.positions)
        run(attention, *kernels, data, positions, tolerance);
      if (testing::Test::HasFailure())
        return;
    }
  }
};

/// About twice what is measured: the result is rounded to f16, 2e-4; weights of values that are
/// floats are, too.
constexpr double tolerance = 6e-4;

} // namespace

TEST_P(HostAttention, HeadsGroupsAndContexts) {
  struct Shape {
    int64_t dim, heads, group, tokens, sequences;
  };
  for (Shape shape : {Shape{16, 1, 1, 1, 1},
                      {32, 2, 4, 1, 1},
                      {64, 2, 2, 2, 1},
                      {80, 2, 3, 1, 1},
                      {128, 1, 8, 1, 1},
                      {20, 3, 1, 1, 1},
                      {72, 1, 12, 1, 1},
                      {96, 1, 2, 3, 3},
                      {256, 1, 16, 1, 1}}) {
    SCOPED_TRACE("heads of " + std::to_string(shape.dim) + ", group of " +
                 std::to_string(shape.group));
    CachedAttention attention{shape.dim,    shape.heads,     shape.group,
                              shape.tokens, shape.sequences, 320};
    runAll(attention.caches("f16", "f16"), tolerance);
    attention.appends = shape.sequences == shape.tokens;
    runAll(attention.caches("int8", "int4-h32"), tolerance);
  }
}

// Every encoding with every other, of a key and of a value that attention itself appends.
TEST_P(HostAttention, Formats) {
  for (auto [keys, values] : allCachePairs()) {
    SCOPED_TRACE(std::string(keys) + " " + values);
    CachedAttention attention{64, 1, 2, 1, 1, 320};
    attention.appends = true;
    attention.caches(keys, values);
    std::unique_ptr<HostKernels> kernels =
        HostKernels::compile(attention.text(schedule(GetParam(), 4, 64), false));
    ASSERT_TRUE(kernels);
    Random random(2);
    CachedAttention::Data data = attention.data(random);
    for (int32_t last : {0, 30, 31, 32, 299})
      run(attention, *kernels, data, {last}, tolerance);
    if (testing::Test::HasFailure())
      return;
  }
}

// Norms of heads and rotary embedding before keys are rotated and rounded: registers that hold
// pairs, and heads whose halves begin inside of one; both orders of pairs. Every size meets every
// format, and both meet both orders, in half of the combinations; of two instruction sets that
// follow each other one has the other half.
TEST_P(HostAttention, NormsAndRotary) {
  using Rotary = CachedAttention::Rotary;
  const int64_t dims[] = {64, 128, 20, 6, 80, 100};
  const char *const formats[] = {"f16", "bf16", "int8", "int4-rot", "fp8"};
  size_t isa = static_cast<size_t>(GetParam());
  for (auto [dimNumber, dim] : llvm::enumerate(dims))
    for (auto [formatNumber, format] : llvm::enumerate(formats))
      for (Rotary rotary : {Rotary::Halves, Rotary::Interleaved}) {
        if ((dimNumber + formatNumber + isa + (rotary == Rotary::Halves)) % 2)
          continue;
        SCOPED_TRACE("heads of " + std::to_string(dim) + ", " + format +
                     (rotary == Rotary::Halves ? ", halves" : ", interleaved"));
        CachedAttention attention{dim, 2, 3, 1, 1, 128};
        attention.appends = true;
        attention.norms = true;
        attention.rotary = rotary;
        attention.caches(format,
                         llvm::StringRef(format).take_until([](char c) { return c == '-'; }));
        std::unique_ptr<HostKernels> kernels =
            HostKernels::compile(attention.text(schedule(GetParam(), 4, 64), false));
        ASSERT_TRUE(kernels);
        Random random(5);
        CachedAttention::Data data = attention.data(random);
        for (int32_t last : {0, 30, 31, 32, 127})
          run(attention, *kernels, data, {last}, tolerance);
        if (testing::Test::HasFailure())
          return;
      }
}

// Each of them alone; of several sequences each at its own position.
TEST_P(HostAttention, NormsOrRotary) {
  using Rotary = CachedAttention::Rotary;
  for (bool norms : {false, true}) {
    CachedAttention attention{48, 2, 2, 3, 3, 128};
    attention.appends = true;
    attention.norms = norms;
    attention.rotary = norms ? Rotary::None : Rotary::Halves;
    runAll(attention.caches("f16", "f16"), tolerance);
  }
}

// Positions behind the window are NaN in the caches and must not be attended to.
TEST_P(HostAttention, Windows) {
  struct Shape {
    int64_t window, tokens, sequences;
  };
  for (auto [keys, values] : {std::pair("f16", "f16"), {"int8", "int4-h32"}})
    for (Shape shape : {Shape{1, 1, 1}, // the newest position alone
                        {7, 1, 1},      // in one tile or two
                        {32, 2, 1},     // as long as a tile; tokens whose windows differ
                        {100, 1, 1},    // three blocks, the first and the last in part
                        {100, 3, 3},
                        {320, 1, 1}, // the whole cache
                        {1000, 2, 1}}) {
      SCOPED_TRACE(std::string(keys) + " " + values + ", window of " +
                   std::to_string(shape.window));
      CachedAttention attention{64, 2, 3, shape.tokens, shape.sequences, 320};
      attention.window = shape.window;
      attention.appends = shape.sequences == shape.tokens;
      runAll(attention.caches(keys, values), tolerance);
      if (testing::Test::HasFailure())
        return;
    }
}

TEST_P(HostAttention, PositionsOutsideTheCacheAreClamped) {
  CachedAttention attention{16, 1, 1, 2, 1, 320};
  attention.caches("f16", "f16");
  std::unique_ptr<HostKernels> kernels =
      HostKernels::compile(attention.text(schedule(GetParam(), 4, 64), false));
  ASSERT_TRUE(kernels);
  Random random(2);
  CachedAttention::Data data = attention.data(random);
  CachedAttention::Step step = attention.step(data, {0, 319}, false);
  step.buffers[1].as<int32_t>()[0] = -7;
  step.buffers[1].as<int32_t>()[1] = 1000000;
  kernels->run(0, step.arguments());
  attention.check(step, tolerance);
}

// What is not finite must not become a plausible number.
TEST_P(HostAttention, NotANumberStaysOne) {
  for (bool inKeys : {true, false})
    for (const char *format : {"f16", "bf16", "fp8", "int8-h32", "int4"}) {
      SCOPED_TRACE(std::string(format) + (inKeys ? " keys" : " values"));
      CachedAttention attention{64, 1, 1, 1, 1, 128};
      attention.appends = true;
      attention.caches(format, format);
      std::unique_ptr<HostKernels> kernels =
          HostKernels::compile(attention.text(schedule(GetParam(), 4, 64), false));
      ASSERT_TRUE(kernels);
      Random random(4);
      CachedAttention::Data data = attention.data(random);
      for (int64_t position : {100, 70}) { // the new one, and one that is there already
        std::vector<float> &all = inKeys ? data.keys : data.values;
        float before = all[position * 64 + 40];
        all[position * 64 + 40] = NAN;
        CachedAttention::Step step = attention.step(data, {100}, false);
        kernels->run(0, step.arguments());
        std::vector<float> y(64);
        formats::f16ToFloat(step.buffers.back().copy<uint16_t>(), y);
        EXPECT_TRUE(std::isnan(y[40])) << "position " << position;
        all[position * 64 + 40] = before;
      }
    }
}

// Sums of integers are exact, so bytes (int4 with VNNI, up to four query heads) give the bits that
// words do.
TEST(HostAttentionBytes, AreLikeWords) {
  std::vector<host::Isa> isas = runnableIsas();
  if (!llvm::is_contained(isas, host::Isa::Avx512Vnni))
    GTEST_SKIP() << "only VNNI multiplies bytes";
  struct Shape {
    int64_t dim, group;
  };
  for (const char *keys : {"int4", "int4-h32"})
    for (const char *values : {"int4", "int4-h32"})
      for (Shape shape : {Shape{72, 1}, {128, 3}, {72, 4}, {128, 5}}) {
        SCOPED_TRACE(std::string(keys) + " " + values + ", group of " +
                     std::to_string(shape.group));
        CachedAttention attention{shape.dim, 2, shape.group, 1, 1, 320};
        attention.caches(keys, values);
        Random random(3);
        CachedAttention::Data data = attention.data(random);
        std::vector<std::vector<uint16_t>> results;
        for (host::Isa isa : {host::Isa::Avx512, host::Isa::Avx512Vnni}) {
          std::unique_ptr<HostKernels> kernels =
              HostKernels::compile(attention.text(schedule(isa, 4, 64), false));
          ASSERT_TRUE(kernels);
          results.emplace_back();
          for (int32_t last : {0, 40, 70, 299}) {
            CachedAttention::Step step = attention.step(data, {last}, false);
            kernels->run(0, step.arguments());
            llvm::append_range(results.back(), step.buffers.back().copy<uint16_t>());
          }
        }
        EXPECT_EQ(results[0], results[1]);
      }
}

INSTANTIATE_TEST_SUITE_P(Isas, HostAttention, testing::ValuesIn(runnableIsas()),
                         [](const auto &info) { return host::isaName(info.param).str(); });
