// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Causal attention of many tokens of one sequence, or of several that are packed one behind the
// other, whose keys and values are in the cache already. All tokens of a block are one sequence's.
//
// A warp has 16 tokens of a query head: the rows of the tensor cores' first operand. Queries stay
// in its registers, as do its outputs and the greatest score of each row so far (FlashAttention-2;
// Dao 2023). The block's warps read the same keys and values, which come through a ring of bulk
// copies.
//
// The cache has its tiles in the order of the first operand (CacheLayout.h), for decoding. The same
// bytes are the second operand, too: the 16 bytes of a lane hold its part of two operands of eight
// positions (keys) or eight elements (values). So lane 4g + t gets the scores of tokens g and g + 8
// with positions 8t .. 8t+7, which are what it has to have of the first operand of the weighted
// sums: nothing is shuffled.
//
// Numbers are rounded as for a single token (docs/numerics.md, "Attention"). What is a sum of two
// numbers there, high and low byte or two bf16 numbers, is two products here.

#include "AttentionPrologue.h"
#include "AttentionTiles.h"
#include "StageRing.h"

#include "../FusedKernels/CachePlaces.h"

#include <limits>

using namespace mlir;
using namespace sluice;
using namespace sluice::device;
using formats::CacheEncoding;
using formats::CacheShape;
using formats::cacheTile;

namespace {
class PrefillAttention : fused::PrefillAttentionPlan {
public:
  using Values = DeviceBuilder::Values;

  PrefillAttention(Kernel &kernel, fused::AttentionOp op, const fused::PrefillAttentionPlan &plan)
      : fused::PrefillAttentionPlan(plan), kernel(kernel), k(kernel.k), op(op) {}

  LogicalResult emit();

private:
  /// Rows of a lane: tokens g and g + 8.
  static constexpr int64_t kRows = 2;
  /// Neighbouring positions of a lane, or elements of a query.
  static constexpr int64_t kPiece = 8;

  /// What a warp carries. Outputs of 8 elements after the other, of each those of row 0, 2t and
  /// 2t + 1, then those of row 1.
  struct State {
    Values references, sums, outputs;
  };
  static Values list(const State &state);
  State stateOf(ValueRange values) const;
  State initialState();

  /// First operands of 16 rows (float keys: for every 16 elements; integer keys: for every 32): the
  /// numbers, and, of integer and bf16 keys, what is added to them.
  struct Query {
    SmallVector<Values> high, low;
    Values factors; ///< from sums of products to exponents of 2, of each row
  };
  /// Scores or weights of a tile: [i][2 * row + half] is that of position 8t + i + 4 * half.
  using Scores = SmallVector<Values>;
  /// The place in them of position 8t + `position`.
  static Value &at(Scores &scores, int64_t row, int64_t position) {
    return scores[position % 4][2 * row + position / 4];
  }

  int64_t keyChunks() const { return keys.paddedDim() / 32; }
  int64_t valueParts() const { return values.paddedDim() / 16; }
  /// Groups of eight outputs that are elements of the head.
  int64_t outputTiles() const { return llvm::divideCeil(dim, 8); }
  static Type elementOf(DeviceBuilder &k, const CacheShape &shape) {
    return shape.encoding.element == CacheEncoding::Element::BF16 ? Type(k.b.getBF16Type())
                                                                  : k.f16();
  }

  LogicalResult emitBlock();
  void readPositions();
  Value positionOf(Value token);
  StageRing stageRing() { return {k, ring, fullAt}; }
  /// Whether this thread copies: one, or before sm_90 those of one warp.
  Value copies() {
    return k.hasBulkCopies() ? k.equal(thread, k.constI32(0)) : k.less(thread, k.constI32(kWarp));
  }
  TileCopies tileCopies() {
    return {
        kernel, keys, op.getKeysAttr(), values, op.getValuesAttr(), {op.getPages(), sequence, head},
        lane};
  }
  /// The page of a stage's first tile; null where caches are not in pages.
  Value pageOf(Value number) { return tileCopies().pageOf(firstTileOf(number)); }
  Value firstTileOf(Value number) { return k.mul(k.add(firstStage, number), stageTiles); }
  /// Copies a stage whose first tile has page `page`; returns that of the next stage.
  Value copyStage(Value number, Value slot, Value page);
  void fillRing();

  FailureOr<Values> loadQuery(Value token);
  FailureOr<Query> prepareQuery();
  /// Sixteen-bit fixed point, four numbers after the other as bytes: high ones, low ones. `x` are
  /// floats to which 1.5 * 2^23 + 128 has been added.
  std::pair<Value, Value> splitBytes(ArrayRef<Value> x);

  /// Puts the operands into shared memory, if registers do not hold them; a lane reads its own.
  void shareQuery(const Query &query);
  Value operandPlace(int64_t number, bool second);
  /// `second`: what is added to the numbers.
  Values operandOf(const Query &query, int64_t number, bool second);

  void clearOutside(Value firstPosition, Value stage);
  Values loadScales(const CacheShape &shape, Value tile, int64_t group);
  Scores scoresOf(Value tile, const Query &query);
  void addFloats(Value tile, Scores &weights, Values &outputs);
  void addIntegers(Value tiles, MutableArrayRef<Scores> weights,
                   ArrayRef<SmallVector<Values>> scales, const Values &keep, const Values &units,
                   Values &outputs);
  void mask(MutableArrayRef<Scores> scores, Value firstPosition);
  Value overRow(Value x, llvm::function_ref<Value(Value, Value)> join);
  State consumeStage(Value firstPosition, Value stage, const Query &query, State state,
                     llvm::function_ref<void()> scored);
  State consume(const Query &query);
  void storeResult(const State &state);
  void combine(const State &state);
  /// Where in its row a token's head begins.
  Value resultPlace(Value token, Value queryHead);
  double valueDivisor() {
    return values.encoding.element == CacheEncoding::Element::E4M3 ? DeviceBuilder::e4m3Divisor : 1;
  }

