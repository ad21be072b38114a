// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Formats/RowOrder.h"

#include <gtest/gtest.h>

using namespace sluice::formats;
using Kind = RowSegment::Kind;

static RowOrder expand(std::vector<RowSegment> segments, std::vector<int64_t> rows) {
  llvm::Expected<RowOrder> order = RowOrder::get(segments, rows);
  EXPECT_TRUE(bool(order)) << (order ? "" : toString(order.takeError()));
  return order ? *order : RowOrder();
}

static std::string failure(std::vector<RowSegment> segments, std::vector<int64_t> rows) {
  llvm::Expected<RowOrder> order = RowOrder::get(segments, rows);
  return order ? "no error" : toString(order.takeError());
}

TEST(RowOrder, Natural) {
  RowOrder order = expand({{Kind::Natural, 0, 0}}, {18});
  ASSERT_EQ(order.rows(), 32);
  for (int64_t i = 0; i < 18; ++i) {
    EXPECT_EQ(order.places()[i], (RowPlace{0, i}));
    EXPECT_EQ(order.packedRow(0, i), i);
  }
  for (int64_t i = 18; i < 32; ++i)
    EXPECT_TRUE(order.places()[i].empty());
}

TEST(RowOrder, NoSegmentsMeansAllSourcesInOrder) {
  RowOrder order = expand({}, {3, 16, 1});
  ASSERT_EQ(order.rows(), 48);
  EXPECT_EQ(order.packedRow(1, 0), 16);
  EXPECT_EQ(order.packedRow(2, 0), 32);
  EXPECT_TRUE(order.places()[3].empty());
}

TEST(RowOrder, Pairs) {
  // Two heads of 32 rows: two tiles each.
  RowOrder order = expand({{Kind::Pairs, 0, 32}}, {64});
  ASSERT_EQ(order.rows(), 64);
  EXPECT_EQ(order.places()[0], (RowPlace{0, 0}));
  EXPECT_EQ(order.places()[7], (RowPlace{0, 7}));
  EXPECT_EQ(order.places()[8], (RowPlace{0, 16}));
  EXPECT_EQ(order.places()[15], (RowPlace{0, 23}));
  EXPECT_EQ(order.places()[16], (RowPlace{0, 8}));
  EXPECT_EQ(order.places()[24], (RowPlace{0, 24}));
  EXPECT_EQ(order.places()[32], (RowPlace{0, 32}));
  EXPECT_EQ(order.places()[63], (RowPlace{0, 63}));
}

TEST(RowOrder, PairsOfAnOddHead) {
  // A head of 20: ten pairs, eight in the first tile and two in the second.
  RowOrder order = expand({{Kind::Pairs, 0, 20}}, {40});
  ASSERT_EQ(order.rows(), 64);
  EXPECT_EQ(order.places()[8], (RowPlace{0, 10}));
  EXPECT_EQ(order.places()[16], (RowPlace{0, 8}));
  EXPECT_EQ(order.places()[17], (RowPlace{0, 9}));
  EXPECT_TRUE(order.places()[18].empty());
  EXPECT_EQ(order.places()[24], (RowPlace{0, 18}));
  EXPECT_EQ(order.places()[25], (RowPlace{0, 19}));
  EXPECT_TRUE(order.places()[26].empty());
  EXPECT_EQ(order.places()[32], (RowPlace{0, 20}));
}

TEST(RowOrder, Zip) {
  RowOrder order = expand({{Kind::Zip, 1, 0}}, {10, 10});
  ASSERT_EQ(order.rows(), 32);
  EXPECT_EQ(order.places()[0], (RowPlace{1, 0}));
  EXPECT_EQ(order.places()[8], (RowPlace{0, 0}));
  EXPECT_EQ(order.places()[17], (RowPlace{1, 9}));
  EXPECT_EQ(order.places()[25], (RowPlace{0, 9}));
  EXPECT_TRUE(order.places()[18].empty());
  EXPECT_EQ(order.packedRow(0, 9), 25);
}

