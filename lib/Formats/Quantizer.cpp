// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Formats/Quantizer.h"
#include "VectorClones.h"

#include "sluice-support/NumberText.h"

#include "llvm/ADT/STLExtras.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstring>
#include <limits>

using namespace llvm;
using namespace sluice::formats;
using sluice::support::numberText;

// The search runs on 16 candidate scales at once, one a vector lane: no reductions, no tails, and
// sums in the same order whatever the vector unit.

namespace {

/// 16 ways to quantize the same numbers: r = round(x / scale), held in [low, high].
struct Candidates {
  alignas(64) float scale[lanes], low[lanes], high[lanes];
  /// Out: the scale that suits the integers best, and the sum of squared errors with `scale` or
  /// with `fitted`.
  alignas(64) float fitted[lanes], error[lanes];
};

/// What a scale and a range make of a group.
struct Choice {
  float error = std::numeric_limits<float>::infinity();
  float scale = 0;         ///< positive
  float low = 0, high = 0; ///< of r = q - zero
};

struct Statistics {
  float least, most, mean, meanSquare;
};

/// The greatest magnitude that an f16 scale can have.
constexpr float greatestScale = 65504.0f;

} // namespace

static Error weightError(int64_t row, int64_t column, const Twine &what) {
  return createStringError(inconvertibleErrorCode(),
                           "row " + Twine(row) + ", column " + Twine(column) + ": " + what);
}

/// Fills `fitted` and `error` (with the fitted scales, or the candidates' own), and returns the
/// best lane.
SLUICE_VECTOR_CLONES static int measure(const float *x, int64_t n, Candidates &c, bool fit) {
  Vector scale, low, high;
  std::memcpy(&scale, c.scale, sizeof(scale));
  std::memcpy(&low, c.low, sizeof(low));
  std::memcpy(&high, c.high, sizeof(high));
  const Vector inverse = 1.0f / scale;
  Vector ee = {}, er = {}, rr = {};
  // Sums of sums keep the rounding error of long groups small.
  for (int64_t begin = 0; begin < n; begin += 256) {
    int64_t end = std::min<int64_t>(begin + 256, n);
    Vector e2 = {}, e1 = {}, r2 = {};
    for (int64_t i = begin; i < end; ++i) {
      Vector v = x[i] * inverse;
      Vector r = v < low ? low : v;
      r = r > high ? high : r;
      r = (r + 0x1.8p23f) - 0x1.8p23f; // to nearest even: |r| is far below 2^22
      Vector e = v - r;
      e2 += e * e;
      e1 += e * r;
      r2 += r * r;
    }
    ee += e2;
    er += e1;
    rr += r2;
  }
  // x = scale (r + e): the best scale is scale (1 + er/rr), which leaves an error of scale^2 (ee -
  // er^2/rr).
  Vector change = er / (rr == 0.0f ? Vector{} + 1.0f : rr);
  const Vector fitted = scale + scale * change,
               error = scale * scale * (fit ? ee - change * er : ee);
  std::memcpy(c.fitted, &fitted, sizeof(fitted));
  std::memcpy(c.error, &error, sizeof(error));
  int best = 0;
  for (int i = 1; i < lanes; ++i)
    best = c.error[i] < c.error[best] ? i : best;
  return best;
}

/// From the best fitted scale to the best f16 one nearby, given as its bits.
static uint16_t settle(const float *x, int64_t n, Choice &best) {
  constexpr int smallest = 1, greatest = 0x7BFF;
  int center = std::clamp<int>(floatToF16(best.scale), smallest, greatest), bestBits = center;
  best.error = std::numeric_limits<float>::infinity();
  Candidates c;
  for (int round = 0; round < 4; ++round) {
    for (int i = 0; i < lanes; ++i) {
      c.scale[i] =
          f16ToFloat(static_cast<uint16_t>(std::clamp(center + i - lanes / 2, smallest, greatest)));
      c.low[i] = best.low;
      c.high[i] = best.high;
    }
    int at = measure(x, n, c, false);
    if (!(c.error[at] < best.error))
      break;
    best.error = c.error[at];
    best.scale = c.scale[at];
    bestBits = floatToF16(best.scale);
    // On from a winner at the window's edge, or to where its integers would rather have the scale,
    // if that is outside.
    int next = at == 0 || at == lanes - 1
                   ? bestBits
                   : std::clamp<int>(floatToF16(c.fitted[at]), smallest, greatest);
    if (std::abs(next - center) < lanes / 2 - 1)
      break;
    center = next;
  }
  return static_cast<uint16_t>(bestBits);
}

