// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Attention of all query heads of one key/value head, by a cluster of blocks that divide the cached
// positions among them.
//
// The cache comes in tiles of 32 positions, in the tensor cores' operand order (CacheLayout.h). In
// each block a copying warp streams stages of several tiles through a ring; those that hold only
// positions of earlier steps do not wait for the previous kernel. Each consuming warp first makes
// the operands of a query head for all of them, then takes a tile of a stage at a time, or two
// where values are integers. Keys are the 16-row operand of the scores, transposed values that of
// the weighted sums; a query head is two columns of the other operand, so that four heads are
// attended to at a time:
//
//   integer keys    the query as 16-bit fixed point, its high and low byte; sums are exact
//   bf16 keys       the query as a sum of two bf16 numbers
//   f16, fp8 keys   the query, and zeros
//
// and likewise for the softmax weights of values. Every warp has its own running maximum; the
// warps' parts meet in shared memory, the blocks' in each other's.
//
// Where the operation has a prologue, the copying warp of the block that takes the newest stage,
// the last of all, makes the step's key and value when it has asked for all its stages, puts them
// into the newest tile once that has come, and stores them.

#include "AttentionPrologue.h"
#include "AttentionTiles.h"
#include "StageRing.h"

#include "sluice/Formats/Activations.h"
#include "sluice/Target/InlinePtx.h"

#include "llvm/Support/MathExtras.h"

#include <limits>

using namespace mlir;
using namespace sluice;
using namespace sluice::device;
using formats::CacheEncoding;
using formats::CacheShape;
using formats::cacheTile;

namespace {
class AttentionKernel : fused::AttentionPlan {
public:
  using Values = DeviceBuilder::Values;

  AttentionKernel(Kernel &kernel, fused::AttentionOp op, const fused::AttentionPlan &plan)
      : fused::AttentionPlan(plan), kernel(kernel), k(kernel.k), op(op) {}

  LogicalResult emit();

private:
  /// What a warp carries for four query heads. In lane 4g + t: reference point and sum of weights
  /// of head t, and its outputs 16i + g and 16i + g + 8.
  struct Pass {
    Value reference, sum;
    Values outputs;
  };
  using State = SmallVector<Pass>;
  static Values list(const State &state);
  State stateOf(ValueRange values) const;
  /// Numbers of a pass's state.
  int64_t passValues() const { return 2 + outputsPerPart() * valueParts(); }
  /// Float products leave a sum in each of two columns.
  int64_t outputsPerPart() const { return values.encoding.isInteger() ? 2 : 4; }
  int64_t valueParts() const { return values.paddedDim() / 16; }

  void readPositions();
  Value floats(Value base, Value index) { return k.offset(base, k.shl(index, 2)); }
  StageRing stageRing() { return {k, ring, fullAt}; }
  CachedHead cachedHead() { return {op.getPages(), token, head}; }
  /// The n-th stage that this block takes; n counts from 0.
  Value stageNumber(Value n);
  /// Whether this block takes the newest stage, its last one then.
  Value takesNewest() { return k.equal(split, k.rem(k.sub(stageCount, 1), splits)); }

  /// Copies the block's stages [begin, end), by one thread, or before sm_90 by one warp. Carried:
  /// slot and parity of the next stage to fill and of the oldest that may be under way.
  Values copyStages(Value begin, Value end, const Values &state);
  LogicalResult copyAll();
  /// `newest` is the step's key and value head, whose constants have been loaded.
  LogicalResult appendNew(Head &newest);

