// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Reference/Ops.h"

#include "sluice-runtime/SamplingWords.h"
#include "sluice/Formats/Activations.h"
#include "sluice/Formats/Quantizer.h"
#include "sluice/Formats/RopeTable.h"

#include "llvm/ADT/STLExtras.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

using namespace llvm;
using namespace sluice;
using namespace sluice::reference;
using formats::Encoding;
using model::DoubleArithmetic;

static DoubleArithmetic arithmetic;

/// A sum of products in double. Its order is not part of anything, so several sums run side by
/// side.
template <typename T> static double dot(ArrayRef<double> x, const T *y) {
  constexpr size_t lanes = 8;
  std::array<double, lanes> sums{};
  size_t size = x.size(), i = 0;
  for (; i + lanes <= size; i += lanes)
    for (size_t lane = 0; lane < lanes; ++lane)
      sums[lane] += x[i + lane] * static_cast<double>(y[i + lane]);
  double sum = 0;
  for (double part : sums)
    sum += part;
  for (; i < size; ++i)
    sum += x[i] * static_cast<double>(y[i]);
  return sum;
}

static std::vector<double> toDouble(ArrayRef<float> x) { return {x.begin(), x.end()}; }

static Error outside(StringRef what, int64_t value, StringRef place, int64_t size) {
  return createStringError(what + " " + Twine(value) + " is outside the " + place + " of " +
                           Twine(size));
}

/// Checks that each integer is an index of `size` things.
static Error checkIndices(const Tensor &indices, StringRef what, StringRef place, int64_t size) {
  for (int32_t index : indices.integers)
    if (index < 0 || index >= size)
      return outside(what, index, place, size);
  return Error::success();
}

static float rounded(Encoding::Element element, float value) {
  switch (element) {
  case Encoding::Element::F16:
    return formats::roundToF16(value);
  case Encoding::Element::BF16:
    return formats::roundToBf16(value);
  default:
    return value;
  }
}

void reference::roundTo(Encoding::Element element, Tensor &tensor) {
  for (float &value : tensor.values)
    value = rounded(element, value);
}

//===----------------------------------------------------------------------===//
// model
//===----------------------------------------------------------------------===//

Expected<Tensor> reference::embedding(const Tensor &tokens, const Tensor &table) {
  if (Error error = checkIndices(tokens, "token", "table", table.rows()))
    return error;
  Tensor result = Tensor::zeros({tokens.rows(), table.width()});
  for (auto [index, token] : enumerate(tokens.integers))
    copy(table.row(token), result.row(index).begin());
  return result;
}

double reference::rmsFactor(ArrayRef<float> row, double epsilon) {
  std::vector<double> x = toDouble(row);
  return model::normFactor<DoubleArithmetic>(arithmetic, dot(x, x.data()),
                                             static_cast<int64_t>(x.size()), epsilon);
}

Tensor reference::rmsNorm(const Tensor &input, const Tensor &gain, double epsilon, bool plusOne) {
  Tensor result = input;
  auto width = static_cast<int64_t>(gain.values.size());
  for (int64_t begin = 0, end = static_cast<int64_t>(input.values.size()); begin < end;
       begin += width) {
    ArrayRef<float> x = ArrayRef(input.values).slice(begin, width);
    double factor = rmsFactor(x, epsilon);
    for (auto [out, in, g] :
         zip_equal(MutableArrayRef(result.values).slice(begin, width), x, gain.values))
      out = static_cast<float>(model::normalized<DoubleArithmetic>(
          arithmetic, static_cast<double>(in), factor, static_cast<double>(g) + (plusOne ? 1 : 0)));
  }
  return result;
}

Tensor reference::reorder(const Tensor &input, const Tensor &order) {
  Tensor result = input;
  for (int64_t row = 0; row < input.rows(); ++row)
    for (auto [out, from] : zip_equal(result.row(row), order.values))
      out = input.row(row)[static_cast<size_t>(from)];
  return result;
}

