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
