// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "TileAttention.h"

#include "sluice/Target/InlinePtx.h"

#include <limits>

using namespace mlir;
using namespace sluice;
using namespace sluice::device;
using formats::CacheEncoding;
using formats::CacheShape;
using formats::cacheTile;

TileAttention::TileAttention(DeviceBuilder &k, fused::AttentionOp op,
                             const fused::AttentionShape &shape, Value lane)
    : fused::AttentionShape(shape), k(k), op(op), lane(lane), row(k.shr(lane, 2)),
      column(k.bitAnd(lane, 3)) {}

TileAttention::Values TileAttention::nothing() {
  Values all;
  for (int64_t pass = 0; pass < passes; ++pass) {
    all.append({k.number(kLowestScore), k.number(0.0)});
    all.append(passValues() - 2, k.number(0.0));
  }
  return all;
}

TileAttention::Values TileAttention::list(const State &state) {
  Values all;
  for (const Pass &pass : state) {
    all.append({pass.reference, pass.sum});
    all.append(pass.outputs);
  }
  return all;
}

TileAttention::State TileAttention::stateOf(ValueRange all) const {
  State state;
  for (int64_t pass = 0; pass < passes; ++pass) {
    ValueRange mine = all.slice(pass * passValues(), passValues());
    state.push_back({mine[0], mine[1], llvm::to_vector(mine.drop_front(2))});
  }
  return state;
}

/// A query head's two columns, and its factor.
void TileAttention::storeQuery(Value number, const Values &elements) {
  Value first = k.at(queriesAt, number, 2 * queryRow()), second = k.offset(first, queryRow());
  auto placeOf = [&](Value column, size_t i, int64_t bytes) {
    return k.offset(column, k.mul(k.add(lane, static_cast<int64_t>(i) * kWarp), bytes));
  };
  if (!keys.encoding.isInteger()) {
    bool bf16 = keys.encoding.element == CacheEncoding::Element::BF16;
    Type element = bf16 ? Type(k.b.getBF16Type()) : k.f16();
    for (auto [i, x] : llvm::enumerate(elements)) {
      Value narrow = k.narrow(x, element);
      k.store(narrow, placeOf(first, i, 2), 2);
      Value rest = bf16 ? k.subF(x, k.widen(narrow)) : k.number(0.0);
      k.store(k.narrow(rest, element), placeOf(second, i, 2), 2);
    }
    return;
  }
  FixedPointScale fixed =
      fixedPointScale(k, elements, [&](Value greatest) { return k.greatestOfWarp(greatest); });
  for (auto [i, x] : llvm::enumerate(elements)) {
    // Adding 1.5 * 2^23 rounds and leaves the integer in the low bits; its low byte is byte 0, its
    // high byte, rounded, is byte 1 of 128 more.
    Value bits = k.bitcast(k.addF(k.mulF(x, fixed.inverse), k.number(12582912.0)), k.i32());
    k.store(k.truncate(k.shr(k.add(bits, 128), 8), k.i8()), placeOf(first, i, 1), 1);
    k.store(k.truncate(bits, k.i8()), placeOf(second, i, 1), 1);
  }
  // Nibbles are multiplied where they lie, at the top of a byte.
  double factor = exponentScale(op) / (keys.encoding.bits() == 4 ? 16 : 1);
  k.ifThen(k.equal(lane, k.constI32(0)), [&] {
    k.store(k.mulF(fixed.scale, k.number(factor)), floats(queryFactorsAt, number), 4);
  });
}

SmallVector<TileAttention::Query> TileAttention::loadQueries() {
  SmallVector<Query> queries;
  for (int64_t pass = 0; pass < passes; ++pass) {
    // Columns that no head needs are filled with the last one.
    auto numberOf = [&](Value inPass) {
      Value number = k.add(inPass, pass * kHeads);
      if (headParts > 1)
        number = k.add(firstHead, number);
      return group % (kHeads * passes) ? k.min(number, k.constI32(group - 1)) : number;
    };
    // The row of a lane is the operand's column.
    Value place = k.at(queriesAt, numberOf(k.shr(row, 1)), 2 * queryRow());
    place = k.offset(place, k.mul(k.bitAnd(row, 1), queryRow()));
    int64_t bytes = keys.encoding.isInteger() ? 1 : 2;
    place = k.offset(place, k.mul(column, 8 * bytes));
    Query query;
    for (int64_t chunk = 0; chunk < keys.paddedDim() / 32; ++chunk)
      query.words.push_back(k.lanes(
          k.load(k.vec(2 * bytes, k.i32()), k.offset(place, chunk * 32 * bytes), 8 * bytes)));
    query.factor = keys.encoding.isInteger()
                       ? k.load(k.f32(), floats(queryFactorsAt, numberOf(column)), 4)
                       : k.number(exponentScale(op));
    queries.push_back(query);
  }
  return queries;
}