  Kernel &kernel;
  DeviceBuilder &k;
  fused::AttentionOp op;
  Value thread, warp, lane, row, column; ///< row, column: lane / 4, lane % 4
  Value head, inGroup, queryHead;        ///< of keys and values; of queries
  /// The sequence's tokens: the first one, and the one behind the last.
  Value beginToken, endToken;
  Value sequence;               ///< null where there is one
  Value blockToken, firstToken; ///< of the block, of the warp
  Value origin;                 ///< the position of the sequence's first token
  /// Latest and, if there is a window, oldest position that one of the block's tokens reads.
  Value last, oldest;
  Value warpFirst, warpLast; ///< positions of the warp's first and last token
  Values rowTokens, rowLast;
  Value firstStage, stageCount;
  Value oldestStage, latestStage; ///< of the cluster, counted from the block's first
  Value rank, part;               ///< in the cluster; of the query heads
  Value stagesAt, fullAt, emptyAt, queriesAt, maximaAt, sumsAt;
};
} // namespace

PrefillAttention::Values PrefillAttention::list(const State &state) {
  Values all;
  for (const Values *part : {&state.references, &state.sums, &state.outputs})
    all.append(*part);
  return all;
}

PrefillAttention::State PrefillAttention::stateOf(ValueRange all) const {
  return {llvm::to_vector(all.take_front(kRows)), llvm::to_vector(all.slice(kRows, kRows)),
          llvm::to_vector(all.drop_front(2 * kRows))};
}

PrefillAttention::State PrefillAttention::initialState() {
  return {Values(kRows, k.number(kLowestScore)), Values(kRows, k.number(0.0)),
          Values(outputTiles() * 4, k.number(0.0))};
}

//===----------------------------------------------------------------------===//
// Positions and copies
//===----------------------------------------------------------------------===//

Value PrefillAttention::positionOf(Value token) {
  // Tokens that are not there read what the last one reads.
  Value known = k.min(token, k.sub(endToken, 1));
  if (packed)
    known = k.sub(known, beginToken);
  return k.min(k.add(origin, known), k.constI32(keys.positions - 1));
}

void PrefillAttention::readPositions() {
  Value stored = kernel.interface.pointer(op.getPositions());
  if (packed)
    stored = k.at(stored, beginToken, 4);
  origin = k.clampIndex(k.load(k.i32(), stored, 4), keys.positions);
  last = positionOf(k.add(blockToken, blockTokens() - 1));
  warpFirst = positionOf(firstToken);
  warpLast = positionOf(k.add(firstToken, kTokens - 1));
  for (int64_t r = 0; r < kRows; ++r) {
    rowTokens.push_back(k.add(k.add(firstToken, row), 8 * r));
    rowLast.push_back(positionOf(rowTokens.back()));
  }
  firstStage = k.constI32(0);
  if (window) {
    oldest = k.max(k.sub(positionOf(blockToken), window - 1), k.constI32(0));
    firstStage = k.div(oldest, stagePositions());
  }
  stageCount = k.sub(k.add(k.div(last, stagePositions()), 1), firstStage);
  oldestStage = k.constI32(0);
  latestStage = k.sub(stageCount, 1);
  if (splits == 1)
    return;
  // A block has neighbouring stages; of few stages the last blocks have none.
  Value share = k.div(k.add(stageCount, splits - 1), splits);
  Value begin = k.min(k.mul(rank, share), stageCount);
  stageCount = k.min(share, k.sub(stageCount, begin));
  firstStage = k.add(firstStage, begin);
  oldestStage = k.sub(oldestStage, begin);
  latestStage = k.sub(latestStage, begin);
}

Value PrefillAttention::copyStage(Value number, Value slot, Value page) {
  Value barrier = k.at(fullAt, slot, 8), to = k.at(stagesAt, slot, stageBytes);
  if (k.hasBulkCopies())
    k.expectBytes(barrier, k.constI32(stageBytes));
  Value next = tileCopies().copy(firstTileOf(number), k.constI32(stageTiles), page,
                                 firstTileOf(k.add(number, 1)), to,
                                 k.offset(to, stageTiles * keys.tileBytes()), barrier);
  if (!k.hasBulkCopies())
    k.arriveAfterCopies(barrier);
  return next;
}

/// All stages of the ring but one, which is filled while the first is read.
void PrefillAttention::fillRing() {
  Value zero = k.constI32(0), end = k.min(stageCount, k.constI32(ring - 1));
  auto fill = [&](Value from, Value to) {
    Values pages;
    if (Value page = pageOf(from))
      pages.push_back(page);
    k.loop(from, to, 1, pages, [&](Value number, ValueRange carried) -> Values {
      Value page = copyStage(number, number, carried.empty() ? Value() : carried[0]);
      return page ? Values{page} : Values();
    });
  };
  Value oldEnd = zero;
  if (early) {
    // Stages that hold only positions of earlier steps.
    oldEnd = k.sub(k.div(origin, stagePositions()), firstStage);
    oldEnd = k.min(k.max(oldEnd, zero), end);
    k.ifThen(copies(), [&] { fill(zero, oldEnd); });
  }
  k.waitForPredecessor();
  k.ifThen(copies(), [&] {
    // The previous kernel wrote this step's keys and values by ordinary stores.
    if (k.hasBulkCopies())
      k.fenceAsync();
    fill(oldEnd, end);
  });
}

