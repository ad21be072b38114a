// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Formats/RopeTable.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

using namespace sluice::formats;

static llvm::SmallVector<double> frequencies(double theta, int64_t headDim, llvm::StringRef scaling,
                                             std::vector<double> values) {
  auto f = ropeFrequencies(theta, headDim, scaling, values);
  EXPECT_TRUE(bool(f)) << (f ? "" : toString(f.takeError()));
  return f ? *f : llvm::SmallVector<double>();
}

static std::string failure(double theta, int64_t headDim, llvm::StringRef scaling,
                           std::vector<double> values) {
  auto f = ropeFrequencies(theta, headDim, scaling, values);
  return f ? "no error" : toString(f.takeError());
}

// _compute_yarn_parameters of transformers for a head of 8, theta 10000, factor 4, 64 original
// positions, bounds 2 and 0.5.
TEST(RopeTable, Yarn) {
  llvm::Expected<llvm::SmallVector<double>> yarn =
      ropeFrequencies(10000, 8, "yarn", {4, 2, 0.5, 64});
  ASSERT_TRUE(static_cast<bool>(yarn));
  // Pairs above: 4 ln(64 / (2 * 2 pi)) / ln 10000 = 0.707 and, of 0.5, 1.309: pair 0 is kept, pair
  // 2 is divided, and pair 1 lies in the middle.
  const double expected[] = {1, 0.1 * (0.5 + 0.5 / 4), 0.01 / 4, 0.001 / 4};
  for (auto [found, value] : llvm::zip_equal(*yarn, expected))
    EXPECT_NEAR(found, value, 1e-12);
}

TEST(RopeTable, MultipliesByTheMagnitude) {
  float cosine, sine;
  ropeTableRow({0.5}, 3.0, 1, cosine, sine);
  EXPECT_FLOAT_EQ(cosine, 3 * std::cos(0.5));
  EXPECT_FLOAT_EQ(sine, 3 * std::sin(0.5));
}

TEST(RopeTable, Unscaled) {
  auto f = frequencies(10000, 4, "none", {});
  ASSERT_EQ(f.size(), 2u);
  EXPECT_EQ(f[0], 1.0);
  EXPECT_NEAR(f[1], 0.01, 1e-17); // 10000^(-2/4)
}

TEST(RopeTable, LinearAndFactors) {
  auto linear = frequencies(10000, 4, "linear", {2.0});
  EXPECT_EQ(linear[0], 0.5);
  EXPECT_NEAR(linear[1], 0.005, 1e-17);
  auto factors = frequencies(10000, 4, "factors", {1.0, 4.0});
  EXPECT_EQ(factors[0], 1.0);
  EXPECT_NEAR(factors[1], 0.0025, 1e-17);
}

// Llama 3.1's own numbers; expected values worked out in Python from the published rule.
TEST(RopeTable, Llama3) {
  auto f = frequencies(500000, 128, "llama3", {8, 1, 4, 8192});
  ASSERT_EQ(f.size(), 64u);
  struct {
    int pair;
    double expected;
  } table[] = {{0, 1.0}, // kept
               {20, 0.016560440080994446},
               {28, 0.003211445994752591},
               {29, 0.002166570763503359}, // between
               {30, 0.0013718935677611381},
               {32, 0.0005248461609929547},
               {34, 0.0001785078127679964},
               {35, 9.556212353964683e-05}, // divided by 8
               {63, 3.068925988914511e-07}};
  for (auto [pair, expected] : table)
    EXPECT_NEAR(f[pair], expected, 1e-13 * expected) << pair;
}

TEST(RopeTable, Rows) {
  std::vector<float> cosines(2), sines(2);
  double pi = std::acos(-1.0);
  ropeTableRow({pi / 2, pi / 6}, 1, 1, cosines, sines);
  EXPECT_NEAR(cosines[0], 0.0f, 1e-16);
  EXPECT_EQ(sines[0], 1.0f);
  EXPECT_EQ(cosines[1], static_cast<float>(std::sqrt(3.0) / 2));
  EXPECT_EQ(sines[1], 0.5f);
  ropeTableRow({1.0, 0.25}, 1, 0, cosines, sines);
  EXPECT_EQ(cosines, (std::vector<float>{1, 1}));
  EXPECT_EQ(sines, (std::vector<float>{0, 0}));
  // Far positions keep their angle: in float 131071 * 0.1 would be off by 1e-3 radians.
  ropeTableRow({0.1, 1.0}, 1, 131071, cosines, sines);
  EXPECT_EQ(cosines[0], static_cast<float>(std::cos(13107.1)));
  EXPECT_EQ(sines[1], static_cast<float>(std::sin(131071.0)));
}

TEST(RopeTable, Errors) {
  EXPECT_EQ(failure(10000, 5, "none", {}),
            "rotary embedding: head size is 5, expected an even number from 2 to 65536");
  EXPECT_EQ(failure(10000, 0, "none", {}),
            "rotary embedding: head size is 0, expected an even number from 2 to 65536");
  EXPECT_EQ(
      failure(10000, int64_t(1) << 40, "none", {}),
      "rotary embedding: head size is 1099511627776, expected an even number from 2 to 65536");
  EXPECT_EQ(failure(0, 4, "none", {}),
            "rotary embedding: theta is 0, expected a finite number above 0");
  EXPECT_EQ(failure(std::numeric_limits<double>::infinity(), 4, "none", {}).substr(0, 26),
            "rotary embedding: theta is");
  EXPECT_EQ(failure(10000, 4, "ntk", {}),
            "rotary embedding: scaling is 'ntk', expected none, linear, llama3, factors or yarn");
  EXPECT_EQ(failure(10000, 4, "yarn", {2, 1, 1, 64}),
            "rotary embedding: yarn's fast bound 1 must exceed its slow one, 1");
  EXPECT_EQ(failure(10000, 4, "linear", {}),
            "rotary embedding: scaling 'linear' has 0 values, expected 1");
  EXPECT_EQ(failure(10000, 4, "none", {1}),
            "rotary embedding: scaling 'none' has 1 values, expected 0");
  EXPECT_EQ(failure(10000, 8, "factors", {1, 1, 1}),
            "rotary embedding: scaling 'factors' has 3 values, expected 4");
  EXPECT_EQ(failure(10000, 4, "factors", {1, 0}),
            "rotary embedding: scaling 'factors' has the value 0, expected finite numbers above 0");
  EXPECT_EQ(failure(10000, 4, "llama3", {8, 4, 4, 8192}),
            "rotary embedding: llama3's high frequency factor 4 must exceed its low one, 4");
}