Tensor reference::layerNorm(const Tensor &input, const Tensor &gain, const Tensor *bias,
                            double epsilon) {
  Tensor result = input;
  for (int64_t row = 0; row < input.rows(); ++row) {
    std::vector<double> x = toDouble(input.row(row));
    auto width = static_cast<int64_t>(x.size());
    double mean = std::accumulate(x.begin(), x.end(), 0.0) / static_cast<double>(width);
    for (double &element : x)
      element -= mean;
    double factor =
        model::normFactor<DoubleArithmetic>(arithmetic, dot(x, x.data()), width, epsilon);
    for (int64_t i = 0; i < width; ++i)
      result.row(row)[i] = static_cast<float>(
          model::normalized<DoubleArithmetic>(arithmetic, x[i], factor, gain.values[i]) +
          (bias ? bias->values[i] : 0));
  }
  return result;
}

Tensor reference::linear(const Tensor &input, const Tensor &weight, const Tensor *bias) {
  Tensor result = Tensor::zeros({input.rows(), weight.rows()});
  for (int64_t row = 0; row < input.rows(); ++row) {
    std::vector<double> x = toDouble(input.row(row));
    for (auto [n, out] : enumerate(result.row(row)))
      out = static_cast<float>(dot(x, weight.row(n).data()) + (bias ? bias->values[n] : 0.0));
  }
  return result;
}

/// Turns the pairs of all heads of a row by the angles whose cosines and sines are given.
template <typename T>
static void turn(MutableArrayRef<float> row, model::RotaryPairs pairs, ArrayRef<T> cosines,
                 ArrayRef<T> sines) {
  for (size_t head = 0; head < row.size(); head += pairs.dim)
    for (int64_t i = 0; i < pairs.half(); ++i) {
      float &first = row[head + pairs.first(i)], &second = row[head + pairs.second(i)];
      auto [x, y] =
          model::turned<DoubleArithmetic>(arithmetic, first, second, cosines[i], sines[i]);
      first = static_cast<float>(x);
      second = static_cast<float>(y);
    }
}

Tensor reference::rotary(const Tensor &input, const Tensor &positions, model::RotaryPairs pairs,
                         ArrayRef<double> frequencies, double magnitude) {
  Tensor result = input;
  for (auto [row, position] : enumerate(positions.integers)) {
    std::vector<double> cosines, sines;
    for (double frequency : frequencies) {
      cosines.push_back(magnitude * std::cos(position * frequency));
      sines.push_back(magnitude * std::sin(position * frequency));
    }
    turn<double>(result.row(row), pairs, cosines, sines);
  }
  return result;
}

Expected<Tensor> reference::rotary(const Tensor &input, const Tensor &positions,
                                   model::RotaryPairs pairs, const Tensor &table) {
  if (Error error = checkIndices(positions, "position", "table", table.rows()))
    return error;
  Tensor result = input;
  for (auto [row, position] : enumerate(positions.integers)) {
    ArrayRef<float> entry = table.row(position);
    turn<float>(result.row(row), pairs, entry.take_front(entry.size() / 2),
                entry.drop_front(entry.size() / 2));
  }
  return result;
}

Tensor reference::ropeTable(int64_t positions, ArrayRef<double> frequencies, double magnitude) {
  size_t half = frequencies.size();
  Tensor table = Tensor::zeros({positions, static_cast<int64_t>(2 * half)});
  for (int64_t position = 0; position < positions; ++position) {
    MutableArrayRef<float> row = table.row(position);
    formats::ropeTableRow(frequencies, magnitude, position, row.take_front(half),
                          row.drop_front(half));
  }
  return table;
}

Tensor reference::hadamard(const Tensor &input, int64_t block) {
  Tensor result = input;
  double norm = 1 / std::sqrt(static_cast<double>(block));
  for (int64_t begin = 0, end = static_cast<int64_t>(input.values.size()); begin < end;
       begin += block) {
    std::vector<double> x = toDouble(ArrayRef(input.values).slice(begin, block));
    for (int64_t distance = 1; distance < block; distance *= 2)
      for (int64_t i = 0; i < block; ++i)
        if (!(i & distance)) {
          double low = x[i], high = x[i | distance];
          x[i] = low + high;
          x[i | distance] = low - high;
        }
    for (auto [out, value] : zip_equal(MutableArrayRef(result.values).slice(begin, block), x))
      out = static_cast<float>(value * norm);
  }
  return result;
}

