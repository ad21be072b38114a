// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Quantizing to the encodings that are not plain integers: unit by unit, that is group by group.
//
// 1. Each unit gets the float scale (and offset) of the least squared error that a search finds:
//    scales that put the unit's greatest weight near the range's ends, each fitted to the integers
//    that it gives (least squares), for tables of either sign.
// 2. A super-block's f16 is chosen so that its greatest scale (offset) is the greatest code; codes
//    are the nearest ones, and of codes next to it the best is taken. E8M0 and E4M3 scales are the
//    best codes near the float scale.
// 3. Integers are chosen again for the scale and offset that the codes stand for.
//
// Plain loops of floats without contraction: the result does not depend on the machine.

#include "VectorClones.h"
#include "sluice/Formats/Quantizer.h"

#include "sluice-support/NumberText.h"

#include "llvm/ADT/SmallVector.h"
#include "llvm/Support/MathExtras.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cmath>
#include <cstring>
#include <limits>

using namespace llvm;
using namespace sluice::formats;
using sluice::support::numberText;

namespace {
/// A float scale and offset of a unit, and what they cost.
struct Fit {
  float scale = 0, offset = 0;
  float error = std::numeric_limits<float>::infinity();
};

/// Integers in order, and above which number each is followed by the next: what is nearest to v is
/// found by comparisons alone.
struct NearestInteger {
  explicit NearestInteger(const Encoding &format);

  SmallVector<float, 16> integers;
  /// Their elements.
  SmallVector<int8_t, 16> elements;
  /// The greatest v to which integer i is nearer than i + 1, or as near.
  SmallVector<float, 16> last;
};

/// Ways to scale one unit, one a vector lane.
struct Candidates {
  alignas(64) float scale[lanes] = {}, offset[lanes] = {}, error[lanes] = {};
};

/// Sums over a unit of a lane's integers q and the numbers x.
struct Sums {
  double q[lanes], qq[lanes], qx[lanes];
};

class UnitQuantizer {
public:
  explicit UnitQuantizer(const Encoding &format);

  /// Chooses q for a scale and an offset; returns the squared error.
  float choose(ArrayRef<float> x, float scale, float offset, int8_t *q) const;
  /// The best float scale, for encodings without offsets; it may be negative if `eitherSign`.
  Fit fitScale(ArrayRef<float> x, bool eitherSign) const;
  /// The best float scale and offset; the offset is at most 0 if `belowZero`.
  Fit fitBoth(ArrayRef<float> x, bool belowZero) const;

private:
  /// Fits the candidates twice by least squares to the integers that they give, and finds their
  /// errors.
  void fit(ArrayRef<float> x, Candidates &candidates, bool withOffset, bool belowZero) const;

  Encoding format;
  bool isTable;
  int least, most;
  NearestInteger nearest;
};
} // namespace

NearestInteger::NearestInteger(const Encoding &format) {
  if (format.code() != Encoding::Code::Table)
    return;
  SmallVector<std::pair<int8_t, int8_t>, 16> sorted;
  for (auto [q, integer] : enumerate(format.table()))
    sorted.push_back({integer, static_cast<int8_t>(q)});
  llvm::sort(sorted);
  for (auto [integer, q] : sorted) {
    integers.push_back(integer);
    elements.push_back(q);
  }
  for (size_t i = 1; i < integers.size(); ++i) {
    // The differences are floats, whose roundings may make a tie of what is none.
    float low = integers[i - 1], high = integers[i];
    auto isLow = [&](float v) { return v - integers[i - 1] <= integers[i] - v; };
    while (std::nextafter(low, high) < high) {
      float middle = low + (high - low) / 2;
      if (middle == low || middle == high)
        middle = std::nextafter(low, high);
      (isLow(middle) ? low : high) = middle;
    }
    last.push_back(low);
  }
}

