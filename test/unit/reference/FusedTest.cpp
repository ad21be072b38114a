// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Quantized weights and fused kernels on numbers worked out by hand.

#include "ReferenceTest.h"

#include "sluice/Formats/Encoding.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::reference;
using formats::floatToF16;

namespace {

class FusedTest : public ReferenceTest {
protected:
  /// A matrix of integers that are all `fill`, with scales (and zero points) all alike.
  static QuantizedMatrix matrix(formats::Encoding format, int64_t rows, int64_t columns,
                                int8_t fill, float scale, int8_t zero = 0) {
    QuantizedMatrix result;
    result.encoding = format;
    result.rows = rows;
    result.columns = columns;
    result.q.assign(rows * columns, fill);
    result.scales.assign(rows * result.groups(), floatToF16(scale));
    result.zeros.assign(format.hasZeroPoint() ? rows * result.groups() : 0, zero);
    return result;
  }
  /// A row with these first numbers and zeros after them.
  static Tensor row(int64_t columns, Floats first) {
    first.resize(columns);
    return floats({1, columns}, std::move(first));
  }

  static constexpr formats::Encoding int8g32{formats::Encoding::Element::I8, 32};
  static constexpr formats::Encoding int8g256{formats::Encoding::Element::I8, 256};
  static constexpr formats::Encoding int4g32zp{formats::Encoding::Element::I4, 32,
                                               formats::Encoding::Offset::ZeroPoint};
};

TEST_F(FusedTest, Dequantize) {
  loadFunction("model.weight @w : !quantized.tensor<2x64xi4, group = 32, zero_point>",
               "() -> tensor<2x64xf32>", R"(
    %q = model.parameter @w : !quantized.tensor<2x64xi4, group = 32, zero_point>
    %w = quantized.dequantize %q : !quantized.tensor<2x64xi4, group = 32, zero_point> to tensor<2x64xf32>
    return %w : tensor<2x64xf32>)");
  QuantizedMatrix w = matrix(int4g32zp, 2, 64, 5, 0.5f, 3);
  w.q[64 + 33] = -8;            // row 1, group 1
  w.zeros[3] = -2;              // of that group
  w.scales[3] = floatToF16(-4); // and its scale
  weights.set("w", w);
  Tensor result = call();
  EXPECT_EQ(result.values[0], (5 - 3) * 0.5f);
  EXPECT_EQ(result.values[64 + 31], (5 - 3) * 0.5f);
  EXPECT_EQ(result.values[64 + 32], (5 + 2) * -4.0f);
  EXPECT_EQ(result.values[64 + 33], (-8 + 2) * -4.0f);
}

TEST_F(FusedTest, DequantizeToF16Rounds) {
  loadFunction("model.weight @w : !quantized.tensor<1x32xi8, group = 32>", "() -> tensor<1x32xf16>",
               R"(
    %q = model.parameter @w : !quantized.tensor<1x32xi8, group = 32>
    %w = quantized.dequantize %q : !quantized.tensor<1x32xi8, group = 32> to tensor<1x32xf16>
    return %w : tensor<1x32xf16>)");
  // 127 * (1 + 2^-10) = 127.124..., whose neighbours among halves are 127.125 and 127.0625.
  weights.set("w", matrix(int8g32, 1, 32, 127, 1 + 0x1p-10f));
  EXPECT_EQ(call().values, Floats(32, 127.125f));
}

TEST_F(FusedTest, QuantizeFindsWhatFitsExactly) {
  loadFunction("", "(%w: tensor<2x32xf32>) -> tensor<2x32xf32>", R"(
    %q = quantized.quantize %w : tensor<2x32xf32> to !quantized.tensor<2x32xi8, group = 32>
    %r = quantized.dequantize %q : !quantized.tensor<2x32xi8, group = 32> to tensor<2x32xf32>
    return %r : tensor<2x32xf32>)");
  // Multiples of 0.25 and of 3 that need all of -127 .. 127.
  Tensor w = Tensor::zeros({2, 32});
  for (int i = 0; i < 32; ++i) {
    w.values[i] = 0.25f * (i * 8 - 121);
    w.values[32 + i] = -3.0f * (i * 8 - 121);
  }
  Tensor result = call({w});
  EXPECT_EQ(result.values, w.values);
  // Another call has other weights: only what depends on parameters alone is kept.
  for (float &value : w.values)
    value *= 2;
  EXPECT_EQ(call({w}).values, w.values);
  w.values[32 + 5] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(StringRef(error({w})).substr(0, 38), "quantized.quantize: row 1, column 5: w")
      << error({w});
}

TEST_F(FusedTest, EmbeddingDequantizes) {
  loadFunction("model.weight @t : !quantized.tensor<3x32xi8, group = 32>",
               "(%i: tensor<2xi32>) -> tensor<2x32xf32>", R"(
    %t = model.parameter @t : !quantized.tensor<3x32xi8, group = 32>
    %r = fused.embedding %i, %t : tensor<2xi32>, !quantized.tensor<3x32xi8, group = 32> -> tensor<2x32xf32>
    return %r : tensor<2x32xf32>)");
  QuantizedMatrix table = matrix(int8g32, 3, 32, 4, 0.5f);
  table.scales[2] = floatToF16(-1);
  weights.set("t", table);
  Tensor result = call({ints({2, 1})});
  EXPECT_EQ(result.values.front(), -4);
  EXPECT_EQ(result.values.back(), 2);
  EXPECT_EQ(error({ints({0, 3})}), "fused.embedding: token 3 is outside the table of 3");
}

TEST_F(FusedTest, IntegerProductRoundsItsInput) {
  loadFunction("model.weight @w : !quantized.tensor<2x32xi8, group = 32>",
               "(%x: tensor<1x32xf32>) -> tensor<1x2xf32>", R"(
    %w = model.parameter @w : !quantized.tensor<2x32xi8, group = 32>
    %r = fused.matvec %x weights(%w) segments [2] : tensor<1x32xf32>, !quantized.tensor<2x32xi8, group = 32> -> tensor<1x2xf32>
    return %r : tensor<1x2xf32>)");
  QuantizedMatrix w = matrix(int8g32, 2, 32, 0, 0.5f);
  w.q[0] = 2;
  w.q[1] = 4;
  w.q[32 + 1] = 100;
  weights.set("w", w);
  // 1 and 0.5 are 32512 and 16256 steps: exact up to the step's own rounding.
  expectNear(call({row(32, {1, 0.5})}).values, {(2 * 1 + 4 * 0.5) * 0.5, 100 * 0.5 * 0.5}, 1e-6);
  // 0.00005 is 1.6256 steps, so 2; 0.00001 is 0.325, so none; 1.5 steps are a tie and become 2, 2.5
  // too.
  double step = 1.0 / 32512;
  expectNear(call({row(32, {-1, 5e-5f})}).values, {(-2 + 4 * 2 * step) * 0.5, 100 * 2 * step * 0.5},
             1e-6);
  expectNear(call({row(32, {-1, 1e-5f})}).values, {-2 * 0.5, 0}, 1e-6);
  expectNear(call({row(32, {32512, 1.5f})}).values, {(2 * 32512 + 4 * 2) * 0.5, 100 * 2 * 0.5},
             1e-6);
  expectNear(call({row(32, {32512, 2.5f})}).values, {(2 * 32512 + 4 * 2) * 0.5, 100 * 2 * 0.5},
             1e-6);
  EXPECT_EQ(call({row(32, {})}).values, (Floats{0, 0}));
}

TEST_F(FusedTest, IntegerProductSumsGroups) {
  // K = 256 in one weight group: the inputs' two groups of 128 still have steps of their own.
  loadFunction("model.weight @w : !quantized.tensor<1x256xi8, group = 256>",
               "(%x: tensor<2x256xf32>) -> tensor<2x1xf32>", R"(
    %w = model.parameter @w : !quantized.tensor<1x256xi8, group = 256>
    %r = fused.matvec %x weights(%w) segments [1] : tensor<2x256xf32>, !quantized.tensor<1x256xi8, group = 256> -> tensor<2x1xf32>
    return %r : tensor<2x1xf32>)");
  weights.set("w", matrix(int8g256, 1, 256, 3, 2));
  Tensor x = Tensor::zeros({2, 256});
  x.values[0] = 1000;
  x.values[127] = 1e-3f; // far below a step of the first group: lost
  x.values[128] = 1e-3f; // the greatest of the second: kept
  x.values[256 + 255] = 5;
  expectNear(call({x}).values, {3 * 2 * (1000 + 1e-3), 3 * 2 * 5}, 2e-7);
}

TEST_F(FusedTest, IntegerProductHasZeroPoints) {
  loadFunction("model.weight @w : !quantized.tensor<1x64xi4, group = 32, zero_point>",
               "(%x: tensor<1x64xf16>) -> tensor<1x1xf32>", R"(
    %w = model.parameter @w : !quantized.tensor<1x64xi4, group = 32, zero_point>
    %r = fused.matvec %x weights(%w) segments [1] : tensor<1x64xf16>, !quantized.tensor<1x64xi4, group = 32, zero_point> -> tensor<1x1xf32>
    return %r : tensor<1x1xf32>)");
  QuantizedMatrix w = matrix(int4g32zp, 1, 64, 7, 0.25f, -8);
  w.zeros[1] = 6;
  w.scales[1] = floatToF16(8);
  weights.set("w", w);
  Tensor x = row(64, {2, 2});
  x.values[63] = -2;
  expectNear(call({x}).values, {(7 + 8) * 0.25 * 4 + (7 - 6) * 8 * -2.0}, 1e-6);
}

TEST_F(FusedTest, FloatProductsRoundTheirInput) {
  loadFunction(R"(model.weight @h : tensor<1x2xf16>
                  model.weight @b : tensor<1x2xbf16>
                  model.weight @s : tensor<1x2xf32>
                  model.weight @q : !quantized.tensor<1x2xf16, layout = lanes>)",
               "(%x: tensor<1x2xf32>) -> (tensor<1x1xf32>, tensor<1x1xf32>, tensor<1x1xf32>, "
               "tensor<1x1xf32>)",
               R"(
    %h = model.parameter @h : tensor<1x2xf16>
    %b = model.parameter @b : tensor<1x2xbf16>
    %f = model.parameter @s : tensor<1x2xf32>
    %q = model.parameter @q : !quantized.tensor<1x2xf16, layout = lanes>
    %1 = fused.matvec %x weights(%h) segments [1] : tensor<1x2xf32>, tensor<1x2xf16> -> tensor<1x1xf32>
    %2 = fused.matvec %x weights(%b) segments [1] : tensor<1x2xf32>, tensor<1x2xbf16> -> tensor<1x1xf32>
    %3 = fused.matvec %x weights(%f) segments [1] : tensor<1x2xf32>, tensor<1x2xf32> -> tensor<1x1xf32>
    %4 = fused.matvec %x weights(%q) segments [1] : tensor<1x2xf32>, !quantized.tensor<1x2xf16, layout = lanes> -> tensor<1x1xf32>
    return %1, %2, %3, %4 : tensor<1x1xf32>, tensor<1x1xf32>, tensor<1x1xf32>, tensor<1x1xf32>)");
  weights.set("h", floats({1, 2}, {2, 1}));
  weights.set("b", floats({1, 2}, {2, 1}));
  weights.set("s", floats({1, 2}, {2, 1}));
  QuantizedMatrix q;
  q.encoding = {formats::Encoding::Element::F16};
  q.rows = 1;
  q.columns = 2;
  q.values = {2, 1};
  weights.set("q", q);
  auto results = evaluator->call("f", {floats({1, 2}, {1.0f / 3, 1})});
  ASSERT_TRUE(static_cast<bool>(results)) << llvm::toString(results.takeError());
  EXPECT_EQ((*results)[0].values, Floats{2 * 0x1.554p-2f + 1});
  EXPECT_EQ((*results)[1].values, Floats{2 * 0x1.56p-2f + 1});
  EXPECT_EQ((*results)[2].values, Floats{2 * (1.0f / 3) + 1});
  EXPECT_EQ((*results)[3].values, Floats{2 * 0x1.554p-2f + 1});
}

