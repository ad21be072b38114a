// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Formats/Encoding.h"

#include "llvm/ADT/STLExtras.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

using namespace sluice::formats;

TEST(Encoding, NamesRoundTrip) {
  for (const char *name : {"f32",
                           "f16",
                           "bf16",
                           "int8-g32",
                           "int8-g64",
                           "int8-g128",
                           "int8-g256",
                           "int8-channel",
                           "int4-g32",
                           "int4-g64-zp",
                           "int4-g256-zp",
                           "int4-channel",
                           "int4-channel-zp",
                           "int5-g64",
                           "int6-channel",
                           "int3-g128",
                           "int8-g16",
                           "iq4-g64",
                           "iq4-channel",
                           "int4-g16-n8",
                           "int5-g64-n8",
                           "iq4-g16-n8",
                           "int4-g128-f32",
                           "int8-channel-f32",
                           "iq1-g16-n8",
                           "iq2-g32-n8",
                           "iq3xxs-g32-n8",
                           "iq3s-g32-n8"}) {
    std::optional<Encoding> format = Encoding::fromName(name);
    ASSERT_TRUE(format) << name;
    EXPECT_EQ(format->name(), name);
  }
  EXPECT_EQ(*Encoding::fromName("int4-g64-zp"),
            (Encoding{Encoding::Element::I4, 64, Encoding::Offset::ZeroPoint}));
  EXPECT_EQ(*Encoding::fromName("int8-channel"),
            (Encoding{Encoding::Element::I8, Encoding::channel}));
}

TEST(Encoding, UnknownNames) {
  for (const char *name : {"",
                           "int8",
                           "int8-",
                           "int8-g",
                           "int8-g512",
                           "int8-g0128",
                           "int8-128",
                           "int4-zp",
                           "int2-g32",
                           "f16-zp",
                           "F16",
                           "int8-g128-zp-zp",
                           "int8-g128 ",
                           "fp8",
                           "int5-g64-zp",
                           "int4-g16-zp",
                           "int4-g128-n8",
                           "int4-channel-n8",
                           "int4-g32-zp-n8",
                           "int6-g128-f32",
                           "iq2-g32",
                           "iq1-g64-n8",
                           "uint4-g32",
                           "e2m1-g32",
                           "q4_k-n8"})
    EXPECT_FALSE(Encoding::fromName(name)) << name;
}

TEST(Encoding, Sizes) {
  Encoding g128 = *Encoding::fromName("int8-g128"), zp = *Encoding::fromName("int4-g64-zp");
  EXPECT_EQ(g128.bits(), 8u);
  EXPECT_EQ(g128.groupsPerRow(256), 2);
  EXPECT_EQ(g128.groupsPerRow(257), 3);
  EXPECT_EQ(g128.bytesPerRow(4096), 4096 + 64);
  EXPECT_EQ(zp.bits(), 4u);
  EXPECT_EQ(zp.bytesPerRow(4096), 2048 + 64 * 3);
  EXPECT_EQ(Encoding::fromName("int8-channel")->bytesPerRow(768), 770);
  EXPECT_EQ(Encoding::fromName("int8-channel")->groupColumns(768), 768);
  EXPECT_EQ(Encoding::fromName("f16")->bytesPerRow(768), 1536);
  EXPECT_EQ(Encoding::fromName("f16")->groupsPerRow(768), 0);
  EXPECT_EQ(zp.qMin(), -8);
  EXPECT_EQ(g128.qMax(), 127);
}

TEST(Encoding, NamesOfGgufTypes) {
  for (const char *name : {"q4_1", "q5_0", "q5_1", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl",
                           "iq4_xs", "mxfp4", "nvfp4"}) {
    std::optional<Encoding> encoding = Encoding::fromName(name);
    ASSERT_TRUE(encoding) << name;
    EXPECT_EQ(encoding->name(), name);
    EXPECT_EQ(encoding->problem(), "") << name;
    EXPECT_FALSE(encoding->isPlainInteger()) << name;
  }
  EXPECT_EQ((Encoding{Encoding::Element::I5, 64, Encoding::Offset::ZeroPoint, Encoding::Scale::I8})
                .name(),
            "int5-g64-n8-zp");
}

TEST(Encoding, All) {
  for (const Encoding &encoding : Encoding::all()) {
    EXPECT_EQ(encoding.problem(), "") << encoding.name();
    EXPECT_EQ(llvm::count(Encoding::all(), encoding), 1) << encoding.name();
    EXPECT_EQ(Encoding::fromName(encoding.name()), encoding) << encoding.name();
  }
  // What GGUF has a name for can be called by the general rule, too.
  for (auto [general, name] : {std::pair("int5-g32", "q5_0"),
                               {"iq4-g32", "iq4_nl"},
                               {"iq4-g32-n8", "iq4_xs"},
                               {"int6-g16-n8", "q6_k"},
                               {"int3-g16-n8", "q3_k"}})
    EXPECT_EQ(Encoding::fromName(general)->name(), name);
}

