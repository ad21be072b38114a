// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Attention in the kernel of a step: query, key and value, and their exchange; the reading of keys
// and values, and the joining of its parts.

#include "StepCode.h"
#include "ThreadRows.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::device;
using fused::PersistentPlan;

//===----------------------------------------------------------------------===//
// Query, key and value
//===----------------------------------------------------------------------===//

void StepKernel::finishProjection(Value layer, Value ofCluster, Value inRank, Value row, Value low,
                                  Value high) {
  bind(projections, layer);
  Value tile = projectionPlace(ofCluster);
  int64_t bytes = plan.shape.projectionBytes;
  Value to = k.at(place(plan.projected), k.add(k.mul(inRank, PersistentPlan::kTile), row), bytes);
  kernels::emitForSegment(k, projectionRows, tile, [&](size_t n, Value inSegment) {
    EpilogueLoads turns;
    for (model::RotaryOp rotary : rotariesOf(first.projections)) {
      Value pair = k.add(k.shl(k.rem(inSegment, headTiles()), 3), row);
      Value cosine = k.offset(place(plan.rotary), k.shl(pair, 2));
      turns[rotary.getOperation()] = {k.load(k.f32(), cosine, 4),
                                      k.load(k.f32(), k.offset(cosine, plan.shape.dim / 2 * 4), 4)};
    }
    CapturedRows rows{{k, row}, {}};
    if (failed(kernels::ProductEpilogue<CapturedRows>(rows, first.projections,
                                                      projections.interface, projectionRows[n],
                                                      inSegment, zero())
                   .emit({low, high}, turns))) {
      result = failure();
      return;
    }
    for (auto [half, value] : llvm::enumerate(rows.written))
      k.store(value, k.offset(to, half * 8 * bytes), bytes);
  });
}

void StepKernel::sendProjections(Value layer) {
  Fresh fresh(*this);
  Value sent = zero();
  for (size_t part = 0; part < projectionParts.size(); ++part) {
    Value count = number(tilesOf(part) + 1);
    Value begin = k.add(number(tilesOf(part)), tilesBefore(part));
    sendTiles(begin, count, sent);
    sent = k.add(sent, count);
  }
  k.ifThen(k.equal(sent, zero()), [&] { projected_.sendToken(rank, thread); });
  projected_.receive(layer, projectionBytes(), thread);
}

void StepKernel::sendTiles(Value begin, Value count, Value inRank) {
  // Half a tile are neighbouring rows of a head, 16 bytes or 32.
  int64_t bytes = plan.shape.projectionBytes, pieces = 16 * bytes / 16;
  Value from = k.at(place(plan.projected), inRank, PersistentPlan::kTile * bytes);
  k.loop(thread, k.mul(count, pieces * ranks()), threads(), [&](Value item) {
    Value peer = k.rem(item, ranks()), piece = k.div(item, ranks());
    Value words = k.load(k.vec(4, k.i32()), k.offset(from, k.shl(piece, 4)), 16);
    Value tile = k.add(begin, k.div(piece, pieces)), byte = k.shl(k.rem(piece, pieces), 4);
    // The row in the cluster's query, key and value heads, one after another.
    Value natural = k.add(k.mul(tile, PersistentPlan::kTile * bytes), byte);
    Value head = k.div(tile, headTiles()), inHead = k.rem(tile, headTiles());
    Value half = k.div(byte, 8 * bytes), inHalf = k.rem(byte, 8 * bytes);
    Value paired = k.mul(head, plan.shape.dim * bytes);
    paired = k.add(paired, k.mul(half, plan.shape.dim / 2 * bytes));
    paired = k.add(paired, k.add(k.mul(inHead, 8 * bytes), inHalf));
    int64_t ends[] = {queryTiles(), queryTiles() + keyTiles(), queryTiles() + 2 * keyTiles()};
    Value place = natural;
    for (int64_t segment = 2; segment >= 0; --segment)
      place = k.select(k.less(tile, k.constI32(ends[segment])),
                       projectionRows[segment].order.isPairs() ? paired : natural, place);
    k.sendToBlock(k.offset(this->place(plan.projections), place), projected_.barrier(), peer,
                  k.lanes(words));
  });
}