TEST_F(FusedTest, MatvecRunsItsRegions) {
  // Two weights as three segments that do not follow their boundary, a norm before, an f16 residual
  // sum after, for two rows. The residual comes from above the operation.
  loadFunction("model.weight @a : tensor<2x2xf32>\nmodel.weight @b : tensor<2x2xf32>",
               "(%x: tensor<2x2xf32>, %res: tensor<2x2xf32>) -> (tensor<2x1xf32>, tensor<2x2xf16>)",
               R"(
    %a = model.parameter @a : tensor<2x2xf32>
    %b = model.parameter @b : tensor<2x2xf32>
    %gain = arith.constant dense<[5.0, 10.0]> : tensor<2xf32>
    %r:2 = fused.matvec %x weights(%a, %b) segments [1, 2, 1]
        : tensor<2x2xf32>, tensor<2x2xf32>, tensor<2x2xf32> -> tensor<2x1xf32>, tensor<2x2xf16>
    prologue {
    ^bb0(%in: tensor<2x2xf32>):
      %n = model.rms_norm %in, %gain epsilon 12.5 : tensor<2x2xf32>, tensor<2xf32>
      fused.yield %n : tensor<2x2xf32>
    } epilogue {
    ^bb0(%p: tensor<2x1xf32>, %m: tensor<2x2xf32>, %s: tensor<2x1xf32>):
      %t = arith.mulf %p, %s : tensor<2x1xf32>
      %u = arith.addf %m, %res : tensor<2x2xf32>
      %h = arith.truncf %u : tensor<2x2xf32> to tensor<2x2xf16>
      fused.yield %t, %h : tensor<2x1xf32>, tensor<2x2xf16>
    }
    return %r#0, %r#1 : tensor<2x1xf32>, tensor<2x2xf16>)");
  weights.set("a", floats({2, 2}, {1, 0, 0, 1}));
  weights.set("b", floats({2, 2}, {1, 1, 1, -1}));
  // Both rows have mean square 12.5, so the norm divides by 5: [3, 8] and [4, 6].
  auto results =
      evaluator->call("f", {floats({2, 2}, {3, 4, 4, 3}), floats({2, 2}, {0.5, 2040, 1, 2040})});
  ASSERT_TRUE(static_cast<bool>(results)) << llvm::toString(results.takeError());
  // Sums: [3, 8, 11, -5] and [4, 6, 10, -2]; 2051 is a tie among halves.
  expectNear((*results)[0].values, {3 * -5.0, 4 * -2.0});
  EXPECT_EQ((*results)[1].values, (Floats{8.5, 2052, 7, 2050}));
}

TEST_F(FusedTest, PackedWeightsFollowTheirRecipe) {
  // Zipped in memory, but in logical order for the numbers. @a has the format already and is kept,
  // although its scale is not what the search would choose; @b is quantized.
  loadFunction(R"(model.weight @a : !quantized.tensor<16x32xi8, group = 32, layout = blocks>
                  model.weight @b : tensor<16x32xf16>
                  model.weight @gain : tensor<2xf16>
                  quantized.packed @p of [@a, @b] order [zip(0, 1)] : !quantized.tensor<32x32xi8, group = 32, layout = lanes>
                  quantized.packed @a.f32 of [@a] : tensor<16x32xf32>
                  quantized.packed @gain.f32 of [@gain] : tensor<2xf32>)",
               "() -> (tensor<32x32xf32>, tensor<2xf32>, tensor<16x32xf32>)", R"(
    %p = model.parameter @p : !quantized.tensor<32x32xi8, group = 32, layout = lanes>
    %w = quantized.dequantize %p : !quantized.tensor<32x32xi8, group = 32, layout = lanes> to tensor<32x32xf32>
    %g = model.parameter @gain.f32 : tensor<2xf32>
    %a = model.parameter @a.f32 : tensor<16x32xf32>
    return %w, %g, %a : tensor<32x32xf32>, tensor<2xf32>, tensor<16x32xf32>)");
  QuantizedMatrix a = matrix(int8g32, 16, 32, 1, 3);
  for (int i = 0; i < 16; ++i)
    a.q[i * 32] = static_cast<int8_t>(i);
  weights.set("a", a);
  weights.set("b", floats({16, 32}, Floats(16 * 32, 127)));
  weights.set("gain", floats({2}, {1, 2}));
  auto results = evaluator->call("f", {});
  ASSERT_TRUE(static_cast<bool>(results)) << llvm::toString(results.takeError());
  for (int i = 0; i < 16; ++i) {
    EXPECT_EQ((*results)[0].row(i)[0], 3.0f * i);
    EXPECT_EQ((*results)[0].row(i)[31], 3);
    EXPECT_EQ((*results)[0].row(16 + i)[i], 127);
    EXPECT_EQ((*results)[2].row(i)[0], 3.0f * i);
  }
  EXPECT_EQ((*results)[1].values, (Floats{1, 2}));
  auto packed = evaluator->symbol("p");
  ASSERT_TRUE(static_cast<bool>(packed));
  EXPECT_EQ(packed->matrix->scales[0], floatToF16(3));
  EXPECT_EQ(packed->matrix->q[5 * 32], 5);
}

