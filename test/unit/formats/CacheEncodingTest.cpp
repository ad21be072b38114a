// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Formats/CacheEncoding.h"
#include "sluice/Formats/CacheScheme.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

using namespace sluice::formats;
using Element = CacheEncoding::Element;

namespace {
struct Vector {
  std::vector<int8_t> codes;
  std::vector<uint16_t> scales;
  Vector(CacheEncoding encoding, const std::vector<float> &x)
      : codes(x.size()),
        scales(static_cast<size_t>(encoding.groups(static_cast<int64_t>(x.size())))) {
    quantizeCacheVector(encoding, x, codes, scales);
  }
};

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float notANumber = std::numeric_limits<float>::quiet_NaN();
} // namespace

TEST(CacheEncoding, NamesGoBothWays) {
  for (const char *name : {"f32", "f16", "bf16", "fp8", "int8", "int8-h64", "int8-h32", "int4",
                           "int4-h64", "int4-h32"}) {
    std::optional<CacheEncoding> encoding = CacheEncoding::fromName(name);
    ASSERT_TRUE(encoding) << name;
    EXPECT_EQ(encoding->name(), name);
  }
  for (const char *name : {"", "f64", "int8-g64", "int8-h128", "int2", "fp8-h64", "f16-h32", "INT8",
                           "int8-h64-h32", "int4-rot"})
    EXPECT_FALSE(CacheEncoding::fromName(name)) << name;
}

TEST(CacheEncoding, Sizes) {
  EXPECT_EQ((CacheEncoding{Element::F16}.bytesPerVector(128)), 256);
  EXPECT_EQ((CacheEncoding{Element::E4M3}.bytesPerVector(128)), 128);
  EXPECT_EQ((CacheEncoding{Element::I8}.bytesPerVector(128)), 130);
  EXPECT_EQ((CacheEncoding{Element::I4}.bytesPerVector(128)), 66);
  EXPECT_EQ((CacheEncoding{Element::I4, 32}.bytesPerVector(128)), 72);
  // 80 = 64 + 16: the last group is shorter.
  EXPECT_EQ((CacheEncoding{Element::I8, 64}.groups(80)), 2);
}

TEST(CacheEncoding, KnownCodesAndTies) {
  // The greatest is 127, so the scale is 1 and halves go to even.
  Vector a({Element::I8}, {127.0f, 0.5f, 1.5f, 2.5f, -0.5f, -126.6f, -127.0f, 0.0f});
  EXPECT_EQ(a.codes, (std::vector<int8_t>{127, 0, 2, 2, 0, -127, -127, 0}));
  EXPECT_EQ(f16ToFloat(a.scales[0]), 1.0f);
  Vector b({Element::I4}, {-8.0f, 3.5f, 2.5f, 7.6f});
  EXPECT_EQ(b.codes, (std::vector<int8_t>{-8, 4, 2, 7}));
}

TEST(CacheEncoding, GroupsHaveScalesOfTheirOwn) {
  std::vector<float> x(80, 0.0f);
  x[0] = 127.0f;
  x[31] = -127.0f;
  x[32] = 254.0f;
  x[79] = 2.0f;
  Vector v({Element::I8, 32}, x);
  ASSERT_EQ(v.scales.size(), 3u);
  EXPECT_EQ(f16ToFloat(v.scales[0]), 1.0f);
  EXPECT_EQ(f16ToFloat(v.scales[1]), 2.0f);
  EXPECT_EQ(v.codes[32], 127);
  EXPECT_EQ(v.codes[79], 127);
  EXPECT_EQ(v.codes[33], 0);
}

TEST(CacheEncoding, SmallNumbersKeepTheLeastScale) {
  Vector zeros({Element::I8}, std::vector<float>(64, 0.0f));
  EXPECT_EQ(f16ToFloat(zeros.scales[0]), cacheScaleFloor);
  EXPECT_EQ(zeros.codes, std::vector<int8_t>(64, 0));
  Vector tiny({Element::I4}, {1e-7f, -1e-5f});
  EXPECT_EQ(f16ToFloat(tiny.scales[0]), cacheScaleFloor);
  EXPECT_EQ(tiny.codes, (std::vector<int8_t>{0, 0}));
}

