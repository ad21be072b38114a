// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Formats/Activations.h"
#include "sluice/Formats/Quantizer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

using namespace sluice::formats;

namespace {
struct Quantized {
  std::vector<int16_t> x16;
  std::vector<float> scales;
  explicit Quantized(const std::vector<float> &x)
      : x16(x.size()),
        scales(static_cast<size_t>(activationGroups(static_cast<int64_t>(x.size())))) {
    quantizeActivations(x, x16, scales);
  }
};
} // namespace

TEST(Activations, KnownValuesAndTies) {
  // The greatest is 32512, so the scale is 1 and every input stands for itself; halves go to even.
  Quantized a({32512.0f, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -32512.0f, 100.25f, 0.0f});
  EXPECT_EQ(a.x16, (std::vector<int16_t>{32512, 0, 2, 2, 0, -2, -32512, 100, 0}));
  EXPECT_EQ(a.scales, std::vector<float>{1.0f});
  Quantized b({2.0f, -1.0f});
  EXPECT_EQ(b.x16, (std::vector<int16_t>{32512, -16256}));
  EXPECT_EQ(b.scales[0], 2.0f / 32512.0f);
}

TEST(Activations, GroupsOf128) {
  std::vector<float> x(300, 0.0f);
  x[127] = 4.0f; // last of the first group
  x[128] = 8.0f; // first of the second
  x[299] = -1.0f;
  Quantized a(x);
  ASSERT_EQ(a.scales.size(), 3u);
  EXPECT_EQ(a.scales[0], 4.0f / 32512.0f);
  EXPECT_EQ(a.scales[1], 8.0f / 32512.0f);
  EXPECT_EQ(a.scales[2], 1.0f / 32512.0f);
  EXPECT_EQ(a.x16[127], 32512);
  EXPECT_EQ(a.x16[128], 32512);
  EXPECT_EQ(a.x16[299], -32512);
  EXPECT_EQ(activationGroups(1), 1);
  EXPECT_EQ(activationGroups(128), 1);
  EXPECT_EQ(activationGroups(129), 2);
}

TEST(Activations, SpecialGroups) {
  Quantized zero(std::vector<float>(5, 0.0f));
  EXPECT_EQ(zero.x16, std::vector<int16_t>(5, 0));
  EXPECT_EQ(zero.scales[0], 0.0f);
  Quantized tiny({1e-35f, -1e-36f}); // 32512 / m would be infinite
  EXPECT_EQ(tiny.x16, (std::vector<int16_t>{0, 0}));
  Quantized small({0x1p-99f, -0x1p-100f});
  EXPECT_EQ(small.x16, (std::vector<int16_t>{32512, -16256}));
  Quantized huge({std::numeric_limits<float>::max(), 1.0f});
  EXPECT_EQ(huge.x16, (std::vector<int16_t>{32512, 0}));
  for (float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    std::vector<float> x(200, 1.0f);
    x[3] = bad;
    Quantized a(x);
    EXPECT_TRUE(std::isnan(a.scales[0]));
    EXPECT_EQ(a.scales[1], 1.0f / 32512.0f);
    EXPECT_EQ(a.x16[0], 0);
  }
}

TEST(Activations, ErrorIsHalfAScale) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::vector<float> x(1000);
  for (float &v : x)
    v = normal(random);
  Quantized a(x);
  for (size_t i = 0; i < x.size(); ++i) {
    ASSERT_LE(std::abs(a.x16[i]), 32512);
    ASSERT_NEAR(a.x16[i] * double(a.scales[i / 128]), x[i], 0.501 * a.scales[i / 128]);
  }
}

TEST(Activations, TwoBytes) {
  for (int x = -32512; x <= 32512; ++x) {
    int16_t x16 = static_cast<int16_t>(x);
    int high = (x + 128) >> 8; // must fit an int8, as must the rest
    ASSERT_EQ(highByte(x16), high);
    ASSERT_EQ(256 * highByte(x16) + lowByte(x16), x);
  }
  EXPECT_EQ(highByte(32512), 127);
  EXPECT_EQ(lowByte(127), 127);
  EXPECT_EQ(highByte(128), 1);
  EXPECT_EQ(lowByte(128), -128);
}