//===----------------------------------------------------------------------===//
// Scores
//===----------------------------------------------------------------------===//

DeviceBuilder::Values TileAttention::widenE4M3(Value word) {
  Values result;
  Type halves = k.vec(2, k.f16());
  for (Value pair : k.decodeE4M3(word)) {
    Value number = k.mulF(k.bitcast(pair, halves), k.number(halves, DeviceBuilder::e4m3Divisor));
    result.push_back(k.bitcast(number, k.i32()));
  }
  return result;
}

SmallVector<DeviceBuilder::Values> TileAttention::loadScales(const CacheShape &shape, Value tile) {
  SmallVector<Values> scales;
  for (int64_t g = 0; g < shape.groups(); ++g) {
    Value place = k.offset(k.offset(tile, formats::cacheScaleByte(shape, g)), k.shl(row, 3));
    Values four;
    for (Value pair : k.lanes(k.load(k.vec(2, k.i32()), place, 8)))
      for (Value half : k.lanes(k.bitcast(pair, k.vec(2, k.f16()))))
        four.push_back(k.widen(half));
    scales.push_back(four);
  }
  return scales;
}

Value TileAttention::groupSums(const Values &products, int64_t row) {
  return k.toFloat(k.add(k.shl(products[2 * row], 8), products[2 * row + 1]));
}

DeviceBuilder::Values TileAttention::scoresOf(Value tile, const Query &query) {
  int64_t width = keys.paddedDim(), chunks = width / 32;
  Value mine = k.offset(tile, k.shl(lane, 4));
  auto words = [&](int64_t place) {
    return k.lanes(k.load(k.vec(4, k.i32()), k.offset(mine, place), 16));
  };
  Values scores;
  if (!keys.encoding.isInteger()) {
    bool bytes = keys.encoding.bits() == 8;
    Type element =
        keys.encoding.element == CacheEncoding::Element::BF16 ? Type(k.b.getBF16Type()) : k.f16();
    for (int64_t operand = 0; operand < 2; ++operand) {
      Values sums(4, k.number(0.0));
      int64_t base = operand * cacheTile / 2 * width * keys.encoding.bits() / 8;
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const Values &q = query.words[chunk];
        if (bytes) {
          Values a = words(base + chunk * 512);
          for (int64_t half = 0; half < 2; ++half) {
            Values low = widenE4M3(a[2 * half]), high = widenE4M3(a[2 * half + 1]);
            sums = k.mmaFloat(element, sums, {low[0], high[0], low[1], high[1]},
                              {q[2 * half], q[2 * half + 1]});
          }
          continue;
        }
        for (int64_t half = 0; half < 2; ++half)
          sums = k.mmaFloat(element, sums, words(base + chunk * 1024 + half * 512),
                            {q[2 * half], q[2 * half + 1]});
      }
      for (int64_t r = 0; r < 2; ++r)
        scores.push_back(k.mulF(k.addF(sums[2 * r], sums[2 * r + 1]), query.factor));
    }
    return scores;
  }

  bool nibbles = keys.encoding.bits() == 4;
  int64_t groupElements = keys.encoding.groupElements(width);
  SmallVector<Values> scales = loadScales(keys, tile);
  for (int64_t operand = 0; operand < 2; ++operand) {
    int64_t base = operand * cacheTile / 2 * width * keys.encoding.bits() / 8;
    // Products of every group: chunk after chunk, the two of a byte's nibbles one after the other.
    SmallVector<Values> sums(keys.groups(), Values(4, k.constI32(0)));
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      // Chunks that only pad have no group.
      int64_t g = keys.encoding.group == CacheEncoding::head ? 0 : chunk * 32 / groupElements;
      if (g >= keys.groups())
        continue;
      Values a = words(base + (nibbles ? chunk / 2 : chunk) * 512);
      if (nibbles)
        for (Value &word : a)
          word = k.bitAnd(chunk % 2 ? k.shl(word, 4) : word, int64_t(int32_t(0xF0F0F0F0)));
      sums[g] = k.mmaInt8(sums[g], a, query.words[chunk]);
    }
    for (int64_t r = 0; r < 2; ++r) {
      Value score;
      for (auto [g, products] : llvm::enumerate(sums)) {
        Value scale = scales[g][operand * 2 + r], sum = groupSums(products, r);
        score = score ? k.fma(sum, scale, score) : k.mulF(sum, scale);
      }
      scores.push_back(k.mulF(score, query.factor));
    }
  }
  return scores;
}

