// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Formats/Quantizer.h"
#include "GgmlRules.h"

#include "llvm/Support/xxhash.h"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <cmath>
#include <fstream>
#include <limits>
#include <random>

using namespace sluice::formats;

namespace {

struct Row {
  std::vector<int8_t> q, zeros;
  std::vector<uint32_t> scales;
  std::vector<float> values;
  double error = 0; ///< sum of squares
};

Row quantize(llvm::ArrayRef<float> x, Encoding format) {
  Row row;
  size_t groups = static_cast<size_t>(format.groupsPerRow(static_cast<int64_t>(x.size())));
  row.q.resize(x.size());
  row.scales.resize(groups);
  row.zeros.resize(format.hasZeroPoint() ? groups : 0);
  row.values.resize(x.size());
  llvm::Error error = quantizeRow(x, format, row.q, row.scales, row.zeros);
  EXPECT_FALSE(bool(error)) << toString(std::move(error));
  dequantizeRow(format, {row.q, row.scales, row.zeros, {}, {}}, row.values);
  for (size_t i = 0; i < x.size(); ++i)
    row.error += (double(x[i]) - row.values[i]) * (double(x[i]) - row.values[i]);
  return row;
}

std::string failure(llvm::ArrayRef<float> x, Encoding format, int64_t rowIndex) {
  std::vector<int8_t> q(x.size()), zeros(format.hasZeroPoint() ? 1 : 0);
  std::vector<uint32_t> scales(1);
  llvm::Error error = quantizeRow(x, format, q, scales, zeros, rowIndex);
  return error ? toString(std::move(error)) : "no error";
}

Encoding format(const char *name) { return *Encoding::fromName(name); }

/// The least squared error of one group over every f16 scale, of both signs, and every zero point
/// of the format.
double optimum(llvm::ArrayRef<float> x, Encoding f) {
  double greatest = 0, best = 0;
  for (float v : x) {
    greatest = std::max(greatest, std::fabs(double(v)));
    best += double(v) * v; // all zeros
  }
  int from = std::max<int>(1, floatToF16(static_cast<float>(
                                  greatest / (f.element == Encoding::Element::I4 ? 40 : 300))));
  int to = floatToF16(static_cast<float>(greatest / (f.element == Encoding::Element::I4 ? 3 : 60)));
  for (int bits = from; bits <= to; ++bits)
    for (int zero = f.hasZeroPoint() ? f.qMin() : -1; zero <= (f.hasZeroPoint() ? f.qMax() : 0);
         ++zero) {
      // Symmetric: zero -1 stands for the range of a negative scale.
      double s = f16ToFloat(static_cast<uint16_t>(bits)), error = 0;
      for (float v : x) {
        double r = std::clamp<double>(std::nearbyint(v / s), f.qMin() - zero, f.qMax() - zero);
        error += (v - r * s) * (v - r * s);
      }
      best = std::min(best, error);
    }
  return best;
}

/// Matrices of the sample model, in file order: every `stride`-th row of each.
struct Matrix {
  int64_t columns;
  std::vector<float> values;
};

std::vector<Matrix> sampleWeights(int64_t stride) {
  std::vector<Matrix> matrices;
  for (const char *shard :
       {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}) {
    std::ifstream in(std::string(SLUICE_MODELS "/llama-4m/") + shard, std::ios::binary);
    uint64_t headerBytes = 0;
    in.read(reinterpret_cast<char *>(&headerBytes), 8);
    std::string header(headerBytes < (1u << 20) ? headerBytes : 0, '\0');
    in.read(header.data(), static_cast<std::streamsize>(header.size()));
    if (!in) {
      ADD_FAILURE() << "cannot read " << shard;
      return {};
    }
    nlohmann::json tensors = nlohmann::json::parse(header);
    for (auto &[name, tensor] : tensors.items()) {
      if (name == "__metadata__" || tensor["shape"].size() != 2)
        continue;
      EXPECT_EQ(tensor["dtype"], "F16");
      Matrix matrix{tensor["shape"][1], {}};
      int64_t rows = tensor["shape"][0], offset = tensor["data_offsets"][0];
      std::vector<uint16_t> bits(static_cast<size_t>(matrix.columns));
      std::vector<float> row(bits.size());
      for (int64_t r = 0; r < rows; r += stride) {
        in.seekg(static_cast<std::streamoff>(8 + headerBytes) + offset + r * matrix.columns * 2);
        in.read(reinterpret_cast<char *>(bits.data()), matrix.columns * 2);
        f16ToFloat(bits, row);
        matrix.values.insert(matrix.values.end(), row.begin(), row.end());
      }
      EXPECT_TRUE(bool(in)) << name;
      matrices.push_back(std::move(matrix));
    }
  }
  return matrices;
}

template <typename Body> void forRows(const std::vector<Matrix> &matrices, Body body) {
  for (const Matrix &matrix : matrices)
    for (size_t at = 0; at < matrix.values.size(); at += static_cast<size_t>(matrix.columns))
      body(llvm::ArrayRef<float>(matrix.values).slice(at, static_cast<size_t>(matrix.columns)));
}

} // namespace