Cache::Cache(int64_t sequences, int64_t positions, int64_t heads, int64_t dim,
             formats::CacheEncoding encoding)
    : encoding(encoding), sequences(sequences),
      values(Tensor::zeros({sequences * positions, heads, dim})),
      scales(Tensor::zeros({sequences * positions, heads, encoding.groups(dim)})) {}

Error reference::cacheAppend(Cache &cache, const Tensor &input, const Tensor &positions) {
  if (Error error = checkIndices(positions, "position", "cache", cache.positions()))
    return error;
  int64_t dim = cache.dim(), groups = cache.encoding.groups(dim);
  for (auto [row, position] : enumerate(positions.integers)) {
    int64_t place = cache.place(row, position);
    for (int64_t head = 0; head < cache.heads(); ++head) {
      ArrayRef<float> x = input.row(row).slice(head * dim, dim);
      formats::roundCacheVector(cache.encoding, x, cache.values.row(place).slice(head * dim, dim));
      if (!groups)
        continue;
      std::vector<int8_t> codes(dim);
      std::vector<uint16_t> scales(groups);
      formats::quantizeCacheVector(cache.encoding, x, codes, scales);
      for (auto [out, scale] :
           zip_equal(cache.scales.row(place).slice(head * groups, groups), scales))
        out = formats::f16ToFloat(scale);
    }
  }
  return Error::success();
}

static double capped(double score, std::optional<double> softCap) {
  return softCap ? model::softCapped<DoubleArithmetic>(arithmetic, score, *softCap) : score;
}

/// The first position that a token at `last` attends to.
static int64_t oldestPosition(int64_t last, std::optional<int64_t> window) {
  return window ? std::max<int64_t>(0, last - *window + 1) : 0;
}

/// The query of a head as the keys' encoding has it.
static std::vector<double> roundQuery(ArrayRef<float> query, formats::CacheEncoding keys) {
  using Element = formats::CacheEncoding::Element;
  std::vector<double> result = toDouble(query);
  if (keys.isInteger()) {
    // As the inputs of products, but one scale for the whole head.
    float greatest = 0;
    bool finite = true;
    for (float x : query) {
      greatest = std::max(greatest, std::fabs(x));
      finite &= std::isfinite(x);
    }
    float inverse =
        finite && greatest > formats::activationFloor ? formats::activationLimit / greatest : 0.0f;
    double scale = finite ? static_cast<double>(greatest) / formats::activationLimit
                          : std::numeric_limits<double>::quiet_NaN();
    for (auto [out, x] : zip_equal(result, query))
      out = (finite ? std::nearbyint(x * inverse) : 0.0f) * scale;
  } else if (keys.element == Element::BF16) {
    for (auto [out, x] : zip_equal(result, query)) {
      float high = formats::roundToBf16(x);
      out = static_cast<double>(high) + formats::roundToBf16(x - high);
    }
  } else if (keys.element != Element::F32) {
    for (auto [out, x] : zip_equal(result, query))
      out = formats::roundToF16(x);
  }
  return result;
}

/// A softmax weight as float values of this encoding meet it.
static double roundWeight(double weight, formats::CacheEncoding values) {
  using Element = formats::CacheEncoding::Element;
  auto x = static_cast<float>(weight);
  if (values.element == Element::F32)
    return weight;
  if (values.element != Element::BF16)
    return formats::roundToF16(x);
  float high = formats::roundToBf16(x);
  return static_cast<double>(high) + formats::roundToBf16(x - high);
}

