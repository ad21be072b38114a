// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Formats/Rounding.h"
#include "VectorClones.h"

#include "sluice-support/NumberText.h"
#include "sluice/Formats/Quantizer.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/Sequence.h"
#include "llvm/Support/MathExtras.h"
#include "llvm/Support/Parallel.h"

#include <Eigen/Cholesky>

#include <algorithm>
#include <atomic>
#include <cassert>
#include <cmath>
#include <cstring>
#include <numeric>

using namespace llvm;
using namespace sluice::formats;

// Rows lie in the lanes of vectors: a block of up to 64 rows has, for every column, up to four
// vectors. A row's numbers are then made by the same operations wherever it stands.

/// Damping of the Hessian, relative to the mean of its diagonal.
static constexpr float kDamping = 0.1f;
/// Columns whose errors are carried on together, to the columns after them (step 3) or to all
/// (step 4).
static constexpr int64_t kColumns = 64;
/// Columns of the factorization's panels.
static constexpr int64_t kPanel = 128;
/// Scales of the search, of either sign. Of what covers the group they are 1 / part, with parts
/// that surround 1: the finer an element, the less it pays to clip. Then finer ones about the best.
static constexpr int kSearchScales = 32, kFinerScales = 14;
static float searchPart(unsigned bits, int index) {
  float reach = bits <= 4 ? 1.0f : 1.0f / static_cast<float>(1 << (bits - 4));
  float first = 1 - 0.2f * reach, last = 1 + 1.6f * reach;
  return first * std::pow(last / first, static_cast<float>(index) / (kSearchScales - 1));
}
static constexpr int kRounds = 2, kSweeps = 2;
static constexpr int kMostVectors = Rounder::rowsAtOnce / lanes;
/// Scales that are fitted together, at most: a multiple of a super-block's.
static constexpr int64_t kScalesTogether = 128;
static constexpr float kGreatestScale = 65504.0f;

//===----------------------------------------------------------------------===//
// Vector loops
//===----------------------------------------------------------------------===//

namespace {
/// The integers that a format's elements stand for, before the zero point.
struct Levels {
  explicit Levels(const Encoding &format);

  float low = 0, high = 0;
  /// Of a table: its integers in order, and what lies halfway between one and the next.
  SmallVector<float, 16> table, middles;
  /// The element of each integer, from -128 on.
  int8_t element[256] = {};
};

/// A group's numbers, per row: 1 / scale is 0 for a scale of 0.
struct GroupVectors {
  Vector scale, inverse, zero, offset;
};
} // namespace

Levels::Levels(const Encoding &format) {
  SmallVector<std::pair<int, int8_t>, 256> all;
  for (int q = format.qMin(); q <= format.qMax(); ++q)
    all.push_back({format.integerOf(static_cast<int8_t>(q)), static_cast<int8_t>(q)});
  llvm::sort(all); // the first of equal ones is kept
  all.erase(llvm::unique(all, [](auto a, auto b) { return a.first == b.first; }), all.end());
  low = static_cast<float>(all.front().first);
  high = static_cast<float>(all.back().first);
  for (auto [integer, q] : all) {
    element[integer + 128] = q;
    if (format.code() == Encoding::Code::Table)
      table.push_back(static_cast<float>(integer));
  }
  for (size_t i = 1; i < table.size(); ++i)
    middles.push_back((table[i - 1] + table[i]) / 2);
}

__attribute__((always_inline)) static inline void roundToLevels(const Levels &levels, Vector &x) {
  if (levels.table.empty()) {
    x = x < levels.low ? Vector{} + levels.low : x;
    x = x > levels.high ? Vector{} + levels.high : x;
    x = (x + 0x1.8p23f) - 0x1.8p23f; // to nearest even: |x| is far below 2^22
    return;
  }
  Vector result = Vector{} + levels.table[0];
  const float *next = levels.table.data() + 1;
  for (const float *middle = levels.middles.begin(); middle != levels.middles.end();
       ++middle, ++next)
    result = x > *middle ? Vector{} + *next : result;
  x = result;
}