//===----------------------------------------------------------------------===//
// Queries
//===----------------------------------------------------------------------===//

/// Of every 32 elements of a token's query the lane's eight, as float32; zeros where it is padded.
FailureOr<PrefillAttention::Values> PrefillAttention::loadQuery(Value token) {
  RankedTensorType type = op.getQuery().getType();
  Type element = type.getElementType();
  if (!kernels::isFloatTensor(op.getQuery()))
    return op.emitOpError() << "has a query of type " << type;
  int64_t bytes = bytesOf(element);
  Value number = k.add(k.mul(token, type.getDimSize(1)), k.mul(queryHead, dim));
  Value base = k.at(kernel.interface.pointer(op.getQuery()), k.toI64(number), bytes);
  Values elements;
  for (int64_t first = 0; first < keys.paddedDim(); first += 32) {
    Value d = k.add(k.shl(column, 3), first);
    bool pads = first + 32 > dim;
    auto clear = [&](Value x, Value place) {
      return pads ? k.select(k.less(place, k.constI32(dim)), x, k.number(0.0)) : x;
    };
    if (dim % kPiece == 0) {
      Value from = pads ? k.min(d, k.constI32(dim - kPiece)) : d;
      for (int64_t e = 0; e < kPiece; e += 16 / bytes)
        for (Value word :
             k.lanes(k.loadFresh(k.vec(4, k.i32()), k.at(base, k.add(from, e), bytes), 16)))
          for (Value x : k.lanes(k.bitcast(word, k.vec(4 / bytes, element))))
            elements.push_back(clear(k.widen(x), d));
      continue;
    }
    for (int64_t e = 0; e < kPiece; ++e) {
      Value place = k.add(d, e);
      Value from = pads ? k.min(place, k.constI32(dim - 1)) : place;
      Value x = k.loadFresh(element, k.at(base, from, bytes), bytes);
      elements.push_back(clear(k.widen(x), place));
    }
  }
  return elements;
}

std::pair<Value, Value> PrefillAttention::splitBytes(ArrayRef<Value> x) {
  // The high byte, rounded, is byte 1; the low one, 128 more, is byte 0.
  auto pair = [&](Value first, Value second) {
    return k.permute(k.bitcast(first, k.i32()), k.bitcast(second, k.i32()), k.constI32(0x4051));
  };
  Value low = pair(x[0], x[1]), high = pair(x[2], x[3]);
  return {k.permute(low, high, k.constI32(0x5410)),
          k.bitXor(k.permute(low, high, k.constI32(0x7632)), int64_t(int32_t(0x80808080)))};
}

FailureOr<PrefillAttention::Query> PrefillAttention::prepareQuery() {
  Query query;
  SmallVector<Values> rows;
  for (Value token : rowTokens) {
    FailureOr<Values> elements = loadQuery(k.min(token, k.sub(endToken, 1)));
    if (failed(elements))
      return failure();
    rows.push_back(*elements);
  }
  const double scale = exponentScale(op);
  if (keys.encoding.isInteger()) {
    constexpr double rounder = 12582912.0 + 128;
    // Nibbles are multiplied where they lie, at the top of a byte.
    double factor = scale / (keys.encoding.bits() == 4 ? 16 : 1);
    for (Values &elements : rows) {
      FixedPointScale fixed = fixedPointScale(k, elements, [&](Value greatest) {
        return overRow(greatest, [&](Value x, Value y) { return k.max(x, y); });
      });
      for (Value &x : elements)
        x = k.addF(k.mulF(x, fixed.inverse), k.number(rounder));
      query.factors.push_back(k.mulF(fixed.scale, k.number(factor)));
    }
    for (int64_t chunk = 0; chunk < keyChunks(); ++chunk) {
      Values high, low;
      for (int64_t half = 0; half < 2; ++half)
        for (const Values &elements : rows) {
          auto four = ArrayRef(elements).slice(chunk * kPiece + half * 4, 4);
          auto [highBytes, lowBytes] = splitBytes(four);
          high.push_back(highBytes);
          low.push_back(lowBytes);
        }
      query.high.push_back(high);
      query.low.push_back(low);
    }
    return query;
  }
  Type element = elementOf(k, keys);
  // Codes of E4M3 are decoded to numbers that are smaller by this.
  bool isE4M3 = keys.encoding.bits() == 8;
  query.factors.assign(kRows, k.number(scale * (isE4M3 ? DeviceBuilder::e4m3Divisor : 1)));
  for (int64_t step = 0; step < 2 * keyChunks(); ++step) {
    Values high, low;
    for (int64_t half = 0; half < 2; ++half)
      for (const Values &elements : rows) {
        Value x = elements[step * 4 + half * 2], y = elements[step * 4 + half * 2 + 1];
        high.push_back(k.packPair(x, y, element));
        auto rest = [&](Value whole) { return k.subF(whole, k.widen(k.narrow(whole, element))); };
        if (element.isBF16())
          low.push_back(k.packPair(rest(x), rest(y), element));
      }
    query.high.push_back(high);
    query.low.push_back(low);
  }
  return query;
}

//===----------------------------------------------------------------------===//
// Scores
//===----------------------------------------------------------------------===//

Value PrefillAttention::operandPlace(int64_t number, bool second) {
  Value mine = k.add(k.mul(warp, queryOperands()), number + (second ? queryOperands() / 2 : 0));
  return k.offset(k.at(queriesAt, mine, kWarp * 16), k.shl(lane, 4));
}