TEST(CacheEncoding, ARoundedScaleDoesNotOverflowACode) {
  // The scale is rounded down to f16, so that the greatest would become 128 without the clamp.
  std::mt19937 random(1);
  std::uniform_real_distribution<float> uniform(0.0f, 60000.0f);
  for (int i = 0; i < 10000; ++i) {
    float greatest = uniform(random);
    for (Element element : {Element::I8, Element::I4}) {
      CacheEncoding encoding{element};
      Vector v(encoding, {greatest, -greatest});
      EXPECT_EQ(v.codes[0], encoding.codeMax());
      EXPECT_EQ(v.codes[1], encoding.codeMin());
    }
  }
}

TEST(CacheEncoding, TheGreatestOfFourBitsGetsTheLeastCode) {
  Vector positive({Element::I4}, {8.0f, -7.0f, 1.0f, 0.0f});
  EXPECT_EQ(f16ToFloat(positive.scales[0]), -1.0f);
  EXPECT_EQ(positive.codes, (std::vector<int8_t>{-8, 7, -1, 0}));
  Vector negative({Element::I4}, {7.0f, -8.0f, 1.0f, 0.0f});
  EXPECT_EQ(f16ToFloat(negative.scales[0]), 1.0f);
  EXPECT_EQ(negative.codes, (std::vector<int8_t>{7, -8, 1, 0}));
  Vector tie({Element::I4}, {-8.0f, 8.0f});
  EXPECT_EQ(f16ToFloat(tie.scales[0]), 1.0f);
  EXPECT_EQ(tie.codes, (std::vector<int8_t>{-8, 7}));
  Vector tiny({Element::I4}, {1e-5f, 0.0f});
  EXPECT_EQ(f16ToFloat(tiny.scales[0]), -cacheScaleFloor);
}

TEST(CacheEncoding, WhatIsNotFiniteStaysVisible) {
  for (float bad : {notANumber, infinity, -infinity, 9e6f, 3e38f}) { // 9e6 / 127 is no f16
    Vector v({Element::I8, 32}, [&] {
      std::vector<float> x(64, 1.0f);
      x[3] = bad;
      return x;
    }());
    EXPECT_TRUE(std::isnan(f16ToFloat(v.scales[0]))) << bad;
    EXPECT_EQ(f16ToFloat(v.scales[1]), roundToF16(1.0f / 127)) << "the other group is as it was";
    EXPECT_EQ(v.codes[0], 0);
  }
}

TEST(CacheEncoding, E4M3) {
  EXPECT_EQ(floatToE4M3(1.0f), 0x38);
  EXPECT_EQ(floatToE4M3(-448.0f), 0xFE);
  EXPECT_EQ(floatToE4M3(1e9f), 0x7E) << "saturates";
  EXPECT_EQ(floatToE4M3(-infinity), 0xFE);
  EXPECT_EQ(floatToE4M3(notANumber) & 0x7F, 0x7F);
  EXPECT_EQ(floatToE4M3(0x1p-9f), 1) << "the least subnormal";
  EXPECT_EQ(floatToE4M3(0x1p-10f), 0) << "a tie goes to even";
  EXPECT_EQ(floatToE4M3(17.0f), floatToE4M3(16.0f)) << "a tie goes to even";
  EXPECT_EQ(floatToE4M3(19.0f), floatToE4M3(20.0f)) << "a tie goes to even";
  for (int bits = 0; bits < 256; ++bits) {
    float value = e4m3ToFloat(static_cast<uint8_t>(bits));
    if ((bits & 0x7F) == 0x7F)
      EXPECT_TRUE(std::isnan(value));
    else
      EXPECT_EQ(floatToE4M3(value), bits);
  }
}