/// Tiles of 4 columns and of `vectors` (1 or 2) of the block's.
template <int vectors>
__attribute__((always_inline)) static inline void
accumulateTile(const float *matrix, int64_t width, const int32_t *rows, int64_t depth,
               int64_t begin, int64_t end, const Vector *from, int64_t fromStride, float *to,
               int64_t toStride) {
  for (int64_t k = begin; k < end; k += 4) {
    Vector sum[4][vectors];
    for (int a = 0; a < 4; ++a)
      std::memcpy(sum[a], to + (k + a) * toStride, sizeof(sum[a]));
    for (int64_t i = 0; i < depth; ++i) {
      const float *factor = matrix + rows[i] * width + k;
      for (int a = 0; a < 4; ++a)
        for (int v = 0; v < vectors; ++v)
          sum[a][v] += factor[a] * from[i * fromStride + v];
    }
    for (int a = 0; a < 4; ++a)
      std::memcpy(to + (k + a) * toStride, sum[a], sizeof(sum[a]));
  }
}

/// to[k] += the sum over i of matrix[rows[i]][k] * from[i], for k from `begin` to `end`, which are
/// multiples of 4; of as many vectors each, which follow each other in `from`.
SLUICE_VECTOR_CLONES static void accumulate(const float *matrix, int64_t width, const int32_t *rows,
                                            int64_t depth, int64_t begin, int64_t end,
                                            const Vector *from, float *to, int64_t toStride,
                                            int vectors) {
  // So many entries of `from` stay in the first cache.
  constexpr int64_t step = 64;
  for (int64_t i = 0; i < depth; i += step)
    for (int v = 0; v < vectors; v += 2) {
      const Vector *part = from + i * vectors + v;
      if (v + 1 < vectors)
        accumulateTile<2>(matrix, width, rows + i, std::min(step, depth - i), begin, end, part,
                          vectors, to + v * lanes, toStride);
      else
        accumulateTile<1>(matrix, width, rows + i, std::min(step, depth - i), begin, end, part,
                          vectors, to + v * lanes, toStride);
    }
}

/// The levels nearest to x, and the values that they stand for.
SLUICE_VECTOR_CLONES static void choose(const Levels &levels, const GroupVectors *group,
                                        const Vector *x, Vector *level, Vector *value,
                                        int vectors) {
  for (int v = 0; v < vectors; ++v) {
    const GroupVectors &g = group[v];
    Vector nearest = (x[v] - g.offset) * g.inverse + g.zero;
    roundToLevels(levels, nearest);
    level[v] = nearest;
    value[v] = (nearest - g.zero) * g.scale + g.offset;
  }
}

/// The best scale of a group of n columns of a vector of rows, `stride` vectors apart.
SLUICE_VECTOR_CLONES static void searchScale(const Levels &levels, const Vector *x, int64_t stride,
                                             const float *weights, int64_t n, const float *parts,
                                             Vector &best) {
  Vector greatest = {};
  for (int64_t i = 0; i < n; ++i) {
    Vector v = x[i * stride];
    v = v < 0.0f ? -v : v;
    greatest = v > greatest ? v : greatest;
  }
  const float top = std::max(-levels.low, levels.high);
  Vector least = Vector{} + std::numeric_limits<float>::infinity();
  best = Vector{};
  // Then some that are near the best.
  const float between = parts[1] / parts[0] - 1;
  Vector center = {};
  for (int candidate = 0; candidate < 2 * kSearchScales + kFinerScales; ++candidate) {
    Vector scale;
    if (candidate < 2 * kSearchScales) {
      float part = parts[candidate / 2] * top;
      scale = greatest / (candidate % 2 ? -part : part);
    } else {
      int finer = candidate - 2 * kSearchScales;
      center = finer ? center : best;
      scale = center * (1 + between * (static_cast<float>(finer + 1) * 2 / (kFinerScales + 1) - 1));
    }
    Vector inverse = 1.0f / (scale == 0.0f ? Vector{} + 1.0f : scale);
    Vector ee = {}, er = {}, rr = {};
    for (int64_t i = 0; i < n; ++i) {
      Vector v = x[i * stride] * inverse, r = v;
      roundToLevels(levels, r);
      Vector e = v - r, weighted = r * weights[i];
      ee += e * e * weights[i];
      er += e * weighted;
      rr += r * weighted;
    }
    // x = scale (r + e): the best scale is scale (1 + er / rr), which leaves an error of scale^2
    // (ee - er^2 / rr).
    Vector change = er / (rr == 0.0f ? Vector{} + 1.0f : rr);
    Vector error = scale * scale * (ee - change * er);
    auto better = error < least;
    least = better ? error : least;
    best = better ? scale + scale * change : best;
  }
}