Expected<Tensor> reference::fusedAttention(const Tensor &query, const Cache &keys,
                                           const Cache &values, const Tensor &positions,
                                           double scale, std::optional<int64_t> window,
                                           std::optional<double> softCap) {
  if (Error error = checkIndices(positions, "position", "cache", keys.positions()))
    return error;
  int64_t dim = keys.dim(), heads = query.width() / dim, group = heads / keys.heads();
  int64_t groups = values.encoding.groups(dim);
  Tensor result = Tensor::zeros(query.shape);
  for (auto [row, last] : enumerate(positions.integers))
    for (int64_t head = 0; head < heads; ++head) {
      int64_t keyHead = head / group, offset = keyHead * dim;
      std::vector<double> q = roundQuery(query.row(row).slice(head * dim, dim), keys.encoding);
      std::vector<double> scores; // in units of which exp2 gives weights
      int64_t oldest = oldestPosition(last, window);
      for (int64_t position = oldest; position <= last; ++position)
        scores.push_back(
            capped(dot(q, keys.values.row(keys.place(row, position)).data() + offset) * scale,
                   softCap) *
            llvm::numbers::log2e);
      double greatest = *llvm::max_element(scores), sum = 0;
      std::vector<double> mixed(dim);
      for (int64_t block = oldest / formats::cacheBlock; block <= last / formats::cacheBlock;
           ++block) {
        int64_t begin = std::max<int64_t>(block * formats::cacheBlock, oldest);
        int64_t end = std::min<int64_t>((block + 1) * formats::cacheBlock, last + 1);
        auto scalesOf = [&](int64_t position) {
          return values.scales.row(values.place(row, position)).slice(keyHead * groups, groups);
        };
        // What the block's largest product of a weight and a scale, about 32512, is counted in.
        double unit = -std::numeric_limits<double>::infinity();
        for (int64_t position = begin; groups && position < end; ++position)
          for (float scale : scalesOf(position))
            unit = std::max(unit, scores[position - oldest] +
                                      formats::cacheScaleExponent(std::fabs(scale)));
        for (int64_t position = begin; position < end; ++position) {
          sum += std::exp2(scores[position - oldest] - greatest);
          ArrayRef<float> vector =
              values.values.row(values.place(row, position)).slice(offset, dim);
          if (!groups) {
            double weight =
                roundWeight(std::exp2(scores[position - oldest] - greatest), values.encoding);
            for (auto [out, value] : zip_equal(mixed, vector))
              out += weight * value;
            continue;
          }
          int64_t elements = values.encoding.groupElements(dim);
          for (auto [g, valueScale] : enumerate(scalesOf(position))) {
            double weight =
                std::nearbyint(std::exp2(scores[position - oldest] - unit) * valueScale);
            double factor = weight * std::exp2(unit - greatest);
            for (int64_t d = g * elements, e = std::min<int64_t>(d + elements, dim); d < e; ++d)
              mixed[d] += factor * (vector[d] / valueScale);
          }
        }
      }
      for (auto [out, value] : zip_equal(result.row(row).slice(head * dim, dim), mixed))
        out = static_cast<float>(value / sum);
    }
  return result;
}

Expected<Tensor> reference::attention(const Tensor &query, const Cache &keys, const Cache &values,
                                      const Tensor &positions, double scale,
                                      std::optional<int64_t> window,
                                      std::optional<double> softCap) {
  if (Error error = checkIndices(positions, "position", "cache", keys.positions()))
    return error;
  int64_t kvHeads = keys.heads(), dim = keys.dim(), heads = query.width() / dim;
  Tensor result = Tensor::zeros(query.shape);
  for (auto [row, last] : enumerate(positions.integers))
    for (int64_t head = 0; head < heads; ++head) {
      int64_t offset = head / (heads / kvHeads) * dim;
      std::vector<double> q = toDouble(query.row(row).slice(head * dim, dim));
      std::vector<double> scores;
      int64_t oldest = oldestPosition(last, window);
      for (int64_t position = oldest; position <= last; ++position)
        scores.push_back(capped(
            dot(q, keys.values.row(keys.place(row, position)).data() + offset) * scale, softCap));
      double greatest = *llvm::max_element(scores), sum = 0;
      std::vector<double> mixed(dim);
      for (auto [i, score] : enumerate(scores)) {
        double weight = std::exp(score - greatest);
        sum += weight;
        ArrayRef<float> vector = values.values.row(values.place(row, oldest + i));
        for (auto [out, value] : zip_equal(mixed, vector.slice(offset, dim)))
          out += weight * value;
      }
      for (auto [out, value] : zip_equal(result.row(row).slice(head * dim, dim), mixed))
        out = static_cast<float>(value / sum);
    }
  return result;
}

//===----------------------------------------------------------------------===//
// quantized
//===----------------------------------------------------------------------===//