TEST(Quantizer, ExactWhereItCanBe) {
  // All of -8..7 times 0.5 needs the whole range with a positive scale, its negation with a
  // negative one.
  std::vector<float> x(32), negated(32);
  for (int i = 0; i < 32; ++i) {
    x[i] = 0.5f * static_cast<float>(i % 16 - 8);
    negated[i] = -x[i];
  }
  Row row = quantize(x, format("int4-g32"));
  EXPECT_EQ(row.scales, std::vector<uint32_t>{floatToF16(0.5f)});
  for (int i = 0; i < 32; ++i)
    EXPECT_EQ(row.q[i], i % 16 - 8);
  row = quantize(negated, format("int4-g32"));
  EXPECT_EQ(row.scales, std::vector<uint32_t>{floatToF16(-0.5f)});
  EXPECT_EQ(row.q[0], -8);
  EXPECT_EQ(row.error, 0.0);

  // 5..20 times 0.25: only a zero point at the range's end leaves 16 steps, and 0 must stay inside
  // the range.
  for (int i = 0; i < 32; ++i)
    x[i] = 0.25f * static_cast<float>(i % 16);
  row = quantize(x, format("int4-g32-zp"));
  EXPECT_EQ(row.error, 0.0);
  EXPECT_EQ(row.zeros, std::vector<int8_t>{-8});
  for (int i = 0; i < 32; ++i)
    x[i] = 0.25f * static_cast<float>(i % 16 - 11);
  row = quantize(x, format("int4-g32-zp"));
  EXPECT_EQ(row.error, 0.0);
  EXPECT_EQ(row.zeros, std::vector<int8_t>{3});
  EXPECT_GT(quantize(x, format("int4-g32")).error, 0.0);

  for (int i = 0; i < 32; ++i)
    x[i] = static_cast<float>(i * 8 - 128) / 64; // 120 at most
  EXPECT_EQ(quantize(x, format("int8-g32")).error, 0.0);
  EXPECT_EQ(quantize(std::vector<float>(32, 3.0f), format("int4-g32")).error, 0.0);
}

TEST(Quantizer, Zeros) {
  for (const char *name : {"int8-g32", "int4-g32", "int8-g32-zp", "int4-g32-zp"}) {
    Row row = quantize(std::vector<float>(40, 0.0f), format(name));
    EXPECT_EQ(row.q, std::vector<int8_t>(40, 0));
    EXPECT_EQ(row.scales, std::vector<uint32_t>(2, 0));
    EXPECT_EQ(row.zeros, std::vector<int8_t>(format(name).hasZeroPoint() ? 2 : 0, 0));
    // A group of zeros beside one that is not; minus zero is zero.
    std::vector<float> x(64, -0.0f);
    x[40] = 1.0f;
    row = quantize(x, format(name));
    EXPECT_EQ(row.scales[0], 0);
    EXPECT_NE(row.scales[1], 0);
    EXPECT_NEAR(row.values[40], 1.0f, 1e-3f);
    EXPECT_EQ(row.values[41], 0.0f);
  }
}