//===----------------------------------------------------------------------===//
// Weights and values
//===----------------------------------------------------------------------===//

Value TileAttention::turn(Value word) {
  return NVVM::InlinePtxOp::create(k.b, k.loc, TypeRange{k.i32()}, ValueRange{word}, ValueRange{},
                                   ptx::moveMatrixTransposed, Value())
      .getResult(0);
}

Value TileAttention::isOutside(Value position) {
  Value isNew = k.less(last, position);
  return window ? k.bitOr(isNew, k.less(position, oldest)) : isNew;
}

DeviceBuilder::Values TileAttention::attended(Value firstPosition) {
  return valueMasks(k, values, k.add(firstPosition, k.shl(column, 3)),
                    [&](Value position) { return isOutside(position); });
}

void TileAttention::clearTile(Value tile, Value firstPosition) {
  Values masks = attended(firstPosition);
  // A lane reads what it wrote itself.
  k.loop(k.constI32(0), k.constI32(valueParts()), k.constI32(1),
         [&](Value part) { clearValues(k, values, tile, part, lane, masks); });
}

DeviceBuilder::Values TileAttention::addValues(Value tiles, ArrayRef<Values> weights,
                                               ArrayRef<SmallVector<Values>> scales,
                                               Value firstPosition, Value keep, Value unit,
                                               ValueRange outputs) {
  Values result;
  Value mine = k.offset(tiles, k.shl(lane, 4));
  if (!values.encoding.isInteger()) {
    bool bf16 = values.encoding.element == CacheEncoding::Element::BF16;
    Type element = bf16 ? Type(k.b.getBF16Type()) : k.f16();
    for (Value output : outputs)
      result.push_back(k.mulF(output, keep));
    for (auto [tile, p] : llvm::enumerate(weights)) {
      // Other warps read the same stage: it stays as it is.
      Values masks;
      if (headParts > 1)
        masks = attended(k.add(firstPosition, static_cast<int64_t>(tile) * cacheTile));
      for (int64_t operand = 0; operand < 2; ++operand) {
        // In column 2t the weight, in column 2t + 1 what rounding it to bf16 leaves.
        auto pairOf = [&](Value weight) {
          Value rest = bf16 ? k.subF(weight, k.widen(k.narrow(weight, element))) : k.number(0.0);
          return turn(k.packPair(weight, rest, element));
        };
        Values b = {pairOf(p[2 * operand]), pairOf(p[2 * operand + 1])};
        for (int64_t part = 0; part < valueParts(); ++part) {
          int64_t base = static_cast<int64_t>(tile) * values.tileBytes();
          Values a;
          if (values.encoding.bits() == 16) {
            a = k.lanes(
                k.load(k.vec(4, k.i32()), k.offset(mine, base + part * 1024 + operand * 512), 16));
            for (int64_t word = 0; headParts > 1 && word < 4; ++word)
              a[word] = k.bitAnd(a[word], masks[operand * 2 + word / 2]);
          } else {
            Values two = k.lanes(
                k.load(k.vec(2, k.i32()), k.offset(mine, base + part * 512 + operand * 8), 8));
            for (Value &word : two)
              if (headParts > 1)
                word = k.bitAnd(word, masks[operand]);
            Values low = widenE4M3(two[0]), high = widenE4M3(two[1]);
            a = {low[0], high[0], low[1], high[1]};
          }
          auto to = MutableArrayRef<Value>(result).slice(part * 4, 4);
          llvm::copy(k.mmaFloat(element, Values(to), a, b), to.begin());
        }
      }
    }
    return result;
  }

  bool nibbles = values.encoding.bits() == 4;
  int64_t groupElements =
      values.encoding.group == CacheEncoding::head ? values.paddedDim() : values.encoding.group;
  result.append(outputs.begin(), outputs.end());
  if (nibbles) // multiplied where they lie, at the top of a byte
    unit = k.mulF(unit, k.number(1.0 / 16));
  for (int64_t g = 0; g < values.groups(); ++g) {
    // Weights as 16-bit fixed point: adding 1.5 * 2^23 + 128 rounds, and leaves the high byte in
    // byte 1 and the low one, 128 more, in byte 0. Two positions' bytes, (high, high | low, low),
    // are transposed as an 8 x 8 matrix of 16 bits.
    SmallVector<Values> b;
    for (auto [tile, p] : llvm::enumerate(weights)) {
      Values fixed;
      for (int64_t i = 0; i < 4; ++i)
        fixed.push_back(
            k.bitcast(k.fma(p[i], scales[tile][g][i], k.number(12582912.0 + 128)), k.i32()));
      auto pairOf = [&](Value x, Value y) {
        Value bytes = k.permute(x, y, k.constI32(0x4051));
        return turn(k.bitXor(bytes, int64_t(int32_t(0x80800000))));
      };
      b.push_back({pairOf(fixed[0], fixed[1]), pairOf(fixed[2], fixed[3])});
    }
    int64_t begin = g * groupElements / 16;
    int64_t end = std::min((g + 1) * groupElements / 16, valueParts());
    for (int64_t part = begin; part < end; ++part) {
      Values sums(4, k.constI32(0));
      for (size_t tile = 0; tile < weights.size(); ++tile) {
        int64_t place =
            static_cast<int64_t>(tile) * values.tileBytes() + (nibbles ? part / 2 : part) * 512;
        Values a = k.lanes(k.load(k.vec(4, k.i32()), k.offset(mine, place), 16));
        if (nibbles)
          for (Value &word : a)
            word = k.bitAnd(part % 2 ? k.shl(word, 4) : word, int64_t(int32_t(0xF0F0F0F0)));
        sums = k.mmaInt8(sums, a, b[tile]);
      }
      for (int64_t r = 0; r < 2; ++r) {
        Value &output = result[part * 2 + r];
        output = k.fma(groupSums(sums, r), unit, k.mulF(output, keep));
      }
    }
  }
  return result;
}

