// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice-support/Float16.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

using namespace sluice::support;

TEST(Float16, HalfKnownValues) {
  EXPECT_EQ(f16ToFloat(0x3C00), 1.0f);
  EXPECT_EQ(f16ToFloat(0xC000), -2.0f);
  EXPECT_EQ(f16ToFloat(0x7BFF), 65504.0f);
  EXPECT_EQ(f16ToFloat(0x0001), 0x1p-24f);
  EXPECT_EQ(f16ToFloat(0x0400), 0x1p-14f);
  EXPECT_EQ(f16ToFloat(0x3555), 0.333251953125f);
  EXPECT_TRUE(std::isinf(f16ToFloat(0xFC00)));
  EXPECT_TRUE(std::isnan(f16ToFloat(0x7E01)));
  EXPECT_TRUE(std::signbit(f16ToFloat(0x8000)));
  EXPECT_EQ(floatToF16(65519.996f), 0x7BFF);
  EXPECT_EQ(floatToF16(65520.0f), 0x7C00);
  EXPECT_EQ(floatToF16(1e30f), 0x7C00);
  EXPECT_EQ(floatToF16(-std::numeric_limits<float>::infinity()), 0xFC00);
  EXPECT_EQ(floatToF16(0x1p-25f), 0x0000); // a tie, to even
  EXPECT_EQ(floatToF16(std::nextafter(0x1p-25f, 1.0f)), 0x0001);
  EXPECT_EQ(floatToF16(-0.0f), 0x8000);
  EXPECT_EQ(floatToF16(1e-40f), 0x0000);
}

// Every half, and every boundary between two neighbouring ones.
TEST(Float16, HalfRoundsToNearestEven) {
  for (unsigned bits = 0; bits < 0x7C00; ++bits)
    for (unsigned sign : {0u, 0x8000u}) {
      float value = f16ToFloat(static_cast<uint16_t>(bits | sign));
      ASSERT_EQ(floatToF16(value), bits | sign);
      float next = bits + 1 == 0x7C00 ? std::copysign(65536.0f, value)
                                      : f16ToFloat(static_cast<uint16_t>((bits + 1) | sign));
      float middle = (value + next) / 2; // exact: floats have 13 more bits
      ASSERT_EQ(floatToF16(middle), (bits % 2 ? bits + 1 : bits) | sign);
      ASSERT_EQ(floatToF16(std::nextafter(middle, 0.0f)), bits | sign);
      ASSERT_EQ(floatToF16(std::nextafter(middle, next * 2)), (bits + 1) | sign);
    }
  for (unsigned bits = 0x7C01; bits < 0x8000; ++bits) {
    ASSERT_TRUE(std::isnan(f16ToFloat(static_cast<uint16_t>(bits))));
    ASSERT_EQ(floatToF16(f16ToFloat(static_cast<uint16_t>(bits))), bits | 0x200u);
  }
}

TEST(Float16, BfloatRoundsToNearestEven) {
  for (unsigned bits = 0; bits < 0x7F80; ++bits)
    for (unsigned sign : {0u, 0x8000u}) {
      float value = bf16ToFloat(static_cast<uint16_t>(bits | sign));
      ASSERT_EQ(floatToBf16(value), bits | sign);
      uint32_t middle = (bits | sign) << 16 | 0x8000u;
      ASSERT_EQ(floatToBf16(std::bit_cast<float>(middle)), (bits % 2 ? bits + 1 : bits) | sign);
      ASSERT_EQ(floatToBf16(std::bit_cast<float>(middle - 1)), bits | sign);
      ASSERT_EQ(floatToBf16(std::bit_cast<float>(middle + 1)), (bits + 1) | sign);
    }
  EXPECT_EQ(floatToBf16(std::numeric_limits<float>::max()), 0x7F80);
  EXPECT_EQ(floatToBf16(std::bit_cast<float>(0x7F800001u)),
            0x7FC0); // a NaN must not become infinity
  EXPECT_EQ(floatToBf16(std::bit_cast<float>(0xFFFFFFFFu)), 0xFFFF);
}

TEST(Float16, EveryHalfIsItsDefinition) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    uint32_t exponent = (bits >> 10) & 31, mantissa = bits & 1023;
    float expected = exponent == 31 ? (mantissa ? std::numeric_limits<float>::quiet_NaN()
                                                : std::numeric_limits<float>::infinity())
                     : exponent == 0
                         ? std::ldexp(static_cast<float>(mantissa), -24)
                         : std::ldexp(static_cast<float>(mantissa + 1024), int(exponent) - 25);
    float actual = f16ToFloat(static_cast<uint16_t>(bits));
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(actual)) << bits;
      continue;
    }
    ASSERT_EQ(actual, bits & 0x8000 ? -expected : expected) << bits;
    ASSERT_EQ(std::signbit(actual), (bits & 0x8000) != 0) << bits;
  }
}
