// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Formats/Format.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

using namespace sluice::formats;

TEST(Format, NamesRoundTrip) {
  for (const char *name :
       {"f32", "f16", "bf16", "int8-g32", "int8-g64", "int8-g128", "int8-g256", "int8-channel",
        "int4-g32", "int4-g64-zp", "int4-g256-zp", "int4-channel", "int4-channel-zp"}) {
    std::optional<Format> format = Format::fromName(name);
    ASSERT_TRUE(format) << name;
    EXPECT_EQ(format->name(), name);
  }
  EXPECT_EQ(*Format::fromName("int4-g64-zp"), (Format{Format::Element::I4, 64, true}));
  EXPECT_EQ(*Format::fromName("int8-channel"),
            (Format{Format::Element::I8, Format::channel, false}));
}

TEST(Format, UnknownNames) {
  for (const char *name :
       {"", "int8", "int8-", "int8-g", "int8-g16", "int8-g512", "int8-g0128", "int8-128", "int4-zp",
        "int2-g32", "f16-zp", "F16", "int8-g128-zp-zp", "int8-g128 ", "fp8"})
    EXPECT_FALSE(Format::fromName(name)) << name;
}

TEST(Format, Sizes) {
  Format g128 = *Format::fromName("int8-g128"), zp = *Format::fromName("int4-g64-zp");
  EXPECT_EQ(g128.bits(), 8u);
  EXPECT_EQ(g128.groupsPerRow(256), 2);
  EXPECT_EQ(g128.groupsPerRow(257), 3);
  EXPECT_EQ(g128.bytesPerRow(4096), 4096 + 64);
  EXPECT_EQ(zp.bits(), 4u);
  EXPECT_EQ(zp.bytesPerRow(4096), 2048 + 64 * 3);
  EXPECT_EQ(Format::fromName("int8-channel")->bytesPerRow(768), 770);
  EXPECT_EQ(Format::fromName("int8-channel")->groupColumns(768), 768);
  EXPECT_EQ(Format::fromName("f16")->bytesPerRow(768), 1536);
  EXPECT_EQ(Format::fromName("f16")->groupsPerRow(768), 0);
  EXPECT_EQ(zp.qMin(), -8);
  EXPECT_EQ(g128.qMax(), 127);
}

TEST(Format, HalfKnownValues) {
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
TEST(Format, HalfRoundsToNearestEven) {
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

TEST(Format, BfloatRoundsToNearestEven) {
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

TEST(Format, ArraysEqualSingleNumbers) {
  std::vector<uint16_t> all(65536), back(65536);
  std::vector<float> values(65536);
  for (unsigned i = 0; i < 65536; ++i)
    all[i] = static_cast<uint16_t>(i);
  f16ToFloat(all, values);
  floatToF16(values, back);
  for (unsigned i = 0; i < 65536; ++i) {
    ASSERT_EQ(std::bit_cast<uint32_t>(values[i]), std::bit_cast<uint32_t>(f16ToFloat(all[i])));
    ASSERT_EQ(back[i], floatToF16(values[i]));
  }
  bf16ToFloat(all, values);
  floatToBf16(values, back);
  for (unsigned i = 0; i < 65536; ++i) {
    ASSERT_EQ(std::bit_cast<uint32_t>(values[i]), i << 16);
    ASSERT_EQ(back[i], floatToBf16(values[i]));
  }
}