UnitQuantizer::UnitQuantizer(const Encoding &format)
    : format(format), isTable(format.code() == Encoding::Code::Table), nearest(format) {
  least = isTable ? static_cast<int>(nearest.integers.front()) : format.qMin();
  most = isTable ? static_cast<int>(nearest.integers.back()) : format.qMax();
}

/// The integers nearest to v.
__attribute__((always_inline)) static inline void toNearest(const NearestInteger &nearest,
                                                            float least, float most, Vector &v) {
  if (nearest.integers.empty()) {
    v = v < least ? Vector{} + least : v;
    v = v > most ? Vector{} + most : v;
    v = (v + 0x1.8p23f) - 0x1.8p23f; // to nearest even: |v| is far below 2^22
    return;
  }
  Vector integer = Vector{} + nearest.integers[0];
  for (size_t i = 0; i < nearest.last.size(); ++i)
    integer = v > nearest.last[i] ? Vector{} + nearest.integers[i + 1] : integer;
  v = integer;
}

/// The candidates' errors and sums.
SLUICE_VECTOR_CLONES static void measure(const NearestInteger &nearest, float least, float most,
                                         const float *x, size_t n, Candidates &candidates,
                                         Sums *sums) {
  typedef double Doubles __attribute__((vector_size(lanes * sizeof(double))));
  Vector scale, offset, error = {};
  std::memcpy(&scale, candidates.scale, sizeof(scale));
  std::memcpy(&offset, candidates.offset, sizeof(offset));
  Vector inverse = 1.0f / scale;
  // Of scales that are 0, or too small.
  inverse = (inverse < 0.0f ? -inverse : inverse) < std::numeric_limits<float>::infinity()
                ? inverse
                : Vector{};
  Doubles q = {}, qq = {}, qx = {};
  for (size_t i = 0; i < n; ++i) {
    Vector integer = (x[i] - offset) * inverse;
    toNearest(nearest, least, most, integer);
    if (sums) {
      Doubles wide = __builtin_convertvector(integer, Doubles);
      q += wide;
      qq += wide * wide;
      qx += wide * static_cast<double>(x[i]);
    } else {
      Vector difference = x[i] - (integer * scale + offset);
      error += difference * difference;
    }
  }
  std::memcpy(candidates.error, &error, sizeof(error));
  if (sums) {
    std::memcpy(sums->q, &q, sizeof(q));
    std::memcpy(sums->qq, &qq, sizeof(qq));
    std::memcpy(sums->qx, &qx, sizeof(qx));
  }
}

float UnitQuantizer::choose(ArrayRef<float> x, float scale, float offset, int8_t *q) const {
  float inverse = scale != 0 ? 1 / scale : 0, error = 0;
  if (!std::isfinite(inverse))
    inverse = 0;
  for (size_t first = 0; first < x.size(); first += lanes) {
    // Elements in the lanes.
    size_t count = std::min<size_t>(lanes, x.size() - first);
    Vector values = {};
    std::memcpy(&values, x.data() + first, count * sizeof(float));
    Vector scaled = (values - offset) * inverse, integers = scaled, places = {};
    toNearest(nearest, static_cast<float>(least), static_cast<float>(most), integers);
    for (float last : nearest.last)
      places += scaled > last ? Vector{} + 1.0f : Vector{};
    Vector differences = values - (integers * scale + offset);
    for (size_t i = 0; i < count; ++i) {
      q[first + i] = isTable ? nearest.elements[static_cast<size_t>(places[i])]
                             : static_cast<int8_t>(integers[i]);
      error += differences[i] * differences[i];
    }
  }
  return error;
}