  struct Query {
    SmallVector<Values> words; ///< operands of every 32 elements
    Value factor;              ///< from sums of products to exponents of 2, of head t
  };
  void storeQuery(Value number, const Values &elements);
  /// Waits for the previous kernel and has all consuming warps make the operands of the query
  /// heads, which each of them then loads.
  LogicalResult prepareQueries();
  SmallVector<Query> loadQueries();
  Values consume();
  void consumeTiles(Value firstTile, Value keysPlace, Value valuesPlace, ArrayRef<Query> queries,
                    State &state);
  /// Exponents of positions 4g .. 4g+3 of a tile for head t.
  Values scoresOf(Value tile, const Query &query);
  Value groupSums(const Values &products, int64_t row);
  Values addValues(Value tiles, ArrayRef<Values> weights, ArrayRef<SmallVector<Values>> scales,
                   Value firstPosition, Value keep, Value unit, ValueRange outputs);
  /// Whether a position is not attended to: it does not exist yet, or is behind the window.
  Value isOutside(Value position);
  /// Masks that leave the positions that are attended to.
  Values attended(Value firstPosition);
  /// Values of positions that are not attended to must not make a weight of 0 NaN.
  void clearTile(Value tile, Value firstPosition);
  SmallVector<Values> loadScales(const CacheShape &shape, Value tile);
  /// Four bytes of E4M3 as two pairs of f16.
  Values widenE4M3(Value word);
  Value turn(Value word);

  void shareParts(const State &state);
  Values joinWarps(Value head, Value index);
  void combine();
  void storeResult(Value index, Value sum, Value rowSum);

  Kernel &kernel;
  DeviceBuilder &k;
  fused::AttentionOp op;
  Value thread, warp, lane, row, column; ///< row, column: lane / 4, lane % 4
  Value split, head, token;
  Value last, oldest, firstTile, tiles; ///< see readPositions
  Value firstStage, oldStages, stageCount;
  Value fills;                   ///< stages that this block takes
  Value reader, part, firstHead; ///< of the stage; of the block's parts; of the warp's query heads
  Value stagesAt, fullAt, emptyAt, appendedAt, queriesAt, queryFactorsAt, maximaAt, sumsAt;
  Value gatheredAt, gatheredMaximaAt, gatheredSumsAt;
};
} // namespace

AttentionKernel::Values AttentionKernel::list(const State &state) {
  Values all;
  for (const Pass &pass : state) {
    all.append({pass.reference, pass.sum});
    all.append(pass.outputs);
  }
  return all;
}

AttentionKernel::State AttentionKernel::stateOf(ValueRange all) const {
  State state;
  for (int64_t pass = 0; pass < passes; ++pass) {
    ValueRange mine = all.slice(pass * passValues(), passValues());
    state.push_back({mine[0], mine[1], llvm::to_vector(mine.drop_front(2))});
  }
  return state;
}

/// `last` is the row's position, `tiles` the number of tiles up to it, `oldest` the first position
/// that it reads and `firstTile` the first tile that is copied, if there is a window. Of the
/// `stageCount` stages from `firstStage` on, those from `oldStages` on hold what this step appends.
void AttentionKernel::readPositions() {
  Value pointer = kernel.interface.pointer(op.getPositions());
  auto clamped = [&](Value place) {
    return k.clampIndex(k.load(k.i32(), place, 4), keys.positions);
  };
  last = clamped(k.offset(pointer, k.shl(token, 2)));
  Value lowest = last;
  if (keys.sequences == 1)
    for (int64_t other = 0; tokens > 1 && other < tokens; ++other)
      lowest = k.min(lowest, clamped(k.offset(pointer, other * 4)));
  oldStages = k.div(lowest, cacheTile * stageTiles);
  tiles = k.add(k.div(last, cacheTile), 1);
  stageCount = k.div(k.add(tiles, stageTiles - 1), stageTiles);
  if (window) {
    oldest = k.max(k.sub(last, window - 1), k.constI32(0));
    firstTile = k.mul(k.div(oldest, warpPositions()), warpTiles);
    firstStage = k.div(firstTile, stageTiles);
    stageCount = k.sub(stageCount, firstStage);
    oldStages = k.max(k.sub(oldStages, firstStage), k.constI32(0));
  }
  // Stages go round the cluster's blocks.
  fills = k.div(k.add(k.sub(stageCount, split), splits - 1), splits);
  fills = k.max(fills, k.constI32(0));
}