/// sums[v] += the sum over columns of x * y.
SLUICE_VECTOR_CLONES static void addProducts(const Vector *x, const Vector *y, int64_t columns,
                                             Vector *sums, int vectors) {
  for (int64_t i = 0; i < columns; ++i)
    for (int v = 0; v < vectors; ++v)
      sums[v] += x[i * vectors + v] * y[i * vectors + v];
}

/// Solves A x = b for a vector of rows: A symmetric, positive definite, n x n, of which the upper
/// half is given and destroyed; the numbers are `stride` vectors apart. x replaces b.
SLUICE_VECTOR_CLONES static void solve(Vector *a, Vector *b, int64_t n, int64_t stride) {
  auto at = [&](int64_t i, int64_t j)
                __attribute__((always_inline)) -> Vector & { return a[(i * n + j) * stride]; };
  Vector trace = {};
  for (int64_t i = 0; i < n; ++i)
    trace += at(i, i);
  // Integers that are all 0 leave a scale open; it then stays what it is.
  Vector ridge = trace * (1e-6f / static_cast<float>(n)) + 1e-30f;
  for (int64_t i = 0; i < n; ++i)
    at(i, i) += ridge;
  // A = U^T D U, U with a diagonal of ones: D in the place of the diagonal.
  for (int64_t i = 0; i < n; ++i) {
    Vector inverse = 1.0f / at(i, i);
    for (int64_t j = i + 1; j < n; ++j) {
      Vector factor = at(i, j) * inverse;
      for (int64_t k = j; k < n; ++k)
        at(j, k) -= factor * at(i, k);
      b[j * stride] -= factor * b[i * stride];
      at(i, j) = factor;
    }
    b[i * stride] *= inverse;
  }
  for (int64_t i = n; i-- > 0;)
    for (int64_t j = i + 1; j < n; ++j)
      b[i * stride] -= at(i, j) * b[j * stride];
}

//===----------------------------------------------------------------------===//
// Preparation
//===----------------------------------------------------------------------===//

Rounder Rounder::plain(int64_t columns) { return Rounder(Basis::Nothing, columns); }

/// The mean of the moments, which all must be sensible.
static Expected<double> meanOf(ArrayRef<float> moments) {
  double sum = 0;
  for (auto [column, moment] : enumerate(moments)) {
    if (!(moment >= 0) || !std::isfinite(moment))
      return createStringError("moment of column " + Twine(column) + " is " +
                               sluice::support::numberText(moment) +
                               ", expected a finite number that is not negative");
    sum += moment;
  }
  // Inputs that are always 0 leave the choice open.
  return sum > 0 ? sum / static_cast<double>(moments.size()) : 1.0;
}

Expected<Rounder> Rounder::byMoments(ArrayRef<float> moments) {
  Rounder rounder(Basis::Moments, static_cast<int64_t>(moments.size()));
  Expected<double> mean = meanOf(moments);
  if (!mean)
    return mean.takeError();
  rounder.mean = *mean;
  for (float moment : moments)
    rounder.moments.push_back(static_cast<float>(moment / *mean));
  return rounder;
}

/// A = U^T U: replaces the upper half of A [n, n], rows `width` apart, by U. Columns from n on are
/// padding, of zeros. Returns whether A is positive definite.
static bool factorize(float *a, int64_t n, int64_t width) {
  using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  auto part = [&](int64_t row, int64_t column, int64_t rows, int64_t columns) {
    return Eigen::Map<Matrix, 0, Eigen::OuterStride<>>(a + row * width + column, rows, columns,
                                                       Eigen::OuterStride<>(width));
  };
  // Chunks of 64 columns are four vectors.
  constexpr int64_t chunk = kMostVectors * lanes;
  std::vector<int32_t> rows(kPanel);
  for (int64_t begin = 0; begin < n; begin += kPanel) {
    int64_t end = std::min(begin + kPanel, n), count = end - begin;
    std::iota(rows.begin(), rows.end(), static_cast<int32_t>(begin));
    Eigen::LLT<Matrix, Eigen::Upper> corner(part(begin, begin, count, count));
    Matrix upper = corner.matrixU();
    if (corner.info() != Eigen::Success || !upper.allFinite())
      return false;
    part(begin, begin, count, count) = upper;
    if (end == n)
      break;
    // The panel's rows to the right; then what they take from the rows below.
    int64_t chunks = (width - end) / chunk;
    parallelFor(0, chunks, [&](size_t c) {
      auto right = part(begin, end + static_cast<int64_t>(c) * chunk, count, chunk);
      upper.transpose().triangularView<Eigen::Lower>().solveInPlace(right);
    });
    parallelFor(0, chunks, [&](size_t c) {
      int64_t column = end + static_cast<int64_t>(c) * chunk;
      std::vector<Vector> taken(count * kMostVectors);
      for (int64_t i = 0; i < count; ++i)
        std::memcpy(&taken[i * kMostVectors], a + (begin + i) * width + column,
                    chunk * sizeof(float));
      for (Vector &numbers : taken)
        numbers = -numbers;
      accumulate(a, width, rows.data(), count, end, column + chunk, taken.data(), a + column, width,
                 kMostVectors);
    });
  }
  return true;
}

