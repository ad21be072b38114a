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

  /// A step of up to `attention.tokens` tokens, which appends them.
  static std::unique_ptr<HostKernels> compile(CachedAttention &attention) {
    attention.appends = true;
    attention.rows = attention.tokens;
    formats::CacheEncoding::Element keys = attention.keyChoice.encoding.element;
    bool isHalf = keys == formats::CacheEncoding::Element::F16 ||
                  keys == formats::CacheEncoding::Element::E4M3;
    attention.halfQuery = isHalf && !attention.keyChoice.rotated;
    std::string options = schedule(GetParam(), 4, 64);
    return HostKernels::compile(attention.text(options, false, options));
  }
  static CachedAttention::Step step(CachedAttention &attention, CachedAttention::Data data,
                                    Chunk chunk) {
    attention.tokens = chunk.count;
    data.query.resize(chunk.count * attention.width());
    std::vector<int32_t> positions(chunk.count);
    std::iota(positions.begin(), positions.end(), chunk.first);
    return attention.step(data, positions, false);
  }

  /// Runs steps and, if `decodes`, their tokens one after the other.
  static void run(CachedAttention attention, llvm::ArrayRef<Chunk> chunks, bool decodes = true) {
    CachedAttention decode = attention;
    decode.tokens = 1;
    decode.appends = true;
    std::unique_ptr<HostKernels> kernels = compile(attention), single;
    if (decodes)
      single = HostKernels::compile(decode.text(schedule(GetParam(), 4, 64), false));
    ASSERT_TRUE(kernels && (single || !decodes));
    ASSERT_EQ(kernels->dispatches.size(), 2);
    Random random(1);
    CachedAttention::Data data = attention.data(random);
    for (Chunk chunk : chunks) {
      SCOPED_TRACE(std::to_string(chunk.count) + " tokens from position " +
                   std::to_string(chunk.first));
      CachedAttention::Step made = step(attention, data, chunk);
      std::vector<Buffer *> arguments = made.arguments();
      size_t size = arguments.size();
      // Before the step's own kernels change its caches.
      Buffer keys(arguments[size - 3]->copy<uint8_t>()),
          values(arguments[size - 2]->copy<uint8_t>());
      std::vector<uint16_t> expected;
      for (int64_t token = 0; decodes && token < chunk.count; ++token) {
        auto rowOf = [&](size_t argument, int64_t width) {
          const float *row = arguments[argument]->as<float>() + token * width;
          return Buffer(std::vector<float>(row, row + width));
        };
        int64_t row = attention.heads * attention.dim;
        Buffer query = rowOf(0, attention.width()), key = rowOf(1, row), value = rowOf(2, row),
               position(std::vector<int32_t>{made.positions[token]}), result(attention.width() * 2);
        std::vector<Buffer *> own = {&query, &key, &value, &position};
        own.insert(own.end(), arguments.begin() + 5, arguments.end() - 3);
        own.insert(own.end(), {&keys, &values, &result});
        single->run(0, own);
        llvm::append_range(expected, result.copy<uint16_t>());
      }
      kernels->run(0, made.appendArguments());
      kernels->run(1, made.attentionArguments());
      // AVX2 also adds numbers that it masks afterwards, which costs nothing.
      if (GetParam() != host::Isa::Avx2)
        EXPECT_FALSE(kernels->metDenormals) << "rows without a token cost what the stack held";
      attention.check(made, tolerance);
      if (decodes) {
        EXPECT_EQ(arguments[size - 3]->copy<uint8_t>(), keys.copy<uint8_t>()) << "keys";
        EXPECT_EQ(arguments[size - 2]->copy<uint8_t>(), values.copy<uint8_t>()) << "values";
        std::vector<uint16_t> found = arguments.back()->copy<uint16_t>();
        found.resize(expected.size());
        auto [other, own] = llvm::mismatch(found, expected);
        EXPECT_TRUE(other == found.end())
            << "element " << other - found.begin() << " is " << formats::f16ToFloat(*other)
            << ", of a single token " << formats::f16ToFloat(*own);
      }
      if (testing::Test::HasFailure())
        return;
    }
  }
};

} // namespace

// Every encoding with every other, and each of them with every shape; an instruction set has a part
// of the pairs. Tokens are decoded where that meets every shape once.
TEST_P(HostPrompt, FormatsAndShapes) {
  struct Shape {
    int64_t dim, heads, group, tokens;
    std::optional<int64_t> window;
    std::optional<double> softCap;
  };
  // Windows end within a step, a block or a tile, or are longer than all; positions behind them are
  // NaN.
  const Shape shapes[] = {{64, 2, 4, 64, {}, {}},  {80, 2, 3, 64, {}, {}},
                          {20, 3, 2, 33, 7, {}},   {32, 1, 1, 64, 100, 3},
                          {128, 1, 12, 5, {}, {}}, {16, 3, 1, 64, 1000, {}},
                          {256, 1, 16, 24, 32, {}}};
  std::vector<host::Isa> isas = runnableIsas();
  size_t number = 0;
  for (auto [k, keys] : llvm::enumerate(llvm::ArrayRef<const char *>(
           {"f16", "bf16", "fp8", "int8", "int8-h32-rot", "int4", "int4-h64-rot"})))
    for (auto [v, values] : llvm::enumerate(llvm::ArrayRef<const char *>(
             {"f16", "bf16", "fp8", "int8", "int8-h32", "int4", "int4-h64"}))) {
      if (isas[number++ % isas.size()] != GetParam())
        continue;
      const Shape &shape = shapes[(k + v) % std::size(shapes)];
      SCOPED_TRACE(std::string(keys) + " " + values + ", heads of " + std::to_string(shape.dim) +
                   ", group of " + std::to_string(shape.group) + ", window of " +
                   std::to_string(shape.window.value_or(0)));
      CachedAttention attention{shape.dim, shape.heads, shape.group, shape.tokens, 1, 320};
      attention.window = shape.window;
      attention.softCap = shape.softCap;
      int64_t all = shape.tokens;
      run(attention.caches(keys, values),
          {{0, std::min<int64_t>(all, 31)}, {all, all}, {150, all / 2}, {97, 1}, {320 - all, all}},
          /*decodes=*/k == v);
      if (HasFailure())
        return;
    }
}

TEST_P(HostPrompt, NormsAndRotary) {
  CachedAttention attention{20, 2, 3, 16, 1, 64};
  attention.norms = true;
  attention.rotary = CachedAttention::Rotary::Interleaved;
  run(attention.caches("int4-rot", "f16"), {{0, 16}, {25, 9}});
}

// What later tokens of a step are must not reach earlier ones.
TEST_P(HostPrompt, NotANumberStaysBehind) {
  for (const char *format : {"f16", "int8-h32"}) {
    SCOPED_TRACE(format);
    CachedAttention attention{64, 1, 1, 16, 1, 64};
    std::unique_ptr<HostKernels> kernels = compile(attention.caches(format, format));
    ASSERT_TRUE(kernels);
    Random random(3);
    CachedAttention::Data data = attention.data(random);
    data.values[25 * 64 + 40] = NAN;
    CachedAttention::Step made = step(attention, data, {20, 16});
    kernels->run(0, made.appendArguments());
    kernels->run(1, made.attentionArguments());
    std::vector<float> y(16 * 64);
    formats::f16ToFloat(made.buffers.back().copy<uint16_t>(), y);
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