Value AttentionKernel::stageNumber(Value n) {
  Value number = splits == 1 ? n : k.add(k.mul(n, splits), split);
  return window ? k.add(firstStage, number) : number;
}

//===----------------------------------------------------------------------===//
// The copying warp
//===----------------------------------------------------------------------===//

DeviceBuilder::Values AttentionKernel::copyStages(Value begin, Value end, const Values &state) {
  return k.loop(begin, end, k.constI32(1), state, [&](Value n, ValueRange carried) {
    Value slot = carried[0], parity = carried[1], oldest = carried[2], oldParity = carried[3];
    if (inFlight < ring)
      stageRing().limitInFlight(n, inFlight, oldest, oldParity);
    if (reuses)
      k.wait(k.at(emptyAt, slot, 8), k.bitXor(parity, 1));
    Value barrier = k.at(fullAt, slot, 8), to = k.at(stagesAt, slot, stageBytes);
    Value begin = k.mul(stageNumber(n), stageTiles), end = k.add(begin, stageTiles);
    Value place = k.constI32(0);
    if (window) {
      place = k.max(k.sub(firstTile, begin), k.constI32(0));
      begin = k.add(begin, place);
    }
    // Warps read blocks of tiles as wholes; what positions there hold that do not exist yet is
    // masked.
    Value lastEnd = k.mul(k.div(k.add(tiles, warpTiles - 1), warpTiles), warpTiles);
    Value count = k.sub(k.min(lastEnd, end), begin);
    if (k.hasBulkCopies())
      k.expectBytes(barrier, k.mul(count, keys.tileBytes() + values.tileBytes()));
    auto copy = [&](const CacheShape &shape, FlatSymbolRefAttr cache, int64_t first) {
      Value target = k.at(k.offset(to, first), place, shape.tileBytes());
      copyTiles(kernel, shape, cache, cachedHead(), begin, count, target, barrier, lane);
    };
    copy(keys, op.getKeysAttr(), 0);
    copy(values, op.getValuesAttr(), stageTiles * keys.tileBytes());
    if (!k.hasBulkCopies())
      k.arriveAfterCopies(barrier);
    stageRing().advance(slot, parity, 1);
    return Values{slot, parity, oldest, oldParity};
  });
}

LogicalResult AttentionKernel::appendNew(Head &newest) {
  Value tile = k.sub(tiles, 1), position = k.rem(last, cacheTile),
        inStage = k.rem(tile, stageTiles);
  Value fill = k.sub(fills, 1);
  Value slot = reuses ? k.rem(fill, ring) : fill;
  Value parity = reuses ? k.bitAnd(k.div(fill, ring), 1) : k.constI32(0);
  Value stage = k.at(stagesAt, slot, stageBytes);
  struct Target {
    const CacheShape &shape;
    FlatSymbolRefAttr cache;
    Value inRing;
    StoredVector vector;
  };
  // Both are asked for before either is worked on.
  llvm::DenseMap<Value, Values> known;
  for (BlockArgument argument : op.getPrologue().getArguments().drop_front()) {
    FailureOr<Values> elements = newest.load(argument);
    if (failed(elements))
      return failure();
    known[argument] = *elements;
  }
  SmallVector<Target> targets;
  for (auto append : op.getPrologue().front().getOps<model::CacheAppendOp>()) {
    bool isKey = append.getCacheAttr() == op.getKeysAttr();
    if (!isKey && append.getCacheAttr() != op.getValuesAttr())
      return append.emitOpError()
             << "in a prologue appends to a cache that attention does not read";
    const CacheShape &shape = isKey ? keys : values;
    Value place = k.offset(stage, isKey ? 0 : stageTiles * keys.tileBytes());
    FailureOr<Values> elements = newest.evaluate(append.getInput(), known);
    if (failed(elements))
      return failure();
    targets.push_back({shape, append.getCacheAttr(), k.at(place, inStage, shape.tileBytes()),
                       encodeVector(k, shape, *elements, lane)});
  }
  k.wait(k.at(fullAt, slot, 8), parity);
  for (Target &target : targets)
    storeVector(k, target.shape, target.vector, target.inRing, position, lane);
  k.arrive(appendedAt);
  for (Target &target : targets)
    storeVector(k, target.shape, target.vector,
                tilePlace(kernel, target.shape, target.cache, cachedHead(), tile), position, lane);
  return success();
}

