// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "CachedAttention.h"

#include "dialects/Quantized/Quantized.h"
#include "sluice/Formats/RopeTable.h"

#include <gtest/gtest.h>

using namespace sluice;
using namespace sluice::test;
using formats::CacheOrder;
using formats::CacheShape;
using reference::Tensor;

std::vector<CachePair> test::allCachePairs() {
  std::vector<CachePair> pairs;
  for (const char *keys : {"f16", "bf16", "fp8", "int8", "int8-h32-rot", "int4", "int4-h64-rot"})
    for (const char *values : {"f16", "bf16", "fp8", "int8", "int8-h32", "int4", "int4-h64"})
      pairs.push_back({keys, values});
  return pairs;
}

std::string test::cachePairName(const CachePair &pair) {
  std::string name = std::string(pair.first) + "_" + pair.second;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

CachedAttention &CachedAttention::caches(llvm::StringRef keys, llvm::StringRef values) {
  keyChoice = llvm::cantFail(formats::CacheScheme::parse(keys, true)).common;
  valueChoice = llvm::cantFail(formats::CacheScheme::parse(values, false)).common;
  return *this;
}

CacheShape CachedAttention::shape(bool keys, bool isGpu) const {
  CacheOrder order = isGpu  ? keys ? CacheOrder::MmaKeys : CacheOrder::MmaValues
                     : keys ? CacheOrder::LanesKeys
                            : CacheOrder::LanesValues;
  return {sequences, positions, heads, dim, (keys ? keyChoice : valueChoice).encoding, order};
}

std::string CachedAttention::text(const std::string &schedule, bool isGpu,
                                  const std::string &appendSchedule) const {
  int64_t tokens = rows.value_or(this->tokens);
  mlir::MLIRContext context;
  context.loadDialect<quantized::QuantizedDialect>();
  auto cacheType = [&](bool keys) {
    using quantized::CacheLayout;
    CacheLayout layout = isGpu  ? keys ? CacheLayout::MmaKeys : CacheLayout::MmaValues
                         : keys ? CacheLayout::LanesKeys
                                : CacheLayout::LanesValues;
    std::string result;
    llvm::raw_string_ostream(result) << quantized::CacheType::get(
        &context, {sequences, positions, heads, dim}, shape(keys, isGpu).encoding, layout);
    return result;
  };
  auto tensor = [&](int64_t columns, const char *element) {
    return "tensor<" + std::to_string(tokens) + "x" + std::to_string(columns) + "x" + element + ">";
  };
  std::string query = tensor(width(), "f32"), row = tensor(heads * dim, "f32"),
              at = "tensor<" + std::to_string(tokens) + "xi32>", result = tensor(width(), "f16");
  std::string number = std::to_string(scale), headDim = std::to_string(dim);
  std::string vector = "tensor<" + headDim + "xf32>",
              table = "tensor<" + std::to_string(positions) + "x" + headDim + "xf32>";
  std::string module =
      "model.cache @k : " + cacheType(true) + "\nmodel.cache @v : " + cacheType(false) + "\n";
  // Weights, because kernels load these before the previous one has ended.
  if (norms)
    module += "model.weight @qg : " + vector + "\nmodel.weight @kg : " + vector + "\n";
  if (rotary != Rotary::None)
    module += "model.rope_table @rope <theta = 10000.0> : " + table + "\n";
  module += "func.func @f(%q: " + query + (appends ? ", %k: " + row + ", %v: " + row : "") +
            ", %p: " + at + (rows ? ", %n: tensor<1xi32>" : "") + ") -> " + result + " {\n";
  if (norms)
    module += "  %qg = model.parameter @qg : " + vector +
              "\n  %kg = model.parameter @kg : " + vector + "\n";
  if (rotary != Rotary::None)
    module += "  %t = model.parameter @rope : " + table + "\n";
  bool ownAppend = appends && rows;
  std::string count = rows ? "active(%n) " : "";
  std::string attended = halfQuery ? tensor(width(), "f16") : query;
  if (ownAppend)
    module += "  %q1 = fused.append %q new(%k, %v), @k, @v at %p " + count + appendSchedule +
              " : " + query + " new(" + row + ", " + row + "), " + at + " -> " + attended;
  std::string attention = std::string("  %y = fused.attention %q") +
                          (ownAppend ? "1"
                           : appends ? " new(%k, %v)"
                                     : "") +
                          ", @k, @v at %p scale " + number + " " +
                          (window ? "window " + std::to_string(*window) + " " : "") +
                          (softCap ? "soft_cap " + std::to_string(*softCap) + " " : "") + count +
                          schedule + " : " + attended +
                          (appends && !ownAppend ? " new(" + row + ", " + row + ")" : "") + ", " +
                          at + " -> " + result;
  if (!ownAppend)
    module += attention;
  if (appends) {
    module += " prologue {\n^bb0(%q0: " + query + ", %k0: " + row + ", %v0: " + row + "):\n";
    std::string last[2];
    for (bool isKey : {false, true}) {
      std::string name = isKey ? "%k" : "%q", type = isKey ? row : query, value = name + "0";
      auto step = [&](const std::string &op, const std::string &types) {
        std::string next = name + "_" + op.substr(0, op.find(' '));
        module += "  " + next + " = model." + op + " : " + type + types + "\n";
        value = next;
      };
      if (norms)
        step("rms_norm " + value + ", " + name + "g epsilon 1.0e-5 head_dim " + headDim,
             ", " + vector);
      if (rotary != Rotary::None)
        step("rotary " + value + " at %p head_dim " + headDim +
                 (rotary == Rotary::Interleaved ? " interleaved" : "") +
                 " <theta = 10000.0> table %t",
             ", " + at + ", " + table);
      if (keyChoice.rotated)
        step("hadamard " + value + " head_dim " + headDim, "");
      last[isKey] = value;
    }
    module += "  model.cache_append @k, " + last[1] + " at %p : " + row + ", " + at +
              "\n  model.cache_append @v, %v0 at %p : " + row + ", " + at + "\n";
    if (halfQuery) {
      module += "  %half = arith.truncf " + last[0] + " : " + query + " to " + attended + "\n";
      last[0] = "%half";
    }
    module += "  fused.yield " + last[0] + " : " + attended + "\n}";
  }
  if (ownAppend)
    module += "\n" + attention;
  return module + "\n  return %y : " + result + "\n}\n";
}

std::vector<float> CachedAttention::gain(bool keys) const {
  return Random(keys ? 11 : 12).normal(dim, 1.0f);
}

Tensor CachedAttention::ropeTable() const {
  llvm::SmallVector<double> frequencies =
      llvm::cantFail(formats::ropeFrequencies(theta, dim, "none", {}));
  return reference::ropeTable(positions, frequencies);
}

Tensor CachedAttention::prepared(Tensor x, llvm::ArrayRef<float> gain,
                                 const std::vector<int32_t> &positions) const {
  if (norms)
    x = reference::rmsNorm(x, Tensor::floats({dim}, gain.vec()), epsilon);
  if (rotary != Rotary::None)
    x = llvm::cantFail(
        reference::rotary(x, Tensor::ints({static_cast<int64_t>(positions.size())}, positions),
                          {dim, rotary == Rotary::Interleaved}, ropeTable()));
  return keyChoice.rotated ? reference::hadamard(x, dim & -dim) : x;
}

CachedAttention::Data CachedAttention::data(Random &random) const {
  int64_t count = sequences * positions * heads * dim;
  Data data{random.normal(tokens * width(), 2.0f), random.normal(count), random.normal(count)};
  // Channels that stand out, as keys have them, and positions of different size.
  for (int64_t i = 0; i < count; ++i) {
    if (i % dim % 37 == 5)
      data.keys[i] += 4.0f;
    data.values[i] *= i / (heads * dim) == 0 ? 0.05f : static_cast<float>(1 + i / dim % 5);
  }
  return data;
}

std::vector<Buffer *> CachedAttention::Step::arguments() {
  std::vector<Buffer *> result;
  for (Buffer &buffer : buffers)
    result.push_back(&buffer);
  return result;
}

std::vector<Buffer *> CachedAttention::Step::appendArguments() {
  std::vector<Buffer *> result = arguments();
  result.back() = &*query;
  return result;
}

std::vector<Buffer *> CachedAttention::Step::attentionArguments() {
  // Positions and the number of tokens come behind the query and what is appended.
  size_t count = buffers.size();
  return {&*query,
          &buffers[3],
          &buffers[4],
          &buffers[count - 3],
          &buffers[count - 2],
          &buffers[count - 1]};
}

CachedAttention::Step CachedAttention::step(const Data &data, const std::vector<int32_t> &at,
                                            bool isGpu) const {
  Step step;
  int64_t row = heads * dim;
  auto sequenceOf = [&](int64_t token) { return sequences == 1 ? 0 : token; };
  std::vector<float> keyGain = gain(true);
  // What is appended, as the definition has it.
  auto vectorOf = [&](const std::vector<float> &all, bool keys, int64_t sequence, int64_t position,
                      int64_t head) {
    Tensor x = Tensor::zeros({1, dim});
    const float *from = all.data() + (sequence * positions + position) * row + head * dim;
    x.values.assign(from, from + dim);
    return keys ? prepared(x, keyGain, {static_cast<int32_t>(position)}).values : x.values;
  };
  Buffer caches[2] = {Buffer(shape(true, isGpu).bytes()), Buffer(shape(false, isGpu).bytes())};
  reference::Cache *read[2] = {&step.keysRead, &step.valuesRead};
  for (int part = 0; part < 2; ++part) {
    CacheShape layout = shape(part == 0, isGpu);
    *read[part] = reference::Cache(sequences, positions, heads, dim, layout.encoding);
    std::memset(caches[part].as<void>(), 0xFF, caches[part].size());
    std::vector<uint8_t> after(layout.bytes(), 0xFF);
    for (int64_t sequence = 0; sequence < sequences; ++sequence) {
      int64_t last = sequences == 1 ? *std::max_element(at.begin(), at.end()) : at[sequence];
      int64_t first = sequences == 1 ? *std::min_element(at.begin(), at.end()) : last;
      int64_t oldest = window ? std::max<int64_t>(0, first - *window + 1) : 0;
      int64_t newest = rows ? first : last; // the first of those that are appended
      for (int64_t head = 0; head < heads; ++head)
        for (int64_t position = oldest; position <= last; ++position) {
          std::vector<float> x =
              vectorOf(part ? data.values : data.keys, part == 0, sequence, position, head);
          auto headOf = [&](uint8_t *bytes) {
            return llvm::MutableArrayRef<uint8_t>(
                bytes + (sequence * heads + head) * layout.headBytes(), layout.headBytes());
          };
          formats::storeCacheVector(layout, headOf(after.data()), position, x);
          if (!appends || position < newest)
            formats::storeCacheVector(layout, headOf(caches[part].as<uint8_t>()), position, x);
          int64_t place = sequence * positions + position, groups = layout.groups();
          llvm::MutableArrayRef<float> scales =
              llvm::MutableArrayRef<float>(read[part]->scales.values)
                  .slice((place * heads + head) * groups, groups);
          formats::loadCacheVector(layout, headOf(after.data()), position,
                                   llvm::MutableArrayRef<float>(read[part]->values.values)
                                       .slice((place * heads + head) * dim, dim),
                                   scales);
        }
    }
    (part ? step.valuesAfter : step.keysAfter) = after;
  }
  Tensor query = Tensor::floats({tokens, width()}, data.query);
  step.isGpu = isGpu;
  step.positions = at;
  step.attended = prepared(query, gain(false), at);
  Tensor expected =
      llvm::cantFail(reference::fusedAttention(step.attended, step.keysRead, step.valuesRead,
                                               Tensor::ints({tokens}, at), scale, window, softCap));
  step.expected.assign(expected.values.begin(), expected.values.end());

  // Rows that are not there hold what no kernel may read.
  int64_t made = rows.value_or(tokens);
  auto bufferOf = [&](std::vector<float> x, int64_t width) {
    x.resize(made * width, std::numeric_limits<float>::quiet_NaN());
    return Buffer(x);
  };
  step.buffers.push_back(bufferOf(data.query, width()));
  if (appends)
    for (const std::vector<float> *all : {&data.keys, &data.values}) {
      std::vector<float> rows;
      for (int64_t token = 0; token < tokens; ++token) {
        const float *from = all->data() + (sequenceOf(token) * positions + at[token]) * row;
        rows.insert(rows.end(), from, from + row);
      }
      step.buffers.push_back(bufferOf(rows, row));
    }
  std::vector<int32_t> all = at;
  all.resize(made, std::numeric_limits<int32_t>::max());
  step.buffers.push_back(Buffer(all));
  if (rows) {
    step.buffers.push_back(Buffer(std::vector<int32_t>{static_cast<int32_t>(tokens)}));
    if (appends)
      step.query.emplace(halfQuery ? Buffer(std::vector<uint16_t>(made * width(), 0x7E00))
                                   : bufferOf({}, width()));
  }
  // In the order of their first use.
  if (norms)
    step.buffers.push_back(Buffer(gain(false)));
  if (rotary != Rotary::None)
    step.buffers.push_back(Buffer(ropeTable().values));
  if (norms)
    step.buffers.push_back(Buffer(gain(true)));
  step.buffers.push_back(std::move(caches[0]));
  step.buffers.push_back(std::move(caches[1]));
  step.buffers.push_back(Buffer(made * width() * 2));
  return step;
}

void CachedAttention::check(Step &step, double tolerance) const {
  size_t count = step.buffers.size();
  if (computes()) {
    // The newest keys, which are then taken as they are.
    formats::CacheShape layout = shape(true, step.isGpu);
    std::vector<uint8_t> stored = step.buffers[count - 3].copy<uint8_t>();
    int64_t groups = layout.groups();
    double resolution = layout.encoding.isInteger()   ? 0
                        : layout.encoding.bits() == 8 ? 0x1p-3
                        : layout.encoding.element == formats::CacheEncoding::Element::BF16
                            ? 0x1p-7
                            : 0x1p-10;
    for (int64_t token = 0; token < tokens; ++token)
      for (int64_t head = 0; head < heads; ++head) {
        int64_t sequence = sequences == 1 ? 0 : token;
        int64_t begin = (sequence * heads + head) * layout.headBytes(),
                position = step.positions[token];
        auto headOf = [&](std::vector<uint8_t> &bytes) {
          return llvm::MutableArrayRef<uint8_t>(bytes).slice(begin, layout.headBytes());
        };
        int64_t row = (sequence * positions + position) * heads + head;
        std::vector<float> expected(dim);
        auto scales =
            llvm::MutableArrayRef<float>(step.keysRead.scales.values).slice(row * groups, groups);
        auto found =
            llvm::MutableArrayRef<float>(step.keysRead.values.values).slice(row * dim, dim);
        formats::loadCacheVector(layout, headOf(step.keysAfter), position, expected, scales);
        formats::loadCacheVector(layout, headOf(stored), position, found, scales);
        int64_t others = 0;
        for (int64_t d = 0; d < dim; ++d) {
          double difference = std::abs(double(found[d]) - expected[d]), x = std::abs(expected[d]);
          // Codes have the resolution of their scale, which may itself be a neighbour.
          double code = groups ? std::abs(scales[d / layout.encoding.groupElements(dim)])
                               : std::max(x * resolution, 0x1p-9);
          others += difference > x * 0x1p-9;
          EXPECT_LE(difference, code + x * 0x1p-9) << "key of head " << head << ", element " << d;
        }
        EXPECT_LE(others, 1 + dim / 32) << "codes of head " << head;
        // Of the head's bytes, those of this position.
        auto take = [&](int64_t byte, int64_t bytes) {
          byte += position / formats::cacheTile * layout.tileBytes();
          llvm::copy(headOf(stored).slice(byte, bytes),
                     headOf(step.keysAfter).slice(byte, bytes).begin());
        };
        int64_t inTile = position % formats::cacheTile;
        for (int64_t d = 0; d < dim; ++d)
          take(formats::cacheCodeByte(layout, inTile, d), layout.encoding.bits() == 16 ? 2 : 1);
        for (int64_t g = 0; g < groups; ++g)
          take(formats::cacheScaleByte(layout, g) + inTile * 2, 2);
      }
    Tensor expected = llvm::cantFail(
        reference::fusedAttention(step.attended, step.keysRead, step.valuesRead,
                                  Tensor::ints({tokens}, step.positions), scale, window, softCap));
    step.expected.assign(expected.values.begin(), expected.values.end());
  }
  std::vector<float> y(step.expected.size());
  std::vector<uint16_t> stored = step.buffers.back().copy<uint16_t>();
  formats::f16ToFloat(llvm::ArrayRef(stored).take_front(y.size()), y);
  EXPECT_TRUE(step.buffers.back().untouchedFrom(y.size() * 2))
      << "a row that is not there was written";
  double error = relativeError(y, step.expected);
  EXPECT_LE(error, tolerance);
  // Of a single position the result is its value, which may be an f16.
  bool isExact = llvm::all_of(step.expected, [](double x) {
    auto narrow = static_cast<float>(x);
    return formats::f16ToFloat(formats::floatToF16(narrow)) == narrow;
  });
  if (!isExact)
    EXPECT_GT(error, 0) << "the result is rounded";
  if (!appends)
    return;
  EXPECT_EQ(step.buffers[count - 3].copy<uint8_t>(), step.keysAfter) << "appended keys";
  EXPECT_EQ(step.buffers[count - 2].copy<uint8_t>(), step.valuesAfter) << "appended values";
}