namespace {
/// The values t of the grid (Quantizer.h): 16 from `first` on, `spacing` apart; then, for long
/// groups and heavy tails, each `factor` times the one before until the scale is `least`
/// deviations.
struct Grid {
  float first, spacing, factor, least;
};
} // namespace
static constexpr Grid symmetricGrid4{6.375f, 0.1875f, 1.05f, 0.25f},
    symmetricGrid8{124.0f, 0.375f, 1.04f, 0.02f};
static constexpr Grid affineGrid4{12.75f, 0.25f, 1.05f, 0.25f},
    affineGrid8{250.0f, 0.5f, 1.04f, 0.02f};

static uint16_t quantizeSymmetric(const float *x, int64_t n, Encoding format, float greatest,
                                  float deviation, float &low, float &high, bool &negative) {
  const float wide = static_cast<float>(-format.qMin()), narrow = static_cast<float>(format.qMax());
  const Grid grid = format.element == Encoding::Element::I4 ? symmetricGrid4 : symmetricGrid8;
  Choice best;
  Candidates c;
  float t = grid.first;
  for (int i = 0; i < lanes; ++i) { // each t with both signs
    c.low[i] = i % 2 ? -narrow : -wide;
    c.high[i] = i % 2 ? wide : narrow;
  }
  auto tryNext = [&](float factor, float spacing) {
    for (int i = 0; i < lanes; i += 2, t = t * factor + spacing)
      c.scale[i + 1] = c.scale[i] = std::min(greatest / t, greatestScale);
    int at = measure(x, n, c, true);
    if (c.error[at] < best.error)
      best = {c.error[at], c.fitted[at], c.low[at], c.high[at]};
  };
  tryNext(1, grid.spacing);
  tryNext(1, grid.spacing);
  while (t < greatest / (grid.least * deviation) && t < 64 * wide)
    tryNext(grid.factor, 0);
  uint16_t bits = settle(x, n, best);
  low = best.low;
  high = best.high;
  negative = high > -low; // r in [-narrow, wide] is stored as q = -r
  return bits;
}

static uint16_t quantizeAffine(const float *x, int64_t n, Encoding format,
                               const Statistics &statistics, int &zero) {
  const float qMin = static_cast<float>(format.qMin()), qMax = static_cast<float>(format.qMax());
  const Grid grid = format.element == Encoding::Element::I4 ? affineGrid4 : affineGrid8;
  const float least = std::min(statistics.least, 0.0f), most = std::max(statistics.most, 0.0f);
  const float range = most - least, middle = least + range / 2;
  const float variance = statistics.meanSquare - statistics.mean * statistics.mean;
  const float deviation = std::sqrt(std::max(variance, 1e-4f * statistics.meanSquare));
  Choice best;
  Candidates c;
  float t = grid.first;
  auto tryNext = [&](float factor, float spacing) { // each t with 3 zero points
    for (int i = 0; i < lanes; ++i, t = t * factor + spacing)
      c.scale[i] = std::min(range / t, greatestScale);
    for (float shift : {-1.0f, 0.0f, 1.0f}) {
      for (int i = 0; i < lanes; ++i) {
        // The zero point that puts the middle of the range in the middle of the integers; |sum| <
        // 2^22.
        float z = (qMin + qMax) / 2 - middle / c.scale[i];
        z = (z + 0x1.8p23f) - 0x1.8p23f + shift;
        z = z < qMin ? qMin : z;
        z = z > qMax ? qMax : z;
        c.low[i] = qMin - z;
        c.high[i] = qMax - z;
      }
      int at = measure(x, n, c, true);
      if (c.error[at] < best.error)
        best = {c.error[at], c.fitted[at], c.low[at], c.high[at]};
    }
  };
  tryNext(1, grid.spacing);
  while (t < range / (grid.least * deviation) && t < 128 * qMax)
    tryNext(grid.factor, 0);
  uint16_t bits = settle(x, n, best);
  zero = static_cast<int>(qMin - best.low);
  return bits;
}

/// q = round(x / scale) + zero; returns whether any q - zero is not 0.
SLUICE_VECTOR_CLONES static bool store(const float *x, int64_t n, float inverse, float low,
                                       float high, int zero, int sign, int8_t *q) {
  int any = 0;
  for (int64_t i = 0; i < n; ++i) {
    float v = x[i] * inverse;
    v = v < low ? low : v;
    v = v > high ? high : v;
    int r = static_cast<int>((v + 0x1.8p23f) - 0x1.8p23f);
    any |= r;
    q[i] = static_cast<int8_t>(r * sign + zero);
  }
  return any != 0;
}

