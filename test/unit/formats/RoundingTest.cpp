// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Formats/Rounding.h"
#include "sluice/Formats/Quantizer.h"

#include "llvm/Support/Parallel.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

using namespace sluice::formats;
using llvm::cantFail;
using llvm::toString;

namespace {

Encoding format(llvm::StringRef name) { return *Encoding::fromName(name); }

std::vector<float> normal(size_t count, unsigned seed, float deviation = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> distribution(0, deviation);
  std::vector<float> numbers(count);
  for (float &number : numbers)
    number = distribution(random);
  return numbers;
}

/// A Hessian of correlated inputs, some columns of which are larger: the lower triangle.
struct Inputs {
  explicit Inputs(int64_t columns, unsigned seed = 1) : columns(columns) {
    int64_t factors = columns / 4 + 1, samples = 2 * columns;
    std::vector<float> mix = normal(factors * columns, seed), sizes = normal(columns, seed + 1);
    full.resize(columns * columns);
    std::vector<float> own = normal(samples * columns, seed + 2),
                       shared = normal(samples * factors, seed + 3);
    for (int64_t t = 0; t < samples; ++t) {
      std::vector<double> x(columns);
      for (int64_t j = 0; j < columns; ++j) {
        x[j] = own[t * columns + j];
        for (int64_t f = 0; f < factors; ++f)
          x[j] += 0.3 * mix[f * columns + j] * shared[t * factors + f];
        x[j] *= std::exp(sizes[j]);
      }
      for (int64_t i = 0; i < columns; ++i)
        for (int64_t j = 0; j <= i; ++j)
          full[i * columns + j] += x[i] * x[j] / double(samples);
    }
    for (int64_t i = 0; i < columns; ++i) {
      for (int64_t j = 0; j <= i; ++j) {
        lower.push_back(static_cast<float>(full[i * columns + j]));
        full[j * columns + i] = full[i * columns + j];
      }
      moments.push_back(lower.back());
    }
  }

  /// E of one row, in double.
  double error(llvm::ArrayRef<float> w, llvm::ArrayRef<float> q) const {
    double sum = 0;
    for (int64_t i = 0; i < columns; ++i)
      for (int64_t j = 0; j < columns; ++j)
        sum += (double(w[i]) - q[i]) * full[i * columns + j] * (double(w[j]) - q[j]);
    return sum;
  }

  int64_t columns;
  std::vector<double> full;
  std::vector<float> lower, moments;
};

struct Rounded {
  EncodedRows numbers;
  std::vector<double> errors;
  std::vector<float> values(int64_t row) const {
    std::vector<float> result(numbers.columns);
    dequantizeRow(numbers.encoding, numbers.row(row), result);
    return result;
  }
};

Rounded round(const Rounder &rounder, const Encoding &encoding, llvm::ArrayRef<float> weights) {
  int64_t columns = rounder.columns(), count = static_cast<int64_t>(weights.size()) / columns;
  Rounded result{EncodedRows(encoding, count, columns), std::vector<double>(count)};
  std::vector<Rounder::Row> rows;
  for (int64_t i = 0; i < count; ++i)
    rows.push_back({weights.slice(i * columns, columns), result.numbers.numbers(i), i});
  cantFail(rounder.round(encoding, rows, result.errors));
  return result;
}

bool operator==(const EncodedRows &x, const EncodedRows &y) {
  return x.q == y.q && x.scales == y.scales && x.zeros == y.zeros && x.offsets == y.offsets &&
         x.supers == y.supers;
}

} // namespace

// The error that is told is that of the numbers as they are stored, and it is less than that of
// numbers chosen without the Hessian, and with its diagonal alone.
TEST(Rounding, ErrorsOfEveryEncoding) {
  constexpr int64_t columns = 288, count = 5;
  Inputs inputs(columns);
  Rounder hessian = cantFail(Rounder::byHessian(inputs.lower, columns));
  Rounder moments = cantFail(Rounder::byMoments(inputs.moments));
  Rounder plain = Rounder::plain(columns);
  std::vector<float> weights = normal(count * columns, 7, 0.02f);
  for (const Encoding &encoding : Encoding::all()) {
    if (!encoding.isInteger() || !encoding.fitsColumns(columns))
      continue;
    SCOPED_TRACE(encoding.name());
    Rounded full = round(hessian, encoding, weights), diagonal = round(moments, encoding, weights),
            nearest = round(plain, encoding, weights);
    double sums[3] = {};
    for (int64_t row = 0; row < count; ++row) {
      llvm::ArrayRef<float> w = llvm::ArrayRef(weights).slice(row * columns, columns);
      double error = inputs.error(w, full.values(row));
      EXPECT_NEAR(full.errors[row], error, 2e-3 * error);
      sums[0] += error;
      sums[1] += inputs.error(w, diagonal.values(row));
      sums[2] += inputs.error(w, nearest.values(row));
    }
    EXPECT_LT(sums[0], 0.9 * sums[1]);
    EXPECT_LT(sums[0], 0.9 * sums[2]);
  }
}

