// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "GpuKernels.h"

#include "sluice/Formats/CacheLayout.h"

#include <cmath>
#include <gtest/gtest.h>

using namespace sluice;
using namespace sluice::test;

namespace {

struct Shape {
  int64_t dim, keyHeads, group, tokens, positions;
  int64_t warps, stages, inFlight, splits;
  std::string target = "h200";
  int64_t window = 0;

  /// The first position that a token at `last` attends to.
  int64_t oldest(int64_t last) const {
    return window ? std::max<int64_t>(0, last - window + 1) : 0;
  }
  int64_t width() const { return keyHeads * group * dim; }
  /// Elements of a head in the cache.
  int64_t padded() const { return llvm::alignTo(dim, formats::cacheHeadUnit); }
};

/// A cache [positions][key heads][dim].
using Cache = std::vector<uint16_t>;

/// Softmax attention in double precision.
std::vector<double> reference(const Shape &shape, const std::vector<uint16_t> &q, const Cache &k,
                              const Cache &v, const std::vector<int32_t> &at, double scale) {
  std::vector<double> result;
  for (int64_t token = 0; token < shape.tokens; ++token)
    for (int64_t query = 0; query < shape.keyHeads * shape.group; ++query) {
      auto cached = [&](const Cache &cache, int64_t position, int64_t d) {
        int64_t row = position * shape.keyHeads + query / shape.group;
        return double(formats::f16ToFloat(cache[row * shape.dim + d]));
      };
      const uint16_t *head = &q[token * shape.width() + query * shape.dim];
      std::vector<double> weights, output(shape.dim);
      double maximum = -INFINITY, sum = 0;
      for (int64_t position = shape.oldest(at[token]); position <= at[token]; ++position) {
        double score = 0;
        for (int64_t d = 0; d < shape.dim; ++d)
          score += formats::f16ToFloat(head[d]) * cached(k, position, d);
        weights.push_back(score * scale);
        maximum = std::max(maximum, weights.back());
      }
      for (double &weight : weights)
        sum += weight = std::exp(weight - maximum);
      for (auto [number, weight] : llvm::enumerate(weights))
        for (int64_t d = 0; d < shape.dim; ++d)
          output[d] += weight / sum * cached(v, shape.oldest(at[token]) + number, d);
      result.insert(result.end(), output.begin(), output.end());
    }
  return result;
}

/// The cache in a GPU's order, with NaN after position `last`, before `oldest` and in the padding
/// of heads: what is there must not matter.
Buffer ordered(const Shape &shape, const Cache &cache, int64_t last, bool keys,
               int64_t oldest = 0) {
  int64_t dim = shape.padded(), headBytes = shape.positions * dim * 2;
  Buffer buffer(shape.keyHeads * headBytes);
  for (int64_t position = 0; position < shape.positions; ++position)
    for (int64_t head = 0; head < shape.keyHeads; ++head)
      for (int64_t d = 0; d < dim; ++d) {
        int64_t byte =
            keys ? formats::keyByte(dim, position, d) : formats::valueByte(dim, position, d);
        bool exists = position >= oldest && position <= last && d < shape.dim;
        buffer.as<uint16_t>()[(head * headBytes + byte) / 2] =
            exists ? cache[(position * shape.keyHeads + head) * shape.dim + d] : 0x7E00;
      }
  return buffer;
}

std::string attention(const Shape &shape, double scale, const std::string &early = "cache") {
  std::string type = "tensor<" + std::to_string(shape.tokens) + "x" +
                     std::to_string(shape.width()) + "xf16>",
              at = "tensor<" + std::to_string(shape.tokens) + "xi32>",
              cache =
                  (shape.padded() == shape.dim ? std::string()
                                               : "head_dim " + std::to_string(shape.dim) + " ") +
                  ": tensor<" + std::to_string(shape.positions) + "x" +
                  std::to_string(shape.keyHeads) + "x" + std::to_string(shape.padded()) + "xf16>";
  return "model.cache @k " + cache + "\nmodel.cache @v " + cache + "\nfunc.func @f(%q: " + type +
         ", %p: " + at + ") -> " + type + " {\n  %y = fused.attention %q, @k, @v at %p scale " +
         std::to_string(scale) + " " +
         (shape.window ? "window " + std::to_string(shape.window) + " " : "") +
         gpuSchedule(shape.tokens * shape.keyHeads * shape.splits, shape.warps, shape.stages,
                     shape.inFlight, 32, shape.splits, early) +
         " : " + type + ", " + at + " -> " + type + "\n  return %y : " + type + "\n}\n";
}

class GpuAttention : public testing::TestWithParam<Shape> {};

} // namespace