TEST(Activations, IntegerProductByHand) {
  Encoding format = *Encoding::fromName("int4-g32-zp");
  std::vector<int8_t> q(40, 3), zeros{1, -2};
  std::vector<uint32_t> scales{floatToF16(0.5f), floatToF16(-0.25f)};
  std::vector<int16_t> x16(40, 100);
  x16[39] = -7;
  std::vector<float> activationScales{0.125f};
  llvm::SmallVector<IntegerSums> sums = integerSums(format, {q, scales, zeros, {}, {}}, x16);
  ASSERT_EQ(sums.size(), 2u);
  EXPECT_EQ(sums[0].products, 32 * 2 * 100);
  EXPECT_EQ(sums[1].inputs, 7 * 100 - 7);
  EXPECT_EQ(sums[1].products, 7 * 5 * 100 - 5 * 7);
  EXPECT_EQ(integerProduct(format, {q, scales, zeros, {}, {}}, x16, activationScales),
            6400 * 0.0625f - 3465 * 0.03125f);
}

TEST(Activations, AccumulationColumns) {
  EXPECT_EQ(accumulationColumns(*Encoding::fromName("int4-g32"), 512), 32);
  EXPECT_EQ(accumulationColumns(*Encoding::fromName("int8-g256"), 512), 128);
  EXPECT_EQ(accumulationColumns(*Encoding::fromName("int8-channel"), 512), 128);
  EXPECT_EQ(accumulationColumns(*Encoding::fromName("int8-channel"), 100), 100);
  std::vector<int8_t> ones(300, 1);
  std::vector<int32_t> sums;
  for (IntegerSums sum : integerSums(*Encoding::fromName("int8-channel"), {ones, {}, {}, {}, {}},
                                     std::vector<int16_t>(300, 2)))
    sums.push_back(sum.products);
  EXPECT_EQ(sums, (std::vector<int32_t>{256, 256, 88}));
}

TEST(Activations, SumsDoNotOverflow) {
  Encoding format = *Encoding::fromName("int8-g128-zp");
  std::vector<int8_t> q(128, -128), zeros{127};
  std::vector<int16_t> x16(128, 32512);
  EXPECT_EQ(integerSums(format, {q, {}, zeros, {}, {}}, x16)[0].products, -255 * 128 * 32512);
}

// With any format the product is the exact one of the dequantized row and input, but for float
// rounding.
TEST(Activations, ProductOfDequantizedRow) {
  std::mt19937 random(11);
  std::normal_distribution<float> normal;
  for (const char *name : {"int8-g32", "int8-g64-zp", "int8-g128", "int8-g256", "int8-channel",
                           "int4-g32", "int4-g256-zp", "int4-channel-zp"}) {
    Encoding format = *Encoding::fromName(name);
    std::vector<float> w(800), x(800), values(800);
    for (float &v : w)
      v = normal(random);
    for (float &v : x)
      v = normal(random);
    std::vector<int8_t> q(800),
        zeros(static_cast<size_t>(format.hasZeroPoint() ? format.groupsPerRow(800) : 0));
    std::vector<uint32_t> scales(static_cast<size_t>(format.groupsPerRow(800)));
    ASSERT_FALSE(bool(quantizeRow(w, format, q, scales, zeros)));
    dequantizeRow(format, {q, scales, zeros, {}, {}}, values);
    Quantized a(x);
    double exact = 0, magnitude = 0;
    for (size_t i = 0; i < 800; ++i) {
      exact += double(values[i]) * a.x16[i] * a.scales[i / 128];
      magnitude += std::fabs(double(values[i]) * x[i]);
    }
    EXPECT_NEAR(integerProduct(format, {q, scales, zeros, {}, {}}, a.x16, a.scales), exact,
                1e-6 * magnitude)
        << name;
  }
}

TEST(Activations, FloatProducts) {
  std::vector<float> x{1.0f + 0x1p-12f, 3.0f}; // the first rounds to 1 in f16 and bf16
  std::vector<uint16_t> half{floatToF16(2.0f), floatToF16(0.5f)},
      bfloat{floatToBf16(2.0f), floatToBf16(0.5f)};
  EXPECT_EQ(floatProduct(Encoding::Element::F16, half, x), 3.5f);
  EXPECT_EQ(floatProduct(Encoding::Element::BF16, bfloat, x), 3.5f);
  EXPECT_EQ(floatProduct(std::vector<float>{2.0f, 0.5f}, x), 2.0f * (1.0f + 0x1p-12f) + 1.5f);
  std::vector<float> rounded(2);
  roundActivations(Encoding::Element::F32, x, rounded);
  EXPECT_EQ(rounded, x);
  roundActivations(Encoding::Element::F16, x, rounded);
  EXPECT_EQ(rounded, (std::vector<float>{1.0f, 3.0f}));
}