/// Sums in a fixed number of strands, so that their rounding does not depend on the machine.
SLUICE_VECTOR_CLONES static Statistics statisticsOf(const float *x, int64_t n) {
  Vector sum = {}, squares = {}, least = {}, most = {};
  least += x[0];
  most += x[0];
  auto add = [&](const Vector &v) __attribute__((always_inline)) {
    sum += v;
    squares += v * v;
    least = v < least ? v : least;
    most = v > most ? v : most;
  };
  int64_t i = 0;
  Vector v;
  for (; i + lanes <= n; i += lanes) {
    std::memcpy(&v, x + i, sizeof(v));
    add(v);
  }
  Statistics result = {x[0], x[0], 0, 0};
  for (; i < n; ++i) {
    result.mean += x[i];
    result.meanSquare += x[i] * x[i];
    result.least = std::min(result.least, x[i]);
    result.most = std::max(result.most, x[i]);
  }
  for (int lane = 0; lane < lanes; ++lane) {
    result.mean += sum[lane];
    result.meanSquare += squares[lane];
    result.least = std::min(result.least, least[lane]);
    result.most = std::max(result.most, most[lane]);
  }
  result.mean /= static_cast<float>(n);
  result.meanSquare /= static_cast<float>(n);
  return result;
}

SLUICE_VECTOR_CLONES static float maximalMagnitude(const float *x, int64_t n) {
  uint32_t greatest =
      0; // the bits of magnitudes order like the magnitudes, with infinity and NaN on top
  for (int64_t i = 0; i < n; ++i) {
    uint32_t magnitude = std::bit_cast<uint32_t>(x[i]) & 0x7FFFFFFFu;
    greatest = magnitude > greatest ? magnitude : greatest;
  }
  return std::bit_cast<float>(greatest);
}

static Error findNonFinite(ArrayRef<float> row, int64_t rowIndex) {
  for (size_t i = 0; i < row.size(); ++i)
    if (!std::isfinite(row[i]))
      return weightError(rowIndex, static_cast<int64_t>(i),
                         Twine("weight is ") + (std::isnan(row[i]) ? "NaN" : "infinite") +
                             ", expected a finite number");
  return Error::success();
}

Error sluice::formats::checkFinite(ArrayRef<float> row, int64_t rowIndex) {
  if (std::isfinite(maximalMagnitude(row.data(), static_cast<int64_t>(row.size()))))
    return Error::success();
  return findNonFinite(row, rowIndex);
}

/// `range` says what would be right: "at most 1" or "below 1".
static Error findTooGreat(ArrayRef<float> row, int64_t rowIndex, float limit, const Twine &range,
                          const Twine &format) {
  for (size_t i = 0; i < row.size(); ++i)
    if (std::fabs(row[i]) > limit)
      return weightError(rowIndex, static_cast<int64_t>(i),
                         "weight is " + numberText(row[i]) + ", expected " + range +
                             " in magnitude for " + format);
  llvm_unreachable("called for a row that has such a weight");
}

Error sluice::formats::checkFiniteNumbers(const Encoding &format, const EncodedRow &row,
                                          int64_t columns, int64_t rowIndex) {
  if (format.element == Encoding::Element::E4M3)
    for (auto [column, q] : enumerate(row.q))
      if (std::isnan(format.numberOf(q)))
        return weightError(rowIndex, static_cast<int64_t>(column),
                           "the weight is NaN, expected a finite number");
  for (int64_t g = 0, groups = static_cast<int64_t>(row.scales.size()); g < groups; ++g) {
    float scale = row.scale(format, g), offset = row.offset(format, g);
    if (std::isfinite(scale) && std::isfinite(offset))
      continue;
    float wrong = std::isfinite(scale) ? offset : scale;
    return weightError(rowIndex, g * format.groupColumns(columns),
                       Twine("the ") + (std::isfinite(scale) ? "offset" : "scale") +
                           " of its group is " + (std::isnan(wrong) ? "NaN" : "infinite") +
                           ", expected a finite number");
  }
  return Error::success();
}