// Where scales are subnormal in f16 or vanish.
TEST(Quantizer, TinyWeights) {
  for (const char *name : {"int8-g32", "int4-g32", "int8-g32-zp", "int4-g32-zp"}) {
    Encoding f = format(name);
    for (float unit :
         {0x1p-149f, 0x1p-60f, 0x1p-26f, 0x1p-25f}) { // no f16 scale rounds these to anything but 0
      std::vector<float> x(32, unit);
      x[1] = -unit;
      Row row = quantize(x, f);
      EXPECT_EQ(row.q, std::vector<int8_t>(32, 0)) << name;
      EXPECT_EQ(row.scales[0], 0) << name;
    }
    for (float unit : {0x1.8p-25f, 0x1p-24f, 0x1p-22f, 1e-6f, 1e-5f, 1e-4f}) {
      std::vector<float> x;
      for (int i = 0; i < 32; ++i)
        x.push_back(unit * std::cos(static_cast<float>(i)));
      Row row = quantize(x, f);
      EXPECT_NE(row.scales[0] & 0x7FFF, 0) << name << " " << unit;
      if (!f.hasZeroPoint() || f.element == Encoding::Element::I4)
        EXPECT_LE(row.error, 1.02 * optimum(x, f) + 1e-30) << name << " " << unit;
    }
  }
}

TEST(Quantizer, SingleOutlier) {
  for (const char *name : {"int8-g32", "int4-g32", "int4-g256", "int8-channel", "int4-g256-zp"})
    for (float outlier : {1000.0f, -1000.0f}) {
      std::vector<float> x(256, 0.0f);
      x[77] = outlier;
      Row row = quantize(x, format(name));
      EXPECT_NEAR(row.values[77], outlier, 0.5f) << name; // the rounding of an f16 scale, at worst
      EXPECT_EQ(row.values[76], 0.0f);
      EXPECT_EQ(row.values[78], 0.0f);
    }
  // In a long group one outlier is better clipped than the other 4095 weights lost.
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> x(4096);
  for (float &v : x)
    v = normal(random);
  x[5] = 20.0f;
  Row row = quantize(x, format("int4-channel"));
  EXPECT_LT(std::fabs(row.values[5]), 8.0f);
  EXPECT_LT(row.error / 4096, 0.12);
}

TEST(Quantizer, Errors) {
  std::vector<float> x(32, 1.0f);
  x[7] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(failure(x, format("int8-g32"), 12),
            "row 12, column 7: weight is NaN, expected a finite number");
  x[3] = -std::numeric_limits<float>::infinity();
  EXPECT_EQ(failure(x, format("int4-g32-zp"), 0),
            "row 0, column 3: weight is infinite, expected a finite number");
  x[3] = x[7] = 1.0f;
  x[30] = -8.4e6f;
  EXPECT_EQ(failure(x, format("int8-g32"), 5),
            "row 5, column 30: weight is -8400000, expected at most 8319008 in magnitude for "
            "int8-g32");
  x[30] = 5e5f;
  EXPECT_EQ(failure(x, format("int8-g32"), 5), "no error");
  EXPECT_EQ(
      failure(x, format("int4-g32-zp"), 5),
      "row 5, column 30: weight is 500000, expected at most 458528 in magnitude for int4-g32-zp");
  EXPECT_EQ(toString(checkFinite({1.0f, std::numeric_limits<float>::infinity()}, 9)),
            "row 9, column 1: weight is infinite, expected a finite number");
  EXPECT_FALSE(bool(checkFinite({1.0f, 3e38f}, 9)));
}

TEST(Quantizer, GreatestWeights) {
  for (const char *name : {"int8-g32", "int4-g32", "int8-g32-zp", "int4-g32-zp"}) {
    float limit = 65504.0f * static_cast<float>(format(name).qMax());
    std::vector<float> x(32, 0.0f);
    x[0] = limit;
    x[1] = -limit;
    Row row = quantize(x, format(name));
    EXPECT_NEAR(row.values[0], limit, limit / 14) << name;
    EXPECT_NEAR(row.values[1], -limit, limit / 14) << name;
    for (uint32_t scale : row.scales)
      EXPECT_TRUE(std::isfinite(f16ToFloat(scale)));
  }
}

