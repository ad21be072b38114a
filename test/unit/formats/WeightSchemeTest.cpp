// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Formats/WeightScheme.h"

#include <gtest/gtest.h>

using namespace sluice::formats;

static WeightScheme parsed(llvm::StringRef text) {
  llvm::Expected<WeightScheme> scheme = WeightScheme::parse(text);
  if (!scheme) {
    ADD_FAILURE() << toString(scheme.takeError());
    return *WeightScheme::parse("keep");
  }
  return std::move(*scheme);
}

static std::string nameOf(const WeightScheme &scheme, llvm::StringRef weight) {
  std::optional<Encoding> format = scheme.formatOf(weight);
  return format ? format->name() : "keep";
}

TEST(WeightScheme, TheLastPatternThatMatchesCounts) {
  WeightScheme scheme = parsed("q4_k,blk.*.ffn_down=q6_k,blk.[12].ffn_down=int8-g32,output=keep");
  EXPECT_EQ(nameOf(scheme, "blk.0.attn_q"), "q4_k");
  EXPECT_EQ(nameOf(scheme, "blk.0.ffn_down"), "q6_k");
  EXPECT_EQ(nameOf(scheme, "blk.2.ffn_down"), "int8-g32");
  EXPECT_EQ(nameOf(scheme, "blk.12.ffn_down"), "q6_k");
  EXPECT_EQ(nameOf(scheme, "output"), "keep");
  EXPECT_EQ(nameOf(scheme, "output_norm"), "q4_k");
}

TEST(WeightScheme, KeepsAll) {
  EXPECT_TRUE(parsed("keep").keepsAll());
  EXPECT_TRUE(parsed("keep,output=keep").keepsAll());
  EXPECT_FALSE(parsed("keep,output=f16").keepsAll());
  EXPECT_FALSE(parsed("q5_1").keepsAll());
}

TEST(WeightScheme, Errors) {
  auto error = [](llvm::StringRef text) {
    llvm::Expected<WeightScheme> scheme = WeightScheme::parse(text);
    return scheme ? "none" : toString(scheme.takeError());
  };
  std::string names = encodingNames();
  EXPECT_EQ(error(""), "unknown number format '': expected keep, " + names);
  EXPECT_EQ(error("int9"), "unknown number format 'int9': expected keep, " + names);
  EXPECT_EQ(error("q4_k,a=q9"), "unknown number format 'q9': expected keep, " + names);
  EXPECT_EQ(error("q4_k,q6_k"),
            "expected WEIGHT=FORMAT after the format of all weights, found 'q6_k'");
  EXPECT_EQ(error("q4_k,=q6_k"),
            "expected WEIGHT=FORMAT after the format of all weights, found '=q6_k'");
  EXPECT_TRUE(llvm::StringRef(error("q4_k,[=q6_k")).starts_with("bad pattern of weights '['"));
}
