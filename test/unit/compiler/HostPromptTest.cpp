// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Attention of a prompt's tokens: what decoding them one after the other leaves in caches and
// results, bit for bit, and what the definition says.

#include "CachedAttention.h"

#include <cmath>
#include <gtest/gtest.h>
#include <limits>
#include <numeric>

using namespace sluice;
using namespace sluice::test;

namespace {

/// As of a single token (HostAttentionTest.cpp).
constexpr double tolerance = 6e-4;

class HostPrompt : public testing::TestWithParam<host::Isa> {
protected:
  struct Chunk {
    int64_t first, count;
  };

  /// Runs steps of up to `tokens` tokens and, if `decodes`, those tokens one after the other.
  void run(CachedAttention attention, llvm::ArrayRef<Chunk> chunks, bool decodes = true) {
    attention.appends = true;
    CachedAttention decode = attention;
    decode.tokens = 1;
    attention.causal = true;
    std::string options = schedule(GetParam(), 4, 64);
    std::unique_ptr<HostKernels> kernels = HostKernels::compile(attention.text(options, false));
    std::unique_ptr<HostKernels> single;
    if (decodes)
      single = HostKernels::compile(decode.text(options, false));
    ASSERT_TRUE(kernels && (single || !decodes));
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
      for (int64_t token = 0; decodes && token < count; ++token) {
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
      if (!decodes)
        continue;
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
    const char *keys, *values;
  };
  for (Shape shape : {Shape{16, 1, 1, 64, "f16", "int8"},
                      {64, 2, 4, 64, "f16", "f16"},
                      {80, 3, 3, 5, "int8", "int4-h32"},
                      {20, 3, 2, 33, "fp8", "bf16"},
                      {72, 1, 12, 64, "bf16", "fp8"},
                      {256, 1, 16, 24, "int4-rot", "f16"}}) {
    SCOPED_TRACE("heads of " + std::to_string(shape.dim) + ", group of " +
                 std::to_string(shape.group));
    CachedAttention attention{shape.dim, shape.heads, shape.group, shape.tokens, 1, 192};
    int64_t all = shape.tokens;
    run(attention.caches(shape.keys, shape.values),
        {{0, all}, {all, all / 2}, {97, 1}, {192 - all, all}});
    if (HasFailure())
      return;
  }
}

// Every encoding with every other, each pair with one of the instruction sets.
TEST_P(HostPrompt, Formats) {
  std::vector<host::Isa> isas = runnableIsas();
  size_t number = 0;
  for (const char *keys : {"f16", "bf16", "fp8", "int8", "int8-h32-rot", "int4", "int4-h64-rot"})
    for (const char *values : {"f16", "bf16", "fp8", "int8", "int8-h32", "int4", "int4-h64"}) {
      if (isas[number++ % isas.size()] != GetParam())
        continue;
      SCOPED_TRACE(std::string(keys) + " " + values);
      CachedAttention attention{64, 1, 8, 64, 1, 192};
      run(attention.caches(keys, values), {{0, 31}, {100, 64}}, /*decodes=*/false);
      if (HasFailure())
        return;
    }
}

TEST_P(HostPrompt, NormsAndRotary) {
  using Rotary = CachedAttention::Rotary;
  for (auto [dim, format, rotary] :
       {std::tuple(64, "f16", Rotary::Halves), {20, "int4-rot", Rotary::Interleaved}}) {
    SCOPED_TRACE("heads of " + std::to_string(dim) + ", " + format);
    CachedAttention attention{dim, 2, 3, 16, 1, 64};
    attention.norms = true;
    attention.rotary = rotary;
    attention.caches(format, llvm::StringRef(format).take_until([](char c) { return c == '-'; }));
    run(attention, {{0, 16}, {25, 9}});
  }
}

// Windows that end within a step, a block, a tile; positions behind them are NaN.
TEST_P(HostPrompt, Windows) {
  for (auto [keys, values, window] : {std::tuple("f16", "f16", 7),
                                      {"int8", "int4-h32", 32},
                                      {"bf16", "fp8", 100},
                                      {"f16", "int8", 1},
                                      {"fp8", "f16", 1000}}) {
    SCOPED_TRACE(std::string(keys) + " " + values + ", window of " + std::to_string(window));
    CachedAttention attention{64, 2, 3, 64, 1, 320};
    attention.window = window;
    run(attention.caches(keys, values), {{0, 64}, {64, 64}, {150, 31}, {250, 64}});
    if (HasFailure())
      return;
  }
}

TEST_P(HostPrompt, SoftCap) {
  CachedAttention attention{64, 2, 2, 64, 1, 192};
  attention.softCap = 3;
  run(attention.caches("f16", "int8"), {{0, 31}, {77, 64}});
}

// What later tokens of a step are must not reach earlier ones.
TEST_P(HostPrompt, NotANumberStaysBehind) {
  for (auto [format, inKeys] : {std::pair("f16", false), {"int8-h32", false}, {"bf16", true}}) {
    SCOPED_TRACE(format);
    CachedAttention attention{64, 1, 1, 16, 1, 64};
    attention.appends = attention.causal = true;
    attention.caches(format, format);
    std::unique_ptr<HostKernels> kernels =
        HostKernels::compile(attention.text(schedule(GetParam(), 4, 64), false));
    ASSERT_TRUE(kernels);
    Random random(3);
    CachedAttention::Data data = attention.data(random);
    std::vector<int32_t> positions(16);
    std::iota(positions.begin(), positions.end(), 20);
    (inKeys ? data.keys : data.values)[25 * 64 + 40] = NAN;
    CachedAttention::Step step = attention.step(data, positions, false);
    kernels->run(0, step.appendArguments());
    kernels->run(1, step.attentionArguments());
    std::vector<float> y(16 * 64);
    formats::f16ToFloat(step.buffers.back().copy<uint16_t>(), y);
    for (int64_t row = 0; row < 16; ++row)
      EXPECT_EQ(std::isnan(y[row * 64 + 40]), row >= 5) << "row " << row;
  }
}

// Embedding, rows and the last row, of some tokens only.
TEST_P(HostPrompt, ActiveRows) {
  std::string options = schedule(GetParam(), 1, 0);
  std::unique_ptr<HostKernels> kernels = HostKernels::compile(
      "func.func @f(%t: tensor<9xi32>, %w: tensor<4x40xf16>, %n: tensor<1xi32>) -> "
      "tensor<9x40xf32> "
      "{\n  %y = fused.embedding %t, %w active(%n) " +
      options +
      " : tensor<9xi32>, tensor<4x40xf16> -> tensor<9x40xf32>\n  return %y : tensor<9x40xf32>\n}\n"
      "func.func @g(%x: tensor<9x40xf32>, %n: tensor<1xi32>) -> tensor<9x40xf32> {\n"
      "  %y = fused.rows active(%n) " +
      options +
      " -> tensor<9x40xf32> body {\n    %s = arith.addf %x, %x : tensor<9x40xf32>\n"
      "    fused.yield %s : tensor<9x40xf32>\n  }\n  return %y : tensor<9x40xf32>\n}\n"
      "func.func @h(%x: tensor<9x40xf32>, %n: tensor<1xi32>) -> tensor<1x40xf32> {\n"
      "  %y = fused.last_row %x active(%n) " +
      options + " : tensor<9x40xf32> -> tensor<1x40xf32>\n  return %y : tensor<1x40xf32>\n}\n");
  ASSERT_TRUE(kernels);
  Random random(1);
  Buffer table(random.normalF16(4 * 40));
  std::vector<float> numbers = random.normal(9 * 40);
  Buffer x(numbers);
  for (int32_t count : {1, 6, 9}) {
    std::vector<int32_t> ids(9, std::numeric_limits<int32_t>::max());
    for (int32_t i = 0; i < count; ++i)
      ids[i] = (i + 1) % 4;
    Buffer tokens(ids), active(std::vector<int32_t>{count}), embedded(9 * 40 * 4),
        doubled(9 * 40 * 4), last(40 * 4);
    kernels->run(0, {&tokens, &table, &active, &embedded});
    // Operands come before what the body reads.
    kernels->run(1, {&active, &x, &doubled});
    kernels->run(2, {&x, &active, &last});
    float untouched = Buffer(4).as<float>()[0];
    for (int64_t i = 0; i < 9 * 40; ++i) {
      bool isThere = i / 40 < count;
      EXPECT_EQ(embedded.as<float>()[i],
                isThere ? formats::f16ToFloat(table.as<uint16_t>()[ids[i / 40] * 40 + i % 40])
                        : untouched);
      EXPECT_EQ(doubled.as<float>()[i], isThere ? 2 * numbers[i] : untouched);
    }
    EXPECT_EQ(last.copy<float>(),
              std::vector<float>(numbers.begin() + (count - 1) * 40, numbers.begin() + count * 40));
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, HostPrompt, testing::ValuesIn(runnableIsas()),
                         [](const auto &info) { return host::isaName(info.param).str(); });