void TileAttention::consumeTiles(Value firstTile, Value keysPlace, Value valuesPlace,
                                 ArrayRef<Query> queries, State &state) {
  bool integerValues = values.encoding.isInteger();
  Value firstPosition = k.mul(firstTile, cacheTile);
  if (!integerValues && headParts == 1)
    k.ifThen(
        k.bitOr(isOutside(firstPosition), isOutside(k.add(firstPosition, warpPositions() - 1))),
        [&] {
          for (int64_t tile = 0; tile < warpTiles; ++tile)
            clearTile(k.offset(valuesPlace, tile * values.tileBytes()),
                      k.add(firstPosition, tile * cacheTile));
        });
  SmallVector<Values> outside(warpTiles); // the lane's positions

  for (int64_t tile = 0; tile < warpTiles; ++tile)
    for (int64_t i = 0; i < 4; ++i)
      outside[tile].push_back(
          isOutside(k.add(k.add(firstPosition, k.shl(row, 2)), tile * cacheTile + i)));
  SmallVector<SmallVector<Values>> scales(warpTiles);
  SmallVector<Values> scaleExponents(warpTiles); // bounds of the logarithms of the greatest scales
  if (integerValues)
    for (int64_t tile = 0; tile < warpTiles; ++tile) {
      scales[tile] = loadScales(values, k.offset(valuesPlace, tile * values.tileBytes()));
      for (int64_t i = 0; i < 4; ++i) {
        Value greatest;
        for (Values &group : scales[tile]) {
          group[i] = k.select(outside[tile][i], k.number(0.0), group[i]);
          Value magnitude = values.encoding.hasSignedScale() ? k.absF(group[i]) : group[i];
          greatest = greatest ? k.maxF(greatest, magnitude) : magnitude;
        }
        scaleExponents[tile].push_back(cacheScaleExponent(k, greatest));
      }
    }
  for (auto [query, pass] : llvm::zip_equal(queries, state)) {
    SmallVector<Values> scores;
    Value greatest = k.number(-1e29);
    for (int64_t tile = 0; tile < warpTiles; ++tile) {
      Values t = scoresOf(k.offset(keysPlace, tile * keys.tileBytes()), query);
      for (Value &exponent : t)
        exponent = cappedExponent(k, op, exponent);
      for (int64_t i = 0; i < 4; ++i) {
        t[i] = k.select(outside[tile][i], k.number(-std::numeric_limits<double>::infinity()), t[i]);
        Value reach = integerValues ? k.addF(t[i], scaleExponents[tile][i]) : t[i];
        greatest = k.maxF(greatest, reach);
      }
      scores.push_back(t);
    }
    for (int64_t distance = 4; distance < kWarp; distance *= 2)
      greatest = k.maxF(greatest, k.shuffleXor(greatest, distance));
    // The weights' own unit, for integer values the one in which the greatest is about 32512.
    Value own = greatest, before = pass.reference;
    pass.reference = k.maxF(before, own);
    if (!integerValues)
      own = pass.reference;
    Value keep = k.exp2(k.subF(before, pass.reference));
    Value unit = integerValues ? k.exp2(k.subF(own, pass.reference)) : Value();
    Value sum;
    for (auto [tile, t] : llvm::enumerate(scores))
      for (int64_t i = 0; i < 4; ++i) {
        t[i] = k.exp2(k.subF(t[i], own));
        // A scale that is not a number must not be lost in an integer.
        Value added = t[i];
        for (size_t g = 0; integerValues && g < scales[tile].size(); ++g)
          added = k.fma(scales[tile][g][i], k.number(0.0), added);
        sum = sum ? k.addF(sum, added) : added;
      }
    pass.sum =
        integerValues ? k.fma(sum, unit, k.mulF(pass.sum, keep)) : k.fma(pass.sum, keep, sum);
    pass.outputs = addValues(valuesPlace, scores, scales, firstPosition, keep, unit, pass.outputs);
  }
}