Value StepKernel::project(Value layer, Value passed) {
  Fresh fresh(*this);
  GroupExchange input = stream().exchange();
  Value factor = stream().normFactor(normOf(first.projections).getEpsilon().convertToDouble());
  // The sums of all parts find room at the same time. Where the tiles lie in their weights matters
  // only to the warp that copies them.
  auto extentOf = [&](size_t number) {
    return projectionExtent(layer, number, projectionParts[number].all.front());
  };
  int64_t sumsFrom = 0;
  for (auto [number, variants] : llvm::enumerate(projectionParts)) {
    Extent extent = extentOf(number);
    passed = forVariant(layer, variants, [&](const Variants::Variant &variant) {
      ring.multiply(variant.part, extent, passed, warp, lane, input, sumsFrom);
      return Values{k.add(passed, ring.stageCount(variant.part, extent))};
    })[0];
    sumsFrom += plan.projectionSums(number);
  }
  waitForAll();
  Value inRank = zero();
  sumsFrom = 0;
  for (auto [number, variants] : llvm::enumerate(projectionParts)) {
    Extent extent = extentOf(number);
    Value before = k.add(extent.firstTile, tilesBefore(number));
    auto finish = [&](Value tile, Value row, Value low, Value high) {
      finishProjection(layer, k.add(before, tile), k.add(inRank, tile), row, k.mulF(low, factor),
                       k.mulF(high, factor));
    };
    forVariant(layer, variants, [&](const Variants::Variant &variant) {
      ring.finish(variant.part, extent, thread, threads(), finish, sumsFrom);
      return Values();
    });
    inRank = k.add(inRank, extent.tileCount);
    sumsFrom += plan.projectionSums(number);
  }
  waitForAll();
  sendProjections(layer);
  return passed;
}

//===----------------------------------------------------------------------===//
// Attention
//===----------------------------------------------------------------------===//

llvm::DenseMap<Value, Value> StepKernel::projected() {
  int64_t bytes = PersistentPlan::kTile * plan.shape.projectionBytes;
  Value query = place(plan.projections), key = k.offset(query, queryTiles() * bytes),
        value = k.offset(key, keyTiles() * bytes);
  llvm::DenseMap<Value, Value> places = {{first.attention.getQuery(), query}};
  // Without a prologue key and value are no operands.
  for (auto [appended, at] : llvm::zip(first.attention.getAppended(), Values{key, value}))
    places[appended] = at;
  return places;
}

void StepKernel::makeQueries(Value layer) {
  Fresh fresh(*this);
  bind(attentionOp, layer, projected());
  Kernel kernel{k, attentionOp.interface, shared, {}, device};
  Head head(kernel, first.attention, lane, zero(), attention.dim, attention.keys.paddedDim());
  Value query = first.attention.getQuery();
  if (!first.attention.getPrologue().empty()) {
    query = cast<fused::YieldOp>(first.attention.getPrologue().front().getTerminator())
                .getValues()
                .front();
    if (failed(head.preload(query))) {
      result = failure();
      return;
    }
  }
  TileAttention tiles(k, first.attention, attention, lane);
  tiles.queriesAt = place(plan.queries);
  tiles.queryFactorsAt = place(plan.queryFactors);
  k.loop(warp, k.constI32(plan.clusterHeads() * attention.group), warps(), [&](Value number) {
    head.moveTo(number);
    FailureOr<Values> elements = head.evaluate(query);
    if (succeeded(elements))
      tiles.storeQuery(number, *elements);
    else
      result = failure();
  });
}