void PrefillAttention::shareQuery(const Query &query) {
  if (!queriesAt)
    return;
  for (int64_t number = 0; number < static_cast<int64_t>(query.high.size()); ++number) {
    k.store(k.vectorOf(query.high[number]), operandPlace(number, false), 16);
    if (isDouble(keys))
      k.store(k.vectorOf(query.low[number]), operandPlace(number, true), 16);
  }
}

PrefillAttention::Values PrefillAttention::operandOf(const Query &query, int64_t number,
                                                     bool second) {
  if (!queriesAt)
    return second ? query.low[number] : query.high[number];
  return k.lanes(k.load(k.vec(4, k.i32()), operandPlace(number, second), 16));
}

/// Joins what the four lanes of a row have.
Value PrefillAttention::overRow(Value x, llvm::function_ref<Value(Value, Value)> join) {
  for (int64_t distance : {1, 2})
    x = join(x, k.shuffleXor(x, distance));
  return x;
}

/// The scales of the lane's eight positions.
PrefillAttention::Values PrefillAttention::loadScales(const CacheShape &shape, Value tile,
                                                      int64_t group) {
  Value place = k.offset(k.offset(tile, formats::cacheScaleByte(shape, group)), k.shl(column, 4));
  Values scales;
  for (Value pair : k.lanes(k.load(k.vec(4, k.i32()), place, 16)))
    for (Value half : k.lanes(k.bitcast(pair, k.vec(2, k.f16()))))
      scales.push_back(k.widen(half));
  return scales;
}

PrefillAttention::Scores PrefillAttention::scoresOf(Value tile, const Query &query) {
  Value mine = k.offset(tile, k.shl(lane, 4));
  auto words = [&](int64_t place) {
    return k.lanes(k.load(k.vec(4, k.i32()), k.offset(mine, place), 16));
  };
  int64_t halfTile = cacheTile / 2 * keys.paddedDim() * keys.encoding.bits() / 8;
  // Operand n of a tile, of four, has positions n, 4 + n, 8 + n and so on: bytes of n / 2, words of
  // n % 2.
  Scores scores(4);
  auto finish = [&](int64_t n, Values sums) {
    for (int64_t i = 0; i < 4; ++i)
      scores[n].push_back(cappedExponent(k, op, k.mulF(sums[i], query.factors[i / 2])));
  };
  if (!keys.encoding.isInteger()) {
    Type element = elementOf(k, keys);
    SmallVector<Values> sums(4, Values(4, k.number(0.0)));
    bool bytes = keys.encoding.bits() == 8;
    for (int64_t chunk = 0; chunk < keyChunks(); ++chunk) {
      SmallVector<Values> high, low;
      for (int64_t step = 2 * chunk; step < 2 * chunk + 2; ++step) {
        high.push_back(operandOf(query, step, /*second=*/false));
        if (isDouble(keys))
          low.push_back(operandOf(query, step, /*second=*/true));
      }
      for (int64_t first : {0, 2}) {
        int64_t base = first / 2 * halfTile + chunk * (bytes ? 512 : 1024);
        Values all = words(base);
        if (!bytes)
          all.append(words(base + 512));
        for (int64_t half = 0; half < 2; ++half)
          for (int64_t n = first; n < first + 2; ++n) {
            Values b = bytes ? k.decodeE4M3(all[2 * half + n % 2])
                             : Values{all[4 * half + n % 2], all[4 * half + 2 + n % 2]};
            sums[n] = k.mmaFloat(element, sums[n], high[half], b);
            if (!low.empty())
              sums[n] = k.mmaFloat(element, sums[n], low[half], b);
          }
      }
    }
    for (int64_t n = 0; n < 4; ++n)
      finish(n, sums[n]);
    return scores;
  }

  bool nibbles = keys.encoding.bits() == 4;
  int64_t groupElements = keys.encoding.groupElements(keys.paddedDim());
  SmallVector<Values> totals(4);
  for (int64_t g = 0; g < keys.groups(); ++g) {
    int64_t begin = g * groupElements / 32;
    int64_t end = std::min((g + 1) * groupElements / 32, keyChunks());
    SmallVector<Values> high(4, Values(4, k.constI32(0))), low = high;
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      Values first = operandOf(query, chunk, /*second=*/false),
             second = operandOf(query, chunk, /*second=*/true);
      for (int64_t half = 0; half < 2; ++half) {
        Values all = words(half * halfTile + (nibbles ? chunk / 2 : chunk) * 512);
        if (nibbles)
          for (Value &word : all)
            word = k.bitAnd(chunk % 2 ? k.shl(word, 4) : word, int64_t(int32_t(0xF0F0F0F0)));
        for (int64_t n = 2 * half; n < 2 * half + 2; ++n) {
          Values b = {all[n % 2], all[2 + n % 2]};
          high[n] = k.mmaInt8(high[n], first, b);
          low[n] = k.mmaInt8(low[n], second, b);
        }
      }
    }
    Values scales = loadScales(keys, tile, g);
    for (int64_t n = 0; n < 4; ++n)
      for (int64_t i = 0; i < 4; ++i) {
        Value sum = k.toFloat(k.add(k.shl(high[n][i], 8), low[n][i]));
        Value scale = scales[n + 4 * (i % 2)];
        if (g == 0)
          totals[n].push_back(k.mulF(sum, scale));
        else
          totals[n][i] = k.fma(sum, scale, totals[n][i]);
      }
  }
  for (int64_t n = 0; n < 4; ++n)
    finish(n, totals[n]);
  return scores;
}