Expected<Rounder> Rounder::byHessian(ArrayRef<float> lower, int64_t columns) {
  const int64_t n = columns;
  assert(static_cast<int64_t>(lower.size()) == n * (n + 1) / 2 && "a triangle");
  auto rowOf = [&](int64_t i) { return lower.data() + i * (i + 1) / 2; };
  std::vector<float> diagonal(n);
  for (int64_t i = 0; i < n; ++i)
    diagonal[i] = rowOf(i)[i];
  Expected<Rounder> made = byMoments(diagonal);
  if (!made)
    return made.takeError();
  Rounder rounder = std::move(*made);
  rounder.base = Basis::Hessian;
  const int64_t width = rounder.width = alignTo(n, kColumns);

  auto damped = std::make_shared<std::vector<float>>(n * width);
  float *h = damped->data();
  const float scale = static_cast<float>(1 / rounder.mean);
  std::atomic<bool> finite = true;
  parallelFor(0, n, [&](size_t i) {
    const float *from = rowOf(static_cast<int64_t>(i));
    float magnitude = 0;
    for (size_t j = 0; j <= i; ++j) {
      h[i * width + j] = from[j] * scale;
      magnitude += std::fabs(from[j] * scale);
    }
    if (!std::isfinite(magnitude))
      finite = false;
  });
  if (!finite)
    return createStringError("Hessian has numbers that are not finite");
  rounder.damping.assign(n, kDamping);
  for (int64_t i = 0; i < n; ++i) {
    if (diagonal[i] == 0)
      rounder.damping[i] += 1;
    h[i * width + i] += rounder.damping[i];
  }
  parallelFor(0, n, [&](size_t i) {
    for (int64_t j = static_cast<int64_t>(i) + 1; j < n; ++j)
      h[i * width + j] = h[j * width + i];
  });
  rounder.order.resize(n);
  std::iota(rounder.order.begin(), rounder.order.end(), 0);
  llvm::sort(rounder.order, [&](int32_t i, int32_t j) {
    return diagonal[i] != diagonal[j] ? diagonal[i] > diagonal[j] : i < j;
  });

  // R is U^T in reverse order, where U^T U is H' in reverse order.
  auto feedback = std::make_shared<std::vector<float>>(width * width);
  float *u = feedback->data();
  const int32_t *order = rounder.order.data();
  parallelFor(0, n, [&](size_t i) {
    const float *from = h + order[n - 1 - i] * width;
    for (int64_t j = static_cast<int64_t>(i); j < n; ++j)
      u[i * width + j] = from[order[n - 1 - j]];
  });
  if (!factorize(u, n, width))
    return createStringError("Hessian is not positive semidefinite");
  parallelFor(0, n, [&](size_t i) {
    float *row = u + i * width, inverse = 1 / row[i];
    std::fill_n(row, i + 1, 0.0f);
    for (int64_t j = static_cast<int64_t>(i) + 1; j < n; ++j)
      row[j] *= inverse;
  });
  parallelFor(0, n, [&](size_t i) {
    for (int64_t j = static_cast<int64_t>(i) + 1; j < n - 1 - static_cast<int64_t>(i); ++j)
      std::swap(u[i * width + j], u[(n - 1 - j) * width + n - 1 - i]);
  });
  rounder.damped = std::move(damped);
  rounder.feedback = std::move(feedback);
  return rounder;
}

//===----------------------------------------------------------------------===//
// Rounding
//===----------------------------------------------------------------------===//