// More groups than are fitted together, and columns that are no multiple of anything.
TEST(Rounding, ManyGroups) {
  constexpr int64_t columns = 2056 + 40 + 6, count = 3;
  std::vector<float> direction = normal(columns, 21), lower, moments;
  for (int64_t i = 0; i < columns; ++i)
    for (int64_t j = 0; j <= i; ++j)
      lower.push_back(0.5f * direction[i] * direction[j] + (i == j ? 1.0f : 0.0f));
  Rounder hessian = cantFail(Rounder::byHessian(lower, columns));
  std::vector<float> weights = normal(count * columns, 23, 0.02f);
  for (const char *name : {"int4-g16", "int5-g16-n8"}) {
    Rounded rounded = round(hessian, format(name), weights),
            nearest = round(Rounder::plain(columns), format(name), weights);
    for (int64_t row = 0; row < count; ++row) {
      double errors[2] = {};
      for (int i = 0; i < 2; ++i) {
        std::vector<float> values = (i ? nearest : rounded).values(row);
        double along = 0;
        for (int64_t j = 0; j < columns; ++j) {
          double e = double(weights[row * columns + j]) - values[j];
          errors[i] += e * e;
          along += e * direction[j];
        }
        errors[i] += 0.5 * along * along;
      }
      EXPECT_NEAR(rounded.errors[row], errors[0], 1e-3 * errors[0]) << name;
      EXPECT_LT(errors[0], 1.02 * errors[1]) << name;
    }
  }
}

TEST(Rounding, MomentsWeighSquaredErrors) {
  constexpr int64_t columns = 200, count = 70;
  Inputs inputs(columns, 5);
  Rounder moments = cantFail(Rounder::byMoments(inputs.moments));
  std::vector<float> weights = normal(count * columns, 9, 0.02f);
  for (const char *name : {"int4-g32", "int5-g64", "iq4-g32-n8", "int3-channel", "q4_1"}) {
    SCOPED_TRACE(name);
    Rounded weighted = round(moments, format(name), weights),
            nearest = round(Rounder::plain(columns), format(name), weights);
    double sums[2] = {};
    for (int64_t row = 0; row < count; ++row) {
      std::vector<float> values[] = {weighted.values(row), nearest.values(row)};
      double errors[2] = {};
      for (int i = 0; i < 2; ++i)
        for (int64_t j = 0; j < columns; ++j) {
          double e = double(weights[row * columns + j]) - values[i][j];
          errors[i] += e * e * inputs.moments[j];
        }
      EXPECT_NEAR(weighted.errors[row], errors[0], 1e-4 * errors[0]);
      sums[0] += errors[0];
      sums[1] += errors[1];
    }
    EXPECT_LE(sums[0], sums[1]);
  }
}

// What a format holds exactly stays, whatever the inputs are.
TEST(Rounding, WhatAFormatHoldsExactlyStays) {
  constexpr int64_t columns = 256;
  Inputs inputs(columns);
  Rounder hessian = cantFail(Rounder::byHessian(inputs.lower, columns));
  for (const char *name :
       {"int4-g32", "int4-g64-zp", "int8-g128", "int5-g64", "int3-channel", "iq4-g64", "mxfp4"}) {
    Encoding encoding = format(name);
    std::mt19937 random(3);
    std::vector<float> weights(3 * columns);
    for (float &weight : weights) {
      int sign = encoding.qMin() < 0 ? 1 << (encoding.bits() - 1) : 0;
      int q = static_cast<int>(random() % (1u << encoding.bits())) - sign;
      weight = static_cast<float>(encoding.integerOf(static_cast<int8_t>(q))) * 0x1p-6f;
    }
    for (double error : round(hessian, encoding, weights).errors)
      EXPECT_LT(error, 1e-9) << name;
  }
}