/// Makes the exponents of positions that a row does not attend to minus infinity.
void PrefillAttention::mask(MutableArrayRef<Scores> scores, Value firstPosition) {
  Value first = k.add(firstPosition, k.shl(column, 3));
  for (auto [tile, tileScores] : llvm::enumerate(scores))
    for (int64_t r = 0; r < kRows; ++r)
      for (int64_t i = 0; i < kPiece; ++i) {
        Value position = k.add(first, static_cast<int64_t>(tile) * cacheTile + i);
        Value outside = k.less(rowLast[r], position);
        if (window)
          outside = k.bitOr(outside, k.less(position, k.sub(rowLast[r], window - 1)));
        Value &score = at(tileScores, r, i);
        score = k.select(outside, k.number(-std::numeric_limits<double>::infinity()), score);
      }
}

//===----------------------------------------------------------------------===//
// Weights and values
//===----------------------------------------------------------------------===//

/// A weight of 0 does not keep away what is not a number: clears values that none of the block's
/// tokens attends to, which may hold anything. Of integer values their scales.
void PrefillAttention::clearOutside(Value firstPosition, Value stage) {
  Value first = k.offset(stage, stageTiles * keys.tileBytes());
  auto isOutside = [&](Value position) {
    Value isNew = k.less(last, position);
    return window ? k.bitOr(isNew, k.less(position, oldest)) : isNew;
  };
  if (values.encoding.isInteger()) {
    int64_t perTile = values.groups() * cacheTile;
    k.loop(thread, k.constI32(stageTiles * perTile), warps() * kWarp, [&](Value number) {
      Value tile = k.div(number, perTile), inTile = k.rem(number, perTile);
      Value position =
          k.add(k.add(firstPosition, k.mul(tile, cacheTile)), k.rem(inTile, cacheTile));
      Value place = k.offset(k.at(first, tile, values.tileBytes()),
                             k.add(k.shl(inTile, 1), formats::cacheScaleByte(values, 0)));
      k.ifThen(isOutside(position), [&] { k.store(k.number(k.f16(), 0.0), place, 2); });
    });
    return;
  }
  for (int64_t tile = 0; tile < stageTiles; ++tile) {
    Value begin = k.add(firstPosition, tile * cacheTile);
    Values masks = valueMasks(k, values, k.add(begin, k.shl(column, 3)), isOutside);
    k.loop(warp, k.constI32(valueParts()), warps(), [&](Value part) {
      clearValues(k, values, k.offset(first, tile * values.tileBytes()), part, lane, masks);
    });
  }
}

void PrefillAttention::addFloats(Value tile, Scores &weights, Values &outputs) {
  Value mine = k.offset(tile, k.shl(lane, 4));
  Type element = elementOf(k, values);
  bool halves = values.encoding.bits() == 16;
  for (int64_t operand = 0; operand < 2; ++operand) {
    // The two positions of a word are four apart, as values have them.
    Values high, low;
    for (int64_t i = 2 * operand; i < 2 * operand + 2; ++i)
      for (int64_t r = 0; r < kRows; ++r) {
        Value x = at(weights, r, i), y = at(weights, r, i + 4);
        high.push_back(k.packPair(x, y, element));
        auto rest = [&](Value whole) { return k.subF(whole, k.widen(k.narrow(whole, element))); };
        if (element.isBF16())
          low.push_back(k.packPair(rest(x), rest(y), element));
      }
    for (int64_t part = 0; 2 * part < outputTiles(); ++part) {
      Values all;
      if (halves)
        all = k.lanes(k.load(k.vec(4, k.i32()), k.offset(mine, part * 1024 + operand * 512), 16));
      else
        all = k.lanes(k.load(k.vec(2, k.i32()), k.offset(mine, part * 512 + operand * 8), 8));
      for (int64_t half = 0; half < 2 && 2 * part + half < outputTiles(); ++half) {
        Values b = halves ? Values{all[half], all[2 + half]} : k.decodeE4M3(all[half]);
        auto to = MutableArrayRef<Value>(outputs).slice((2 * part + half) * 4, 4);
        Values sums = k.mmaFloat(element, Values(to), high, b);
        if (!low.empty())
          sums = k.mmaFloat(element, sums, low, b);
        llvm::copy(sums, to.begin());
      }
    }
  }
}

