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

#include "StageRing.h"
#include "TileAttention.h"

#include "llvm/Support/MathExtras.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::device;
using formats::CacheShape;
using formats::cacheTile;

namespace {
class AttentionKernel : fused::AttentionPlan {
public:
  using Values = DeviceBuilder::Values;

  AttentionKernel(Kernel &kernel, fused::AttentionOp op, const fused::AttentionPlan &plan)
      : fused::AttentionPlan(plan), kernel(kernel), k(kernel.k), op(op), thread(k.thread()),
        warp(k.shr(thread, 5)), lane(k.bitAnd(thread, kWarp - 1)), attention(k, op, plan, lane) {}

  LogicalResult emit();

private:
  void readPositions();
  Value floats(Value base, Value index) { return k.offset(base, k.shl(index, 2)); }
  StageRing stageRing() { return {k, ring, fullAt}; }
  CachedHead cachedHead() { return {op.getPages(), token, head}; }
  TileCopies tileCopies() {
    return {kernel, keys, op.getKeysAttr(), values, op.getValuesAttr(), cachedHead(), lane};
  }
  /// The first tile of a stage that is copied, and how many before it in the stage are not.
  std::pair<Value, Value> firstOf(Value stage);
  /// The n-th stage that this block takes; n counts from 0.
  Value stageNumber(Value n);
  /// Whether this block takes the newest stage, its last one then.
  Value takesNewest() { return k.equal(split, k.rem(k.sub(stageCount, 1), splits)); }

  /// Copies the block's stages [begin, end), by one thread, or before sm_90 by one warp. Carried:
  /// slot and parity of the next stage to fill and of the oldest that may be under way; where
  /// caches are in pages, the page of the next tile.
  Values copyStages(Value begin, Value end, const Values &state);
  LogicalResult copyAll();
  /// `newest` is the step's key and value head, whose constants have been loaded.
  LogicalResult appendNew(Head &newest);

  /// Waits for the previous kernel and has all consuming warps make the operands of the query
  /// heads, which each of them then loads.
  LogicalResult prepareQueries();
  Values consume();
  void combine();
  void storeResult(Value index, Value sum, Value rowSum);

  Kernel &kernel;
  DeviceBuilder &k;
  fused::AttentionOp op;
  Value thread, warp, lane;
  TileAttention attention;
  TileAttention::Parts partsAt;
  Value split, head, token;
  Value firstTile, tiles; ///< see readPositions
  Value firstStage, oldStages, stageCount;
  Value fills;        ///< stages that this block takes
  Value reader, part; ///< of the stage; of the block's parts
  Value stagesAt, fullAt, emptyAt, appendedAt;
  Value gatheredAt, gatheredMaximaAt, gatheredSumsAt;
};
} // namespace

/// `tiles` is the number of tiles up to the row's position, and `firstTile` the first one that is
/// copied, if there is a window. Of the
/// `stageCount` stages from `firstStage` on, those from `oldStages` on hold what this step appends.
void AttentionKernel::readPositions() {
  Value pointer = kernel.interface.pointer(op.getPositions());
  auto clamped = [&](Value place) {
    return k.clampIndex(k.load(k.i32(), place, 4), keys.positions);
  };
  Value last = attention.last = clamped(k.offset(pointer, k.shl(token, 2)));
  Value lowest = last;
  if (keys.sequences == 1)
    for (int64_t other = 0; tokens > 1 && other < tokens; ++other)
      lowest = k.min(lowest, clamped(k.offset(pointer, other * 4)));
  oldStages = k.div(lowest, cacheTile * stageTiles);
  tiles = k.add(k.div(last, cacheTile), 1);
  stageCount = k.div(k.add(tiles, stageTiles - 1), stageTiles);
  if (window) {
    attention.oldest = k.max(k.sub(last, window - 1), k.constI32(0));
    firstTile = k.mul(k.div(attention.oldest, warpPositions()), warpTiles);
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

std::pair<Value, Value> AttentionKernel::firstOf(Value stage) {
  Value begin = k.mul(stage, stageTiles), place = k.constI32(0);
  if (window) {
    place = k.max(k.sub(firstTile, begin), k.constI32(0));
    begin = k.add(begin, place);
  }
  return {begin, place};
}

DeviceBuilder::Values AttentionKernel::copyStages(Value begin, Value end, const Values &state) {
  return k.loop(begin, end, k.constI32(1), state, [&](Value n, ValueRange carried) {
    Value slot = carried[0], parity = carried[1], oldest = carried[2], oldParity = carried[3];
    if (inFlight < ring)
      stageRing().limitInFlight(n, inFlight, oldest, oldParity);
    if (reuses)
      k.wait(k.at(emptyAt, slot, 8), k.bitXor(parity, 1));
    Value barrier = k.at(fullAt, slot, 8), to = k.at(stagesAt, slot, stageBytes);
    Value stage = stageNumber(n), end = k.add(k.mul(stage, stageTiles), stageTiles);
    auto [begin, place] = firstOf(stage);
    // Warps read blocks of tiles as wholes; what positions there hold that do not exist yet is
    // masked.
    Value lastEnd = k.mul(k.div(k.add(tiles, warpTiles - 1), warpTiles), warpTiles);
    Value count = k.sub(k.min(lastEnd, end), begin);
    if (k.hasBulkCopies())
      k.expectBytes(barrier, k.mul(count, keys.tileBytes() + values.tileBytes()));
    Value toKeys = k.at(to, place, keys.tileBytes());
    Value toValues = k.at(k.offset(to, stageTiles * keys.tileBytes()), place, values.tileBytes());
    Value page = keys.pages ? carried[4] : Value();
    page = tileCopies().copy(begin, count, page, firstOf(stageNumber(k.add(n, 1))).first, toKeys,
                             toValues, barrier);
    if (!k.hasBulkCopies())
      k.arriveAfterCopies(barrier);
    stageRing().advance(slot, parity, 1);
    Values next = {slot, parity, oldest, oldParity};
    if (page)
      next.push_back(page);
    return next;
  });
}

LogicalResult AttentionKernel::appendNew(Head &newest) {
  Value tile = k.sub(tiles, 1), position = k.rem(attention.last, cacheTile),
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
  if (Value page = tileCopies().pageOf(firstOf(stageNumber(zero)).first))
    state.push_back(page);
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
      attention.storeQuery(number, *elements);
  });
  k.barrier(1, warps * kWarp);
  return result;
}