void StepKernel::patchNewest(Value layer, Value number, Value passed) {
  Fresh fresh(*this);
  bind(attentionOp, layer, projected());
  Kernel kernel{k, attentionOp.interface, shared, {}, device};
  Value last = this->number(Last), count = this->number(PieceCount);
  Value newest = k.div(last, attention.warpPositions());
  Value position = k.rem(last, formats::cacheTile), tile = k.div(last, formats::cacheTile);
  // The newest piece is the last one of its block.
  Value mine = k.add(this->number(FirstPiece), k.add(k.mul(k.sub(count, 1), ranks()), rank));
  auto patch = [&] {
    Head head(kernel, first.attention, lane, zero(), attention.dim, attention.keys.paddedDim());
    head.moveTo(number);
    struct Target {
      bool isKeys;
      StoredVector vector;
    };
    SmallVector<Target> targets;
    auto encode = [&](bool isKeys, FailureOr<Values> elements) {
      if (succeeded(elements))
        targets.push_back(
            {isKeys, encodeVector(k, isKeys ? attention.keys : attention.values, *elements, lane)});
      else
        result = failure();
    };
    if (first.attention.getPrologue().empty()) {
      int64_t bytes = plan.shape.projectionBytes;
      Type element = cast<RankedTensorType>(first.attention.getQuery().getType()).getElementType();
      for (bool isKeys : {true, false}) {
        Value from = k.offset(place(plan.projections),
                              (queryTiles() + (isKeys ? 0 : keyTiles())) * 16 * bytes);
        from = k.at(from, number, attention.dim * bytes);
        Values x;
        for (int64_t at = 0; at < attention.keys.paddedDim(); at += kWarp) {
          Value d = k.add(lane, at), exists = k.less(d, k.constI32(attention.dim));
          Value value = k.widen(
              k.load(element, k.at(from, k.min(d, k.constI32(attention.dim - 1)), bytes), bytes));
          x.push_back(at + kWarp > attention.dim ? k.select(exists, value, k.number(0.0)) : value);
        }
        encode(isKeys, x);
      }
    } else {
      SmallVector<Value> rows;
      auto appends = first.attention.getPrologue().front().getOps<model::CacheAppendOp>();
      for (model::CacheAppendOp append : appends)
        rows.push_back(append.getInput());
      if (failed(head.preload(rows)))
        result = failure();
      for (model::CacheAppendOp append : appends)
        encode(append.getCacheAttr() == first.attention.getKeysAttr(),
               head.evaluate(append.getInput()));
    }
    // Its stage has other pieces before: only who has read those knows when it is there.
    Value round = k.add(k.mul(layer, plan.clusterHeads()), number);
    k.wait(reachedBarrier(), k.bitAnd(round, 1));
    Value stage = ring.take(k.add(passed, k.sub(count, 1)));
    Value inPiece = k.rem(tile, pieceTiles());
    for (Target &target : targets) {
      const formats::CacheShape &shape = target.isKeys ? attention.keys : attention.values;
      Value at = k.offset(stage, target.isKeys ? 0 : pieceTiles() * attention.keys.tileBytes());
      storeVector(k, shape, target.vector, k.at(at, inPiece, shape.tileBytes()), position, lane);
    }
    k.fenceAsyncShared(); // the stage is copied to next
    k.syncWarp();
    k.ifThen(k.equal(lane, zero()), [&] { k.arrive(appendedBarrier()); });
    Value ofModel = k.add(k.mul(cluster, plan.clusterHeads()), number);
    for (Target &target : targets) {
      const formats::CacheShape &shape = target.isKeys ? attention.keys : attention.values;
      Value index = k.add(k.mul(ofModel, shape.tiles()), tile);
      storeVector(k, shape, target.vector,
                  k.offset(cache(layer, target.isKeys), k.mul(k.toI64(index), shape.tileBytes())),
                  position, lane);
    }
  };
  k.ifThen(k.bitAnd(k.less(zero(), count), k.equal(mine, newest)), patch);
}