LogicalResult AttentionKernel::copyAll() {
  Values state(4, k.constI32(0));
  Value zero = k.constI32(0);
  LogicalResult result = success();
  bool isEarly = k.hasBulkCopies() && kernel.schedule.getEarly() != "none";
  auto byCopier = [&](Value begin, Value end, const Values &from) {
    if (!k.hasBulkCopies())
      return copyStages(begin, end, from);
    return k.ifElseYield(
        k.equal(lane, zero), [&] { return copyStages(begin, end, from); }, [&] { return from; });
  };
  if (appends) {
    // Every position but the new one is in memory.
    if (!isEarly)
      k.waitForPredecessor();
    byCopier(zero, fills, state);
    k.syncWarp();
    auto append = [&] {
      Head newest(kernel, op, lane, token, dim, keys.paddedDim());
      newest.moveTo(head);
      SmallVector<Value> newRows;
      for (auto append : op.getPrologue().front().getOps<model::CacheAppendOp>())
        newRows.push_back(append.getInput());
      result = newest.preload(newRows);
      if (isEarly)
        k.waitForPredecessor();
      if (succeeded(result))
        result = appendNew(newest);
    };
    if (splits == 1)
      append();
    else
      k.ifThen(takesNewest(), append);
    return result;
  }
  Value earlyEnd = zero;
  if (isEarly) {
    // Of this block's stages, those that hold only older positions.
    earlyEnd = k.div(k.add(k.sub(oldStages, split), splits - 1), splits);
    earlyEnd = k.min(k.max(earlyEnd, zero), fills);
    state = byCopier(zero, earlyEnd, state);
  }
  k.waitForPredecessor();
  // The previous kernel wrote this step's keys and values by ordinary stores.
  if (k.hasBulkCopies())
    k.ifThen(k.equal(lane, zero), [&] { k.fenceAsync(); });
  byCopier(earlyEnd, fills, state);
  return result;
}

//===----------------------------------------------------------------------===//
// Queries
//===----------------------------------------------------------------------===//