Expected<QuantizedMatrix> reference::quantize(const Tensor &input, Encoding format) {
  QuantizedMatrix result(format, input.rows(), input.width());
  if (!format.isScaled()) {
    result.values = input.values;
    std::vector<uint16_t> bits(input.width());
    for (int64_t row = 0; row < result.rows; ++row) {
      // Only for its errors: what rounds to infinity is no weight.
      Error error = format.element == Encoding::Element::F32
                        ? formats::checkFinite(input.row(row), row)
                        : formats::convertRow(input.row(row), format.element, bits, row);
      if (error)
        return error;
    }
    for (float &value : result.values)
      value = rounded(format.element, value);
    return result;
  }
  for (int64_t row = 0; row < result.rows; ++row)
    if (Error error = formats::quantizeRow(input.row(row), format, result.numbers(row), row))
      return error;
  return result;
}

Tensor reference::dequantize(const QuantizedMatrix &input) {
  Tensor result = Tensor::zeros({input.rows, input.columns});
  if (!input.encoding.isScaled()) {
    result.values = input.values;
    return result;
  }
  for (int64_t row = 0; row < input.rows; ++row)
    formats::dequantizeRow(input.encoding, input.row(row), result.row(row));
  return result;
}

//===----------------------------------------------------------------------===//
// fused
//===----------------------------------------------------------------------===//

/// One row of `input` times rows of floats, the input rounded to their type.
static void floatProducts(ArrayRef<float> input, ArrayRef<float> weights, Encoding::Element element,
                          MutableArrayRef<float> sums) {
  std::vector<float> x(input.size());
  formats::roundActivations(element, input, x);
  std::vector<double> wide = toDouble(x);
  for (auto [n, out] : enumerate(sums))
    out = static_cast<float>(dot(wide, weights.data() + n * x.size()));
}

/// One row of `input` times rows of integers. Sums inside an accumulation block are exact; the few
/// blocks are added in double because their order is left to the device.
static void integerProducts(ArrayRef<float> input, const QuantizedMatrix &weight,
                            MutableArrayRef<float> sums) {
  int64_t columns = weight.columns;
  std::vector<int16_t> x16(columns);
  std::vector<float> activationScales(formats::activationGroups(columns));
  formats::quantizeActivations(input, x16, activationScales);
  int64_t width = formats::accumulationColumns(weight.encoding, columns);
  int64_t group = weight.encoding.groupColumns(columns);
  for (auto [n, out] : enumerate(sums)) {
    formats::EncodedRow row = weight.row(n);
    double sum = 0;
    for (auto [index, part] : enumerate(formats::integerSums(weight.encoding, row, x16))) {
      int64_t column = static_cast<int64_t>(index) * width;
      float activationScale = activationScales[column / formats::activationGroup];
      float factor = row.scale(weight.encoding, column / group) * activationScale;
      sum += static_cast<double>(static_cast<float>(part.products)) * factor;
      sum += static_cast<double>(row.offset(weight.encoding, column / group)) *
             (activationScale * static_cast<float>(part.inputs));
    }
    out = static_cast<float>(sum);
  }
}

/// One row of `input` times rows of scaled floats.
static void scaledProducts(ArrayRef<float> input, const QuantizedMatrix &weight,
                           MutableArrayRef<float> sums) {
  std::vector<float> halves(input.size()), scales(formats::activationGroups(weight.columns));
  formats::scaleActivations(input, halves, scales);
  for (auto [n, out] : enumerate(sums))
    out = formats::scaledProduct(weight.encoding, weight.row(n), halves, scales);
}

Tensor reference::product(const Tensor &input, const QuantizedMatrix &weight) {
  Tensor result = Tensor::zeros({input.rows(), weight.rows});
  for (int64_t row = 0; row < input.rows(); ++row) {
    if (weight.encoding.isInteger())
      integerProducts(input.row(row), weight, result.row(row));
    else if (weight.encoding.isScaled())
      scaledProducts(input.row(row), weight, result.row(row));
    else
      floatProducts(input.row(row), weight.values, weight.encoding.element, result.row(row));
  }
  return result;
}