TEST(RowOrder, InverseIsInverse) {
  // The packed q, k, v of grouped-query attention, and a mixture.
  struct Case {
    std::vector<RowSegment> segments;
    std::vector<int64_t> rows;
  };
  for (const Case &c :
       {Case{{{Kind::Pairs, 0, 64}, {Kind::Pairs, 1, 64}, {Kind::Natural, 2, 0}}, {256, 128, 128}},
        Case{{{Kind::Pairs, 2, 6}, {Kind::Zip, 0, 3}, {Kind::Natural, 1, 0}}, {33, 5, 18, 33}}}) {
    RowOrder order = expand(c.segments, c.rows);
    int64_t occupied = 0, rows = 0;
    for (int64_t i = 0; i < order.rows(); ++i)
      if (!order.places()[i].empty()) {
        ++occupied;
        EXPECT_EQ(order.packedRow(order.places()[i].source, order.places()[i].row), i);
      }
    for (size_t source = 0; source < c.rows.size(); ++source) {
      EXPECT_EQ(static_cast<int64_t>(order.packedRows(static_cast<int64_t>(source)).size()),
                c.rows[source]);
      rows += c.rows[source];
    }
    EXPECT_EQ(occupied, rows);
    EXPECT_EQ(order.rows() % 16, 0);
  }
}

TEST(RowOrder, Errors) {
  EXPECT_EQ(failure({}, {}), "row order: there are no sources");
  EXPECT_EQ(failure({}, {4, 0}), "row order: source 1 has 0 rows, expected 1 to 2147483648");
  EXPECT_EQ(failure({{Kind::Natural, 1, 0}}, {4}),
            "row order: a segment names source 1, but there are 1");
  EXPECT_EQ(failure({{Kind::Natural, -1, 0}}, {4}),
            "row order: a segment names source -1, but there are 1");
  EXPECT_EQ(failure({{Kind::Zip, 0, 5}}, {4}),
            "row order: a segment names source 5, but there are 1");
  EXPECT_EQ(failure({{Kind::Natural, 0, 0}, {Kind::Natural, 0, 0}}, {4}),
            "row order: source 0 is named twice");
  EXPECT_EQ(failure({{Kind::Zip, 0, 0}}, {4}), "row order: source 0 is named twice");
  EXPECT_EQ(failure({{Kind::Natural, 0, 0}}, {4, 4}), "row order: source 1 is in no segment");
  EXPECT_EQ(failure({{Kind::Zip, 0, 1}}, {4, 5}),
            "row order: zipped sources 0 and 1 have 4 and 5 rows, expected the same number");
  for (int64_t head : {0, 1, -2, 3, 6, 128})
    EXPECT_EQ(failure({{Kind::Pairs, 0, head}}, {64}),
              "row order: heads of " + std::to_string(head) +
                  " rows do not suit source 0 of 64 rows, expected an even divisor");
  // Refused before anything is allocated.
  EXPECT_EQ(
      failure({}, {int64_t(1) << 31, 16}),
      "row order: the packed matrix has 134217729 tiles of 16 rows, expected at most 134217728");
}

TEST(RowOrder, RotaryRowsOfGguf) {
  // A head of 8: the file holds model rows 0 4 1 5 2 6 3 7.
  int64_t file[] = {0, 4, 1, 5, 2, 6, 3, 7};
  for (int64_t i = 0; i < 8; ++i) {
    EXPECT_EQ(rotaryRowOfGguf(i, 8), file[i]);
    EXPECT_EQ(rotaryRowOfGguf(16 + i, 8), 16 + file[i]);
    EXPECT_EQ(ggufRotaryRow(file[i], 8), i);
    EXPECT_EQ(ggufRotaryRow(16 + file[i], 8), 16 + i);
  }
  for (int64_t head : {2, 6, 64, 128})
    for (int64_t row = 0; row < 3 * head; ++row)
      EXPECT_EQ(ggufRotaryRow(rotaryRowOfGguf(row, head), head), row);
}
