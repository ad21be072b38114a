// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Formats/Activations.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <limits>

using namespace llvm;
using namespace sluice::formats;

void sluice::formats::quantizeActivations(ArrayRef<float> x, MutableArrayRef<int16_t> x16,
                                          MutableArrayRef<float> scales) {
  int64_t columns = static_cast<int64_t>(x.size());
  assert(x16.size() == x.size() && scales.size() == static_cast<size_t>(activationGroups(columns)));
  for (int64_t begin = 0, g = 0; begin < columns; begin += activationGroup, ++g) {
    int64_t end = std::min(begin + activationGroup, columns);
    float greatest = 0;
    bool finite = true;
    for (int64_t i = begin; i < end; ++i) {
      greatest = std::max(greatest, std::fabs(x[i]));
      finite &= std::isfinite(x[i]);
    }
    float inverse = finite && greatest > activationFloor ? activationLimit / greatest : 0.0f;
    for (int64_t i = begin; i < end; ++i)
      x16[i] = finite ? static_cast<int16_t>(std::lrint(x[i] * inverse)) : int16_t(0);
    scales[g] = finite ? greatest / activationLimit : std::numeric_limits<float>::quiet_NaN();
  }
}

int64_t sluice::formats::accumulationColumns(Format format, int64_t columns) {
  return std::min(format.groupColumns(columns), activationGroup);
}

SmallVector<int32_t> sluice::formats::integerSums(Format format, ArrayRef<int8_t> q,
                                                  ArrayRef<int8_t> zeros, ArrayRef<int16_t> x16) {
  int64_t columns = static_cast<int64_t>(q.size()), width = accumulationColumns(format, columns);
  int64_t group = format.groupColumns(columns);
  assert(x16.size() == q.size() && format.isInteger());
  SmallVector<int32_t> sums;
  for (int64_t begin = 0; begin < columns; begin += width) {
    int32_t zero = format.zeroPoint ? zeros[begin / group] : 0,
            sum = 0; // at most 255 * 32512 * 128 < 2^31
    for (int64_t i = begin, end = std::min(begin + width, columns); i < end; ++i)
      sum += (q[i] - zero) * x16[i];
    sums.push_back(sum);
  }
  return sums;
}

float sluice::formats::integerProduct(Format format, ArrayRef<int8_t> q, ArrayRef<uint16_t> scales,
                                      ArrayRef<int8_t> zeros, ArrayRef<int16_t> x16,
                                      ArrayRef<float> activationScales) {
  int64_t columns = static_cast<int64_t>(q.size()), width = accumulationColumns(format, columns);
  int64_t group = format.groupColumns(columns);
  float result = 0;
  int64_t begin = 0;
  for (int32_t sum : integerSums(format, q, zeros, x16)) {
    result += static_cast<float>(sum) *
              (f16ToFloat(scales[begin / group]) * activationScales[begin / activationGroup]);
    begin += width;
  }
  return result;
}

void sluice::formats::roundActivations(Format::Element element, ArrayRef<float> x,
                                       MutableArrayRef<float> rounded) {
  assert(x.size() == rounded.size() && "arrays of the same length");
  for (size_t i = 0; i < x.size(); ++i)
    rounded[i] = element == Format::Element::F16    ? roundToF16(x[i])
                 : element == Format::Element::BF16 ? roundToBf16(x[i])
                                                    : x[i];
}

float sluice::formats::floatProduct(Format::Element element, ArrayRef<uint16_t> weights,
                                    ArrayRef<float> x) {
  assert(weights.size() == x.size() && "one input per column");
  assert((element == Format::Element::F16 || element == Format::Element::BF16) && "16-bit weights");
  float result = 0;
  if (element == Format::Element::F16)
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
