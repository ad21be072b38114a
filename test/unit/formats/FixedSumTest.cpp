// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Formats/FixedSum.h"

#include "gtest/gtest.h"

#include <algorithm>
#include <limits>
#include <random>
#include <vector>

using namespace sluice::formats;

TEST(FixedSum, TermsAreRoundedToNearestEven) {
  EXPECT_EQ(fixedSumTerm(1.0f, 2), int64_t(1) << 30);
  EXPECT_EQ(fixedSumTerm(-0x1p-30f, 2), -1);
  EXPECT_EQ(fixedSumTerm(0x1p-31f, 2), 0);
  EXPECT_EQ(fixedSumTerm(3 * 0x1p-31f, 2), 2);
  EXPECT_EQ(fixedSumTerm(-0x1p-31f, 2), 0);
}

TEST(FixedSum, WhatHasNoTerm) {
  float limit = fixedSumLimit(256);
  EXPECT_EQ(limit, 131072.0f);
  EXPECT_TRUE(fixedSumTerm(std::nextafter(limit, 0.0f), limit));
  for (float value : {limit, -limit, std::numeric_limits<float>::infinity(),
                      std::numeric_limits<float>::quiet_NaN()})
    EXPECT_FALSE(fixedSumTerm(value, limit)) << value;
}

// The greatest numbers that are allowed, more of them than the counter counts.
TEST(FixedSum, NothingOverflows) {
  for (float sign : {1.0f, -1.0f}) {
    float value = sign * std::nextafter(fixedSumLimit(1000), 0.0f);
    uint64_t word = 0;
    for (int i = 0; i < 1000; ++i)
      word += fixedSumIncrement(*fixedSumTerm(value, fixedSumLimit(1000)));
    EXPECT_EQ(word & 255, 1000u % 256);
    EXPECT_FLOAT_EQ(fixedSumValue(word, 1000), value * 1000);
  }
}

TEST(FixedSum, TheOrderDoesNotMatter) {
  std::mt19937 random(5);
  std::vector<float> values(300);
  for (float &value : values)
    value = std::ldexp(static_cast<float>(random() % 2001) - 1000,
                       static_cast<int>(random() % 20) - 15);
  auto sum = [&] {
    uint64_t word = 0;
    for (float value : values)
      word += fixedSumIncrement(*fixedSumTerm(value, fixedSumLimit(300)));
    return word;
  };
  uint64_t first = sum();
  double exact = 0;
  for (float value : values)
    exact += value;
  EXPECT_NEAR(fixedSumValue(first, 300), exact, 300 * 0x1p-31 + std::fabs(exact) * 0x1p-24);
  for (int i = 0; i < 10; ++i) {
    std::shuffle(values.begin(), values.end(), random);
    EXPECT_EQ(sum(), first);
  }
}