/// The numbers that were written.
static EncodedRow view(const Encoding &format, const RowNumbers &numbers, int64_t columns) {
  size_t groups = format.groupsPerRow(columns);
  return {
      {numbers.q, static_cast<size_t>(columns)},
      {numbers.scales, groups},
      {numbers.zeros, format.hasZeroPoint() ? groups : 0},
      {numbers.offsets, format.hasOffset() ? groups : 0},
      {numbers.supers, static_cast<size_t>(format.supersPerRow(columns) * format.superNumbers())}};
}

/// Up to 64 rows.
class Rounder::Block {
public:
  Block(const Rounder &rounder, const Encoding &format, const Levels &levels, ArrayRef<Row> rows);

  Error run(MutableArrayRef<double> errors);
  static bool fitsScales(const Encoding &format) {
    return format.scale == Encoding::Scale::F16 || format.scale == Encoding::Scale::I8;
  }

private:
  GroupVectors *groupOf(int64_t column) { return &groups[column / groupColumns * vectors]; }
  Vector *at(std::vector<Vector> &all, int64_t column) { return &all[column * vectors]; }
  /// Calls what with each row and its lane.
  template <typename What> void forRows(What what) {
    for (auto [i, row] : enumerate(rows))
      what(row, static_cast<int>(i) / lanes, static_cast<int>(i) % lanes);
  }

  Error load();
  /// Step 2.
  Error start();
  /// Stores the scales nearest to `wanted` [groups][vectors]. What cannot be stored stays as it is.
  /// Of the groups from `begin` to `end` only.
  void setScales(const std::vector<Vector> &wanted, int64_t begin, int64_t end, bool isFirst);
  /// Step 3.
  void compensate();
  /// residual = H' (w - q).
  void findResidual();
  /// Scales of step 4, from `residual`, which is kept up to date.
  void fitScales();
  /// Coordinate descent of step 4; keeps `residual` up to date.
  void descend();
  void store(MutableArrayRef<double> errors);

  const Rounder &rounder;
  const Encoding &format;
  const Levels &levels;
  ArrayRef<Row> rows;
  int vectors;
  int64_t columns, padded, groupColumns, numGroups;
  /// [column][vector]
  std::vector<Vector> weights, level, value, residual, scratch;
  std::vector<GroupVectors> groups;
  /// 0, 1, 2 and so on.
  std::vector<int32_t> indices;
};

Rounder::Block::Block(const Rounder &rounder, const Encoding &format, const Levels &levels,
                      ArrayRef<Row> rows)
    : rounder(rounder), format(format), levels(levels), rows(rows),
      vectors(static_cast<int>(divideCeil(rows.size(), lanes))), columns(rounder.columns()),
      padded(alignTo(columns, 4)), groupColumns(format.groupColumns(columns)),
      numGroups(format.groupsPerRow(columns)), weights(columns * vectors), level(columns * vectors),
      value(columns * vectors), groups(numGroups * vectors), indices(columns) {
  std::iota(indices.begin(), indices.end(), 0);
}

Error Rounder::Block::load() {
  const float most = kGreatestScale * std::max(-levels.low, levels.high);
  for (const Row &row : rows) {
    assert(static_cast<int64_t>(row.weights.size()) == columns && "a row of the product");
    if (Error error = checkFinite(row.weights, row.index))
      return error;
    // It has the message for weights that are too great.
    if (any_of(row.weights, [&](float w) { return std::fabs(w) > most; }))
      if (Error error = quantizeRow(row.weights, format, row.to, row.index))
        return error;
  }
  forRows([&](const Row &row, int v, int lane) {
    for (int64_t column = 0; column < columns; ++column)
      weights[column * vectors + v][lane] = row.weights[column];
  });
  return Error::success();
}