TEST_F(FusedTest, PackedWeightsWithWrongRecipes) {
  load(R"(model.weight @a : tensor<2x32xf16>
          model.weight @n : tensor<2x64xf16>
          model.weight @bad : tensor<1x32xf32>
          quantized.packed @rows of [@a, @a] : !quantized.tensor<3x32xi8, group = 32>
          quantized.packed @columns of [@a, @n] : !quantized.tensor<4x32xi8, group = 32>
          quantized.packed @shape of [@a] : tensor<2x31xf32>
          quantized.packed @nested of [@rows] : !quantized.tensor<3x32xi8, group = 32>
          model.cache @k : !quantized.cache<1x1x1x1xf16>
          quantized.packed @infinite of [@bad] : !quantized.tensor<1x32xf16>)");
  weights.set("a", floats({2, 32}, Floats(64, 1)));
  weights.set("n", floats({2, 64}, Floats(128, 1)));
  weights.set("bad", floats({1, 32}, Floats(32, 70000)));
  auto message = [&](StringRef name) {
    auto value = evaluator->symbol(name);
    return value ? "success" : llvm::toString(value.takeError());
  };
  EXPECT_EQ(message("rows"), "packed weight 'rows': its sources have 4 rows, its type is "
                             "!quantized.tensor<3x32xi8, group = 32>");
  EXPECT_EQ(message("columns"),
            "packed weight 'columns': its source 'n' does not have the columns of "
            "!quantized.tensor<4x32xi8, group = 32>");
  EXPECT_EQ(message("shape"),
            "packed weight 'shape': its source 'a' has another shape than tensor<2x31xf32>");
  EXPECT_EQ(message("nested"), "packed weight 'nested': its source 'rows' is not a weight");
  EXPECT_TRUE(StringRef(message("infinite"))
                  .starts_with("packed weight 'infinite': its source 'bad': row 0, column 0: "))
      << message("infinite");
  EXPECT_EQ(message("none"), "the module has no symbol 'none'");
  EXPECT_EQ(message("k"), "'k' is not a weight");
}