/// A query head's two columns, and its factor.
void AttentionKernel::storeQuery(Value number, const Values &elements) {
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

LogicalResult AttentionKernel::prepareQueries() {
  Head place(kernel, op, lane, token, dim, keys.paddedDim());
  Value query = op.getQuery();
  if (appends) {
    query = cast<fused::YieldOp>(op.getPrologue().front().getTerminator()).getValues().front();
    if (failed(place.preload(query)))
      return failure();
  }
  k.waitForPredecessor();
  LogicalResult result = success();
  k.loop(warp, k.constI32(group), k.constI32(warps), [&](Value number) {
    place.moveTo(k.add(k.mul(head, group), number));
    FailureOr<Values> elements = place.evaluate(query);
    result = elements;
    if (succeeded(result))
      storeQuery(number, *elements);
  });
  k.barrier(1, warps * kWarp);
  return result;
}

SmallVector<AttentionKernel::Query> AttentionKernel::loadQueries() {
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

DeviceBuilder::Values AttentionKernel::widenE4M3(Value word) {
  Values result;
  Type halves = k.vec(2, k.f16());
  for (Value pair : k.decodeE4M3(word)) {
    Value number = k.mulF(k.bitcast(pair, halves), k.number(halves, DeviceBuilder::e4m3Divisor));
    result.push_back(k.bitcast(number, k.i32()));
  }
  return result;
}

SmallVector<DeviceBuilder::Values> AttentionKernel::loadScales(const CacheShape &shape,
                                                               Value tile) {
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

Value AttentionKernel::groupSums(const Values &products, int64_t row) {
  return k.toFloat(k.add(k.shl(products[2 * row], 8), products[2 * row + 1]));
}

DeviceBuilder::Values AttentionKernel::scoresOf(Value tile, const Query &query) {
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

Value AttentionKernel::turn(Value word) {
  return NVVM::InlinePtxOp::create(k.b, k.loc, TypeRange{k.i32()}, ValueRange{word}, ValueRange{},
                                   ptx::moveMatrixTransposed, Value())
      .getResult(0);
}

Value AttentionKernel::isOutside(Value position) {
  Value isNew = k.less(last, position);
  return window ? k.bitOr(isNew, k.less(position, oldest)) : isNew;
}

DeviceBuilder::Values AttentionKernel::attended(Value firstPosition) {
  return valueMasks(k, values, k.add(firstPosition, k.shl(column, 3)),
                    [&](Value position) { return isOutside(position); });
}

void AttentionKernel::clearTile(Value tile, Value firstPosition) {
  Values masks = attended(firstPosition);
  // A lane reads what it wrote itself.
  k.loop(k.constI32(0), k.constI32(valueParts()), k.constI32(1),
         [&](Value part) { clearValues(k, values, tile, part, lane, masks); });
}

DeviceBuilder::Values AttentionKernel::addValues(Value tiles, ArrayRef<Values> weights,
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

void AttentionKernel::consumeTiles(Value firstTile, Value keysPlace, Value valuesPlace,
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

DeviceBuilder::Values AttentionKernel::consume() {
  SmallVector<Query> queries = loadQueries();
  Value warpGroup = k.div(warp, groupWarps());
  Value inStage = k.mul(reader, warpTiles);
  Values carried = {warpGroup, k.constI32(0)};
  for (int64_t pass = 0; pass < passes; ++pass) {
    carried.append({k.number(kLowestScore), k.number(0.0)});
    carried.append(passValues() - 2, k.number(0.0));
  }
  Values after =
      k.loop(warpGroup, fills, k.constI32(warpGroups), carried, [&](Value n, ValueRange now) {
        Value slot = now[0], parity = now[1];
        Value mine = k.add(k.mul(stageNumber(n), stageTiles), inStage);
        k.wait(k.at(fullAt, slot, 8), parity);
        if (appends) {
          Value newest = k.equal(n, k.sub(fills, 1));
          if (splits > 1)
            newest = k.bitAnd(newest, takesNewest());
          k.ifThen(newest, [&] { k.wait(appendedAt, k.constI32(0)); });
        }
        auto consumeOne = [&] {
          State state = stateOf(now.drop_front(2));
          Value stage = k.at(stagesAt, slot, stageBytes);
          Value keysPlace = k.at(stage, inStage, keys.tileBytes());
          Value valuesPlace =
              k.at(k.offset(stage, stageTiles * keys.tileBytes()), inStage, values.tileBytes());
          consumeTiles(mine, keysPlace, valuesPlace, queries, state);
          return list(state);
        };
        // Of the first and of the last stage some warps have nothing to read.
        Value reads = k.less(mine, tiles);
        if (window)
          reads = k.bitAnd(reads, k.less(k.sub(firstTile, 1), mine));
        Values next = readers == 1 ? consumeOne() : k.ifElseYield(reads, consumeOne, [&] {
          return llvm::to_vector(now.drop_front(2));
        });
        if (reuses)
          k.arriveWarp(k.at(emptyAt, slot, 8), lane);
        stageRing().advance(slot, parity, warpGroups);
        Values result = {slot, parity};
        result.append(next);
        return result;
      });
  State state = stateOf(ValueRange(after).drop_front(2));
  for (Pass &pass : state) {
    for (int64_t distance = 4; distance < kWarp; distance *= 2)
      pass.sum = k.addF(pass.sum, k.shuffleXor(pass.sum, distance));
  }
  return list(state);
}

//===----------------------------------------------------------------------===//
// The parts of warps and blocks
//===----------------------------------------------------------------------===//

void AttentionKernel::shareParts(const State &state) {
  for (auto [number, pass] : llvm::enumerate(state)) {
    Value inGroup = k.add(column, static_cast<int64_t>(number) * kHeads);
    if (headParts > 1)
      inGroup = k.add(firstHead, inGroup);
    auto storeHead = [&, &pass = pass] {
      Value index = k.add(k.mul(part, group), inGroup);
      Value to = floats(stagesAt, k.add(k.mul(index, partRow()), row));
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
        k.store(pass.reference, floats(maximaAt, index), 4);
        k.store(pass.sum, floats(sumsAt, index), 4);
      });
    };
    if (group % (kHeads * passes) == 0)
      storeHead();
    else
      k.ifThen(k.less(inGroup, k.constI32(group)), storeHead);
  }
}

DeviceBuilder::Values AttentionKernel::joinWarps(Value head, Value index) {
  Values maxima;
  Value greatest;
  Value maximumPlace = floats(maximaAt, head), sumPlace = floats(sumsAt, head);
  for (int64_t w = 0; w < parts(); ++w) {
    maxima.push_back(k.load(k.f32(), k.offset(maximumPlace, w * group * 4), 4));
    greatest = greatest ? k.maxF(greatest, maxima.back()) : maxima.back();
  }
  Value from = floats(stagesAt, k.add(k.mul(head, dim + 4), index));
  Value sum = k.number(0.0), rowSum = k.number(0.0);
  for (int64_t w = 0; w < parts(); ++w) {
    Value ratio = k.exp2(k.subF(maxima[w], greatest));
    sum = k.fma(k.load(k.f32(), k.offset(from, w * group * partRow() * 4), 4), ratio, sum);
    rowSum = k.fma(k.load(k.f32(), k.offset(sumPlace, w * group * 4), 4), ratio, rowSum);
  }
  return {greatest, sum, rowSum};
}

void AttentionKernel::storeResult(Value index, Value sum, Value rowSum) {
  Value place = k.add(k.mul(head, group * dim), index);
  if (tokens > 1)
    place = k.add(place, k.mul(token, heads * group * dim));
  k.store(k.narrow(k.divF(sum, rowSum), k.f16()),
          k.offset(kernel.interface.resultPointer(0), k.shl(place, 1)), 2);
}

void AttentionKernel::combine() {
  int64_t threads = (warps + 1) * kWarp;
  if (splits > 1)
    k.clusterWait(); // the others run: their shared memory is there
  k.loop(thread, k.constI32(group * dim), k.constI32(threads), [&](Value i) {
    Value n = k.div(i, dim), d = k.rem(i, dim);
    Values joined = joinWarps(n, d);
    if (splits == 1)
      return storeResult(i, joined[1], joined[2]);
    Value rank = k.div(i, own), place = k.rem(i, own);
    auto push = [&](Value value, Value base, Value index) {
      k.store(value, k.ofBlock(floats(base, index), rank), 4);
    };
    push(joined[1], gatheredAt, k.add(k.mul(split, own), place));
    // A head's maximum and sum go once to each block that finishes elements of it.
    Value starts = k.bitOr(k.equal(place, k.constI32(0)), k.equal(d, k.constI32(0)));
    k.ifThen(starts, [&] {
      Value number = k.add(k.mul(split, group), n);
      push(joined[0], gatheredMaximaAt, number);
      push(joined[2], gatheredSumsAt, number);
    });
  });
  if (splits == 1)
    return;
  k.clusterArrive();
  k.clusterWait();
  k.loop(thread, k.constI32(own), k.constI32(threads), [&](Value i) {
    Value index = k.add(k.mul(split, own), i);
    auto finish = [&] {
      Value n = k.div(index, dim);
      Value maximumPlace = floats(gatheredMaximaAt, n), sumPlace = floats(gatheredSumsAt, n);
      Value from = floats(gatheredAt, i), greatest;
      Values maxima;
      for (int64_t part = 0; part < splits; ++part) {
        maxima.push_back(k.load(k.f32(), k.offset(maximumPlace, part * group * 4), 4));
        greatest = greatest ? k.maxF(greatest, maxima.back()) : maxima.back();
      }
      Value sum = k.number(0.0), rowSum = k.number(0.0);
      for (int64_t part = 0; part < splits; ++part) {
        Value ratio = k.exp2(k.subF(maxima[part], greatest));
        sum = k.fma(k.load(k.f32(), k.offset(from, part * own * 4), 4), ratio, sum);
        rowSum = k.fma(k.load(k.f32(), k.offset(sumPlace, part * group * 4), 4), ratio, rowSum);
      }
      storeResult(index, sum, rowSum);
    };
    if (own * splits == group * dim)
      finish();
    else
      k.ifThen(k.less(index, k.constI32(group * dim)), finish);
  });
}

LogicalResult AttentionKernel::emit() {
  stagesAt = kernel.at(stages);
  fullAt = kernel.at(full);
  emptyAt = kernel.at(empty);
  appendedAt = kernel.at(appended);
  queriesAt = kernel.at(queries);
  queryFactorsAt = kernel.at(queryFactors);
  maximaAt = kernel.at(rowMaxima);
  sumsAt = kernel.at(rowSums);
  gatheredAt = kernel.at(gatheredOutputs);
  gatheredMaximaAt = kernel.at(gatheredMaxima);
  gatheredSumsAt = kernel.at(gatheredSums);
  int64_t threads = warps * kWarp;
  thread = k.thread();
  warp = k.shr(thread, 5);
  lane = k.bitAnd(thread, kWarp - 1);
  row = k.shr(lane, 2);
  column = k.bitAnd(lane, 3);
  reader = k.rem(warp, readers);
  part = k.add(k.mul(k.div(warp, groupWarps()), readers), reader);
  if (headParts > 1)
    firstHead = k.mul(k.rem(k.div(warp, readers), headParts), kHeads * passes);
  Value block = k.block();
  split = splits == 1 ? k.constI32(0) : k.rem(block, splits);
  Value cluster = splits == 1 ? block : k.div(block, splits);
  head = tokens == 1 ? cluster : k.rem(cluster, heads);
  token = tokens == 1 ? k.constI32(0) : k.div(cluster, heads);

  k.ifThen(k.equal(thread, k.constI32(0)), [&] {
    // Before sm_90 the copying warp's lanes arrive one by one.
    for (int64_t slot = 0; slot < ring; ++slot) {
      k.initBarrier(k.offset(fullAt, slot * 8), k.hasBulkCopies() ? 1 : kWarp);
      if (reuses)
        k.initWarpBarrier(k.offset(emptyAt, slot * 8), groupWarps());
    }
    if (appends)
      k.initBarrier(appendedAt, kWarp);
    k.fenceBarrierInit();
  });
  readPositions();
  k.barrier();
  k.launchDependents();
  if (splits > 1)
    k.clusterArrive();

  LogicalResult result = success();
  Values nothing;
  for (int64_t pass = 0; pass < passes; ++pass) {
    nothing.append({k.number(kLowestScore), k.number(0.0)});
    nothing.append(passValues() - 2, k.number(0.0));
  }
  Values consumed = k.ifElseYield(
      k.less(thread, k.constI32(threads)),
      [&] {
        result = prepareQueries();
        if (active() == warps)
          return consume();
        return k.ifElseYield(
            k.less(warp, k.constI32(active())), [&] { return consume(); }, [&] { return nothing; });
      },
      [&] {
        if (failed(copyAll()))
          result = failure();
        return nothing;
      });
  if (failed(result))
    return failure();
  // All tiles have been read: the ring's memory is free.
  k.barrier();
  k.ifThen(k.less(warp, k.constI32(active())), [&] { shareParts(stateOf(consumed)); });
  k.barrier();
  combine();

  return success();
}

LogicalResult device::emitAttention(Kernel &kernel, fused::AttentionOp op) {
  FailureOr<fused::AttentionPlan> plan =
      fused::AttentionPlan::get(op, kernel.schedule, kernel.device);
  if (failed(plan))
    return failure();
  return AttentionKernel(kernel, op, *plan).emit();
}