TEST_P(GpuAttention, AllContexts) {
  const Shape &shape = GetParam();
  std::unique_ptr<GpuKernels> kernels = GpuKernels::compile(attention(shape, 0.125), shape.target);
  ASSERT_TRUE(kernels);
  ASSERT_EQ(kernels->dispatches.size(), 1u);
  Random random(1);
  std::vector<uint16_t> q = random.normalF16(shape.tokens * shape.width(), 2.0f);
  Cache k = random.normalF16(shape.positions * shape.keyHeads * shape.dim),
        v = random.normalF16(shape.positions * shape.keyHeads * shape.dim);
  uint64_t seed = 0;
  for (int64_t position : {int64_t(0), int64_t(7), int64_t(15), int64_t(16), int64_t(31),
                           int64_t(32), shape.positions / 2 + 5, shape.positions - 1}) {
    if (position >= shape.positions)
      continue;
    SCOPED_TRACE("position " + std::to_string(position));
    std::vector<int32_t> at;
    for (int32_t token = 0; token < shape.tokens; ++token)
      at.push_back(std::max<int32_t>(0, position - 37 * token));
    int64_t oldest = shape.oldest(at.back());
    Buffer query(q), keys = ordered(shape, k, position, true, oldest),
                     values = ordered(shape, v, position, false, oldest), positions(at),
                     output(q.size() * 2);
    kernels->run(0, {&query, &positions, &keys, &values, &output}, ++seed);
    if (HasFailure())
      return;
    std::vector<float> y(q.size());
    formats::f16ToFloat(output.copy<uint16_t>(), y);
    // Weights and results are rounded to f16, 2^-12 relative on average each.
    EXPECT_LE(relativeError(y, reference(shape, q, k, v, at, 0.125)), 5e-4);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, GpuAttention,
    testing::Values(
        // Heads of one operand and of half ones, groups from 1 to 8, rings that are reused and not,
        // copies that wait for the oldest, more blocks than pieces.
        Shape{16, 1, 1, 1, 64, 8, 2, 2, 8}, Shape{64, 2, 2, 1, 320, 8, 2, 2, 8},
        Shape{128, 2, 4, 1, 1024, 8, 2, 2, 8}, Shape{128, 1, 8, 1, 1536, 8, 12, 3, 2},
        Shape{48, 2, 3, 1, 256, 8, 3, 1, 2}, Shape{80, 1, 5, 1, 256, 4, 4, 2, 1},
        Shape{96, 1, 7, 1, 192, 6, 3, 3, 4}, Shape{256, 1, 2, 1, 256, 8, 4, 4, 2},
        // A number of outputs that the blocks cannot share evenly; several tokens.
        Shape{16, 2, 1, 1, 96, 2, 1, 1, 7}, Shape{32, 2, 2, 3, 160, 8, 2, 2, 2},
        // Heads that are padded in the cache, of whole words only; more query heads than the tensor
        // cores have columns, a multiple of them and not.
        Shape{20, 2, 2, 1, 96, 8, 2, 2, 2}, Shape{6, 1, 3, 2, 64, 4, 2, 1, 1},
        Shape{100, 1, 4, 1, 192, 8, 4, 2, 4}, Shape{90, 1, 9, 1, 128, 8, 2, 2, 2},
        Shape{64, 2, 16, 1, 256, 16, 4, 2, 2}, Shape{32, 1, 12, 2, 128, 5, 2, 1, 2},
        Shape{64, 1, 71, 1, 160, 18, 2, 2, 4}, Shape{24, 1, 17, 1, 128, 31, 4, 4, 1, "a100"},
        // Without clusters and bulk copies.
        Shape{64, 2, 2, 2, 512, 8, 4, 2, 1, "a100"},
        // Windows: of one position, within a piece, over several, as long as the cache; more
        // passes.
        Shape{32, 1, 2, 1, 128, 8, 2, 2, 2, "h200", 1},
        Shape{64, 2, 4, 1, 256, 8, 2, 2, 4, "h200", 20},
        Shape{64, 1, 8, 2, 320, 8, 2, 2, 2, "h200", 77},
        Shape{32, 1, 12, 1, 192, 8, 2, 2, 2, "h200", 45},
        Shape{32, 1, 1, 1, 96, 4, 2, 2, 8, "h200", 96},
        Shape{64, 2, 2, 1, 256, 8, 4, 2, 1, "a100", 33}),
    [](const auto &info) {
      const Shape &shape = info.param;
      return "dim" + std::to_string(shape.dim) + "heads" + std::to_string(shape.keyHeads) +
             "group" + std::to_string(shape.group) + "tokens" + std::to_string(shape.tokens) +
             "splits" + std::to_string(shape.splits) + shape.target +
             (shape.window ? "window" + std::to_string(shape.window) : "");
    });

// Whatever verifies computes the same.
TEST(GpuAttentionOf, EverySchedule) {
  Random random(4);
  for (int64_t warps = 2; warps <= 31; ++warps) {
    const int64_t stages[] = {1, 2, 3, 5, 7, 12}, splits[] = {1, 2, 3, 5, 8};
    int64_t ring = stages[warps % 6];
    Shape shape = {16, 2, 3, 1, 448, warps, ring, 1 + warps % ring, splits[warps % 5]};
    SCOPED_TRACE(std::to_string(warps) + " warps, " + std::to_string(ring) + " stages, " +
                 std::to_string(shape.inFlight) + " in flight, " + std::to_string(shape.splits) +
                 " splits");
    std::unique_ptr<GpuKernels> kernels =
        GpuKernels::compile(attention(shape, 0.25, warps % 2 ? "none" : "cache"), shape.target);
    ASSERT_TRUE(kernels);
    std::vector<uint16_t> q = random.normalF16(shape.width(), 2.0f);
    Cache k = random.normalF16(shape.positions * shape.keyHeads * shape.dim),
          v = random.normalF16(shape.positions * shape.keyHeads * shape.dim);
    int32_t position = 447 - 13 * (warps % 3);
    Buffer query(q), keys = ordered(shape, k, position, true),
                     values = ordered(shape, v, position, false),
                     positions(std::vector<int32_t>{position}), output(q.size() * 2);
    kernels->run(0, {&query, &positions, &keys, &values, &output}, warps);
    if (HasFailure())
      return;
    std::vector<float> y(q.size());
    formats::f16ToFloat(output.copy<uint16_t>(), y);
    EXPECT_LE(relativeError(y, reference(shape, q, k, v, {position}, 0.25)), 5e-4);
  }
}

TEST(GpuAttentionOf, PositionsOutsideTheCacheAreClamped) {
  Shape shape = {16, 1, 1, 2, 64, 8, 2, 2, 1};
  std::unique_ptr<GpuKernels> kernels = GpuKernels::compile(attention(shape, 0.25), "h200");
  ASSERT_TRUE(kernels);
  Random random(2);
  std::vector<uint16_t> q = random.normalF16(32);
  Cache k = random.normalF16(64 * 16), v = random.normalF16(64 * 16);
  Buffer query(q), keys = ordered(shape, k, 63, true), values = ordered(shape, v, 63, false),
                   positions(std::vector<int32_t>{-7, 1000000}), output(64);
  kernels->run(0, {&query, &positions, &keys, &values, &output}, 1);
  std::vector<float> y(32);
  formats::f16ToFloat(output.copy<uint16_t>(), y);
  EXPECT_LE(relativeError(y, reference(shape, q, k, v, {0, 63}, 0.25)), 5e-4);
}

// Scores far apart: the running maximum is rescaled, and everything before it becomes nothing.
TEST(GpuAttentionOf, LateMaximum) {
  Shape shape = {32, 1, 2, 1, 256, 8, 2, 2, 2};
  std::unique_ptr<GpuKernels> kernels = GpuKernels::compile(attention(shape, 1.0), "h200");
  ASSERT_TRUE(kernels);
  Random random(3);
  std::vector<uint16_t> q = random.normalF16(64);
  Cache k = random.normalF16(256 * 32), v = random.normalF16(256 * 32);
  for (int64_t position = 0; position < 256; ++position)
    for (int64_t d = 0; d < 32; ++d) {
      float factor = static_cast<float>(position) / 64;
      uint16_t &element = k[position * 32 + d];
      std::vector<float> scaled = {formats::f16ToFloat(q[d]) * factor};
      formats::floatToF16(scaled, llvm::MutableArrayRef<uint16_t>(element));
    }
  Buffer query(q), keys = ordered(shape, k, 255, true), values = ordered(shape, v, 255, false),
                   positions(std::vector<int32_t>{255}), output(128);
  kernels->run(0, {&query, &positions, &keys, &values, &output}, 1);
  std::vector<float> y(64);
  formats::f16ToFloat(output.copy<uint16_t>(), y);
  EXPECT_LE(relativeError(y, reference(shape, q, k, v, {255}, 1.0)), 5e-4);
}