TEST_F(FusedTest, AttentionRoundsWeightsAndResult) {
  loadFunction("model.cache @k : !quantized.cache<1x2x1x1xf16>\nmodel.cache @v : "
               "!quantized.cache<1x2x1x1xf16>",
               "(%q: tensor<1x1xf16>, %p: tensor<1xi32>) -> tensor<1x1xf16>", R"(
    %r = fused.attention %q, @k, @v at %p scale 1.0 : tensor<1x1xf16>, tensor<1xi32> -> tensor<1x1xf16>
    return %r : tensor<1x1xf16>)");
  // Scores 0 and -0.65625: the second weight is e^-0.65625 = 0.518793, or 0.518555 among halves,
  // while the sum that divides has it unrounded. 2048 * 0.518555 / 1.518793 = 699.239, among halves
  // (multiples of 0.5 here) 699; without the rounding it were 699.561, with the rounding in the sum
  // too 699.349, both 699.5.
  evaluator->cache("k")->values.values = {0, -0.65625f};
  evaluator->cache("v")->values.values = {0, 2048};
  EXPECT_EQ(call({floats({1, 1}, {1}), ints({1})}).values, Floats{699});
  EXPECT_EQ(error({floats({1, 1}, {1}), ints({2})}),
            "fused.attention: position 2 is outside the cache of 2");
}

} // namespace
