// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "HostKernels.h"

#include <cmath>
#include <gtest/gtest.h>

using namespace sluice;
using namespace sluice::test;

namespace {

struct Shape {
  int64_t head, keyHeads, group, tokens, positions;
};

class HostAttention : public testing::TestWithParam<host::Isa> {};

constexpr int64_t kContext = 301;

/// Softmax attention in double precision.
std::vector<double> reference(const Shape &shape, const std::vector<uint16_t> &q,
                              const std::vector<uint16_t> &k, const std::vector<uint16_t> &v,
                              const std::vector<int32_t> &at, double scale) {
  std::vector<double> result;
  for (int64_t token = 0; token < shape.tokens; ++token)
    for (int64_t query = 0; query < shape.keyHeads * shape.group; ++query) {
      int64_t keyHead = query / shape.group;
      auto cached = [&](const std::vector<uint16_t> &cache, int64_t position, int64_t i) {
        return double(
            formats::f16ToFloat(cache[(position * shape.keyHeads + keyHead) * shape.head + i]));
      };
      std::vector<double> weights, output(shape.head);
      double maximum = -INFINITY, sum = 0;
      for (int64_t position = 0; position <= at[token]; ++position) {
        double score = 0;
        for (int64_t i = 0; i < shape.head; ++i)
          score += formats::f16ToFloat(
                       q[(token * shape.keyHeads * shape.group + query) * shape.head + i]) *
                   cached(k, position, i);
        weights.push_back(score * scale);
        maximum = std::max(maximum, weights.back());
      }
      for (double &weight : weights)
        sum += weight = std::exp(weight - maximum);
      for (auto [position, weight] : llvm::enumerate(weights))
        for (int64_t i = 0; i < shape.head; ++i)
          output[i] += weight / sum * cached(v, position, i);
      result.insert(result.end(), output.begin(), output.end());
    }
  return result;
}

} // namespace

TEST_P(HostAttention, HeadsGroupsAndContexts) {
  const std::vector<Shape> shapes = {{16, 1, 1, 1, 32},  {32, 2, 4, 1, 16},  {64, 2, 2, 2, 32},
                                     {80, 2, 3, 1, 32},  {128, 1, 8, 1, 64}, {20, 3, 1, 1, 32},
                                     {72, 1, 12, 1, 17}, {96, 1, 2, 3, 1024}};
  std::string text;
  for (auto [number, shape] : llvm::enumerate(shapes)) {
    std::string n = std::to_string(number), head = std::to_string(shape.head),
                cache = "tensor<301x" + std::to_string(shape.keyHeads) + "x" + head + "xf16>",
                type = "tensor<" + std::to_string(shape.tokens) + "x" +
                       std::to_string(shape.keyHeads * shape.group * shape.head) + "xf16>",
                at = "tensor<" + std::to_string(shape.tokens) + "xi32>";
    text += "model.cache @k" + n + " : " + cache + "\nmodel.cache @v" + n + " : " + cache +
            "\nfunc.func @f" + n + "(%q: " + type + ", %p: " + at + ") -> " + type +
            " {\n  %y = fused.attention %q, @k" + n + ", @v" + n + " at %p scale 0.125 " +
            schedule(GetParam(), 4, shape.positions) + " : " + type + ", " + at + " -> " + type +
            "\n  return %y : " + type + "\n}\n";
  }
  std::unique_ptr<HostKernels> kernels = HostKernels::compile(text);
  ASSERT_TRUE(kernels);
  Random random(1);
  for (auto [number, shape] : llvm::enumerate(shapes)) {
    int64_t width = shape.keyHeads * shape.group * shape.head,
            rowWidth = shape.keyHeads * shape.head;
    EXPECT_EQ(kernels->dispatches[number].grid, shape.keyHeads * shape.tokens);
    std::vector<uint16_t> q = random.normalF16(shape.tokens * width, 2.0f),
                          k = random.normalF16(kContext * rowWidth),
                          v = random.normalF16(kContext * rowWidth);
    for (int32_t position : {0, 14, 15, 16, 31, 32, 299, 300}) {
      SCOPED_TRACE("head of " + std::to_string(shape.head) + ", group of " +
                   std::to_string(shape.group) + ", position " + std::to_string(position));
      std::vector<int32_t> at;
      for (int32_t token = 0; token < shape.tokens; ++token)
        at.push_back(std::max(0, position - 5 * token));
      // What lies beyond the position must not be read, or at least not matter.
      std::vector<uint16_t> keysNow = k, valuesNow = v;
      std::fill(keysNow.begin() + (position + 1) * rowWidth, keysNow.end(), 0x7E00);
      std::fill(valuesNow.begin() + (position + 1) * rowWidth, valuesNow.end(), 0x7E00);
      Buffer query(q), keys(keysNow), values(valuesNow), positions(at), output(q.size() * 2);
      kernels->run(number, {&query, &positions, &keys, &values, &output});
      std::vector<float> y(q.size());
      formats::f16ToFloat(output.copy<uint16_t>(), y);
      // Weights and results are rounded to f16, 2^-12 relative on average each.
      EXPECT_LE(relativeError(y, reference(shape, q, k, v, at, 0.125)), 5e-4);
    }
  }
}

TEST_P(HostAttention, PositionsOutsideTheCacheAreClamped) {
  std::unique_ptr<HostKernels> kernels = HostKernels::compile(
      "model.cache @k : !quantized.cache<1x301x1x16xf16>\nmodel.cache @v : !quantized.cache<1x301x1x16xf16>\n"
      "func.func @f(%q: tensor<2x16xf16>, %p: tensor<2xi32>) -> tensor<2x16xf16> {\n"
      "  %y = fused.attention %q, @k, @v at %p scale 0.25 " +
      schedule(GetParam(), 4, 32) +
      " : tensor<2x16xf16>, tensor<2xi32> -> tensor<2x16xf16>\n  return %y : "
      "tensor<2x16xf16>\n}\n");
  ASSERT_TRUE(kernels);
  Random random(2);
  std::vector<uint16_t> q = random.normalF16(32), k = random.normalF16(kContext * 16),
                        v = random.normalF16(kContext * 16);
  Buffer query(q), keys(k), values(v), positions(std::vector<int32_t>{-7, 1000000}), output(64);
  kernels->run(0, {&query, &positions, &keys, &values, &output});
  std::vector<float> y(32);
  formats::f16ToFloat(output.copy<uint16_t>(), y);
  EXPECT_LE(relativeError(y, reference({16, 1, 1, 2, 32}, q, k, v, {0, 300}, 0.25)), 5e-4);
}

INSTANTIATE_TEST_SUITE_P(Isas, HostAttention, testing::ValuesIn(runnableIsas()),
                         [](const auto &info) { return host::isaName(info.param).str(); });