void Rounder::Block::setScales(const std::vector<Vector> &wanted, int64_t begin, int64_t end,
                               bool isFirst) {
  const int64_t perSuper = format.superNumbers() ? Encoding::superColumns / groupColumns : 1;
  SmallVector<float> part(perSuper);
  forRows([&](const Row &row, int v, int lane) {
    for (int64_t first = begin; first < end; first += perSuper) {
      int64_t count = std::min(perSuper, end - first);
      float greatest = 0;
      for (int64_t i = 0; i < count; ++i) {
        float old = groups[(first + i) * vectors + v].scale[lane];
        float scale = wanted[(first + i) * vectors + v][lane];
        if (!isFirst && (old == 0 || !std::isfinite(scale)))
          scale = old;
        part[i] = scale;
        if (std::fabs(scale) > std::fabs(greatest))
          greatest = scale;
      }
      uint16_t super = 0;
      float unit = 0;
      if (format.superNumbers()) {
        // An int8 has one code more below zero: the greatest scale takes it.
        super = floatToF16(
            std::clamp(greatest / (-128.0f * format.superUnit()), -kGreatestScale, kGreatestScale));
        unit = f16ToFloat(super) * format.superUnit();
        if (unit == 0 && !isFirst)
          continue;
        row.to.supers[first / perSuper] = super;
      }
      for (int64_t i = 0; i < count; ++i) {
        float wish = std::clamp(part[i], -kGreatestScale, kGreatestScale);
        uint16_t code = floatToF16(wish);
        if (format.superNumbers())
          code = unit != 0 ? static_cast<uint8_t>(static_cast<int8_t>(
                                 std::nearbyint(std::clamp(part[i] / unit, -128.0f, 127.0f))))
                           : 0;
        float scale = format.scaleOf(code, super);
        GroupVectors &group = groups[(first + i) * vectors + v];
        if (!format.superNumbers() && scale == 0 && !isFirst)
          continue;
        row.to.scales[first + i] = code;
        float inverse = 1 / scale;
        group.scale[lane] = scale;
        group.inverse[lane] = std::isfinite(inverse) ? inverse : 0;
      }
    }
  });
}

Error Rounder::Block::start() {
  if (format.offset == Encoding::Offset::None && fitsScales(format)) {
    float parts[kSearchScales];
    for (int i = 0; i < kSearchScales; ++i)
      parts[i] = searchPart(format.bits(), i);
    SmallVector<float> importance;
    for (float moment : rounder.moments)
      importance.push_back(std::max(moment, 1e-3f));
    std::vector<Vector> wanted(numGroups * vectors);
    for (int64_t g = 0; g < numGroups; ++g)
      for (int v = 0; v < vectors; ++v) {
        int64_t column = g * groupColumns;
        searchScale(levels, at(weights, column) + v, vectors, importance.data() + column,
                    std::min(groupColumns, columns - column), parts, wanted[g * vectors + v]);
      }
    setScales(wanted, 0, numGroups, /*isFirst=*/true);
    return Error::success();
  }
  for (const Row &row : rows)
    if (Error error = quantizeRow(row.weights, format, row.to, row.index))
      return error;
  forRows([&](const Row &row, int v, int lane) {
    EncodedRow numbers = view(format, row.to, columns);
    for (int64_t g = 0; g < numGroups; ++g) {
      GroupVectors &group = groups[g * vectors + v];
      float scale = numbers.scale(format, g), inverse = 1 / scale;
      group.scale[lane] = scale;
      group.inverse[lane] = std::isfinite(inverse) ? inverse : 0;
      group.zero[lane] = static_cast<float>(numbers.zero(g));
      group.offset[lane] = numbers.offset(format, g);
    }
  });
  return Error::success();
}

void Rounder::Block::compensate() {
  const std::vector<int32_t> &order = rounder.order;
  std::vector<Vector> target(padded * vectors), errors(kColumns * vectors);
  for (int64_t p = 0; p < columns; ++p)
    std::copy_n(at(weights, order[p]), vectors, at(target, p));
  auto carry = [&](int64_t first, int64_t count, int64_t begin, int64_t end, const Vector *from) {
    accumulate(rounder.feedback->data(), rounder.width, &indices[first], count, begin, end, from,
               reinterpret_cast<float *>(target.data()), vectors * lanes, vectors);
  };
  for (int64_t begin = 0; begin < columns; begin += kColumns) {
    int64_t end = std::min(begin + kColumns, columns);
    for (int64_t p = begin; p < end; ++p) {
      int64_t column = order[p];
      choose(levels, groupOf(column), at(target, p), at(level, column), at(value, column), vectors);
      Vector *error = at(errors, p - begin);
      for (int v = 0; v < vectors; ++v)
        error[v] = at(weights, column)[v] - at(value, column)[v];
      // Columns up to p take nothing: the matrix is 0 there.
      if (p + 1 < end)
        carry(p, 1, alignDown(p + 1, 4), alignTo(end, 4), error);
    }
    if (end < columns)
      carry(begin, end - begin, end, padded, errors.data());
  }
}

