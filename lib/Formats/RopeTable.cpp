// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Formats/RopeTable.h"

#include "sluice-support/NumberText.h"

#include "llvm/Support/MathExtras.h"

#include <cassert>
#include <cmath>

using namespace llvm;
using namespace sluice::formats;
using sluice::support::numberText;

static Error ropeError(const Twine &what) {
  return createStringError(inconvertibleErrorCode(), "rotary embedding: " + what);
}

Expected<SmallVector<double>> sluice::formats::ropeFrequencies(double theta, int64_t headDim,
                                                               StringRef scaling,
                                                               ArrayRef<double> values) {
  if (headDim < 2 || headDim % 2 || headDim > 65536)
    return ropeError("head size is " + Twine(headDim) +
                     ", expected an even number from 2 to 65536");
  if (!std::isfinite(theta) || theta <= 0)
    return ropeError("theta is " + numberText(theta) + ", expected a finite number above 0");
  int64_t pairs = headDim / 2, expected = scaling == "none"      ? 0
                                          : scaling == "linear"  ? 1
                                          : scaling == "llama3"  ? 4
                                          : scaling == "yarn"    ? 4
                                          : scaling == "factors" ? pairs
                                                                 : -1;
  if (expected < 0)
    return ropeError("scaling is '" + scaling +
                     "', expected none, linear, llama3, factors or yarn");
  if (static_cast<int64_t>(values.size()) != expected)
    return ropeError("scaling '" + scaling + "' has " + Twine(values.size()) +
                     " values, expected " + Twine(expected));
  for (double value : values)
    if (!std::isfinite(value) || value <= 0)
      return ropeError("scaling '" + scaling + "' has the value " + numberText(value) +
                       ", expected finite numbers above 0");
  if (scaling == "llama3" && values[2] <= values[1])
    return ropeError("llama3's high frequency factor " + numberText(values[2]) +
                     " must exceed its low one, " + numberText(values[1]));

  if (scaling == "yarn" && values[1] <= values[2])
    return ropeError("yarn's fast bound " + numberText(values[1]) + " must exceed its slow one, " +
                     numberText(values[2]));

  // YaRN: how many pairs, counted from the first, turn more often than `rotations` times.
  auto pairsAbove = [&](double rotations) {
    return static_cast<double>(pairs) * std::log(values[3] / (rotations * 2 * numbers::pi)) /
           std::log(theta);
  };
  double keptPairs = 0, divided = 0;
  if (scaling == "yarn") {
    keptPairs = std::max(std::floor(pairsAbove(values[1])), 0.0);
    divided = std::min(std::ceil(pairsAbove(values[2])), static_cast<double>(headDim - 1));
    if (keptPairs == divided)
      divided += 0.001;
  }
  SmallVector<double> frequencies;
  for (int64_t i = 0; i < pairs; ++i) {
    double f = std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(headDim));
    if (scaling == "linear") {
      f /= values[0];
    } else if (scaling == "factors") {
      f /= values[i];
    } else if (scaling == "yarn") {
      double ramp = (static_cast<double>(i) - keptPairs) / (divided - keptPairs);
      ramp = std::clamp(ramp, 0.0, 1.0);
      f = f / values[0] * ramp + f * (1 - ramp);
    } else if (scaling == "llama3") {
      double factor = values[0], low = values[1], high = values[2], original = values[3];
      double wavelength = 2 * numbers::pi / f;
      if (wavelength > original / low) {
        f /= factor;
      } else if (wavelength >= original / high) {
        double smooth = (original / wavelength - low) / (high - low);
        f = (1 - smooth) * f / factor + smooth * f;
      }
    }
    frequencies.push_back(f);
  }
  return frequencies;
}

void sluice::formats::ropeTableRow(ArrayRef<double> frequencies, double magnitude, int64_t position,
                                   MutableArrayRef<float> cosines, MutableArrayRef<float> sines) {
  assert(cosines.size() == frequencies.size() && sines.size() == frequencies.size());
  for (size_t i = 0; i < frequencies.size(); ++i) {
    double angle = static_cast<double>(position) * frequencies[i];
    cosines[i] = static_cast<float>(magnitude * std::cos(angle));
    sines[i] = static_cast<float>(magnitude * std::sin(angle));
  }
}