TEST(Encoding, ValuesByHand) {
  using Scale = Encoding::Scale;
  // q4_k: (d * 50) * q - dmin * 3.
  Encoding q4k = *Encoding::fromName("q4_k");
  std::vector<int8_t> q(256, 15);
  std::vector<uint32_t> scales(8, 50);
  std::vector<uint16_t> offsets(8, 3), supers{floatToF16(0.5f), floatToF16(0.25f)};
  EncodedRow row{q, scales, {}, offsets, supers};
  EXPECT_EQ(row.scale(q4k, 7), 25.0f);
  EXPECT_EQ(row.offset(q4k, 7), -0.75f);
  EXPECT_EQ(q4k.integerOf(15), 15);
  // Tables.
  EXPECT_EQ(Encoding::fromName("iq4_nl")->integerOf(0), -127);
  EXPECT_EQ(Encoding::fromName("mxfp4")->integerOf(15), -12);
  // A signed byte times the super-block's scale.
  Encoding q6k = *Encoding::fromName("q6_k");
  EXPECT_EQ(q6k.scale, Scale::I8);
  EXPECT_EQ(q6k.scaleOf(0xFE, floatToF16(0.5f)), -1.0f);
  EXPECT_EQ(q6k.qMin(), -32);
  // FP8: 1.125 * 2^-6 and the least of all; scales of bf16 and f32.
  Encoding fp8 = *Encoding::fromName("fp8-g128"), wide = *Encoding::fromName("fp8-channel-f32");
  EXPECT_EQ(fp8, (Encoding{Encoding::Element::E4M3, 128, Encoding::Offset::None, Scale::BF16}));
  EXPECT_EQ(fp8.numberOf(0x09), 0x1.2p-6f);
  EXPECT_EQ(fp8.numberOf(static_cast<int8_t>(0x81)), -0x1p-9f);
  EXPECT_EQ(fp8.scaleOf(0x3F81, 0), 1.0078125f);
  EXPECT_EQ(wide.scaleOf(0x3F800001, 0), 1 + 0x1p-23f);
  EXPECT_EQ(fp8.bytesPerRow(4096), 4096 + 32 * 2);
  EXPECT_EQ(wide.bytesPerRow(4096), 4096 + 4);
  Encoding q8k = *Encoding::fromName("int8-g256-f32");
  EXPECT_EQ(q8k.scaleOf(0x3F800001, 0), 1 + 0x1p-23f);
  EXPECT_EQ(q8k.bytesPerRow(4096), 4096 + 16 * 4);
  // Units of super-blocks, also of the least f16.
  EXPECT_EQ(Encoding::fromName("iq2-g16-n8")->scaleOf(31, 1), 31 * 0x1p-27f);
  EXPECT_EQ(Encoding::fromName("iq3xxs-g32-n8")->scaleOf(0xFF, floatToF16(-1.0f)), 0.25f);
  EXPECT_EQ(Encoding::fromName("iq3s-g32-n8")->scaleOf(3, floatToF16(0.5f)), 1.5f);
  EXPECT_EQ(Encoding::fromName("iq1-g32-n8")->integerOf(8), -9);
}

TEST(Encoding, Problems) {
  using Element = Encoding::Element;
  using Scale = Encoding::Scale;
  EXPECT_EQ((Encoding{Element::E4M3, 128}).problem(), "fp8 has scales of bf16 or f32");
  for (Encoding wrong : {Encoding{Element::I8, 128, Encoding::Offset::None, Scale::BF16},
                         Encoding{Element::I8, 16, Encoding::Offset::None, Scale::F32},
                         Encoding{Element::I6, 128, Encoding::Offset::None, Scale::F32}})
    EXPECT_EQ(wrong.problem(),
              "scales of bf16 belong to fp8, of f32 to fp8, int8 and int4 in groups of 32 or more");
  EXPECT_EQ((Encoding{Element::IQ2, 32}).problem(),
            "elements of this table have scales of a byte and a super-block");
  EXPECT_EQ((Encoding{Element::E4M3, 16, Encoding::Offset::None, Scale::BF16}).problem(),
            "fp8 has groups of 32 or more, and neither zero points nor offsets");
  EXPECT_EQ((Encoding{Element::E4M3, 128, Encoding::Offset::ZeroPoint, Scale::BF16}).problem(),
            "fp8 has groups of 32 or more, and neither zero points nor offsets");
}

TEST(Encoding, ArraysEqualSingleNumbers) {
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