void Rounder::Block::findResidual() {
  scratch.resize(columns * vectors);
  for (size_t i = 0; i < scratch.size(); ++i)
    scratch[i] = weights[i] - value[i];
  residual.assign(padded * vectors, Vector{});
  accumulate(rounder.damped->data(), rounder.width, indices.data(), columns, 0, padded,
             scratch.data(), reinterpret_cast<float *>(residual.data()), vectors * lanes, vectors);
}

void Rounder::Block::fitScales() {
  const float *h = rounder.damped->data();
  const int64_t width = rounder.width;
  std::vector<Vector> integers(columns * vectors), wanted(numGroups * vectors);
  for (int64_t column = 0; column < columns; ++column)
    for (int v = 0; v < vectors; ++v)
      at(integers, column)[v] = at(level, column)[v] - groupOf(column)[v].zero;
  auto columnsOf = [&](int64_t g) { return std::min(groupColumns, columns - g * groupColumns); };
  for (int64_t first = 0; first < numGroups; first += kScalesTogether) {
    const int64_t count = std::min(kScalesTogether, numGroups - first), last = first + count;
    const int64_t begin = first * groupColumns, end = std::min(columns, last * groupColumns);
    std::vector<Vector> system(count * count * vectors), change(count * vectors),
        products(alignTo(end - begin, 4) * vectors);
    for (int64_t g = first; g < last; ++g) {
      const int64_t own = g * groupColumns;
      std::fill(products.begin() + (own - begin) * vectors, products.end(), Vector{});
      accumulate(h + begin, width, &indices[own], columnsOf(g), own - begin,
                 alignTo(end - begin, 4), at(integers, own),
                 reinterpret_cast<float *>(products.data()), vectors * lanes, vectors);
      for (int64_t other = g; other < last; ++other)
        addProducts(at(products, other * groupColumns - begin), at(integers, other * groupColumns),
                    columnsOf(other), &system[((g - first) * count + other - first) * vectors],
                    vectors);
      addProducts(at(residual, own), at(integers, own), columnsOf(g),
                  &change[(g - first) * vectors], vectors);
    }
    for (int v = 0; v < vectors; ++v)
      solve(&system[v], &change[v], count, vectors);
    for (int64_t i = 0; i < count * vectors; ++i)
      wanted[first * vectors + i] = groups[first * vectors + i].scale + change[i];
    setScales(wanted, first, last, /*isFirst=*/false);
    scratch.resize(columns * vectors);
    for (int64_t column = begin; column < end; ++column)
      for (int v = 0; v < vectors; ++v) {
        const GroupVectors &group = groupOf(column)[v];
        Vector &old = at(value, column)[v];
        Vector fitted = at(integers, column)[v] * group.scale + group.offset;
        at(scratch, column)[v] = old - fitted;
        old = fitted;
      }
    if (count < numGroups)
      accumulate(h, width, &indices[begin], end - begin, 0, padded, at(scratch, begin),
                 reinterpret_cast<float *>(residual.data()), vectors * lanes, vectors);
  }
  if (numGroups <= kScalesTogether)
    findResidual();
}

void Rounder::Block::descend() {
  const float *h = rounder.damped->data();
  const int64_t width = rounder.width;
  std::vector<Vector> local(kColumns * vectors), changes(kColumns * vectors), target(vectors),
      newLevel(vectors), newValue(vectors);
  std::vector<float> corner(kColumns * kColumns);
  std::vector<int32_t> changed;
  for (int64_t begin = 0; begin < columns; begin += kColumns) {
    int64_t count = std::min(kColumns, columns - begin);
    const int32_t *at64 = &rounder.order[begin];
    for (int64_t p = 0; p < count; ++p) {
      for (int64_t other = 0; other < count; ++other)
        corner[p * kColumns + other] = h[at64[p] * width + at64[other]];
      std::copy_n(at(residual, at64[p]), vectors, at(local, p));
    }
    changed.clear();
    for (int64_t p = 0; p < count; ++p) {
      int64_t column = at64[p];
      const float inverse = 1 / corner[p * kColumns + p];
      for (int v = 0; v < vectors; ++v)
        target[v] = at(value, column)[v] + at(local, p)[v] * inverse;
      choose(levels, groupOf(column), target.data(), newLevel.data(), newValue.data(), vectors);
      bool any = false;
      Vector *change = &changes[changed.size() * vectors];
      for (int v = 0; v < vectors; ++v) {
        change[v] = at(value, column)[v] - newValue[v];
        for (int lane = 0; lane < lanes; ++lane)
          any |= change[v][lane] != 0;
      }
      if (!any)
        continue;
      std::copy_n(newLevel.data(), vectors, at(level, column));
      std::copy_n(newValue.data(), vectors, at(value, column));
      changed.push_back(static_cast<int32_t>(column));
      // What columns before p get here is not used: `residual` gets it below.
      int32_t own = static_cast<int32_t>(p);
      accumulate(corner.data(), kColumns, &own, 1, alignDown(p + 1, 4), alignTo(count, 4), change,
                 reinterpret_cast<float *>(local.data()), vectors * lanes, vectors);
    }
    accumulate(h, width, changed.data(), static_cast<int64_t>(changed.size()), 0, padded,
               changes.data(), reinterpret_cast<float *>(residual.data()), vectors * lanes,
               vectors);
  }
}