void TileAttention::addLanes(State &state) {
  for (Pass &pass : state)
    for (int64_t distance = 4; distance < kWarp; distance *= 2)
      pass.sum = k.addF(pass.sum, k.shuffleXor(pass.sum, distance));
}

void TileAttention::storePart(const State &state, const Parts &parts, Value part) {
  for (auto [number, pass] : llvm::enumerate(state)) {
    Value inGroup = k.add(column, static_cast<int64_t>(number) * kHeads);
    if (headParts > 1)
      inGroup = k.add(firstHead, inGroup);
    auto storeHead = [&, &pass = pass] {
      Value index = k.add(k.mul(part, group), inGroup);
      Value to = floats(parts.outputs, k.add(k.mul(index, partRow()), row));
      for (int64_t i = 0; i < valueParts(); ++i)
        for (int64_t r = 0; r < 2; ++r) {
          Value output = values.encoding.isInteger()
                             ? pass.outputs[i * 2 + r]
                             : k.addF(pass.outputs[i * 4 + 2 * r], pass.outputs[i * 4 + 2 * r + 1]);
          Value place = k.offset(to, i * 64 + r * 32);
          int64_t first = i * 16 + r * 8;
          if (first + 8 <= dim)
            k.store(output, place, 4);
          else if (first < dim)
            k.ifThen(k.less(row, k.constI32(dim - first)), [&] { k.store(output, place, 4); });
        }
      k.ifThen(k.equal(row, k.constI32(0)), [&] {
        k.store(pass.reference, floats(parts.maxima, index), 4);
        k.store(pass.sum, floats(parts.sums, index), 4);
      });
    };
    if (group % (kHeads * passes) == 0)
      storeHead();
    else
      k.ifThen(k.less(inGroup, k.constI32(group)), storeHead);
  }
}

TileAttention::Joined TileAttention::joinParts(const Parts &parts, Value head, Value index) {
  Values maxima;
  Value greatest;
  Value maximumPlace = floats(parts.maxima, head), sumPlace = floats(parts.sums, head);
  for (int64_t w = 0; w < parts.count; ++w) {
    maxima.push_back(k.load(k.f32(), k.offset(maximumPlace, w * group * 4), 4));
    greatest = greatest ? k.maxF(greatest, maxima.back()) : maxima.back();
  }
  Value from = floats(parts.outputs, k.add(k.mul(head, partRow()), index));
  Value sum = k.number(0.0), rowSum = k.number(0.0);
  for (int64_t w = 0; w < parts.count; ++w) {
    Value ratio = k.exp2(k.subF(maxima[w], greatest));
    sum = k.fma(k.load(k.f32(), k.offset(from, w * group * partRow() * 4), 4), ratio, sum);
    rowSum = k.fma(k.load(k.f32(), k.offset(sumPlace, w * group * 4), 4), ratio, rowSum);
  }
  return {greatest, sum, rowSum};
}
