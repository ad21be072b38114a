// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Formats/GgufBlocks.h"
#include "GgmlRules.h"
#include "sluice/Formats/Packing.h"
#include "sluice/Formats/Quantizer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

using namespace sluice::formats;

namespace {
EncodedRows read(const GgufBlock &type, llvm::ArrayRef<uint8_t> blocks) {
  int64_t columns = static_cast<int64_t>(blocks.size()) / type.bytes * type.columns;
  EncodedRows numbers(type.encoding, 1, columns);
  type.read(blocks, numbers.numbers(0));
  return numbers;
}
std::vector<uint8_t> write(const GgufBlock &type, const EncodedRows &numbers) {
  std::vector<uint8_t> blocks(static_cast<size_t>(numbers.columns / type.columns * type.bytes));
  type.write(numbers.row(0), blocks);
  return blocks;
}

const char *const types[] = {"Q4_0",  "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4",
                             "NVFP4", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",   "IQ4_XS"};
} // namespace

TEST(GgufBlocks, Q8_0ByHand) {
  std::vector<uint8_t> block(34);
  block[0] = 0x00, block[1] = 0x38; // 0.5
  for (int i = 0; i < 32; ++i)
    block[2 + i] = static_cast<uint8_t>(i - 16);
  EncodedRows numbers = read(*GgufBlock::named("Q8_0"), block);
  EXPECT_EQ(numbers.scales[0], 0x3800);
  for (int i = 0; i < 32; ++i)
    EXPECT_EQ(numbers.q[i], i - 16);
  EXPECT_EQ(write(*GgufBlock::named("Q8_0"), numbers), block);
}

TEST(GgufBlocks, Q4_0ByHand) {
  std::vector<uint8_t> block(18);
  block[0] = 0x34, block[1] = 0x12;
  for (int i = 0; i < 16; ++i)
    block[2 + i] = static_cast<uint8_t>(i | (15 - i) << 4); // elements 0..15 rise, 16..31 fall
  EncodedRows numbers = read(*GgufBlock::named("Q4_0"), block);
  EXPECT_EQ(numbers.scales[0], 0x1234);
  for (int i = 0; i < 16; ++i) {
    EXPECT_EQ(numbers.q[i], i - 8);
    EXPECT_EQ(numbers.q[i + 16], 7 - i);
  }
  EXPECT_EQ(write(*GgufBlock::named("Q4_0"), numbers), block);
}

// Packed as ggml's quantize_row_tq1_0_ref and tq2_0_ref do.
TEST(GgufBlocks, TernaryTypes) {
  std::mt19937 random(5);
  std::vector<int8_t> q(256);
  for (int8_t &digit : q)
    digit = static_cast<int8_t>(random() % 3) - 1;
  std::vector<uint8_t> one(54), two(66);
  one[52] = two[64] = 0x34, one[53] = two[65] = 0x92; // a negative scale
  auto packDigits = [&](size_t byte, size_t count, size_t digits, size_t first) {
    for (size_t i = 0; i < count; ++i) {
      unsigned number = 0;
      for (size_t digit = 0; digit < 5; ++digit)
        number = number * 3 + (digit < digits ? q[first + digit * count + i] + 1 : 0);
      one[byte + i] = static_cast<uint8_t>((number * 256 + 242) / 243);
    }
  };
  packDigits(0, 32, 5, 0);
  packDigits(32, 16, 5, 160);
  packDigits(48, 4, 4, 240);
  for (size_t i = 0; i < 256; ++i)
    two[i / 128 * 32 + i % 32] |= static_cast<uint8_t>((q[i] + 1) << i % 128 / 32 * 2);
  for (auto [name, block] : {std::pair("TQ1_0", &one), {"TQ2_0", &two}}) {
    EncodedRows numbers = read(*GgufBlock::named(name), *block);
    EXPECT_EQ(numbers.q, q) << name;
    EXPECT_EQ(numbers.scales, std::vector<uint32_t>{0x9234}) << name;
  }
}

TEST(GgufBlocks, EveryBitSurvives) {
  std::mt19937 random(3);
  for (const char *name : types) {
    SCOPED_TRACE(name);
    const GgufBlock &type = *GgufBlock::named(name);
    std::vector<uint8_t> blocks(static_cast<size_t>(type.bytes) * 48);
    for (uint8_t &byte : blocks)
      byte = static_cast<uint8_t>(random());
    // A scale of NVFP4 has seven bits, and one code that stands for zero.
    if (type.encoding.scale == Encoding::Scale::E4M3)
      for (size_t i = 0; i < blocks.size(); ++i)
        if (i % 36 < 4)
          blocks[i] = static_cast<uint8_t>(blocks[i] % 0x7F);
    EncodedRows numbers = read(type, blocks);
    for (int8_t q : numbers.q)
      ASSERT_TRUE(q >= type.encoding.qMin() && q <= type.encoding.qMax());
    EXPECT_EQ(write(type, numbers), blocks);

    // To the layouts of kernels and back; the other rows of the tile are empty.
    if (numbers.columns % Encoding::superColumns)
      continue;
    for (Layout::Kind layout : {Layout::Kind::Rows, Layout::Kind::Lanes}) {
      PackedShape shape =
          llvm::cantFail(PackedShape::get(type.encoding, {layout}, 1, numbers.columns));
      std::vector<uint8_t> packed(static_cast<size_t>(shape.bytes()));
      packTile(shape, {numbers.row(0)}, packed);
      EXPECT_EQ(write(type, unpackRow(shape, packed, 0)), blocks);
    }
  }
}

// Every type is one encoding, whose bits are what the block has (but for 6-bit scales of their own,
// which are bytes here).
TEST(GgufBlocks, TypesAreEncodings) {
  for (const char *name : types) {
    SCOPED_TRACE(name);
    const GgufBlock *type = GgufBlock::named(name);
    ASSERT_TRUE(type);
    EXPECT_EQ(GgufBlock::of(type->encoding), type);
    EXPECT_EQ(type->encoding.problem(), "");
    EXPECT_EQ(Encoding::fromName(type->encoding.name()), type->encoding);
    int64_t more = type->name == "Q3_K" ? 4 : type->name == "IQ4_XS" ? 2 : 0;
    EXPECT_EQ(type->encoding.bytesPerRow(type->columns), type->bytes + more);
  }
  for (auto [name, encoding] : {std::pair("TQ1_0", "int3-g256"),
                                {"TQ2_0", "int3-g256"},
                                {"Q8_K", "int8-g256-f32"},
                                {"IQ1_S", "iq1-g32-n8"},
                                {"IQ1_M", "iq1-g16-n8"},
                                {"IQ2_XXS", "iq2-g32-n8"},
                                {"IQ2_XS", "iq2-g16-n8"},
                                {"IQ2_S", "iq2-g16-n8"},
                                {"IQ3_XXS", "iq3xxs-g32-n8"},
                                {"IQ3_S", "iq3s-g32-n8"}}) {
    EXPECT_TRUE(GgufBlock::named(name)->isRepacked());
    EXPECT_EQ(GgufBlock::named(name)->encoding.name(), encoding);
    EXPECT_EQ(GgufBlock::of(*Encoding::fromName(encoding)), nullptr);
  }
  EXPECT_EQ(GgufBlock::named("Q8_1"), nullptr);
  EXPECT_EQ(GgufBlock::of({Encoding::Element::I8, 128}), nullptr);
}

TEST(GgufBlocks, NvFp4ScalesThatGgmlReadsOtherwise) {
  const GgufBlock &type = *GgufBlock::named("NVFP4");
  std::vector<uint8_t> block(36);
  block[0] = 0x7F, block[1] = 0x80 | 0x38, block[2] = 0xFF, block[3] = 1;
  EncodedRows numbers = read(type, block);
  EXPECT_EQ(numbers.scales, (std::vector<uint32_t>{0, 0x38, 0x7F, 1}));
  EncodedRow row = numbers.row(0);
  EXPECT_EQ(row.scale(type.encoding, 1), 0.5f);
  EXPECT_EQ(row.scale(type.encoding, 2), 240.0f);
  EXPECT_EQ(row.scale(type.encoding, 3), 0x1p-10f); // subnormal
}

TEST(GgufBlocks, MxFp4Scales) {
  Encoding format = *Encoding::fromName("mxfp4");
  for (int code : {0, 1, 2, 127, 128, 255})
    EXPECT_EQ(format.scaleOf(static_cast<uint16_t>(code), 0), std::ldexp(1.0f, code - 128)) << code;
}

TEST(GgufBlocks, RulesOfGgml) {
  std::vector<float> x(32, 0.0f);
  x[0] = -4.0f, x[1] = 3.5f, x[2] = 0.25f,
  x[3] = 4.0f; // the first of the greatest decides the sign
  std::vector<int8_t> q(32);
  std::vector<uint32_t> scales(1);
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