TEST(Quantizer, FloatRows) {
  std::vector<float> x{1.0f, 65519.0f, -1e-9f};
  std::vector<uint16_t> bits(3);
  ASSERT_FALSE(bool(convertRow(x, Encoding::Element::F16, bits)));
  EXPECT_EQ(bits, (std::vector<uint16_t>{0x3C00, 0x7BFF, 0x8000}));
  x[1] = 65520.0f;
  EXPECT_EQ(toString(convertRow(x, Encoding::Element::F16, bits, 2)),
            "row 2, column 1: weight is 65520, expected below 65520 in magnitude for f16");
  ASSERT_FALSE(bool(convertRow(x, Encoding::Element::BF16, bits)));
  EXPECT_EQ(bits[1], floatToBf16(65520.0f));
  x[2] = 3.4e38f;
  EXPECT_EQ(toString(convertRow(x, Encoding::Element::BF16, bits)),
            "row 0, column 2: weight is 3.4e+38, expected at most 3.3961773e+38 in magnitude for "
            "bf16");
  // Neighbours of a limit are told apart.
  x[2] = std::nextafter(8319008.0f, HUGE_VALF);
  std::vector<int8_t> q(3);
  std::vector<uint32_t> scales(1);
  EXPECT_EQ(toString(quantizeRow(x, *Encoding::fromName("int8-channel"), q, scales, {})),
            "row 0, column 2: weight is 8319008.5, expected at most 8319008 in magnitude for "
            "int8-channel");
  x[0] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(toString(convertRow(x, Encoding::Element::BF16, bits)),
            "row 0, column 0: weight is NaN, expected a finite number");
}

TEST(Quantizer, ScalesThatAreKeptAreFinite) {
  std::vector<uint32_t> scales{0x3C00, 0x0000, 0xFBFF};
  EXPECT_FALSE(
      bool(checkFiniteNumbers(*Encoding::fromName("int4-g32"), {{}, scales, {}, {}, {}}, 96, 5)));
  scales[2] = 0xFE00;
  EXPECT_EQ(toString(checkFiniteNumbers(*Encoding::fromName("int4-g32"), {{}, scales, {}, {}, {}},
                                        96, 5)),
            "row 5, column 64: the scale of its group is NaN, expected a finite number");
  scales[1] = 0x7C00;
  EXPECT_EQ(toString(checkFiniteNumbers(*Encoding::fromName("int4-g32"), {{}, scales, {}, {}, {}},
                                        96, 5)),
            "row 5, column 32: the scale of its group is infinite, expected a finite number");
}

// Every integer is the nearest one for its scale, and zero points are in range.
TEST(Quantizer, NearestIntegers) {
  std::mt19937 random(4);
  std::normal_distribution<float> normal(0.1f, 1.0f);
  for (const char *name :
       {"int8-g32", "int8-g128-zp", "int4-g64", "int4-g32-zp", "int4-channel-zp", "int8-channel"}) {
    Encoding f = format(name);
    std::vector<float> x(1000); // ends in a short group
    for (float &v : x)
      v = normal(random);
    Row row = quantize(x, f);
    for (size_t i = 0; i < x.size(); ++i) {
      size_t g = i / static_cast<size_t>(f.groupColumns(1000));
      double s = f16ToFloat(row.scales[g]);
      int zero = f.hasZeroPoint() ? row.zeros[g] : 0;
      ASSERT_TRUE(row.q[i] >= f.qMin() && row.q[i] <= f.qMax());
      ASSERT_TRUE(zero >= f.qMin() && zero <= f.qMax());
      double wanted = std::clamp(x[i] / s + zero, double(f.qMin()), double(f.qMax()));
      ASSERT_NEAR(row.q[i], wanted, 0.5001) << name << " column " << i;
    }
  }
}

TEST(Quantizer, PowersOfTwoOnlyMoveTheScale) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  std::vector<float> x(256), scaled(256);
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = normal(random);
    scaled[i] = x[i] * 0x1p-6f;
  }
  for (const char *name : {"int4-g32", "int8-g64", "int4-g128-zp", "int8-channel-zp"}) {
    Row a = quantize(x, format(name)), b = quantize(scaled, format(name));
    EXPECT_EQ(a.q, b.q);
    EXPECT_EQ(a.zeros, b.zeros);
    for (size_t g = 0; g < a.scales.size(); ++g)
      EXPECT_EQ(f16ToFloat(a.scales[g]) * 0x1p-6f, f16ToFloat(b.scales[g]));
  }
}