void PrefillAttention::addIntegers(Value tiles, MutableArrayRef<Scores> weights,
                                   ArrayRef<SmallVector<Values>> scales, const Values &keep,
                                   const Values &units, Values &outputs) {
  Value mine = k.offset(tiles, k.shl(lane, 4));
  bool nibbles = values.encoding.bits() == 4;
  int64_t groupElements = values.encoding.groupElements(values.paddedDim());
  Values factors; // of nibbles, which are multiplied where they lie, at the top of a byte
  for (Value unit : units)
    factors.push_back(nibbles ? k.mulF(unit, k.number(1.0 / 16)) : unit);
  for (int64_t g = 0; g < values.groups(); ++g) {
    SmallVector<Values> high, low;
    for (auto [tile, tileWeights] : llvm::enumerate(weights)) {
      high.emplace_back();
      low.emplace_back();
      for (int64_t i : {0, 2})
        for (int64_t r = 0; r < kRows; ++r) {
          Values fixed;
          for (int64_t position : {i, i + 1, i + 4, i + 5})
            fixed.push_back(k.fma(at(tileWeights, r, position), scales[tile][g][position],
                                  k.number(12582912.0 + 128)));
          auto [highBytes, lowBytes] = splitBytes(fixed);
          high.back().push_back(highBytes);
          low.back().push_back(lowBytes);
        }
    }
    int64_t begin = g * groupElements / 8;
    int64_t end = std::min((g + 1) * groupElements / 8, outputTiles());
    for (int64_t part = begin / 2; 2 * part < end; ++part) {
      SmallVector<Values> words;
      for (size_t tile = 0; tile < weights.size(); ++tile) {
        int64_t place =
            static_cast<int64_t>(tile) * values.tileBytes() + (nibbles ? part / 2 : part) * 512;
        words.push_back(k.lanes(k.load(k.vec(4, k.i32()), k.offset(mine, place), 16)));
        if (nibbles)
          for (Value &word : words.back())
            word = k.bitAnd(part % 2 ? k.shl(word, 4) : word, int64_t(int32_t(0xF0F0F0F0)));
      }
      for (int64_t half = 0; half < 2 && 2 * part + half < end; ++half) {
        Values highs(4, k.constI32(0)), lows = highs;
        for (size_t tile = 0; tile < weights.size(); ++tile) {
          Values b = {words[tile][half], words[tile][2 + half]};
          highs = k.mmaInt8(highs, high[tile], b);
          lows = k.mmaInt8(lows, low[tile], b);
        }
        for (int64_t i = 0; i < 4; ++i) {
          Value &output = outputs[(2 * part + half) * 4 + i];
          Value sum = k.toFloat(k.add(k.shl(highs[i], 8), lows[i]));
          output = k.fma(sum, factors[i / 2], k.mulF(output, keep[i / 2]));
        }
      }
    }
  }
}

/// `scored` is called when the keys have been read.
PrefillAttention::State PrefillAttention::consumeStage(Value firstPosition, Value stage,
                                                       const Query &query, State state,
                                                       llvm::function_ref<void()> scored) {
  bool integerValues = values.encoding.isInteger();
  Value valuesPlace = k.offset(stage, stageTiles * keys.tileBytes());
  SmallVector<Scores> scores;
  for (int64_t tile = 0; tile < stageTiles; ++tile)
    scores.push_back(scoresOf(k.offset(stage, tile * keys.tileBytes()), query));
  scored();

  // Only stages at the ends hold what some row does not attend to.
  Value atEnd = k.less(warpFirst, k.add(firstPosition, stagePositions() - 1));
  if (window)
    atEnd = k.bitOr(atEnd, k.less(firstPosition, k.sub(warpLast, window - 1)));
  auto flat = [](ArrayRef<Scores> all) {
    Values result;
    for (const Scores &tile : all)
      for (const Values &four : tile)
        result.append(four);
    return result;
  };
  Values masked = k.ifElseYield(
      atEnd,
      [&] {
        SmallVector<Scores> inside = scores;
        mask(inside, firstPosition);
        return flat(inside);
      },
      [&] { return flat(scores); });
  for (auto [i, score] : llvm::enumerate(masked))
    scores[i / 16][i / 4 % 4][i % 4] = score;

  SmallVector<SmallVector<Values>> scales(stageTiles);
  SmallVector<Values> scaleExponents(stageTiles); // bounds of the logarithms of the greatest scales
  for (int64_t tile = 0; integerValues && tile < stageTiles; ++tile) {
    for (int64_t g = 0; g < values.groups(); ++g)
      scales[tile].push_back(
          loadScales(values, k.offset(valuesPlace, tile * values.tileBytes()), g));
    for (int64_t i = 0; i < kPiece; ++i) {
      Value greatest;
      for (Values &group : scales[tile]) {
        Value magnitude = values.encoding.hasSignedScale() ? k.absF(group[i]) : group[i];
        greatest = greatest ? k.maxF(greatest, magnitude) : magnitude;
      }
      scaleExponents[tile].push_back(cacheScaleExponent(k, greatest));
    }
  }

  Values keep, units;
  Value grows;
  for (int64_t r = 0; r < kRows; ++r) {
    Value greatest = k.number(-1e29);
    for (int64_t tile = 0; tile < stageTiles; ++tile)
      for (int64_t i = 0; i < kPiece; ++i) {
        Value exponent = at(scores[tile], r, i);
        greatest =
            k.maxF(greatest, integerValues ? k.addF(exponent, scaleExponents[tile][i]) : exponent);
      }
    greatest = overRow(greatest, [&](Value x, Value y) { return k.maxF(x, y); });
    // The weights' own unit, for integer values the one in which the greatest is about 32512.
    Value own = greatest, before = state.references[r];
    state.references[r] = k.maxF(before, own);
    Value isGreater = k.lessF(before, own);
    grows = grows ? k.bitOr(grows, isGreater) : isGreater;
    if (!integerValues)
      own = state.references[r];
    keep.push_back(k.exp2(k.subF(before, state.references[r])));
    if (integerValues)
      units.push_back(k.exp2(k.subF(own, state.references[r])));
    Value sum;
    for (int64_t tile = 0; tile < stageTiles; ++tile)
      for (int64_t i = 0; i < kPiece; ++i) {
        Value &weight = at(scores[tile], r, i);
        weight = k.exp2(k.subF(weight, own));
        // A scale that is not a number must not be lost in an integer.
        Value added = weight;
        for (int64_t g = 0; integerValues && g < values.groups(); ++g)
          added = k.fma(scales[tile][g][i], k.number(0.0), added);
        sum = sum ? k.addF(sum, added) : added;
      }
    Value kept = k.mulF(state.sums[r], keep[r]);
    state.sums[r] = integerValues ? k.fma(sum, units[r], kept) : k.addF(kept, sum);
  }
  if (integerValues) {
    addIntegers(valuesPlace, scores, scales, keep, units, state.outputs);
    return state;
  }
  // Rare after the first stages.
  state.outputs = k.ifElseYield(
      grows,
      [&] {
        Values kept;
        for (auto [i, output] : llvm::enumerate(state.outputs))
          kept.push_back(k.mulF(output, keep[i % 4 / 2]));
        return kept;
      },
      [&] { return state.outputs; });
  for (int64_t tile = 0; tile < stageTiles; ++tile)
    addFloats(k.offset(valuesPlace, tile * values.tileBytes()), scores[tile], state.outputs);
  return state;
}