void UnitQuantizer::fit(ArrayRef<float> x, Candidates &candidates, bool withOffset,
                        bool belowZero) const {
  double n = static_cast<double>(x.size()), sumX = 0;
  for (float value : x)
    sumX += value;
  auto measureAll = [&](Sums *sums) {
    measure(nearest, static_cast<float>(least), static_cast<float>(most), x.data(), x.size(),
            candidates, sums);
  };
  for (int round = 0; round < 2; ++round) {
    Sums sums;
    measureAll(&sums);
    for (int i = 0; i < lanes; ++i) {
      double sumQ = sums.q[i], sumQQ = sums.qq[i], sumQX = sums.qx[i], offset = 0;
      if (withOffset) {
        double determinant = n * sumQQ - sumQ * sumQ;
        if (determinant > 0)
          offset = (sumX * sumQQ - sumQ * sumQX) / determinant;
        if (belowZero)
          offset = std::min(offset, 0.0);
      }
      if (sumQQ > 0) {
        candidates.scale[i] = static_cast<float>((sumQX - offset * sumQ) / sumQQ);
        candidates.offset[i] = static_cast<float>(offset);
      }
    }
  }
  measureAll(nullptr);
}

Fit UnitQuantizer::fitScale(ArrayRef<float> x, bool eitherSign) const {
  float greatest = 0, lowest = 0;
  for (float value : x) {
    greatest = std::max(greatest, value);
    lowest = std::min(lowest, value);
  }
  Fit best;
  if (greatest == lowest)
    return {0, 0, 0};
  for (int sign : {1, -1}) {
    if (sign < 0 && !eitherSign)
      break;
    float high = sign > 0 ? greatest : -lowest, low = sign > 0 ? lowest : -greatest;
    // The scale that covers the unit, and smaller ones, which clip it.
    float cover = std::max(high / static_cast<float>(most), low / static_cast<float>(least));
    constexpr int first = -2, steps = 11;
    Candidates candidates;
    for (int i = 0; i < steps; ++i)
      candidates.scale[i] =
          static_cast<float>(sign) * cover * (1 - 0.045f * static_cast<float>(first + i));
    fit(x, candidates, /*withOffset=*/false, false);
    for (int i = 0; i < steps; ++i)
      if ((eitherSign || candidates.scale[i] > 0) && candidates.error[i] < best.error)
        best = {candidates.scale[i], candidates.offset[i], candidates.error[i]};
  }
  return best;
}

Fit UnitQuantizer::fitBoth(ArrayRef<float> x, bool belowZero) const {
  float lowest = x.front(), greatest = x.front();
  for (float value : x) {
    greatest = std::max(greatest, value);
    lowest = std::min(lowest, value);
  }
  if (belowZero)
    lowest = std::min(lowest, 0.0f);
  if (greatest == lowest)
    return {0, lowest, 0};
  Fit best;
  constexpr int first = -2, steps = 13;
  Candidates candidates;
  for (int i = 0; i < steps; ++i) {
    candidates.offset[i] = lowest;
    candidates.scale[i] =
        (greatest - lowest) / (static_cast<float>(most) + 0.1f * static_cast<float>(first + i));
  }
  fit(x, candidates, /*withOffset=*/true, belowZero);
  for (int i = 0; i < steps; ++i)
    if (candidates.scale[i] > 0 && candidates.error[i] < best.error)
      best = {candidates.scale[i], candidates.offset[i], candidates.error[i]};
  if (!std::isfinite(best.error))
    best = {(greatest - lowest) / static_cast<float>(most), lowest, 0};
  return best;
}

/// The f16 that makes `greatest` the code `most`; 0 if there is none.
static uint16_t superOf(float greatest, float most) { return floatToF16(greatest / most); }