// Against every scale that f16 has.
TEST(Quantizer, CloseToTheOptimum) {
  std::mt19937 random(6);
  std::normal_distribution<float> normal;
  std::exponential_distribution<float> exponential;
  std::uniform_real_distribution<float> uniform(-1, 1);
  struct {
    const char *name;
    int columns, groups;
    double bound; // of the sums of errors
  } cases[] = {{"int4-g32", 32, 60, 1.01},    {"int4-g64", 64, 30, 1.01},
               {"int4-g256", 256, 10, 1.01},  {"int8-g32", 32, 40, 1.12},
               {"int8-g256", 256, 10, 1.02},  {"int4-channel", 700, 5, 1.01},
               {"int4-g32-zp", 32, 10, 1.03}, {"int4-g128-zp", 128, 5, 1.02}};
  for (auto &c : cases)
    for (int kind = 0; kind < 4; ++kind) {
      double mine = 0, best = 0;
      for (int group = 0; group < c.groups; ++group) {
        std::vector<float> x(static_cast<size_t>(c.columns));
        for (float &v : x)
          v = kind == 0   ? normal(random)
              : kind == 1 ? exponential(random) * (random() % 2 ? 1.0f : -1.0f)
              : kind == 2 ? uniform(random)
                          : exponential(random); // one-sided
        mine += quantize(x, format(c.name)).error;
        best += optimum(x, format(c.name));
      }
      EXPECT_LE(mine, c.bound * best) << c.name << " distribution " << kind;
      EXPECT_GE(mine, 0.999 * best) << c.name << " distribution " << kind;
    }
}

// On real weights: better than the rule that GGUF's files of the same size are made with, and the
// more bits the better.
TEST(Quantizer, BetterThanGgufOnRealWeights) {
  std::vector<Matrix> weights = sampleWeights(16);
  ASSERT_FALSE(weights.empty());
  auto errorOf = [&](const char *name) {
    double sum = 0;
    forRows(weights, [&](llvm::ArrayRef<float> x) { sum += quantize(x, format(name)).error; });
    return sum;
  };
  double q4 = 0, q8 = 0;
  forRows(weights, [&](llvm::ArrayRef<float> x) {
    std::vector<int8_t> q(x.size());
    std::vector<uint32_t> scales(x.size() / 32);
    std::vector<float> values(x.size());
    for (bool four : {true, false}) {
      four ? ggml::quantizeRowQ4_0(x, q, scales) : ggml::quantizeRowQ8_0(x, q, scales);
      dequantizeRow(four ? *Encoding::fromName("int4-g32") : *Encoding::fromName("int8-g32"),
                    {q, scales, {}, {}, {}}, values);
      for (size_t i = 0; i < x.size(); ++i)
        (four ? q4 : q8) += (double(x[i]) - values[i]) * (double(x[i]) - values[i]);
    }
  });
  EXPECT_LT(errorOf("int4-g32"), 0.90 * q4);
  EXPECT_LT(errorOf("int4-g32-zp"), 0.81 * q4);
  EXPECT_LT(errorOf("int4-g64"), 1.10 * q4);
  EXPECT_LT(errorOf("int4-g128"), 1.26 * q4);
  EXPECT_LT(errorOf("int8-g32"), 0.80 * q8);
  EXPECT_LT(errorOf("int8-g32-zp"), 0.65 * q8);
  EXPECT_LT(errorOf("int8-channel"), 1.65 * q8);
  EXPECT_LT(errorOf("int4-g32"), errorOf("int4-g64"));
  EXPECT_LT(errorOf("int4-g64"), errorOf("int4-g128"));
  EXPECT_LT(errorOf("int4-g128"), errorOf("int4-g256"));
  EXPECT_LT(errorOf("int8-g128-zp"), errorOf("int8-g128"));
}

// The same bytes on every machine and in every build: quantized files can be compared by checksum.
TEST(Quantizer, SameOnEveryMachine) {
  std::vector<Matrix> weights = sampleWeights(64);
  struct {
    const char *name;
    uint64_t hash;
  } table[] = {{"int4-g32", 15067158175498964757u},
               {"int4-g64-zp", 1757151699431761694u},
               {"int8-g128", 7481698381801229639u},
               {"int8-channel", 6384267331754852220u},
               {"int4-channel-zp", 14845390075032090157u}};
  for (auto &entry : table) {
    std::vector<uint8_t> bytes;
    forRows(weights, [&](llvm::ArrayRef<float> x) {
      Row row = quantize(x, format(entry.name));
      bytes.insert(bytes.end(), row.q.begin(), row.q.end());
      bytes.insert(bytes.end(), row.zeros.begin(), row.zeros.end());
      for (uint32_t scale : row.scales) {
        bytes.push_back(static_cast<uint8_t>(scale));
        bytes.push_back(static_cast<uint8_t>(scale >> 8));
      }
    });
    EXPECT_EQ(llvm::xxh3_64bits(bytes), entry.hash) << entry.name;
  }
}