PrefillAttention::State PrefillAttention::consume(const Query &query) {
  // The slot of the stage before, which is filled again while this one is read, comes round last.
  Values carried = {k.constI32(0), k.constI32(0), k.constI32(ring - 1), k.constI32(1)};
  carried.append(list(initialState()));
  Values after =
      k.loop(k.constI32(0), stageCount, k.constI32(1), carried, [&](Value n, ValueRange now) {
        Value slot = now[0], parity = now[1], slotBefore = now[2], parityBefore = now[3];
        Value stage = k.at(stagesAt, slot, stageBytes);
        Value firstPosition = k.mul(k.add(firstStage, n), stagePositions());
        k.wait(k.at(fullAt, slot, 8), parity);
        Value atEnd = k.equal(n, latestStage);
        if (window)
          atEnd = k.bitOr(atEnd, k.equal(n, oldestStage));
        k.ifThen(atEnd, [&] {
          clearOutside(firstPosition, stage);
          if (window && k.hasBulkCopies())
            k.fenceAsyncShared(); // the stage is filled again
          k.barrier();
        });
        auto refill = [&] {
          Value next = k.add(n, ring - 1);
          k.ifThen(k.bitAnd(copies(), k.less(next, stageCount)), [&] {
            Value page = pageOf(next); // before the wait, which hides the load
            k.wait(k.at(emptyAt, slotBefore, 8), parityBefore);
            copyStage(next, slotBefore, page);
          });
          k.syncWarp();
        };
        State state = stateOf(now.drop_front(4));
        if (tokenTiles == 1) {
          state = consumeStage(firstPosition, stage, query, state, refill);
        } else {
          // Of the block's last stages some warps have nothing to read.
          refill();
          Values next = k.ifElseYield(
              k.less(warpLast, firstPosition), [&] { return list(state); },
              [&] { return list(consumeStage(firstPosition, stage, query, state, [] {})); });
          state = stateOf(next);
        }
        k.arriveWarp(k.at(emptyAt, slot, 8), lane);
        Values result = {slot, parity, slot, parity};
        stageRing().advance(result[0], result[1], 1);
        result.append(list(state));
        return result;
      });
  return stateOf(ValueRange(after).drop_front(4));
}

Value PrefillAttention::resultPlace(Value token, Value queryHead) {
  Value number = k.add(k.mul(token, op.getType().getDimSize(1)), k.mul(queryHead, dim));
  return k.at(kernel.interface.resultPointer(0), k.toI64(number), 2);
}

void PrefillAttention::storeResult(const State &state) {
  for (int64_t r = 0; r < kRows; ++r) {
    Value sum = overRow(state.sums[r], [&](Value x, Value y) { return k.addF(x, y); });
    Value factor = k.divF(k.number(valueDivisor()), sum);
    Value to = k.at(resultPlace(rowTokens[r], queryHead), column, 4);
    k.ifThen(k.less(rowTokens[r], endToken), [&] {
      for (int64_t tile = 0; tile < outputTiles(); ++tile) {
        auto store = [&] {
          Values two;
          for (int64_t i = 0; i < 2; ++i)
            two.push_back(k.mulF(state.outputs[tile * 4 + 2 * r + i], factor));
          k.store(k.packPair(two[0], two[1], k.f16()), k.offset(to, tile * 16), 4);
        };
        if (tile * 8 + 8 <= dim)
          store();
        else
          k.ifThen(k.less(k.shl(column, 1), k.constI32(dim - tile * 8)), store);
      }
    });
  }
}

