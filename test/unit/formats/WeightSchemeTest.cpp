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

TEST(WeightScheme, AsksForNothing) {
  EXPECT_TRUE(parsed("keep").asksForNothing());
  EXPECT_TRUE(parsed("keep,output=auto").asksForNothing());
  EXPECT_FALSE(parsed("keep,output=f16").asksForNothing());
  EXPECT_FALSE(parsed("q5_1").asksForNothing());
}

TEST(WeightScheme, Automatic) {
  WeightScheme scheme = parsed("auto,blk.*.attn_v=int8-g64,output=keep");
  EXPECT_TRUE(scheme.hasAutomatic());
  EXPECT_TRUE(scheme.isAutomatic("blk.0.attn_q"));
  EXPECT_FALSE(scheme.isAutomatic("blk.0.attn_v"));
  EXPECT_FALSE(scheme.isAutomatic("output"));
  EXPECT_EQ(scheme.formatOf("blk.0.attn_q"), std::nullopt);
  EXPECT_TRUE(parsed("keep,output=auto").hasAutomatic());
  EXPECT_FALSE(parsed("keep,output=f16").hasAutomatic());
}

TEST(WeightScheme, Errors) {
  auto error = [](llvm::StringRef text) {
    llvm::Expected<WeightScheme> scheme = WeightScheme::parse(text);
    return scheme ? "none" : toString(scheme.takeError());
  };
  std::string names = encodingNames();
  EXPECT_EQ(error(""), "unknown number format '': expected auto, keep, " + names);
  EXPECT_EQ(error("int9"), "unknown number format 'int9': expected auto, keep, " + names);
  EXPECT_EQ(error("q4_k,a=q9"), "unknown number format 'q9': expected auto, keep, " + names);
  EXPECT_EQ(error("q4_k,q6_k"),
            "expected WEIGHT=FORMAT after the format of all weights, found 'q6_k'");
  EXPECT_EQ(error("q4_k,=q6_k"),
            "expected WEIGHT=FORMAT after the format of all weights, found '=q6_k'");
  EXPECT_TRUE(llvm::StringRef(error("q4_k,[=q6_k")).starts_with("bad pattern of weights '['"));
}
