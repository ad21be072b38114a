// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Formats/Synthetic.h"

#include <gtest/gtest.h>

#include <cmath>

using namespace sluice::formats;
using Element = Encoding::Element;
using Kind = Layout::Kind;

static PackedShape shapeOf(const char *format, Layout layout, int64_t rows, int64_t columns) {
  llvm::Expected<PackedShape> shape =
      PackedShape::get(*Encoding::fromName(format), layout, rows, columns);
  if (!shape) {
    ADD_FAILURE() << toString(shape.takeError());
    std::abort();
  }
  return *shape;
}

static std::vector<uint8_t> all(const SyntheticTensor &tensor) {
  std::vector<uint8_t> bytes(static_cast<size_t>(tensor.shape().bytes()));
  tensor.generate(0, bytes);
  return bytes;
}

static uint64_t word64(const std::vector<uint8_t> &bytes, int64_t at) {
  uint64_t value = 0;
  for (int i = 7; i >= 0; --i)
    value = value << 8 | bytes[static_cast<size_t>(at + i)];
  return value;
}

TEST(Synthetic, BitsAreSplitMix64) {
  // The generator's published first numbers for seed 0.
  EXPECT_EQ(syntheticBits(0, 0, 0), 0xE220A8397B1DCDAFu);
  EXPECT_EQ(syntheticBits(0, 0, 1), 0x6E789E6AA1B965F4u);
  EXPECT_EQ(syntheticBits(0, 1, 0), 0x06C45D188009454Fu);
}

TEST(Synthetic, RegionsOfAChunk) {
  SyntheticTensor tensor(shapeOf("int4-g64-zp", {Kind::Mma, 256}, 20, 448), 99);
  const PackedShape &shape = tensor.shape();
  std::vector<uint8_t> bytes = all(tensor);
  int64_t chunk = shape.tileBytes() + shape.chunkOffset(1);
  auto expect = [&](int64_t at, SyntheticMasks masks) {
    EXPECT_EQ(word64(bytes, at), (syntheticBits(99, static_cast<uint64_t>(at / 16),
                                                static_cast<uint64_t>(at / 8 % 2)) &
                                  masks.keep) |
                                     masks.set);
  };
  expect(chunk, tensor.elements());
  expect(chunk + shape.chunkElements(1) - 8, tensor.elements());
  expect(chunk + shape.chunkScales(1), tensor.scales());
  expect(chunk + shape.chunkOffsets(1) - 8, tensor.scales());
  expect(chunk + shape.chunkOffsets(1), tensor.zeros());
  expect(chunk + shape.chunkBytes(1) - 8, tensor.zeros());
  EXPECT_EQ(tensor.elements(), (SyntheticMasks{~uint64_t(0), 0}));
}

// Any part can be generated alone, whatever the layout's regions are aligned to.
TEST(Synthetic, PartsEqualTheWhole) {
  struct {
    const char *format;
    Layout layout;
    int64_t rows, columns;
  } cases[] = {{"int8-g32-zp", {Kind::Rows, 0}, 9, 100},
               {"int4-g32-zp", {Kind::Rows, 0}, 5, 33},
               {"int8-g32", {Kind::Blocks, 0}, 5, 96},
               {"int4-g32", {Kind::Blocks, 0}, 5, 96},
               {"int4-g64-zp", {Kind::Lanes, 0}, 33, 100},
               {"int8-channel", {Kind::Mma, 64}, 17, 100},
               {"fp8-g64-f32", {Kind::Rows, 0}, 9, 101},
               {"fp8-g128", {Kind::Mma, 128}, 17, 300},
               {"f16", {Kind::Rows, 0}, 3, 7},
               {"bf16", {Kind::Mma, 64}, 17, 40}};
  for (auto &c : cases) {
    SyntheticTensor tensor(shapeOf(c.format, c.layout, c.rows, c.columns), 5);
    std::vector<uint8_t> whole = all(tensor), again(whole.size());
    int64_t words = static_cast<int64_t>((whole.size() + 15) / 16);
    for (int64_t word = 0; word < words; word += 3) {
      size_t bytes = std::min<size_t>(48, whole.size() - static_cast<size_t>(word) * 16);
      tensor.generate(
          word, llvm::MutableArrayRef<uint8_t>(again).slice(static_cast<size_t>(word) * 16, bytes));
    }
    EXPECT_EQ(again, whole) << c.format << " " << c.layout.name().str();
    SyntheticTensor other(tensor.shape(), 6);
    EXPECT_NE(all(other), whole);
  }
}