TEST(CacheEncoding, RoundingIsWhatIsReadBack) {
  std::vector<float> x(64);
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  for (float &value : x)
    value = normal(random);
  for (const char *name : {"f32", "f16", "bf16", "fp8", "int8", "int8-h32", "int4-h64"}) {
    CacheEncoding encoding = *CacheEncoding::fromName(name);
    std::vector<float> once(x.size()), twice(x.size());
    roundCacheVector(encoding, x, once);
    double error = 0, size = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      error += std::pow(x[i] - once[i], 2);
      size += std::pow(x[i], 2);
    }
    EXPECT_LT(std::sqrt(error / size), encoding.bits() == 4        ? 0.15
                                       : encoding.isInteger()      ? 0.01
                                       : encoding.bits() == 8      ? 0.04
                                       : encoding.name()[0] == 'b' ? 3e-3
                                                                   : 4e-4)
        << name;
    if (!encoding.isInteger()) {
      roundCacheVector(encoding, once, twice);
      EXPECT_EQ(once, twice) << name;
    }
  }
}

//===----------------------------------------------------------------------===//
// Schemes
//===----------------------------------------------------------------------===//

static std::string parsed(llvm::StringRef text, bool rotates = true) {
  llvm::Expected<CacheScheme> scheme = CacheScheme::parse(text, rotates);
  if (!scheme)
    return llvm::toString(scheme.takeError());
  std::string names;
  for (int64_t layer = 0; layer < 4; ++layer)
    names += (layer ? " " : "") + scheme->layer(layer).name();
  return names;
}

TEST(CacheScheme, ListsOfLayers) {
  EXPECT_EQ(parsed("auto"), "f16 f16 f16 f16");
  EXPECT_EQ(parsed("int8"), "int8 int8 int8 int8");
  EXPECT_EQ(parsed("int4-h32-rot,0-1=int8,3=fp8"), "int8 int8 int4-h32-rot fp8");
  EXPECT_EQ(parsed("2=bf16"), "f16 f16 bf16 f16");
  EXPECT_EQ(parsed("2=int8-h64,int4"), "int4 int4 int8-h64 int4");
}

TEST(CacheScheme, Names) {
  for (auto [text, name] : {std::pair("auto", "f16"), std::pair("2=bf16", "f16,2=bf16"),
                            std::pair("1-3=auto,int4-rot,0=int8", "int4-rot,1-3=f16,0=int8")}) {
    llvm::Expected<CacheScheme> scheme = CacheScheme::parse(text, true);
    ASSERT_TRUE(static_cast<bool>(scheme));
    EXPECT_EQ(scheme->name(), name);
    EXPECT_EQ(scheme->layer(2).automatic, llvm::StringRef(text).contains("auto"));
  }
}

TEST(CacheScheme, WhatIsNone) {
  const char *expected = "unknown format 'int3': expected auto, f16, bf16, fp8, int8 or int4, the "
                         "last two with -h64 or -h32 for finer scales, and -rot to rotate keys";
  EXPECT_EQ(parsed("int3"), expected);
  EXPECT_EQ(parsed("f32").substr(0, 20), "unknown format 'f32'");
  EXPECT_EQ(parsed("").substr(0, 17), "unknown format ''");
  EXPECT_EQ(parsed("int8,").substr(0, 17), "unknown format ''");
  EXPECT_EQ(parsed("int4-rot", false), "'int4-rot': only keys are rotated");
  EXPECT_EQ(parsed("int8,int4"), "two formats for all layers: 'int8' and 'int4'");
  EXPECT_EQ(parsed("x=int4"), "'x' names no layers: expected N or N-M");
  EXPECT_EQ(parsed("3-1=int4"), "'3-1' names no layers: expected N or N-M");
  EXPECT_EQ(parsed("-1=int4"), "'-1' names no layers: expected N or N-M");
  EXPECT_EQ(parsed("0-2=int4,2=int8"), "layer 2 is named twice");
  EXPECT_EQ(llvm::toString(CacheScheme::parse("7=int4", true)->checkLayers(4)),
            "there is no layer 7, the model has 0 to 3");
}
