// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Each operation of the model dialect, and of arith on tensors, on numbers worked out by hand.

#include "ReferenceTest.h"

#include "mlir/AsmParser/AsmParser.h"

#include <complex>

using namespace mlir;
using namespace sluice;
using namespace sluice::reference;

namespace {

using OpsTest = ReferenceTest;

TEST_F(OpsTest, Embedding) {
  loadFunction("", "() -> tensor<2x2xf32>", R"(
    %tokens = arith.constant dense<[2, 0]> : tensor<2xi32>
    %table = arith.constant dense<[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]> : tensor<3x2xf16>
    %r = model.embedding %tokens, %table : tensor<2xi32>, tensor<3x2xf16> -> tensor<2x2xf32>
    return %r : tensor<2x2xf32>)");
  EXPECT_EQ(call().values, (Floats{5, 6, 1, 2}));
}

TEST_F(OpsTest, EmbeddingOfATokenOutside) {
  loadFunction("", "(%tokens: tensor<1xi32>) -> tensor<1x2xf32>", R"(
    %table = arith.constant dense<1.0> : tensor<3x2xf32>
    %r = model.embedding %tokens, %table : tensor<1xi32>, tensor<3x2xf32> -> tensor<1x2xf32>
    return %r : tensor<1x2xf32>)");
  EXPECT_EQ(error({ints({2})}), "success");
  EXPECT_EQ(error({ints({3})}), "model.embedding: token 3 is outside the table of 3");
  EXPECT_EQ(error({ints({-1})}), "model.embedding: token -1 is outside the table of 3");
}

TEST_F(OpsTest, RmsNorm) {
  // Row 0: mean square 12.5, so sqrt(12.5 + 12.5) = 5. Row 1: mean square 0.5, sqrt(13).
  loadFunction("", "() -> tensor<2x2xf32>", R"(
    %x = arith.constant dense<[[3.0, 4.0], [1.0, 0.0]]> : tensor<2x2xf32>
    %g = arith.constant dense<[1.0, 2.0]> : tensor<2xf16>
    %r = model.rms_norm %x, %g epsilon 12.5 : tensor<2x2xf32>, tensor<2xf16>
    return %r : tensor<2x2xf32>)");
  expectNear(call().values, {0.6, 1.6, 1 / std::sqrt(13.0), 0});
}

TEST_F(OpsTest, RmsNormPlusOne) {
  loadFunction("", "() -> tensor<1x2xf32>", R"(
    %x = arith.constant dense<[[3.0, 4.0]]> : tensor<1x2xf32>
    %g = arith.constant dense<[0.0, 1.0]> : tensor<2xf16>
    %r = model.rms_norm %x, %g plus_one epsilon 12.5 : tensor<1x2xf32>, tensor<2xf16>
    return %r : tensor<1x2xf32>)");
  expectNear(call().values, {0.6, 1.6});
}

TEST_F(OpsTest, LayerNorm) {
  // Row 0: mean 5, variance 4, sqrt(4 + 5) = 3. Row 1: variance 0, so the bias alone.
  loadFunction("", "() -> (tensor<2x2xf32>, tensor<2x2xf32>)", R"(
    %x = arith.constant dense<[[3.0, 7.0], [6.0, 6.0]]> : tensor<2x2xf32>
    %g = arith.constant dense<[1.0, 2.0]> : tensor<2xf16>
    %b = arith.constant dense<[10.0, 20.0]> : tensor<2xf32>
    %r = model.layer_norm %x, %g bias %b epsilon 5.0 : tensor<2x2xf32>, tensor<2xf16>, tensor<2xf32>
    %s = model.layer_norm %x, %g epsilon 5.0 : tensor<2x2xf32>, tensor<2xf16>
    return %r, %s : tensor<2x2xf32>, tensor<2x2xf32>)");
  auto results = evaluator->call("f", {});
  ASSERT_TRUE(static_cast<bool>(results));
  expectNear((*results)[0].values, {10 - 2 / 3.0, 20 + 4 / 3.0, 10, 20});
  expectNear((*results)[1].values, {-2 / 3.0, 4 / 3.0, 0, 0});
}

TEST_F(OpsTest, Gelu) {
  // x Phi(x), with the normal distribution's table; the approximation by hand.
  loadFunction("", "() -> (tensor<1x4xf32>, tensor<1x4xf32>)", R"(
    %x = arith.constant dense<[[0.0, 1.0, -1.0, 3.0]]> : tensor<1x4xf32>
    %r = model.gelu %x : tensor<1x4xf32>
    %s = model.gelu %x tanh : tensor<1x4xf32>
    return %r, %s : tensor<1x4xf32>, tensor<1x4xf32>)");
  auto results = evaluator->call("f", {});
  ASSERT_TRUE(static_cast<bool>(results));
  expectNear((*results)[0].values,
             {0, 0.8413447460685429, -0.1586552539314571, 2.9959503059030473});
  auto approximation = [](double x) {
    return x / 2 * (1 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
  };
  expectNear((*results)[1].values, {0, approximation(1), approximation(-1), approximation(3)});
}

TEST_F(OpsTest, ScaleAndSoftCap) {
  loadFunction("", "() -> (tensor<1x3xf32>, tensor<1x3xf32>)", R"(
    %x = arith.constant dense<[[1.0, -200.0, 1000.0]]> : tensor<1x3xf32>
    %r = model.scale %x by 0.25 : tensor<1x3xf32>
    %s = model.soft_cap %x at 2.0 : tensor<1x3xf32>
    return %r, %s : tensor<1x3xf32>, tensor<1x3xf32>)");
  auto results = evaluator->call("f", {});
  ASSERT_TRUE(static_cast<bool>(results));
  expectNear((*results)[0].values, {0.25, -50, 250});
  expectNear((*results)[1].values, {2 * std::tanh(0.5), -2, 2});
}

TEST_F(OpsTest, ScaleChannels) {
  loadFunction("", "() -> tensor<2x3xf32>", R"(
    %x = arith.constant dense<[[1.0, -2.0, 3.0], [4.0, 5.0, 6.0]]> : tensor<2x3xf32>
    %f = arith.constant dense<[0.5, 2.0, -1.0]> : tensor<3xf32>
    %r = model.scale_channels %x, %f : tensor<2x3xf32>, tensor<3xf32>
    return %r : tensor<2x3xf32>)");
  expectNear(call().values, {0.5, -4, -3, 2, 10, -6});
}

TEST_F(OpsTest, PartialRotary) {
  // Two of four elements are rotated, as pair 0 of the head; pair 1 does not turn, but what the
  // magnitude multiplies is both.
  loadFunction("", "() -> tensor<1x4xf32>", R"(
    %x = arith.constant dense<[[1.0, 2.0, 3.0, 4.0]]> : tensor<1x4xf32>
    %p = arith.constant dense<[2]> : tensor<1xi32>
    %r = model.rotary %x at %p head_dim 4 <theta = 100.0, dims = 2> : tensor<1x4xf32>, tensor<1xi32>
    return %r : tensor<1x4xf32>)");
  double c = std::cos(2.0), s = std::sin(2.0);
  expectNear(call().values, {c - 3 * s, 2, 3 * c + s, 4});
}

TEST_F(OpsTest, RmsNormOfHeads) {
  // The same numbers as two heads of one row, which share the gain.
  loadFunction("", "() -> tensor<1x4xf32>", R"(
    %x = arith.constant dense<[[3.0, 4.0, 1.0, 0.0]]> : tensor<1x4xf32>
    %g = arith.constant dense<[1.0, 2.0]> : tensor<2xf16>
    %r = model.rms_norm %x, %g epsilon 12.5 head_dim 2 : tensor<1x4xf32>, tensor<2xf16>
    return %r : tensor<1x4xf32>)");
  expectNear(call().values, {0.6, 1.6, 1 / std::sqrt(13.0), 0});
}

TEST_F(OpsTest, Linear) {
  loadFunction("", "() -> (tensor<2x3xf32>, tensor<2x3xf32>)", R"(
    %x = arith.constant dense<[[1.0, 2.0], [3.0, 4.0]]> : tensor<2x2xf32>
    %w = arith.constant dense<[[1.0, 0.0], [0.0, 1.0], [1.0, -1.0]]> : tensor<3x2xf16>
    %b = arith.constant dense<[10.0, 20.0, 30.0]> : tensor<3xf32>
    %r = model.linear %x, %w bias %b : tensor<2x2xf32>, tensor<3x2xf16>, tensor<3xf32> -> tensor<2x3xf32>
    %s = model.linear %x, %w : tensor<2x2xf32>, tensor<3x2xf16> -> tensor<2x3xf32>
    return %r, %s : tensor<2x3xf32>, tensor<2x3xf32>)");
  auto results = evaluator->call("f", {});
  ASSERT_TRUE(static_cast<bool>(results));
  EXPECT_EQ((*results)[0].values, (Floats{11, 22, 29, 13, 24, 29}));
  EXPECT_EQ((*results)[1].values, (Floats{1, 2, -1, 3, 4, -1}));
}

TEST_F(OpsTest, LinearAddsInDouble) {
  // 2^24 + 1 - 2^24: float32 sums would lose the 1.
  loadFunction("", "() -> tensor<1x1xf32>", R"(
    %x = arith.constant dense<[[16777216.0, 1.0, -16777216.0]]> : tensor<1x3xf32>
    %w = arith.constant dense<1.0> : tensor<1x3xf32>
    %r = model.linear %x, %w : tensor<1x3xf32>, tensor<1x3xf32> -> tensor<1x1xf32>
    return %r : tensor<1x1xf32>)");
  EXPECT_EQ(call().values, Floats{1});
}

TEST_F(OpsTest, AddBias) {
  loadFunction("", "() -> tensor<2x2xf32>", R"(
    %x = arith.constant dense<[[1.0, 2.0], [3.0, 4.0]]> : tensor<2x2xf32>
    %b = arith.constant dense<[0.5, -0.5]> : tensor<2xbf16>
    %r = model.add_bias %x, %b : tensor<2x2xf32>, tensor<2xbf16>
    return %r : tensor<2x2xf32>)");
  EXPECT_EQ(call().values, (Floats{1.5, 1.5, 3.5, 3.5}));
}

TEST_F(OpsTest, RotaryTurnsOnePairByOneRadian) {
  // Two heads of one pair: its frequency is theta^0 = 1.
  loadFunction("", "(%p: tensor<2xi32>) -> tensor<2x4xf32>", R"(
    %x = arith.constant dense<[[1.0, 0.0, 0.0, 2.0], [1.0, 0.0, 0.0, 2.0]]> : tensor<2x4xf32>
    %r = model.rotary %x at %p head_dim 2 <theta = 10000.0> : tensor<2x4xf32>, tensor<2xi32>
    return %r : tensor<2x4xf32>)");
  double c = 0.5403023058681398, s = 0.8414709848078965;
  expectNear(call({ints({0, 1})}).values, {1, 0, 0, 2, c, s, -2 * s, 2 * c});
}

TEST_F(OpsTest, RotaryIsAComplexProduct) {
  constexpr int64_t dim = 16, heads = 3, half = dim / 2;
  loadFunction("model.rope_table @rope <theta = 500.0> : tensor<40x16xf32>",
               "(%x: tensor<2x48xf32>, %p: tensor<2xi32>) -> (tensor<2x48xf32>, tensor<2x48xf32>)",
               R"(
    %t = model.parameter @rope : tensor<40x16xf32>
    %a = model.rotary %x at %p head_dim 16 <theta = 500.0> : tensor<2x48xf32>, tensor<2xi32>
    %b = model.rotary %x at %p head_dim 16 <theta = 500.0> table %t : tensor<2x48xf32>, tensor<2xi32>, tensor<40x16xf32>
    return %a, %b : tensor<2x48xf32>, tensor<2x48xf32>)");
  Tensor x = Tensor::zeros({2, heads * dim});
  for (auto [i, value] : llvm::enumerate(x.values))
    value = 0.25f + std::sin(static_cast<float>(i));
  int32_t positions[] = {39, 7};
  auto results = evaluator->call("f", {x, ints({positions[0], positions[1]})});
  ASSERT_TRUE(static_cast<bool>(results));
  for (int64_t row = 0; row < 2; ++row)
    for (int64_t head = 0; head < heads; ++head)
      for (int64_t i = 0; i < half; ++i) {
        ArrayRef<float> in = x.row(row).slice(head * dim, dim);
        double angle = positions[row] / std::pow(500.0, 2.0 * i / dim);
        std::complex<double> turned =
            std::complex<double>(in[i], in[i + half]) * std::polar(1.0, angle);
        for (const Tensor &result : *results) {
          ArrayRef<float> out = result.row(row).slice(head * dim, dim);
          EXPECT_NEAR(out[i], turned.real(), 2e-7);
          EXPECT_NEAR(out[i + half], turned.imag(), 2e-7);
        }
      }
  EXPECT_EQ(error({x, ints({0, 40})}), "model.rotary: position 40 is outside the table of 40");
}

// Neighbours instead of halves turn by the same angles.
TEST_F(OpsTest, RotaryOfInterleavedPairs) {
  constexpr int64_t dim = 8, half = dim / 2;
  loadFunction("model.rope_table @rope <theta = 500.0> : tensor<40x8xf32>",
               "(%x: tensor<1x16xf32>, %y: tensor<1x16xf32>, %p: tensor<1xi32>) -> "
               "(tensor<1x16xf32>, tensor<1x16xf32>, tensor<1x16xf32>)",
               R"(
    %t = model.parameter @rope : tensor<40x8xf32>
    %a = model.rotary %x at %p head_dim 8 <theta = 500.0> : tensor<1x16xf32>, tensor<1xi32>
    %b = model.rotary %y at %p head_dim 8 interleaved <theta = 500.0> : tensor<1x16xf32>, tensor<1xi32>
    %c = model.rotary %y at %p head_dim 8 interleaved <theta = 500.0> table %t : tensor<1x16xf32>, tensor<1xi32>, tensor<40x8xf32>
    return %a, %b, %c : tensor<1x16xf32>, tensor<1x16xf32>, tensor<1x16xf32>)");
  Tensor halves = Tensor::zeros({1, 2 * dim}), pairs = halves;
  for (int64_t head = 0; head < 2; ++head)
    for (int64_t i = 0; i < dim; ++i) {
      halves.values[head * dim + i] = 0.25f + std::sin(static_cast<float>(head * dim + i));
      pairs.values[head * dim + i % half * 2 + i / half] = halves.values[head * dim + i];
    }
  auto results = evaluator->call("f", {halves, pairs, ints({39})});
  ASSERT_TRUE(static_cast<bool>(results));
  for (int64_t head = 0; head < 2; ++head)
    for (int64_t i = 0; i < dim; ++i) {
      float expected = (*results)[0].values[head * dim + i];
      EXPECT_EQ((*results)[1].values[head * dim + i % half * 2 + i / half], expected);
      EXPECT_NEAR((*results)[2].values[head * dim + i % half * 2 + i / half], expected, 1e-6);
    }
}

TEST_F(OpsTest, RotaryScalings) {
  auto frequencies = [&](StringRef attribute, int64_t dim) {
    auto rope = cast<model::RopeAttr>(mlir::parseAttribute(attribute, &context));
    return rope.getFrequencies(dim);
  };
  auto near = [](ArrayRef<double> actual, ArrayRef<double> expected) {
    ASSERT_EQ(actual.size(), expected.size());
    for (auto [a, e] : llvm::zip(actual, expected))
      EXPECT_NEAR(a, e, 1e-12 * e);
  };
  near(frequencies("#model.rope<theta = 100.0>", 4), {1, 0.1});
  near(frequencies("#model.rope<theta = 100.0, linear = [4.0]>", 4), {0.25, 0.025});
  near(frequencies("#model.rope<theta = 100.0, factors = [2.0, 5.0]>", 4), {0.5, 0.02});
  // Llama 3.1 with heads of 8: wavelengths 6.3 and 167 are kept, 4443 lies between 2048 and 8192
  // and is blended, 118142 is divided by 8.
  near(frequencies("#model.rope<theta = 500000.0, llama3 = [8.0, 1.0, 4.0, 8192.0]>", 8),
       {1, 0.03760603093086393, 0.0005248461609929547, 6.647869871181235e-06});
}

TEST_F(OpsTest, RotaryAppliesItsScaling) {
  // A quarter turn: position 1 of frequency 1 / (2 / pi).
  loadFunction("", "(%p: tensor<1xi32>) -> tensor<1x2xf32>", R"(
    %x = arith.constant dense<[[3.0, 0.0]]> : tensor<1x2xf32>
    %r = model.rotary %x at %p head_dim 2 <theta = 10000.0, linear = [0.63661977236758138]> : tensor<1x2xf32>, tensor<1xi32>
    return %r : tensor<1x2xf32>)");
  Tensor turned = call({ints({1})});
  ASSERT_EQ(turned.values.size(), 2u);
  EXPECT_NEAR(turned.values[0], 0, 1e-6);
  EXPECT_NEAR(turned.values[1], 3, 1e-6);
}

TEST_F(OpsTest, RopeTable) {
  loadFunction("model.rope_table @rope <theta = 100.0> : tensor<3x4xf32>", "() -> tensor<3x4xf32>",
               R"(
    %t = model.parameter @rope : tensor<3x4xf32>
    return %t : tensor<3x4xf32>)");
  expectNear(call().values,
             {1, 1, 0, 0, std::cos(1.0), std::cos(0.1), std::sin(1.0), std::sin(0.1), std::cos(2.0),
              std::cos(0.2), std::sin(2.0), std::sin(0.2)},
             6e-8);
}

TEST_F(OpsTest, CacheAppendRoundsToTheCachesType) {
  loadFunction(R"(model.cache @f16 : !quantized.cache<1x4x1x2xf16>
                  model.cache @bf16 : !quantized.cache<1x4x1x2xbf16>
                  model.cache @f32 : !quantized.cache<1x4x1x2xf32>)",
               "(%x: tensor<2x2xf32>, %p: tensor<2xi32>)", R"(
    model.cache_append @f16, %x at %p : tensor<2x2xf32>, tensor<2xi32>
    model.cache_append @bf16, %x at %p : tensor<2x2xf32>, tensor<2xi32>
    model.cache_append @f32, %x at %p : tensor<2x2xf32>, tensor<2xi32>
    return)");
  Tensor x = floats({2, 2}, {1.0f / 3, 2049, -1.0f / 3, 2051});
  call({x, ints({2, 0})});
  // 1/3 is 0x1.555556p-2; halves have 10 bits after the point, bfloats 7. 2049 and 2051 are ties in
  // f16.
  EXPECT_EQ(evaluator->cache("f16")->values.values,
            (Floats{-0x1.554p-2f, 2052, 0, 0, 0x1.554p-2f, 2048, 0, 0}));
  EXPECT_EQ(evaluator->cache("bf16")->values.values,
            (Floats{-0x1.56p-2f, 2048, 0, 0, 0x1.56p-2f, 2048, 0, 0}));
  EXPECT_EQ(evaluator->cache("f32")->values.values,
            (Floats{-1.0f / 3, 2051, 0, 0, 1.0f / 3, 2049, 0, 0}));
  evaluator->resetCaches();
  EXPECT_EQ(evaluator->cache("f16")->values.values, Floats(8, 0.0f));
  EXPECT_EQ(evaluator->cache("none"), nullptr);
  EXPECT_EQ(error({x, ints({0, 4})}), "model.cache_append: position 4 is outside the cache of 4");
}

TEST_F(OpsTest, AttentionMixesValues) {
  // Scores 0 and ln 3 at positions 0 and 1: weights 1/4 and 3/4. Position 2 is in the future.
  loadFunction("model.cache @k : !quantized.cache<1x3x1x2xf32>\nmodel.cache @v : "
               "!quantized.cache<1x3x1x2xf32>",
               "(%q: tensor<1x2xf32>, %p: tensor<1xi32>) -> tensor<1x2xf32>", R"(
    %r = model.attention %q, @k, @v at %p scale 0.5 : tensor<1x2xf32>, tensor<1xi32>
    return %r : tensor<1x2xf32>)");
  evaluator->cache("k")->values.values = {1, 0, 0, 1, 9, 9};
  evaluator->cache("v")->values.values = {4, 0, 0, 8, 100, 100};
  Tensor q = floats({1, 2}, {0, static_cast<float>(2 * std::log(3.0))});
  expectNear(call({q, ints({1})}).values, {1, 6});
  expectNear(call({q, ints({0})}).values, {4, 0});
  EXPECT_EQ(error({q, ints({3})}), "model.attention: position 3 is outside the cache of 3");
}

TEST_F(OpsTest, AttentionOverAWindow) {
  // All scores are equal: a result is the mean of the values of the last two positions.
  loadFunction("model.cache @k : !quantized.cache<1x4x1x1xf32>\nmodel.cache @v : "
               "!quantized.cache<1x4x1x1xf32>",
               "(%q: tensor<1x1xf32>, %p: tensor<1xi32>) -> tensor<1x1xf32>", R"(
    %r = model.attention %q, @k, @v at %p scale 1.0 window 2 : tensor<1x1xf32>, tensor<1xi32>
    return %r : tensor<1x1xf32>)");
  float nan = std::numeric_limits<float>::quiet_NaN();
  evaluator->cache("k")->values.values = {1, 1, 1, 1};
  evaluator->cache("v")->values.values = {2, 4, 8, 16};
  expectNear(call({floats({1, 1}, {1}), ints({0})}).values, {2});
  expectNear(call({floats({1, 1}, {1}), ints({1})}).values, {3});
  expectNear(call({floats({1, 1}, {1}), ints({3})}).values, {12});
  // What is behind the window does not count, whatever it is.
  evaluator->cache("k")->values.values = {nan, nan, 1, 1};
  evaluator->cache("v")->values.values = {nan, nan, 8, 16};
  expectNear(call({floats({1, 1}, {1}), ints({3})}).values, {12});
}

TEST_F(OpsTest, AttentionOfLargeScores) {
  // exp(1000) is no double: the greatest score has to be taken off first.
  loadFunction("model.cache @k : !quantized.cache<1x2x1x1xf32>\nmodel.cache @v : "
               "!quantized.cache<1x2x1x1xf32>",
               "(%q: tensor<1x1xf32>, %p: tensor<1xi32>) -> tensor<1x1xf32>", R"(
    %r = model.attention %q, @k, @v at %p scale 1.0 : tensor<1x1xf32>, tensor<1xi32>
    return %r : tensor<1x1xf32>)");
  evaluator->cache("k")->values.values = {1000, 1000};
  evaluator->cache("v")->values.values = {2, 4};
  expectNear(call({floats({1, 1}, {1}), ints({1})}).values, {3});
}

TEST_F(OpsTest, AttentionGroupsQueriesAndRows) {
  // Two key/value heads of one number, four query heads, two rows at positions 0 and 1. All scores
  // are equal, so that a result is the mean of its head's values up to its row's position.
  loadFunction("model.cache @k : !quantized.cache<1x2x2x1xf16>\nmodel.cache @v : "
               "!quantized.cache<1x2x2x1xf16>",
               "(%q: tensor<2x4xf32>, %k: tensor<2x2xf32>, %v: tensor<2x2xf32>, %p: tensor<2xi32>) "
               "-> tensor<2x4xf32>",
               R"(
    model.cache_append @k, %k at %p : tensor<2x2xf32>, tensor<2xi32>
    model.cache_append @v, %v at %p : tensor<2x2xf32>, tensor<2xi32>
    %r = model.attention %q, @k, @v at %p scale 1.0 : tensor<2x4xf32>, tensor<2xi32>
    return %r : tensor<2x4xf32>)");
  Tensor q = floats({2, 4}, {1, 2, 3, 4, 5, 6, 7, 8});
  Tensor k = floats({2, 2}, {1, 1, 1, 1});
  Tensor v = floats({2, 2}, {10, 20, 30, 60});
  expectNear(call({q, k, v, ints({0, 1})}).values, {10, 10, 20, 20, 20, 20, 40, 40});
  // Query head 2 reads head 1: its score is 3 * 1 against 3 * 0.
  Tensor unequal = floats({2, 2}, {1, 0, 1, 1});
  double weight = 1 / (1 + std::exp(-7.0));
  Tensor mixed = call({q, unequal, v, ints({0, 1})});
  EXPECT_NEAR(mixed.values[4 + 2], 20 * (1 - weight) + 60 * weight, 1e-5);
  EXPECT_NEAR(mixed.values[4 + 1], 20, 1e-5);
}

TEST_F(OpsTest, Silu) {
  loadFunction("", "() -> tensor<1x5xf32>", R"(
    %x = arith.constant dense<[[0.0, 1.0, -1.0, 20.0, -1000.0]]> : tensor<1x5xf32>
    %r = model.silu %x : tensor<1x5xf32>
    return %r : tensor<1x5xf32>)");
  expectNear(call().values, {0, 0.7310585786300049, -0.2689414213699951, 19.999999958776927, 0});
}

TEST_F(OpsTest, ArithRoundsToItsType) {
  loadFunction("",
               "() -> (tensor<1x3xf16>, tensor<1x3xbf16>, tensor<1x3xf32>, tensor<1x3xf16>, "
               "tensor<1x3xf32>)",
               R"(
    %x = arith.constant dense<[[0.333333343, 65520.0, 2049.0]]> : tensor<1x3xf32>
    %a = arith.truncf %x : tensor<1x3xf32> to tensor<1x3xf16>
    %b = arith.truncf %x : tensor<1x3xf32> to tensor<1x3xbf16>
    %c = arith.extf %a : tensor<1x3xf16> to tensor<1x3xf32>
    %one = arith.constant dense<[[1.0, 1.0, 1.0]]> : tensor<1x3xf16>
    %d = arith.addf %a, %one : tensor<1x3xf16>
    %e = arith.mulf %x, %x : tensor<1x3xf32>
    return %a, %b, %c, %d, %e : tensor<1x3xf16>, tensor<1x3xbf16>, tensor<1x3xf32>, tensor<1x3xf16>, tensor<1x3xf32>)");
  auto results = evaluator->call("f", {});
  ASSERT_TRUE(static_cast<bool>(results));
  float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ((*results)[0].values, (Floats{0x1.554p-2f, infinity, 2048}));
  EXPECT_EQ((*results)[1].values, (Floats{0x1.56p-2f, 65536, 2048}));
  EXPECT_EQ((*results)[2].values, (Floats{0x1.554p-2f, infinity, 2048}));
  // 1.3333 needs one bit less after the point; 2048 + 1 is a tie.
  EXPECT_EQ((*results)[3].values, (Floats{0x1.554p0f, infinity, 2048}));
  EXPECT_EQ((*results)[4].values,
            (Floats{0.333333343f * 0.333333343f, 65520.0f * 65520.0f, 4198401}));
}

TEST_F(OpsTest, ArithSubtractsDividesAndNegates) {
  loadFunction("", "(%x: tensor<2x2xf32>) -> (tensor<2x2xf32>, tensor<2x2xf32>, tensor<2x2xf32>)",
               R"(
    %y = arith.constant dense<[[4.0, 3.0], [-2.0, 0.5]]> : tensor<2x2xf32>
    %a = arith.subf %x, %y : tensor<2x2xf32>
    %b = arith.divf %x, %y : tensor<2x2xf32>
    %c = arith.negf %x : tensor<2x2xf32>
    return %a, %b, %c : tensor<2x2xf32>, tensor<2x2xf32>, tensor<2x2xf32>)");
  auto results = evaluator->call("f", {floats({2, 2}, {1, 2, 3, -4})});
  ASSERT_TRUE(static_cast<bool>(results));
  EXPECT_EQ((*results)[0].values, (Floats{-3, -1, 5, -4.5}));
  EXPECT_EQ((*results)[1].values, (Floats{0.25, 2.0f / 3, -1.5, -8}));
  EXPECT_EQ((*results)[2].values, (Floats{-1, -2, -3, 4}));
}

TEST_F(OpsTest, ArithRefusesOtherRoundings) {
  loadFunction("", "(%x: tensor<1x1xf32>) -> tensor<1x1xf16>", R"(
    %a = arith.truncf %x downward : tensor<1x1xf32> to tensor<1x1xf16>
    return %a : tensor<1x1xf16>)");
  EXPECT_EQ(error({floats({1, 1}, {1})}),
            "arith.truncf: only rounding to nearest even has semantics here");
}

} // namespace