/// Joins what the cluster's blocks have: of the warps' rows each block finishes its own.
void PrefillAttention::combine(const State &state) {
  // All rings have been read: their memory is free.
  k.clusterArrive();
  k.clusterWait();
  for (int64_t r = 0; r < kRows; ++r) {
    Value sum = overRow(state.sums[r], [&](Value x, Value y) { return k.addF(x, y); });
    Value number = k.add(k.add(k.mul(warp, kTokens), row), 8 * r);
    Value owner = k.div(number, ownRows);
    Value place = k.add(k.mul(rank, ownRows), k.rem(number, ownRows));
    Value to = k.ofBlock(k.offset(k.at(stagesAt, place, gatheredRow()), k.shl(column, 3)), owner);
    for (int64_t tile = 0; tile < outputTiles(); ++tile)
      for (int64_t i = 0; i < 2; ++i)
        k.store(state.outputs[tile * 4 + 2 * r + i], k.offset(to, tile * 32 + i * 4), 4);
    k.ifThen(k.equal(column, k.constI32(0)), [&] {
      k.store(state.references[r], k.ofBlock(k.at(maximaAt, place, 4), owner), 4);
      k.store(sum, k.ofBlock(k.at(sumsAt, place, 4), owner), 4);
    });
  }
  k.clusterArrive();
  k.clusterWait();
  int64_t pairs = dim / 2;
  k.loop(thread, k.constI32(ownRows * pairs), warps() * kWarp, [&](Value i) {
    Value inOwn = k.div(i, pairs), pair = k.rem(i, pairs);
    Value number = k.add(k.mul(rank, ownRows), inOwn), itsWarp = k.div(number, kTokens);
    Value token = k.add(k.add(blockToken, k.mul(k.rem(itsWarp, tokenTiles), kTokens)),
                        k.rem(number, kTokens));
    Value inGroup = k.add(k.mul(part, partHeads), k.div(itsWarp, tokenTiles));
    Value exists = k.bitAnd(k.less(token, endToken), k.less(inGroup, k.constI32(group)));
    if (ownRows * splits != rows())
      exists = k.bitAnd(exists, k.less(number, k.constI32(rows())));
    k.ifThen(exists, [&] {
      Values maxima;
      Value greatest;
      auto load = [&](Value base, int64_t from) {
        return k.load(k.f32(), k.at(k.offset(base, from * ownRows * 4), inOwn, 4), 4);
      };
      for (int64_t from = 0; from < splits; ++from) {
        maxima.push_back(load(maximaAt, from));
        greatest = greatest ? k.maxF(greatest, maxima.back()) : maxima.back();
      }
      Value rowSum = k.number(0.0);
      Values sums(2, k.number(0.0));
      for (int64_t from = 0; from < splits; ++from) {
        Value ratio = k.exp2(k.subF(maxima[from], greatest));
        Value outputs = k.offset(k.at(stagesAt, inOwn, gatheredRow()), k.shl(pair, 3));
        for (int64_t n = 0; n < 2; ++n) {
          Value place = k.offset(outputs, from * ownRows * gatheredRow() + n * 4);
          sums[n] = k.fma(k.load(k.f32(), place, 4), ratio, sums[n]);
        }
        rowSum = k.fma(load(sumsAt, from), ratio, rowSum);
      }
      Value factor = k.divF(k.number(valueDivisor()), rowSum);
      Value to = resultPlace(token, k.add(k.mul(head, group), inGroup));
      k.store(k.packPair(k.mulF(sums[0], factor), k.mulF(sums[1], factor), k.f16()),
              k.at(to, pair, 4), 4);
    });
  });
}

//===----------------------------------------------------------------------===//
// The block
//===----------------------------------------------------------------------===//

LogicalResult PrefillAttention::emitBlock() {
  readPositions();
  k.ifThen(k.equal(thread, k.constI32(0)), [&] {
    // Before sm_90 the copying warp's lanes arrive one by one.
    for (int64_t slot = 0; slot < ring; ++slot) {
      k.initBarrier(k.offset(fullAt, slot * 8), k.hasBulkCopies() ? 1 : kWarp);
      k.initWarpBarrier(k.offset(emptyAt, slot * 8), warps());
    }
    k.fenceBarrierInit();
  });
  k.barrier();
  fillRing();
  FailureOr<Query> query = prepareQuery();
  if (failed(query))
    return failure();
  shareQuery(*query);
  State state = consume(*query);
  if (splits > 1)
    combine(state);
  else if (headParts * partHeads == group)
    storeResult(state);
  else
    k.ifThen(k.less(inGroup, k.constI32(group)), [&] { storeResult(state); });
  return success();
}

LogicalResult PrefillAttention::emit() {
  stagesAt = kernel.at(stages);
  fullAt = kernel.at(full);
  emptyAt = kernel.at(empty);
  queriesAt = kernel.at(queries);
  maximaAt = kernel.at(gatheredMaxima);
  sumsAt = kernel.at(gatheredSums);
  thread = k.thread();
  warp = k.shr(thread, 5);
  lane = k.bitAnd(thread, kWarp - 1);
  row = k.shr(lane, 2);
  column = k.bitAnd(lane, 3);
  // Heads first, so that the blocks of the latest tokens, which take longest, start together.
  rank = splits == 1 ? k.constI32(0) : k.rem(k.block(), splits);
  Value block = splits == 1 ? k.block() : k.div(k.block(), splits);
  Value inToken = k.rem(block, heads * headParts);
  Value tokenBlock = k.sub(k.constI32(tokenBlocks() - 1), k.div(block, heads * headParts));
  head = k.div(inToken, headParts);
  part = k.rem(inToken, headParts);
  inGroup = k.add(k.mul(part, partHeads), k.div(warp, tokenTiles));
  queryHead = k.add(k.mul(head, group), k.min(inGroup, k.constI32(group - 1)));
  k.launchDependents();
  if (packed) {
    kernels::PackedTile tile = kernels::packedTile(
        k, kernel.interface, op.getStarts(), keys.sequences, tokens, blockTokens(), tokenBlock);
    sequence = tile.sequence;
    beginToken = tile.begin;
    endToken = tile.end;
    blockToken = tile.first;
  } else {
    endToken =
        k.min(k.load(k.i32(), kernel.interface.pointer(op.getActive()), 4), k.constI32(tokens));
    blockToken = k.mul(tokenBlock, blockTokens());
  }
  firstToken = k.add(blockToken, k.mul(k.rem(warp, tokenTiles), kTokens));
  LogicalResult result = success();
  k.ifThen(k.less(blockToken, endToken), [&] { result = emitBlock(); });
  return result;
}

LogicalResult device::emitPrefillAttention(Kernel &kernel, fused::AttentionOp op) {
  FailureOr<fused::PrefillAttentionPlan> plan =
      fused::PrefillAttentionPlan::get(op, kernel.schedule, kernel.device);
  if (failed(plan))
    return failure();
  return PrefillAttention(kernel, op, *plan).emit();
}