// A row's numbers do not depend on the rows beside it, nor on threads.
TEST(Rounding, RowsAreIndependent) {
  constexpr int64_t columns = 320, count = 67;
  Inputs inputs(columns);
  std::vector<float> weights = normal(count * columns, 11, 0.02f);
  for (const char *name : {"int4-g32", "iq4-g16-n8"}) {
    Rounder hessian = cantFail(Rounder::byHessian(inputs.lower, columns));
    Rounded all = round(hessian, format(name), weights);
    Rounded single{EncodedRows(format(name), count, columns), std::vector<double>(count)};
    llvm::parallelFor(0, count, [&](size_t row) {
      Rounder::Row one{llvm::ArrayRef(weights).slice(row * columns, columns),
                       single.numbers.numbers(static_cast<int64_t>(row))};
      cantFail(hessian.round(format(name), one, llvm::MutableArrayRef(single.errors[row])));
    });
    EXPECT_TRUE(all.numbers == single.numbers);
    EXPECT_EQ(all.errors, single.errors);
  }
}

TEST(Rounding, PlainIsTheQuantizer) {
  std::vector<float> weights = normal(512, 13);
  Encoding encoding = format("int4-g64");
  EncodedRows expected(encoding, 2, 256);
  for (int64_t row = 0; row < 2; ++row)
    cantFail(quantizeRow(llvm::ArrayRef(weights).slice(row * 256, 256), encoding,
                         expected.numbers(row)));
  EXPECT_TRUE(round(Rounder::plain(256), encoding, weights).numbers == expected);
}

TEST(Rounding, ZerosStayZeros) {
  Inputs inputs(96);
  Rounder hessian = cantFail(Rounder::byHessian(inputs.lower, 96));
  for (const char *name : {"int4-g32", "iq4_nl", "int5-g64-n8", "q4_1"}) {
    Rounded zeros = round(hessian, format(name), std::vector<float>(2 * 96));
    for (float value : zeros.values(1))
      ASSERT_EQ(value, 0) << name;
    EXPECT_EQ(zeros.errors[0], 0) << name;
  }
  // Inputs that never come leave their weights what they are nearest to.
  std::vector<float> nothing(96 * 97 / 2);
  Rounder none = cantFail(Rounder::byHessian(nothing, 96));
  std::vector<float> weights = normal(96, 17);
  Rounded rounded = round(none, format("int8-g32"), weights);
  EXPECT_LT(rounded.errors[0], 1e-9);
  std::vector<float> values = rounded.values(0);
  for (int64_t j = 0; j < 96; ++j)
    EXPECT_NEAR(values[j], weights[j], 0.02);
}

TEST(Rounding, RelativeErrors) {
  constexpr int64_t columns = 256;
  Inputs inputs(columns);
  Rounder hessian = cantFail(Rounder::byHessian(inputs.lower, columns));
  std::vector<float> weights = normal(80 * columns, 19, 0.02f);
  double squares = 0, sum = 0;
  for (float weight : weights)
    squares += double(weight) * weight;
  for (double error : round(hessian, format("int4-g64"), weights).errors)
    sum += error;
  double relative = cantFail(hessian.relativeError(format("int4-g64"), weights));
  EXPECT_NEAR(relative, sum / (squares * hessian.meanMoment()), 1e-12);
  // A bit less is four times the error, or nearly.
  double three = cantFail(hessian.relativeError(format("int3-g64"), weights));
  EXPECT_GT(three, 3 * relative);
  EXPECT_LT(three, 8 * relative);
}

TEST(Rounding, Errors) {
  auto message = [](llvm::Expected<Rounder> rounder) { return toString(rounder.takeError()); };
  EXPECT_EQ(message(Rounder::byMoments({1, -1})),
            "moment of column 1 is -1, expected a finite number that is not negative");
  EXPECT_EQ(message(Rounder::byHessian({1, NAN, 1}, 2)), "Hessian has numbers that are not finite");
  EXPECT_EQ(message(Rounder::byHessian({1, 2, 1}, 2)), "Hessian is not positive semidefinite");
  Inputs inputs(64);
  Rounder hessian = cantFail(Rounder::byHessian(inputs.lower, 64));
  EncodedRows numbers(format("int4-g32"), 1, 64);
  std::vector<float> weights(64, 1.0f);
  Rounder::Row row{weights, numbers.numbers(0), 5};
  weights[3] = NAN;
  EXPECT_EQ(toString(hessian.round(format("int4-g32"), row)),
            "row 5, column 3: weight is NaN, expected a finite number");
  weights[3] = 1e7f;
  EXPECT_EQ(
      toString(hessian.round(format("int4-g32"), row)),
      "row 5, column 3: weight is 10000000, expected at most 458528 in magnitude for int4-g32");
}