void StepKernel::readPieces(Value layer, Value head, Value passed) {
  Fresh fresh(*this);
  TileAttention tiles(k, first.attention, attention, lane);
  Value firstQuery = k.mul(head, attention.group);
  tiles.queriesAt = k.at(place(plan.queries), firstQuery, 2 * attention.queryRow());
  tiles.queryFactorsAt = k.at(place(plan.queryFactors), firstQuery, 4);
  tiles.last = number(Last);
  if (attention.window)
    tiles.oldest = k.max(k.sub(tiles.last, attention.window - 1), zero());
  Value newest = k.div(tiles.last, attention.warpPositions());
  Value part = k.div(warp, attention.headParts), inPart = k.rem(warp, attention.headParts);
  tiles.firstHead = k.mul(inPart, attention.passes * attention.kHeads);
  // Beside integer values' weights the operands of queries would spill: they are loaded for each
  // piece, and need no registers while its values are multiplied.
  bool kept = !attention.values.encoding.isInteger();
  SmallVector<TileAttention::Query> queries;
  if (kept)
    queries = tiles.loadQueries();
  Values after =
      k.loop(part, number(PieceCount), plan.pieceReaders(), tiles.nothing(),
             [&](Value n, ValueRange carried) {
               Value number = k.add(passed, n);
               Value stage = ring.take(number);
               Value piece = k.add(this->number(FirstPiece), k.add(k.mul(n, ranks()), rank));
               k.ifThen(k.equal(piece, newest), [&] {
                 Value round = k.add(k.mul(layer, plan.clusterHeads()), head);
                 k.ifThen(k.bitAnd(k.equal(inPart, zero()), k.equal(lane, zero())),
                          [&] { k.arrive(reachedBarrier()); });
                 k.wait(appendedBarrier(), k.bitAnd(round, 1));
               });
               if (!kept)
                 queries = tiles.loadQueries();
               TileAttention::State state = tiles.stateOf(carried);
               tiles.consumeTiles(k.mul(piece, pieceTiles()), stage,
                                  k.offset(stage, pieceTiles() * attention.keys.tileBytes()),
                                  queries, state);
               // What is not attended to was cleared.
               if (attention.window)
                 k.fenceAsyncShared();
               else
                 k.ifThen(k.equal(piece, newest), [&] { k.fenceAsyncShared(); });
               // One of its readers stands for all warps that read nothing of it.
               Value others = k.constI32(warps() - (attention.headParts - 1));
               ring.release(number, lane, k.select(k.equal(inPart, zero()), others, k.constI32(1)));
               return tiles.list(state);
             });
  TileAttention::State state = tiles.stateOf(after);
  tiles.addLanes(state);
  tiles.storePart(state, attentionParts(), part);
}

Value StepKernel::attend(Value layer, Value passed) {
  Fresh fresh(*this);
  makeQueries(layer);
  waitForAll();
  // It waits for a reader, so it is none.
  Value appender = k.constI32(plan.attentionWarps());
  passed = k.loop(
      zero(), k.constI32(plan.clusterHeads()), 1, {passed}, [&](Value head, ValueRange carried) {
        k.ifThen(k.equal(warp, appender), [&] { patchNewest(layer, head, carried[0]); });
        k.ifThen(k.less(warp, k.constI32(plan.pieceReaders() * attention.headParts)),
                 [&] { readPieces(layer, head, carried[0]); });
        waitForAll();
        Fresh joining(*this);
        TileAttention tiles(k, first.attention, attention, lane);
        TileAttention::Parts parts = attentionParts();
        k.loop(thread, k.constI32(attention.group * attention.dim), threads(), [&](Value i) {
          Value query = k.div(i, attention.dim), d = k.rem(i, attention.dim);
          TileAttention::Joined joined = tiles.joinParts(parts, query, d);
          Value ofCluster = k.add(k.mul(head, attention.group), query);
          k.store(joined.output,
                  k.at(place(plan.outputs), k.add(k.mul(ofCluster, attention.dim), d), 4), 4);
          k.ifThen(k.equal(d, zero()), [&] {
            k.store(k.vectorOf({joined.greatest, joined.rowSum}),
                    k.at(place(plan.outputMeta), ofCluster, 8), 8);
          });
        });
        waitForAll();
        return Values{k.add(carried[0], number(PieceCount))};
      })[0];
  Fresh sending(*this);
  int64_t columns = plan.joinedHeads() * attention.dim;
  join().send(
      [&](Value set, Value column) {
        Value at = k.at(place(plan.outputs), k.add(k.mul(set, columns), column), 4);
        return k.lanes(k.load(k.vec(4, k.f32()), at, 16));
      },
      [&](Value set, Value head) {
        Value at = k.at(place(plan.outputMeta), k.add(k.mul(set, plan.joinedHeads()), head), 8);
        Values both = k.lanes(k.load(k.vec(2, k.f32()), at, 8));
        return std::pair(both[0], both[1]);
      });
  join().finish(layer);
  join().receive(layer);
  return passed;
}
