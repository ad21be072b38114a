// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice-support/Text.h"

#include <gtest/gtest.h>

using namespace sluice::support;

TEST(Text, QuoteKeepsWhatIsPrintable) {
  EXPECT_EQ(quote(""), "''");
  EXPECT_EQ(quote("blk.0.attn_q.weight"), "'blk.0.attn_q.weight'");
  EXPECT_EQ(quote("\xC3\xA9 \xE2\x96\x81 \xF0\x9F\x98\x80"),
            "'\xC3\xA9 \xE2\x96\x81 \xF0\x9F\x98\x80'");
}

TEST(Text, QuoteEscapesControlCharactersAndBrokenUtf8) {
  EXPECT_EQ(quote("a\nb\x7F\x01"), "'a\\x0Ab\\x7F\\x01'");
  EXPECT_EQ(quote(std::string_view("\0", 1)), "'\\x00'");
  EXPECT_EQ(quote("\xFF\xC3"), "'\\xFF\\xC3'");
  EXPECT_EQ(quote("\xC0\x80"), "'\\xC0\\x80'");          // overlong
  EXPECT_EQ(quote("\xED\xA0\x80"), "'\\xED\\xA0\\x80'"); // a surrogate
  EXPECT_EQ(quote("\xC2\x85"), "'\\xC2\\x85'");          // a C1 control character
  EXPECT_EQ(quote("\xE2\x80\xA8"), "'\\xE2\\x80\\xA8'"); // a line separator
}

TEST(Text, LongTextIsCutBetweenCharacters) {
  EXPECT_EQ(quote(std::string(80, 'x')), "'" + std::string(80, 'x') + "'");
  EXPECT_EQ(quote(std::string(81, 'x')), "'" + std::string(80, 'x') + "...'");
  EXPECT_EQ(printable("ab\xC3\xA9", 4), "ab\xC3\xA9");
  EXPECT_EQ(printable("ab\xC3\xA9", 3), "ab...");
  EXPECT_EQ(printable("abc", 0), "...");
}

TEST(Text, Utf8) {
  Utf8Char e = decodeUtf8("\xC3\xA9");
  EXPECT_EQ(e.status, Utf8Status::Valid);
  EXPECT_EQ(e.length, 2u);
  EXPECT_EQ(e.codePoint, 0xE9u);
  EXPECT_EQ(decodeUtf8("\xE2\x96").status, Utf8Status::Truncated);
  EXPECT_EQ(decodeUtf8("\xF4\x90\x80\x80").status, Utf8Status::Invalid); // over U+10FFFF
  EXPECT_EQ(validUtf8Prefix("ab\xC3\xA9\xFF"), 4u);
}

TEST(Text, HexDigits) {
  EXPECT_EQ(hexDigits(0), "0000000000000000");
  EXPECT_EQ(hexDigits(0x0123456789ABCDEF), "0123456789abcdef");
}