Tensor reference::product(const Tensor &input, const Tensor &weight, Encoding::Element element) {
  Tensor result = Tensor::zeros({input.rows(), weight.rows()});
  for (int64_t row = 0; row < input.rows(); ++row)
    floatProducts(input.row(row), weight.values, element, result.row(row));
  return result;
}

Expected<Tensor> reference::embedding(const Tensor &tokens, const QuantizedMatrix &table) {
  if (Error error = checkIndices(tokens, "token", "table", table.rows))
    return error;
  Tensor result = Tensor::zeros({tokens.rows(), table.columns});
  for (auto [index, token] : enumerate(tokens.integers)) {
    if (table.encoding.isScaled())
      formats::dequantizeRow(table.encoding, table.row(token), result.row(index));
    else
      copy(ArrayRef(table.values).slice(token * table.columns, table.columns),
           result.row(index).begin());
  }
  return result;
}

//===----------------------------------------------------------------------===//
// Elementwise
//===----------------------------------------------------------------------===//

Tensor reference::elementwise(model::ElementFunction<DoubleArithmetic> function,
                              ArrayRef<const Tensor *> operands) {
  Tensor result = Tensor::zeros(operands.front()->shape);
  SmallVector<double, 2> x(operands.size());
  for (auto [place, out] : enumerate(result.values)) {
    for (auto [element, operand] : zip_equal(x, operands))
      element = operand->values[place % operand->values.size()];
    out = static_cast<float>(function(arithmetic, x));
  }
  return result;
}

/// One row of `sample`.
static int32_t sampleRow(ArrayRef<float> logits, const sampling::SamplingWords &words) {
  std::vector<int32_t> order;
  for (auto [id, logit] : llvm::enumerate(logits)) {
    if (std::isnan(logit) || logit == std::numeric_limits<float>::infinity())
      return -1;
    if (!std::isinf(logit))
      order.push_back(static_cast<int32_t>(id));
  }
  if (order.empty())
    return -1;
  llvm::sort(order, [&](int32_t a, int32_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  });
  float greatest = logits[order.front()];
  if (words.sharpness == 0)
    return order.front();

  auto weigh = [&](float sharpness) {
    return llvm::map_to_vector(order, [&](int32_t id) {
      float share = std::exp2((logits[id] - greatest) * sharpness);
      constexpr float one = int64_t(1) << sampling::kWeightBits;
      return std::min<uint64_t>(static_cast<uint64_t>(share * one + 0.5f),
                                (uint64_t(1) << sampling::kWeightBits) - 1);
    });
  };
  // The number of first tokens whose weights reach a target.
  auto reach = [](ArrayRef<uint64_t> weights, uint64_t target) {
    size_t count = 0;
    for (uint64_t sum = 0; count < weights.size() && sum < target; ++count)
      sum += weights[count];
    return count;
  };
  auto total = [](ArrayRef<uint64_t> weights) {
    return std::accumulate(weights.begin(), weights.end(), uint64_t(0));
  };
  if (words.topK > 0)
    order.resize(std::min<size_t>(order.size(), words.topK));
  if (words.topP < 1) {
    auto weights = weigh(static_cast<float>(llvm::numbers::log2e));
    double part = std::ceil(static_cast<double>(words.topP) * static_cast<double>(total(weights)));
    order.resize(reach(weights, std::max<uint64_t>(static_cast<uint64_t>(part), 1)));
  }
  llvm::erase_if(order, [&](int32_t id) { return logits[id] < greatest + words.logMinP; });
  auto weights = weigh(words.sharpness);
  auto point =
      static_cast<uint64_t>((static_cast<unsigned __int128>(words.point) * total(weights)) >> 64);
  return order[reach(weights, point + 1) - 1];
}

Tensor reference::sample(const Tensor &logits, const Tensor &options) {
  int64_t rows = logits.rows();
  Tensor result = Tensor::ints({rows}, std::vector<int32_t>(rows));
  for (int64_t row = 0; row < rows; ++row) {
    sampling::SamplingWords words;
    std::memcpy(&words, options.integers.data() + row * sampling::kWords, sizeof(words));
    result.integers[row] = sampleRow(logits.row(row), words);
  }
  return result;
}