DeviceBuilder::Values AttentionKernel::consume() {
  SmallVector<TileAttention::Query> queries = attention.loadQueries();
  Value warpGroup = k.div(warp, groupWarps());
  Value inStage = k.mul(reader, warpTiles);
  Values carried = {warpGroup, k.constI32(0)};
  carried.append(attention.nothing());
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
          TileAttention::State state = attention.stateOf(now.drop_front(2));
          Value stage = k.at(stagesAt, slot, stageBytes);
          Value keysPlace = k.at(stage, inStage, keys.tileBytes());
          Value valuesPlace =
              k.at(k.offset(stage, stageTiles * keys.tileBytes()), inStage, values.tileBytes());
          attention.consumeTiles(mine, keysPlace, valuesPlace, queries, state);
          return attention.list(state);
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
  TileAttention::State state = attention.stateOf(ValueRange(after).drop_front(2));
  attention.addLanes(state);
  return attention.list(state);
}

//===----------------------------------------------------------------------===//
// The parts of warps and blocks
//===----------------------------------------------------------------------===//

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
    TileAttention::Joined joined = attention.joinParts(partsAt, n, d);
    if (splits == 1)
      return storeResult(i, joined.output, joined.rowSum);
    Value rank = k.div(i, own), place = k.rem(i, own);
    auto push = [&](Value value, Value base, Value index) {
      k.store(value, k.ofBlock(floats(base, index), rank), 4);
    };
    push(joined.output, gatheredAt, k.add(k.mul(split, own), place));
    // A head's maximum and sum go once to each block that finishes elements of it.
    Value starts = k.bitOr(k.equal(place, k.constI32(0)), k.equal(d, k.constI32(0)));
    k.ifThen(starts, [&] {
      Value number = k.add(k.mul(split, group), n);
      push(joined.greatest, gatheredMaximaAt, number);
      push(joined.rowSum, gatheredSumsAt, number);
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
  attention.queriesAt = kernel.at(queries);
  attention.queryFactorsAt = kernel.at(queryFactors);
  partsAt = {stagesAt, kernel.at(rowMaxima), kernel.at(rowSums), parts()};
  gatheredAt = kernel.at(gatheredOutputs);
  gatheredMaximaAt = kernel.at(gatheredMaxima);
  gatheredSumsAt = kernel.at(gatheredSums);
  int64_t threads = warps * kWarp;
  reader = k.rem(warp, readers);
  part = k.add(k.mul(k.div(warp, groupWarps()), readers), reader);
  if (headParts > 1)
    attention.firstHead = k.mul(k.rem(k.div(warp, readers), headParts), kHeads * passes);
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
  Values nothing = attention.nothing();
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
  k.ifThen(k.less(warp, k.constI32(active())),
           [&] { attention.storePart(attention.stateOf(consumed), partsAt, part); });
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