void Rounder::Block::store(MutableArrayRef<double> errors) {
  bool hessian = rounder.basis() == Basis::Hessian;
  forRows([&](const Row &row, int v, int lane) {
    double error = 0;
    for (int64_t column = 0; column < columns; ++column) {
      int64_t i = column * vectors + v;
      row.to.q[column] = levels.element[static_cast<int>(level[i][lane]) + 128];
      double e = weights[i][lane] - value[i][lane];
      error += hessian ? e * (residual[i][lane] - rounder.damping[column] * e)
                       : e * e * rounder.moments[column];
    }
    if (!errors.empty())
      errors[v * lanes + lane] = std::max(error, 0.0) * rounder.mean;
  });
}

Error Rounder::Block::run(MutableArrayRef<double> errors) {
  if (Error error = load())
    return error;
  if (Error error = start())
    return error;
  if (rounder.basis() == Basis::Moments) {
    for (int64_t column = 0; column < columns; ++column)
      choose(levels, groupOf(column), at(weights, column), at(level, column), at(value, column),
             vectors);
    store(errors);
    return Error::success();
  }
  compensate();
  findResidual();
  for (int round = 0; round < kRounds; ++round) {
    if (fitsScales(format))
      fitScales();
    for (int sweep = 0; sweep < kSweeps; ++sweep)
      descend();
  }
  if (fitsScales(format))
    fitScales();
  // Elsewhere it is what changes have been added to.
  if (!fitsScales(format) || numGroups > kScalesTogether)
    findResidual();
  store(errors);
  return Error::success();
}

Error Rounder::round(const Encoding &format, ArrayRef<Row> rows,
                     MutableArrayRef<double> errors) const {
  assert((format.isInteger() || (format.isScaled() && base == Basis::Nothing)) &&
         "floats are converted, and only integers are rounded by statistics");
  if (base == Basis::Nothing) {
    std::vector<float> values(numColumns);
    for (auto [i, row] : enumerate(rows)) {
      if (Error error = quantizeRow(row.weights, format, row.to, row.index))
        return error;
      if (errors.empty())
        continue;
      dequantizeRow(format, view(format, row.to, numColumns), values);
      errors[i] = 0;
      for (auto [weight, value] : zip_equal(row.weights, values))
        errors[i] += (static_cast<double>(weight) - value) * (static_cast<double>(weight) - value);
    }
    return Error::success();
  }
  Levels levels(format);
  for (size_t first = 0; first < rows.size(); first += rowsAtOnce) {
    size_t count = std::min(rowsAtOnce, rows.size() - first);
    if (Error error = Block(*this, format, levels, rows.slice(first, count))
                          .run(errors.empty() ? errors : errors.slice(first, count)))
      return error;
  }
  return Error::success();
}

Expected<double> Rounder::relativeError(const Encoding &format, ArrayRef<float> weights) const {
  assert(weights.size() % numColumns == 0 && "whole rows");
  int64_t count = static_cast<int64_t>(weights.size()) / numColumns;
  EncodedRows numbers(format, count, numColumns);
  std::vector<Row> rows;
  for (int64_t i = 0; i < count; ++i)
    rows.push_back({weights.slice(i * numColumns, numColumns), numbers.numbers(i), i});
  std::vector<double> errors(count);
  if (Error error = round(format, rows, errors))
    return error;
  double sum = std::accumulate(errors.begin(), errors.end(), 0.0), squares = 0;
  for (float weight : weights)
    squares += static_cast<double>(weight) * weight;
  return squares > 0 ? sum / (squares * mean) : 0.0;
}
