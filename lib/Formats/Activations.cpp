// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Formats/Activations.h"

#include "llvm/ADT/STLFunctionalExtras.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <limits>

using namespace llvm;
using namespace sluice::formats;

/// Finds the activation scale of every group and calls `body(begin, end, inverse, is finite)`.
static void forActivationGroups(ArrayRef<float> x, MutableArrayRef<float> scales,
                                function_ref<void(int64_t, int64_t, float, bool)> body) {
  int64_t columns = static_cast<int64_t>(x.size());
  assert(scales.size() == static_cast<size_t>(activationGroups(columns)));
  for (int64_t begin = 0, g = 0; begin < columns; begin += activationGroup, ++g) {
    int64_t end = std::min(begin + activationGroup, columns);
    float greatest = 0;
    bool finite = true;
    for (int64_t i = begin; i < end; ++i) {
      greatest = std::max(greatest, std::fabs(x[i]));
      finite &= std::isfinite(x[i]);
    }
    float inverse = finite && greatest > activationFloor ? activationLimit / greatest : 0.0f;
    body(begin, end, inverse, finite);
    scales[g] = finite ? greatest / activationLimit : std::numeric_limits<float>::quiet_NaN();
  }
}

void sluice::formats::quantizeActivations(ArrayRef<float> x, MutableArrayRef<int16_t> x16,
                                          MutableArrayRef<float> scales) {
  assert(x16.size() == x.size());
  forActivationGroups(x, scales, [&](int64_t begin, int64_t end, float inverse, bool finite) {
    for (int64_t i = begin; i < end; ++i)
      x16[i] = finite ? static_cast<int16_t>(std::lrint(x[i] * inverse)) : int16_t(0);
  });
}

void sluice::formats::scaleActivations(ArrayRef<float> x, MutableArrayRef<float> halves,
                                       MutableArrayRef<float> scales) {
  assert(halves.size() == x.size());
  forActivationGroups(x, scales, [&](int64_t begin, int64_t end, float inverse, bool finite) {
    for (int64_t i = begin; i < end; ++i)
      halves[i] = finite ? roundToF16(x[i] * inverse) : 0.0f;
  });
}

int64_t sluice::formats::accumulationColumns(Encoding format, int64_t columns) {
  return std::min(format.groupColumns(columns), activationGroup);
}

SmallVector<IntegerSums> sluice::formats::integerSums(const Encoding &format, const EncodedRow &row,
                                                      ArrayRef<int16_t> x16) {
  int64_t columns = static_cast<int64_t>(row.q.size());
  int64_t width = accumulationColumns(format, columns), group = format.groupColumns(columns);
  assert(x16.size() == row.q.size() && format.isInteger());
  SmallVector<IntegerSums> sums;
  for (int64_t begin = 0; begin < columns; begin += width) {
    int32_t zero = row.zero(begin / group);
    IntegerSums sum; // products: at most 255 * 32512 * 128 < 2^31
    for (int64_t i = begin, end = std::min(begin + width, columns); i < end; ++i) {
      sum.products += (format.integerOf(row.q[i]) - zero) * x16[i];
      sum.inputs += x16[i];
    }
    sums.push_back(sum);
  }
  return sums;
}

float sluice::formats::integerProduct(const Encoding &format, const EncodedRow &row,
                                      ArrayRef<int16_t> x16, ArrayRef<float> activationScales) {
  int64_t columns = static_cast<int64_t>(row.q.size());
  int64_t width = accumulationColumns(format, columns), group = format.groupColumns(columns);
  float result = 0;
  int64_t begin = 0;
  for (IntegerSums sums : integerSums(format, row, x16)) {
    float activationScale = activationScales[begin / activationGroup];
    result +=
        static_cast<float>(sums.products) * (row.scale(format, begin / group) * activationScale);
    if (format.hasOffset())
      result +=
          row.offset(format, begin / group) * (activationScale * static_cast<float>(sums.inputs));
    begin += width;
  }
  return result;
}

float sluice::formats::scaledProduct(const Encoding &format, const EncodedRow &row,
                                     ArrayRef<float> halves, ArrayRef<float> activationScales) {
  int64_t columns = static_cast<int64_t>(row.q.size());
  int64_t width = accumulationColumns(format, columns), group = format.groupColumns(columns);
  assert(halves.size() == row.q.size() && format.isScaled() && !format.isInteger());
  double result = 0;
  for (int64_t begin = 0; begin < columns; begin += width) {
    double sum = 0;
    for (int64_t i = begin, end = std::min(begin + width, columns); i < end; ++i)
      sum += static_cast<double>(format.numberOf(row.q[i])) * halves[i];
    float factor = row.scale(format, begin / group) * activationScales[begin / activationGroup];
    result += static_cast<double>(static_cast<float>(sum)) * factor;
  }
  return static_cast<float>(result);
}

void sluice::formats::roundActivations(Encoding::Element element, ArrayRef<float> x,
                                       MutableArrayRef<float> rounded) {
  assert(x.size() == rounded.size() && "arrays of the same length");
  for (size_t i = 0; i < x.size(); ++i)
    rounded[i] = element == Encoding::Element::F16    ? roundToF16(x[i])
                 : element == Encoding::Element::BF16 ? roundToBf16(x[i])
                                                      : x[i];
}

float sluice::formats::floatProduct(Encoding::Element element, ArrayRef<uint16_t> weights,
                                    ArrayRef<float> x) {
  assert(weights.size() == x.size() && "one input per column");
  assert((element == Encoding::Element::F16 || element == Encoding::Element::BF16) &&
         "16-bit weights");
  float result = 0;
  if (element == Encoding::Element::F16)
    for (size_t i = 0; i < x.size(); ++i)
      result += f16ToFloat(weights[i]) * roundToF16(x[i]);
  else
    for (size_t i = 0; i < x.size(); ++i)
      result += bf16ToFloat(weights[i]) * roundToBf16(x[i]);
  return result;
}

float sluice::formats::floatProduct(ArrayRef<float> weights, ArrayRef<float> x) {
  assert(weights.size() == x.size() && "one input per column");
  float result = 0;
  for (size_t i = 0; i < x.size(); ++i)
    result += weights[i] * x[i];
  return result;
}