/// FP8: the spacing of numbers grows with them, so clipping never pays, and scales between the one
/// that covers a unit and twice that differ in which weights lie near a number. The best of a few
/// as they are stored.
static Error quantizeToFp8(ArrayRef<float> row, const Encoding &format, const RowNumbers &to,
                           int64_t rowIndex) {
  if (Error error = checkFinite(row, rowIndex))
    return error;
  int64_t columns = static_cast<int64_t>(row.size()), group = format.groupColumns(columns);
  auto inverseOf = [](float scale) {
    float inverse = 1 / scale;
    return std::isfinite(inverse) ? inverse : 0.0f;
  };
  for (int64_t begin = 0, g = 0; begin < columns; begin += group, ++g) {
    ArrayRef<float> unit = row.slice(begin, std::min(group, columns - begin));
    float greatest = 0, least = std::numeric_limits<float>::infinity();
    for (float x : unit)
      greatest = std::max(greatest, std::fabs(x));
    to.scales[g] = 0;
    for (float ratio : {1.0f, 1.19f, 1.41f, 1.68f}) {
      float wanted = greatest / 448.0f * ratio;
      uint32_t code = format.scale == Encoding::Scale::F32 ? std::bit_cast<uint32_t>(wanted)
                                                           : floatToBf16(wanted);
      float scale = format.scaleOf(code, 0), inverse = inverseOf(scale), error = 0;
      for (float x : unit) {
        float difference = x - e4m3ToFloat(floatToE4M3(x * inverse)) * scale;
        error += difference * difference;
      }
      if (error < least) {
        least = error;
        to.scales[g] = code;
      }
    }
    float inverse = inverseOf(format.scaleOf(to.scales[g], 0));
    for (auto [i, x] : enumerate(unit))
      to.q[begin + static_cast<int64_t>(i)] = static_cast<int8_t>(floatToE4M3(x * inverse));
  }
  return Error::success();
}

