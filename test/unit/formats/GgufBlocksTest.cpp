// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "GgmlRules.h"
#include "sluice/Formats/Quantizer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

using namespace sluice::formats;

TEST(GgufBlocks, Q8_0ByHand) {
  std::vector<uint8_t> block(34);
  block[0] = 0x00, block[1] = 0x38; // 0.5
  for (int i = 0; i < 32; ++i)
    block[2 + i] = static_cast<uint8_t>(i - 16);
  std::vector<int8_t> q(32);
  std::vector<uint16_t> scales(1);
  readQ8_0(block, q, scales);
  EXPECT_EQ(scales[0], 0x3800);
  for (int i = 0; i < 32; ++i)
    EXPECT_EQ(q[i], i - 16);
  std::vector<uint8_t> back(34);
  writeQ8_0(q, scales, back);
  EXPECT_EQ(back, block);
}

TEST(GgufBlocks, Q4_0ByHand) {
  std::vector<uint8_t> block(18);
  block[0] = 0x34, block[1] = 0x12;
  for (int i = 0; i < 16; ++i)
    block[2 + i] = static_cast<uint8_t>(i | (15 - i) << 4); // elements 0..15 rise, 16..31 fall
  std::vector<int8_t> q(32);
  std::vector<uint16_t> scales(1);
  readQ4_0(block, q, scales);
  EXPECT_EQ(scales[0], 0x1234);
  for (int i = 0; i < 16; ++i) {
    EXPECT_EQ(q[i], i - 8);
    EXPECT_EQ(q[i + 16], 7 - i);
  }
  std::vector<uint8_t> back(18);
  writeQ4_0(q, scales, back);
  EXPECT_EQ(back, block);
}

TEST(GgufBlocks, EveryByteSurvives) {
  std::mt19937 random(3);
  std::vector<uint8_t> q8(34 * 50), q4(18 * 50), back8(q8.size()), back4(q4.size());
  for (uint8_t &b : q8)
    b = static_cast<uint8_t>(random());
  for (uint8_t &b : q4)
    b = static_cast<uint8_t>(random());
  std::vector<int8_t> q(32 * 50);
  std::vector<uint16_t> scales(50);
  readQ8_0(q8, q, scales);
  writeQ8_0(q, scales, back8);
  EXPECT_EQ(back8, q8);
  readQ4_0(q4, q, scales);
  for (int8_t v : q)
    ASSERT_TRUE(v >= -8 && v <= 7);
  writeQ4_0(q, scales, back4);
  EXPECT_EQ(back4, q4);
}

TEST(GgufBlocks, RulesOfGgml) {
  std::vector<float> x(32, 0.0f);
  x[0] = -4.0f, x[1] = 3.5f, x[2] = 0.25f,
  x[3] = 4.0f; // the first of the greatest decides the sign
  std::vector<int8_t> q(32);
  std::vector<uint16_t> scales(1);
  ggml::quantizeRowQ4_0(x, q, scales);
  EXPECT_EQ(f16ToFloat(scales[0]), 0.5f);
  EXPECT_EQ(q[0], -8);
  EXPECT_EQ(q[1], 7);
  EXPECT_EQ(q[2], 1); // 0.5 goes up
  EXPECT_EQ(q[3], 7); // clipped
  x[0] = 127.0f, x[1] = -63.5f;
  ggml::quantizeRowQ8_0(x, q, scales);
  EXPECT_EQ(f16ToFloat(scales[0]), 1.0f);
  EXPECT_EQ(q[0], 127);
  EXPECT_EQ(q[1], -64); // half away from zero
  ggml::quantizeRowQ4_0(std::vector<float>(32, 0.0f), q, scales);
  EXPECT_EQ(f16ToFloat(scales[0]), 0.0f);
  EXPECT_EQ(q, std::vector<int8_t>(32, 0));
}