//===----------------------------------------------------------------------===//
// Formats that are not plain
//===----------------------------------------------------------------------===//

namespace {
/// Relative squared error of normally distributed weights.
double normalError(const Encoding &encoding, const std::vector<float> &x) {
  EncodedRows rows(encoding, 1, static_cast<int64_t>(x.size()));
  llvm::Error error = quantizeRow(x, encoding, rows.numbers(0));
  EXPECT_FALSE(bool(error)) << toString(std::move(error));
  std::vector<float> values(x.size());
  dequantizeRow(encoding, rows.row(0), values);
  double errors = 0, squares = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    errors += (double(x[i]) - values[i]) * (double(x[i]) - values[i]);
    squares += double(x[i]) * x[i];
  }
  return errors / squares;
}
} // namespace

TEST(QuantizeUnits, ErrorsOfNormalWeights) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal(0, 0.02f);
  std::vector<float> x(16384);
  for (float &value : x)
    value = normal(random);
  // What a uniform grid of as many steps must reach: measured, a tenth more. Bits of an element
  // halve the error of its amplitude.
  for (auto [name, most] : {std::pair("q2_k", 0.075),
                            {"q3_k", 0.027},
                            {"q4_k", 0.0062},
                            {"q4_1", 0.0066},
                            {"iq4_nl", 0.0062},
                            {"iq4_xs", 0.0064},
                            {"mxfp4", 0.018},
                            {"nvfp4", 0.0096},
                            {"q5_0", 0.0019},
                            {"q5_1", 0.0016},
                            {"q5_k", 0.0016},
                            {"q6_k", 0.0004}})
    EXPECT_LT(normalError(format(name), x), most) << name;
}

TEST(QuantizeUnits, WhatAFormatHoldsExactlyStays) {
  // Multiples of one scale, in units that have the greatest codes of their super-block.
  for (const char *name : {"q5_0", "q6_k", "q4_k", "q5_k", "q4_1", "q5_1", "iq4_nl", "mxfp4"}) {
    Encoding encoding = format(name);
    std::vector<float> x(512);
    for (size_t i = 0; i < x.size(); ++i) {
      int count = 1 << encoding.bits(), sign = encoding.qMin() < 0 ? count / 2 : 0;
      int q = static_cast<int>(i * 7 % count) - sign;
      // Powers of two, so that scales are exact; offsets at most 0.
      x[i] = static_cast<float>(encoding.integerOf(static_cast<int8_t>(q)) -
                                (encoding.hasOffset() ? 3 : 0)) *
             0x1p-6f;
    }
    EXPECT_LT(normalError(encoding, x),
              encoding.hasFields() || encoding.superNumbers() ? 1e-4 : 1e-12)
        << name;
  }
}

TEST(QuantizeUnits, ZerosAndConstants) {
  for (const char *name : {"q2_k", "q3_k", "q4_k", "q4_1", "iq4_nl", "mxfp4", "nvfp4", "q6_k"}) {
    Encoding encoding = format(name);
    EncodedRows rows(encoding, 1, 256);
    std::vector<float> values(256);
    ASSERT_FALSE(bool(quantizeRow(std::vector<float>(256, 0.0f), encoding, rows.numbers(0))));
    dequantizeRow(encoding, rows.row(0), values);
    for (float value : values)
      ASSERT_EQ(value, 0) << name;
    ASSERT_FALSE(bool(quantizeRow(std::vector<float>(256, 0.75f), encoding, rows.numbers(0))));
    dequantizeRow(encoding, rows.row(0), values);
    for (float value : values)
      ASSERT_NEAR(value, 0.75, 0.02) << name;
  }
}

TEST(QuantizeUnits, Errors) {
  EncodedRows rows(format("q4_1"), 1, 64);
  std::vector<float> x(64, 1.0f);
  x[40] = NAN;
  EXPECT_EQ(toString(quantizeRow(x, format("q4_1"), rows.numbers(0), 5)),
            "row 5, column 40: weight is NaN, expected a finite number");
  x[40] = 3e6f;
  EXPECT_EQ(toString(quantizeRow(x, format("q4_1"), rows.numbers(0), 5)),
            "row 5, column 40: weight is 3000000, too great for q4_1");
}
