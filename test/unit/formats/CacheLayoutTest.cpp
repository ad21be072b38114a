// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Formats/CacheLayout.h"

#include <gtest/gtest.h>

#include <vector>

using namespace sluice::formats;

namespace {
constexpr int64_t positions = 3 * cachePiece;

using PlaceOf = int64_t (*)(int64_t dim, int64_t position, int64_t d);

class CacheLayout : public testing::TestWithParam<int64_t> {};

/// Every element has two bytes of its own, and a head has no others.
void expectBijection(int64_t dim, PlaceOf placeOf) {
  std::vector<bool> taken(positions * dim);
  for (int64_t position = 0; position < positions; ++position)
    for (int64_t d = 0; d < dim; ++d) {
      int64_t byte = placeOf(dim, position, d);
      ASSERT_EQ(byte % 2, 0);
      ASSERT_GE(byte, 0);
      ASSERT_LT(byte / 2, positions * dim) << "position " << position << ", element " << d;
      ASSERT_FALSE(taken[byte / 2]) << "position " << position << ", element " << d;
      taken[byte / 2] = true;
      EXPECT_EQ(byte / cachePieceBytes(dim), position / cachePiece);
    }
}

TEST_P(CacheLayout, KeysAreABijection) { expectBijection(GetParam(), keyByte); }

TEST_P(CacheLayout, ValuesAreABijection) { expectBijection(GetParam(), valueByte); }

// What a lane of the tensor cores' m16n8k16 reads. A row's operand words are, over all lanes and
// words, each element of a head once, and query and key agree on which.
TEST_P(CacheLayout, KeysAreRowOperands) {
  int64_t dim = GetParam();
  for (int64_t position = 0; position < positions; ++position)
    for (int64_t lane = position % 8 * 4, t = 0; t < 4; ++t, ++lane)
      for (int64_t part = 0; part * 32 < dim; ++part) {
        bool wide = part * 32 + 32 <= dim;
        int64_t elements = wide ? 8 : 4;
        int64_t place = position / 8 * 16 * dim + part * 512 + lane * elements * 2;
        for (int64_t e = 0; e < elements; ++e)
          EXPECT_EQ(keyByte(dim, position, part * 32 + t * elements + e), place + e * 2);
      }
}

// PTX ISA, "Matrix Fragments for mma.m16n8k16", operand A of 16-bit elements: register i of lane l
// has row l / 4 (+ 8 for i = 1, 3), columns l % 4 * 2 and the next (+ 8 for i = 2, 3). Rows are
// elements of a head, columns positions.
TEST_P(CacheLayout, ValuesAreColumnsOfRowOperands) {
  int64_t dim = GetParam();
  for (int64_t block = 0; block < positions / 16; ++block)
    for (int64_t part = 0; part < dim / 16; ++part)
      for (int64_t lane = 0; lane < 32; ++lane)
        for (int64_t i = 0; i < 4; ++i)
          for (int64_t half = 0; half < 2; ++half) {
            int64_t d = part * 16 + lane / 4 + (i % 2) * 8;
            int64_t position = block * 16 + lane % 4 * 2 + half + i / 2 * 8;
            EXPECT_EQ(valueByte(dim, position, d),
                      (block * (dim / 16) + part) * 512 + lane * 16 + i * 4 + half * 2);
          }
}

INSTANTIATE_TEST_SUITE_P(HeadSizes, CacheLayout, testing::Values(16, 48, 64, 80, 96, 128, 256));

TEST(CacheShape, Accepts) {
  EXPECT_EQ(checkCacheShape(32, 16), std::nullopt);
  EXPECT_EQ(checkCacheShape(4096, 128), std::nullopt);
  EXPECT_EQ(checkCacheShape(64, 256), std::nullopt);
}

TEST(CacheShape, Rejects) {
  EXPECT_EQ(checkCacheShape(100, 64), "a GPU's cache needs a multiple of 32 positions, found 100");
  EXPECT_EQ(checkCacheShape(0, 64), "a GPU's cache needs a multiple of 32 positions, found 0");
  for (int64_t dim : {0, 8, 24, 72, 272})
    EXPECT_EQ(checkCacheShape(64, dim), "a GPU's cache needs heads of a multiple of 16 elements, "
                                        "at most 256, found " +
                                            std::to_string(dim));
}
} // namespace