Error sluice::formats::quantizeRow(ArrayRef<float> row, const Encoding &format, RowNumbers to,
                                   int64_t rowIndex) {
  using Scale = Encoding::Scale;
  assert(format.isScaled() && "floats are converted");
  if (!format.isInteger())
    return quantizeToFp8(row, format, to, rowIndex);
  int64_t columns = static_cast<int64_t>(row.size()), groups = format.groupsPerRow(columns);
  if (format.isPlainInteger() && format.scale == Scale::F16)
    return quantizeRow(row, format, {to.q, row.size()}, {to.scales, static_cast<size_t>(groups)},
                       {to.zeros, format.hasZeroPoint() ? static_cast<size_t>(groups) : 0},
                       rowIndex);
  assert(!format.hasZeroPoint() && "zero points are of plain integers");
  if (Error error = checkFinite(row, rowIndex))
    return error;
  UnitQuantizer quantizer(format);
  int64_t group = format.groupColumns(columns);
  bool isFloat = format.scale == Scale::F16 || format.scale == Scale::F32;
  auto unit = [&](int64_t g) { return row.slice(g * group, std::min(group, columns - g * group)); };
  std::vector<Fit> fits(groups);
  for (int64_t g = 0; g < groups; ++g)
    fits[g] = format.hasOffset()
                  ? quantizer.fitBoth(unit(g), /*belowZero=*/format.hasFields())
                  : quantizer.fitScale(unit(g), isFloat || format.scale == Scale::I8);

  int64_t perSuper = format.superNumbers() ? Encoding::superColumns / group : 0;
  std::vector<int8_t> trial(group);
  for (int64_t g = 0; g < groups; ++g) {
    uint16_t supers[2] = {0, 0};
    if (perSuper) {
      uint16_t *own = to.supers + g / perSuper * format.superNumbers();
      if (g % perSuper == 0) {
        float scale = 0, offset = 0;
        for (const Fit &fit : ArrayRef(fits).slice(g, std::min(perSuper, groups - g))) {
          if (std::fabs(fit.scale) > std::fabs(scale))
            scale = fit.scale;
          offset = std::max(offset, -fit.offset);
        }
        // An int8 has one code more below zero: the greatest scale takes it.
        float most =
            format.scale == Scale::I8 ? -128.0f : static_cast<float>((1 << format.scaleBits()) - 1);
        own[0] = superOf(scale, most * format.superUnit());
        if (format.superNumbers() == 2)
          own[1] = superOf(offset, most);
      }
      std::copy_n(own, format.superNumbers(), supers);
    }
    // Codes near the float scale and offset; of a float scale its bits alone.
    int scaleLeast = 0, scaleMost = isFloat ? 0 : (1 << format.scaleBits()) - 1, offsetMost = 0;
    auto scaleOf = [&](int code) { return format.scaleOf(static_cast<uint32_t>(code), supers[0]); };
    auto offsetOf = [&](int code) {
      return format.offsetOf(static_cast<uint16_t>(code), supers[1]);
    };
    const Fit &fit = fits[g];
    int scale = 0, offset = 0, reach = isFloat ? 0 : 1;
    switch (format.scale) {
    case Scale::F16:
      scale = scaleLeast = scaleMost = floatToF16(fit.scale);
      if (format.offset == Encoding::Offset::F16)
        offset = floatToF16(fit.offset);
      break;
    case Scale::I8: {
      float d = f16ToFloat(supers[0]) * format.superUnit();
      scaleLeast = -128;
      scaleMost = 127;
      scale =
          d != 0 ? static_cast<int>(std::nearbyint(std::clamp(fit.scale / d, -128.0f, 127.0f))) : 0;
      break;
    }
    case Scale::E8M0:
      scaleMost = 254; // 255 is NaN
      scale = fit.scale > 0 ? std::clamp(std::ilogb(fit.scale) + 128, 0, scaleMost) : 0;
      break;
    case Scale::E4M3:
      scaleMost = 126; // 127 is NaN
      while (scale < scaleMost && scaleOf(scale) < fit.scale)
        ++scale;
      break;
    case Scale::F32:
      scale = scaleLeast = scaleMost = std::bit_cast<int>(fit.scale);
      break;
    case Scale::BF16:
      llvm_unreachable("scales of FP8");
    case Scale::U6:
    case Scale::U4: {
      float d = f16ToFloat(supers[0]), m = f16ToFloat(supers[1]);
      offsetMost = scaleMost;
      auto code = [&](float value, float step) {
        return step != 0 ? static_cast<int>(std::nearbyint(
                               std::clamp(value / step, 0.0f, static_cast<float>(scaleMost))))
                         : 0;
      };
      scale = code(fit.scale, d);
      offset = code(-fit.offset, m);
      break;
    }
    }
    ArrayRef<float> x = unit(g);
    int8_t *q = to.q + g * group;
    float best = std::numeric_limits<float>::infinity();
    int bestScale = scale, bestOffset = offset;
    for (int s = std::max(scale - reach, scaleLeast); s <= std::min(scale + reach, scaleMost); ++s)
      for (int o = offsetMost ? std::max(offset - reach, 0) : offset;
           o <= (offsetMost ? std::min(offset + reach, offsetMost) : offset); ++o) {
        float error = quantizer.choose(x, scaleOf(s), offsetOf(o), trial.data());
        if (error < best) {
          best = error;
          bestScale = s;
          bestOffset = o;
        }
      }
    to.scales[g] =
        static_cast<uint32_t>(bestScale) & maskTrailingOnes<uint32_t>(format.scaleBits());
    if (format.hasOffset())
      to.offsets[g] = static_cast<uint16_t>(bestOffset);
    float finalScale = format.scaleOf(to.scales[g], supers[0]), finalOffset = offsetOf(bestOffset);
    if (!std::isfinite(finalScale) || !std::isfinite(finalOffset)) {
      const float *greatest =
          llvm::max_element(x, [](float a, float b) { return std::fabs(a) < std::fabs(b); });
      return createStringError("row " + Twine(rowIndex) + ", column " +
                               Twine(greatest - row.begin()) + ": weight is " +
                               numberText(*greatest) + ", too great for " + format.name());
    }
    quantizer.choose(x, finalScale, finalOffset, q);
  }
  return Error::success();
}
