// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Attention of a prompt's tokens: what decoding them one after the other leaves in caches and
// results, bit for bit, and what the definition says.

#include "CachedAttention.h"

#include <gtest/gtest.h>

using namespace sluice;
using namespace sluice::test;

namespace {

class HostPrompt : public testing::TestWithParam<host::Isa> {
protected:
  struct Chunk {
    int64_t first, count;
  };

  /// Runs steps of up to `tokens` tokens, and those tokens one after the other.
  void run(CachedAttention attention, llvm::ArrayRef<Chunk> chunks, double tolerance = 6e-4) {
    attention.appends = true;
    CachedAttention decode = attention;
    decode.tokens = 1;
    attention.causal = true;
    std::string options = schedule(GetParam(), 4, 64);
    std::unique_ptr<HostKernels> kernels = HostKernels::compile(attention.text(options, false));
    std::unique_ptr<HostKernels> single = HostKernels::compile(decode.text(options, false));
    ASSERT_TRUE(kernels && single);
    ASSERT_EQ(kernels->dispatches.size(), 2);
    Random random(1);
    CachedAttention::Data data = attention.data(random);
    for (auto [first, count] : chunks) {
      SCOPED_TRACE(std::to_string(count) + " tokens from position " + std::to_string(first));
      std::vector<int32_t> positions(count);
      std::iota(positions.begin(), positions.end(), first);
      CachedAttention::Step step = attention.step(data, positions, false);
      // One after the other, before the step's own kernels change its caches.
      std::vector<Buffer *> arguments = step.arguments();
      size_t size = arguments.size();
      Buffer keys(arguments[size - 3]->copy<uint8_t>()),
          values(arguments[size - 2]->copy<uint8_t>());
      std::vector<uint16_t> expected;
      for (int64_t token = 0; token < count; ++token) {
        auto rowOf = [&](size_t argument, int64_t width) {
          const float *row = arguments[argument]->as<float>() + token * width;
          return Buffer(std::vector<float>(row, row + width));
        };
        Buffer query = rowOf(0, attention.width()), key = rowOf(1, attention.heads * attention.dim),
               value = rowOf(2, attention.heads * attention.dim),
               position(std::vector<int32_t>{positions[token]}), result(attention.width() * 2);
        std::vector<Buffer *> own = {&query, &key, &value, &position};
        own.insert(own.end(), arguments.begin() + 5, arguments.end() - 3);
        own.insert(own.end(), {&keys, &values, &result});
        single->run(0, own);
        llvm::append_range(expected, result.copy<uint16_t>());
      }
      kernels->run(0, step.appendArguments());
      kernels->run(1, step.attentionArguments());
      attention.check(step, tolerance);
      EXPECT_EQ(arguments[size - 3]->copy<uint8_t>(), keys.copy<uint8_t>()) << "keys";
      EXPECT_EQ(arguments[size - 2]->copy<uint8_t>(), values.copy<uint8_t>()) << "values";
      std::vector<uint16_t> found = arguments.back()->copy<uint16_t>();
      found.resize(expected.size());
      for (size_t i = 0; i < expected.size(); ++i)
        if (found[i] != expected[i]) {
          int64_t row = i / attention.width(), column = i % attention.width();
          ADD_FAILURE() << "row " << row << ", query head " << column / attention.dim
                        << ", element " << column % attention.dim << " is "
                        << formats::f16ToFloat(found[i]) << ", of a single token "
                        << formats::f16ToFloat(expected[i]);
          break;
        }
      if (testing::Test::HasFailure())
        return;
    }
  }
};

} // namespace

TEST_P(HostPrompt, HeadsAndGroups) {
  struct Shape {
    int64_t dim, heads, group, tokens;
  };
  for (Shape shape : {Shape{16, 1, 1, 64},
                      {64, 2, 4, 64},
                      {80, 3, 3, 5},
                      {128, 1, 8, 16},
                      {20, 3, 1, 33},
                      {72, 1, 12, 64},
                      {96, 2, 2, 64},
                      {256, 1, 16, 24}})
    for (auto [keys, values] : {std::pair("f16", "f16"), {"int8", "int4-h32"}}) {
      SCOPED_TRACE("heads of " + std::to_string(shape.dim) + ", group of " +
                   std::to_string(shape.group));
      CachedAttention attention{shape.dim, shape.heads, shape.group, shape.tokens, 1, 192};
      int64_t all = shape.tokens;
      run(attention.caches(keys, values), {{0, all}, {all, all / 2}, {97, 1}, {192 - all, all}});
      if (HasFailure())
        return;
    }
}

// Every encoding with every other.
TEST_P(HostPrompt, Formats) {
  for (const char *keys : {"f16", "bf16", "fp8", "int8", "int8-h32-rot", "int4", "int4-h64-rot"})
    for (const char *values : {"f16", "bf16", "fp8", "int8", "int8-h32", "int4", "int4-h64"}) {
      SCOPED_TRACE(std::string(keys) + " " + values);
      CachedAttention attention{64, 1, 2, 64, 1, 192};
      run(attention.caches(keys, values), {{0, 31}, {100, 64}});
      if (HasFailure())
        return;
    }
}

TEST_P(HostPrompt, NormsAndRotary) {
  using Rotary = CachedAttention::Rotary;
  for (int64_t dim : {64, 20, 80})
    for (const char *format : {"f16", "bf16", "int4-rot", "fp8"})
      for (Rotary rotary : {Rotary::Halves, Rotary::Interleaved}) {
        SCOPED_TRACE("heads of " + std::to_string(dim) + ", " + format);
        CachedAttention attention{dim, 2, 3, 16, 1, 64};
        attention.norms = true;
        attention.rotary = rotary;
        attention.caches(format,
                         llvm::StringRef(format).take_until([](char c) { return c == '-'; }));
        run(attention, {{0, 16}, {25, 9}});
        if (HasFailure())
          return;
      }
}

// Windows that end within a step, a block, a tile; positions behind them are NaN.
TEST_P(HostPrompt, Windows) {
  for (auto [keys, values] : {std::pair("f16", "f16"), {"int8", "int4-h32"}, {"bf16", "fp8"}})
    for (int64_t window : {1, 7, 32, 100, 1000}) {
      SCOPED_TRACE(std::string(keys) + " " + values + ", window of " + std::to_string(window));
      CachedAttention attention{64, 2, 3, 64, 1, 320};
      attention.window = window;
      run(attention.caches(keys, values), {{0, 64}, {64, 64}, {150, 31}, {250, 64}});
      if (HasFailure())
        return;
    }
}

TEST_P(HostPrompt, SoftCap) {
  for (auto [keys, values] : {std::pair("f16", "f16"), {"int8", "int8"}}) {
    CachedAttention attention{64, 2, 2, 64, 1, 192};
    attention.softCap = 3;
    run(attention.caches(keys, values), {{0, 31}, {77, 64}});
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, HostPrompt, testing::ValuesIn(runnableIsas()),
                         [](const auto &info) { return host::isaName(info.param).str(); });
