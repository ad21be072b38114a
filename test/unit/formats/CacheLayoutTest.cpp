// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Formats/CacheLayout.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

using namespace sluice::formats;

namespace {
constexpr CacheOrder orders[] = {CacheOrder::LanesKeys, CacheOrder::LanesValues,
                                 CacheOrder::MmaKeys, CacheOrder::MmaValues};
constexpr const char *encodings[] = {"f16", "bf16", "fp8", "int8", "int8-h32", "int4", "int4-h64"};

template <typename Each> void forEachShape(Each each) {
  for (int64_t dim : {16, 20, 32, 64, 80, 96, 128, 256})
    for (const char *name : encodings)
      for (CacheOrder order : orders) {
        SCOPED_TRACE(std::string(name) + ", order " + std::to_string(int(order)) + ", heads of " +
                     std::to_string(dim));
        each(CacheShape{1, 64, 1, dim, *CacheEncoding::fromName(name), order});
      }
}
} // namespace

TEST(CacheLayout, EveryCodeHasAPlaceOfItsOwn) {
  forEachShape([](const CacheShape &shape) {
    int64_t bits = shape.encoding.bits(), bytes = shape.tileCodeBytes();
    std::vector<int> taken(bytes); // bits of each byte
    for (int64_t p = 0; p < cacheTile; ++p)
      for (int64_t d = 0; d < shape.paddedDim(); ++d) {
        int64_t byte = cacheCodeByte(shape, p, d);
        int mask = bits == 4 ? isCacheHighNibble(shape, d) ? 0xF0 : 0x0F : 0xFF;
        for (int64_t b = byte; b < byte + (bits + 7) / 8; ++b) {
          ASSERT_TRUE(b >= 0 && b < bytes) << "position " << p << ", element " << d;
          ASSERT_EQ(taken[b] & mask, 0) << "position " << p << ", element " << d;
          taken[b] |= mask;
        }
      }
    for (int bitsTaken : taken)
      ASSERT_EQ(bitsTaken, 0xFF);
  });
}

TEST(CacheLayout, TilesAreWholeCopies) {
  forEachShape([](const CacheShape &shape) {
    EXPECT_EQ(shape.tileBytes() % 16, 0);
    EXPECT_EQ(shape.headBytes(), 2 * shape.tileBytes());
    for (int64_t group = 0; group < shape.groups(); ++group)
      EXPECT_EQ(cacheScaleByte(shape, group), shape.tileCodeBytes() + 64 * group);
  });
}

TEST(CacheLayout, BothNibblesBelongToOnePosition) {
  forEachShape([](const CacheShape &shape) {
    int64_t distance = cacheNibbleDistance(shape);
    if (!distance)
      return;
    for (int64_t p = 0; p < cacheTile; ++p)
      for (int64_t d = 0; d < shape.paddedDim(); ++d)
        if (d / distance % 2 == 0) {
          EXPECT_EQ(cacheCodeByte(shape, p, d), cacheCodeByte(shape, p, d + distance));
          EXPECT_NE(isCacheHighNibble(shape, d), isCacheHighNibble(shape, d + distance));
        }
  });
}

TEST(CacheLayout, WhatIsStoredIsReadBack) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  forEachShape([&](const CacheShape &shape) {
    std::vector<uint8_t> head(shape.headBytes(), 0xA5);
    std::vector<std::vector<float>> expected;
    for (int64_t p = 0; p < shape.positions; ++p) {
      std::vector<float> x(shape.dim), rounded(shape.dim);
      for (float &value : x)
        value = normal(random);
      roundCacheVector(shape.encoding, x, rounded);
      storeCacheVector(shape, head, p, x);
      expected.push_back(rounded);
    }
    for (int64_t p = 0; p < shape.positions; ++p) {
      std::vector<float> x(shape.dim);
      loadCacheVector(shape, head, p, x);
      ASSERT_EQ(x, expected[p]) << "position " << p;
    }
  });
}

// PTX ISA, "Matrix Fragments for mma.m16n8k32": register i of lane 4g + t has row g (+ 8 for i = 1,
// 3), columns 4t .. 4t+3 (+ 16 for i = 2, 3). The rows are positions 4g and 4g + 1, in the second
// operand 4g + 2 and 4g + 3.
TEST(CacheLayout, KeysAreRowOperandsOfBytes) {
  for (int64_t dim : {32, 128}) {
    CacheShape shape{1, 32, 1, dim, {CacheEncoding::Element::I8}, CacheOrder::MmaKeys};
    for (int64_t operand = 0; operand < 2; ++operand)
      for (int64_t chunk = 0; chunk < dim / 32; ++chunk)
        for (int64_t lane = 0; lane < 32; ++lane)
          for (int64_t word = 0; word < 4; ++word)
            for (int64_t byte = 0; byte < 4; ++byte) {
              int64_t position = lane / 4 * 4 + operand * 2 + word % 2;
              int64_t element = chunk * 32 + lane % 4 * 8 + word / 2 * 4 + byte;
              EXPECT_EQ(cacheCodeByte(shape, position, element),
                        operand * 16 * dim + chunk * 512 + lane * 16 + word * 4 + byte);
            }
  }
}

// The same of m16n8k16: columns 2t and the next (+ 8 for i = 2, 3). Values are transposed: rows are
// elements, columns positions in the order 0 4 1 5 (first operand) or 2 6 3 7 (second) of a lane's.
TEST(CacheLayout, ValuesAreTransposedOperandsOfHalves) {
  constexpr int64_t ordered[2][4] = {{0, 4, 1, 5}, {2, 6, 3, 7}};
  CacheShape shape{1, 32, 1, 64, {CacheEncoding::Element::F16}, CacheOrder::MmaValues};
  for (int64_t part = 0; part < 4; ++part)
    for (int64_t operand = 0; operand < 2; ++operand)
      for (int64_t lane = 0; lane < 32; ++lane)
        for (int64_t word = 0; word < 4; ++word)
          for (int64_t half = 0; half < 2; ++half) {
            int64_t element = part * 16 + word % 2 * 8 + lane / 4;
            int64_t position = lane % 4 * 8 + ordered[operand][word / 2 * 2 + half];
            EXPECT_EQ(cacheCodeByte(shape, position, element),
                      part * 1024 + operand * 512 + lane * 16 + word * 4 + half * 2);
          }
}

TEST(CacheLayout, WhatTheTensorCoresCannotRead) {
  CacheShape shape{1, 32, 1, 64, {CacheEncoding::Element::F16}, CacheOrder::MmaKeys};
  EXPECT_FALSE(checkMmaCache(shape));
  shape.dim = 264;
  EXPECT_EQ(checkMmaCache(shape), "a GPU's cache needs heads of 1 to 256 elements, found 264");
  shape.dim = 8;
  EXPECT_FALSE(checkMmaCache(shape));
  shape.dim = 64;
  shape.encoding = {CacheEncoding::Element::F32};
  EXPECT_EQ(checkMmaCache(shape), "GPU kernels have no caches of f32");
}