Error sluice::formats::quantizeRow(ArrayRef<float> row, Encoding format, MutableArrayRef<int8_t> q,
                                   MutableArrayRef<uint32_t> scales, MutableArrayRef<int8_t> zeros,
                                   int64_t rowIndex) {
  assert(format.isPlainInteger() && format.scale == Encoding::Scale::F16 &&
         "no quantizer for this format");
  int64_t columns = static_cast<int64_t>(row.size());
  assert(q.size() == row.size() && "one integer per column");
  assert(scales.size() == static_cast<size_t>(format.groupsPerRow(columns)) &&
         "one scale per group");
  assert(zeros.size() == (format.hasZeroPoint() ? scales.size() : 0) &&
         "one zero point per group, if any");

  float rowGreatest = maximalMagnitude(row.data(), columns);
  if (!std::isfinite(rowGreatest))
    return findNonFinite(row, rowIndex);
  float limit = greatestScale * static_cast<float>(format.qMax());
  if (rowGreatest > limit)
    return findTooGreat(row, rowIndex, limit, "at most " + numberText(limit), format.name());

  int64_t group = format.groupColumns(columns);
  for (int64_t begin = 0, g = 0; begin < columns; begin += group, ++g) {
    const float *x = row.data() + begin;
    int8_t *to = q.data() + begin;
    int64_t n = std::min(group, columns - begin);
    Statistics statistics = statisticsOf(x, n);
    float greatest = std::max(-statistics.least, statistics.most);
    bool any = false;
    uint16_t bits = 0;
    int zero = 0;
    // Below 2^-25 not even the smallest f16 scale rounds a weight to 1 (2^-25 itself is a tie, to
    // even).
    if (greatest > 0x1p-25f) {
      if (format.hasZeroPoint()) {
        bits = quantizeAffine(x, n, format, statistics, zero);
        any = store(x, n, 1.0f / f16ToFloat(bits), static_cast<float>(format.qMin() - zero),
                    static_cast<float>(format.qMax() - zero), zero, 1, to);
      } else {
        float low, high;
        bool negative;
        bits = quantizeSymmetric(x, n, format, greatest, std::sqrt(statistics.meanSquare), low,
                                 high, negative);
        any = store(x, n, 1.0f / f16ToFloat(bits), low, high, 0, negative ? -1 : 1, to);
        bits |= negative ? 0x8000u : 0u;
      }
    }
    if (!any) {
      std::fill_n(to, n, int8_t(0));
      bits = 0;
      zero = 0;
    }
    scales[g] = bits;
    if (format.hasZeroPoint())
      zeros[g] = static_cast<int8_t>(zero);
  }
  return Error::success();
}

void sluice::formats::dequantizeRow(const Encoding &format, const EncodedRow &row,
                                    MutableArrayRef<float> values) {
  int64_t columns = static_cast<int64_t>(row.q.size()), group = format.groupColumns(columns);
  assert(values.size() == row.q.size() &&
         row.scales.size() == static_cast<size_t>(format.groupsPerRow(columns)));
  for (int64_t begin = 0, g = 0; begin < columns; begin += group, ++g) {
    float scale = row.scale(format, g), offset = row.offset(format, g);
    int zero = row.zero(g);
    for (int64_t i = begin, end = std::min(begin + group, columns); i < end; ++i) {
      float value = (format.numberOf(row.q[i]) - static_cast<float>(zero)) * scale;
      // Not for all: adding a zero would change the sign of -0.
      values[i] = format.hasOffset() ? value + offset : value;
    }
  }
}

Error sluice::formats::convertRow(ArrayRef<float> row, Encoding::Element element,
                                  MutableArrayRef<uint16_t> bits, int64_t rowIndex) {
  assert(bits.size() == row.size() && "one entry per column");
  float greatest = maximalMagnitude(row.data(), static_cast<int64_t>(row.size()));
  if (!std::isfinite(greatest))
    return findNonFinite(row, rowIndex);
  if (element == Encoding::Element::F16) {
    if (greatest >= 65520.0f)
      return findTooGreat(row, rowIndex, std::nextafter(65520.0f, 0.0f), "below 65520", "f16");
    floatToF16(row, bits);
  } else {
    assert(element == Encoding::Element::BF16 && "f16 or bf16");
    float limit =
        std::bit_cast<float>(0x7F7F7FFFu); // the last float that does not round to infinity
    if (greatest > limit)
      return findTooGreat(row, rowIndex, limit, "at most " + numberText(limit), "bf16");
    floatToBf16(row, bits);
  }
  return Error::success();
}