TEST(Synthetic, PaddingIsZero) {
  PackedShape shape =
      shapeOf("int8-g32-zp", {Kind::Rows, 0}, 2, 32); // 32 + 2 + 1 bytes, padded to 48
  std::vector<uint8_t> bytes = all(SyntheticTensor(shape, 1));
  for (int row = 0; row < 2; ++row)
    for (int i = 35; i < 48; ++i)
      EXPECT_EQ(bytes[static_cast<size_t>(row * 48 + i)], 0);
}

// A row's product with an input of unit variance has unit variance when the weights' squares add up
// to 1.
TEST(Synthetic, UnitVariance) {
  for (int64_t columns : {64, 256, 4096, 14336})
    for (const char *format :
         {"int8-g32", "int8-channel", "int8-g128-zp", "int4-g32", "int4-g64-zp", "int4-g256",
          "fp8-g64", "fp8-channel-f32", "int8-g256-f32", "int4-g32-f32", "f16", "bf16", "f32"})
      for (Kind kind : {Kind::Rows, Kind::Lanes, Kind::Mma}) {
        if (kind == Kind::Mma && format == std::string("f32"))
          continue;
        SyntheticTensor tensor(shapeOf(format, {kind, kind == Kind::Mma ? 1024 : 0}, 16, columns),
                               42);
        std::vector<uint8_t> bytes = all(tensor);
        std::vector<float> values(static_cast<size_t>(columns));
        double squares = 0, sum = 0;
        for (int64_t row = 0; row < 16; ++row) {
          unpackRow(tensor.shape(), bytes, row, values);
          for (float v : values) {
            ASSERT_TRUE(std::isfinite(v));
            squares += double(v) * v;
            sum += v;
          }
        }
        squares /= 16;
        bool scaled = tensor.shape().format().isScaled();
        // Plain floats come in powers of two; others only have sampling noise (16 x 64 at
        // least).
        EXPECT_GT(squares, scaled ? 0.85 : 0.49) << format << " " << columns;
        EXPECT_LT(squares, scaled ? 1.15 : 2.05) << format << " " << columns;
        // The mean is far below the deviation, or outputs would all look alike.
        EXPECT_LT(std::fabs(sum) / static_cast<double>(16 * columns),
                  0.5 / std::sqrt(double(columns)));
      }
}

TEST(Synthetic, UnitVarianceOfEveryEncoding) {
  for (const char *format :
       {"q4_1",       "q5_0",         "q5_1",          "q2_k",        "q3_k",       "q4_k",
        "q5_k",       "q6_k",         "iq4_nl",        "iq4_xs",      "mxfp4",      "nvfp4",
        "int4-g32",   "int8-channel", "int3-g64",      "int5-g64-n8", "iq4-g16-n8", "iq4-channel",
        "iq1-g16-n8", "iq2-g32-n8",   "iq3xxs-g32-n8", "iq3s-g32-n8"})
    for (Layout layout :
         {Layout{Kind::Rows, 0}, Layout{Kind::Lanes, 0}, Layout{Kind::Records, 512}})
      for (int64_t columns : {256, 576, 4096}) {
        if (!Encoding::fromName(format)->fitsColumns(columns))
          continue;
        SyntheticTensor tensor(shapeOf(format, layout, 64, columns), 42);
        std::vector<uint8_t> bytes = all(tensor);
        std::vector<float> values(static_cast<size_t>(columns));
        double squares = 0, sum = 0;
        for (int64_t row = 0; row < 64; ++row) {
          unpackRow(tensor.shape(), bytes, row, values);
          for (float v : values) {
            squares += double(v) * v;
            sum += v;
          }
        }
        squares /= 64;
        // Scales that are powers of two, or have three bits, are up to twice too large; fields are
        // few, so that one large one counts.
        bool coarse =
            !llvm::StringRef(format).ends_with("_k") && tensor.shape().format().scaleBits() == 8;
        EXPECT_GT(squares, 0.8) << format << " " << columns << " " << layout.name().str();
        EXPECT_LT(squares, coarse ? 4.4 : 1.25) << format << " " << columns;
        EXPECT_LT(std::fabs(sum) / static_cast<double>(64 * columns),
                  0.5 / std::sqrt(double(columns)));
      }
}

TEST(Synthetic, ZeroPoints) {
  SyntheticTensor tensor(shapeOf("int4-g32-zp", {Kind::Lanes, 0}, 64, 256), 3);
  std::vector<uint8_t> bytes = all(tensor);
  int ones = 0;
  for (int64_t row = 0; row < 64; ++row) {
    for (int8_t zero : unpackRow(tensor.shape(), bytes, row).zeros) {
      ASSERT_TRUE(zero == -1 || zero == -2);
      ones += zero == -1;
    }
  }
  EXPECT_GT(ones, 200);
  EXPECT_LT(ones, 312);
}
