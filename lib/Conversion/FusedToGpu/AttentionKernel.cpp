// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Attention of all query heads of one key/value head, by a cluster of blocks that divide the cached
// positions among them.
//
// The cache comes in pieces of 32 positions, in the tensor cores' operand order (CacheLayout.h). In
// each block a copying warp streams its pieces through a ring of stages; those that hold only
// tokens of earlier steps do not wait for the previous kernel. Two warps consume a piece, 16
// positions each: keys are the 16-row operand of the scores, transposed values that of the
// weighted sums, and the columns of both are the query heads of the group. Every warp has its own
// running maximum; the warps' parts are combined in shared memory, the blocks' in each other's.

#include "Kernels.h"
#include "StageRing.h"

#include "sluice/Formats/CacheLayout.h"
#include "sluice/Target/InlinePtx.h"

#include "llvm/Support/MathExtras.h"

#include <limits>

using namespace mlir;
using namespace sluice;
using namespace sluice::device;

/// Below every score; subtracting it from itself gives 0, unlike minus infinity.
static constexpr double kLowest = -1e30;

namespace {
class AttentionKernel : fused::AttentionPlan {
public:
  using Values = DeviceBuilder::Values;

  AttentionKernel(Kernel &kernel, fused::AttentionOp op, const fused::AttentionPlan &plan)
      : fused::AttentionPlan(plan), kernel(kernel), k(kernel.k), op(op) {}

  void emit();

private:
  /// Running maxima and sums of query heads 2t and 2t + 1 of the warp's pass, of a lane with
  /// t = lane % 4, then, for every 16 elements of a head, the products' accumulators.
  struct State {
    explicit State(ValueRange values)
        : maxima{values[0], values[1]}, sums{values[2], values[3]},
          outputs(values.begin() + 4, values.end()) {}
    Values list() const {
      Values all = {maxima[0], maxima[1], sums[0], sums[1]};
      all.append(outputs);
      return all;
    }
    std::array<Value, 2> maxima, sums;
    Values outputs;
  };

  /// `last` is this token's position, `oldest` the first one that it reads if there is a window,
  /// and `oldPieces` the number of pieces that no token appends to in this step.
  void readPositions();
  StageRing stageRing() { return {k, ring, fullAt}; }
  Value floats(Value base, Value index) { return k.offset(base, k.shl(index, 2)); }

  /// Copies pieces [begin, end) of this block, by one thread, or before sm_90 by one warp.
  Values copyPieces(Value begin, Value end, const Values &state);
  void copyAll();
  SmallVector<Values> loadQueries();
  /// The element of a head that a lane's operand has in the low half of word `word` of the elements
  /// from `d` on, a multiple of 32.
  Value elementOf(int64_t d, int64_t word);
  Values consume();
  void consumePiece(Value piece, Value stage, ArrayRef<Values> queries, State &state);
  std::array<Value, 4> scoresOf(Value keys, ArrayRef<Values> queries);
  /// Whether a position is not attended to: it does not exist yet, or is behind the window.
  Value isOutside(Value position);
  /// Masks of a lane's words of values: of positions that are not attended to, zeros.
  std::array<Value, 2> attended(Value firstPosition);
  /// Zeroes the values of positions that are not attended to: whatever is there, a weight of 0 must
  /// not make it NaN.
  void clearValues(Value values, Value firstPosition);
  void shareParts(const State &state);
  /// Adds up the warps' parts of element `index` of the group's heads.
  Values joinWarps(Value head, Value index);
  void combine();
  void storeResult(Value index, Value sum, Value rowSum);

  Kernel &kernel;
  DeviceBuilder &k;
  fused::AttentionOp op;
  Value thread, warp, lane, row, column; ///< row, column: lane / 4, lane % 4
  Value half, part, firstHead; ///< of the piece; of the block's parts; of the warp's query heads
  Value split, head, token;
  Value last, oldest, oldPieces; ///< see readPositions
  Value first, end;              ///< pieces of this block
  Value stagesAt, fullAt, emptyAt, maximaAt, sumsAt, gatheredAt, gatheredMaximaAt, gatheredSumsAt;
};
} // namespace

void AttentionKernel::readPositions() {
  Value pointer = kernel.interface.pointer(op.getPositions());
  auto clamped = [&](Value place) { return k.clampIndex(k.load(k.i32(), place, 4), positions); };
  last = clamped(k.offset(pointer, k.shl(token, 2)));
  Value lowest = last;
  for (int64_t other = 0; tokens > 1 && other < tokens; ++other)
    lowest = k.min(lowest, clamped(k.offset(pointer, other * 4)));
  oldPieces = k.div(lowest, formats::cachePiece);
  Value pieces = k.add(k.div(last, formats::cachePiece), 1);
  Value firstPiece = k.constI32(0);
  if (window) {
    oldest = k.max(k.sub(last, window - 1), k.constI32(0));
    firstPiece = k.div(oldest, formats::cachePiece);
  }
  Value each = k.div(k.add(k.sub(pieces, firstPiece), splits - 1), splits);
  first = k.add(firstPiece, k.mul(split, each));
  end = k.min(pieces, k.add(first, each));
}

DeviceBuilder::Values AttentionKernel::copyPieces(Value begin, Value end, const Values &state) {
  // Carried: slot and parity of the next stage to fill and of the oldest that may be under way.
  return k.loop(begin, end, k.constI32(1), state, [&](Value piece, ValueRange carried) {
    Value slot = carried[0], parity = carried[1], oldest = carried[2], oldParity = carried[3];
    if (inFlight < ring)
      stageRing().limitInFlight(k.sub(piece, first), inFlight, oldest, oldParity);
    if (reuses)
      k.wait(k.at(emptyAt, slot, 8), k.bitXor(parity, 1));
    Value barrier = k.at(fullAt, slot, 8), stage = k.at(stagesAt, slot, 2 * pieceBytes);
    // A head's pieces follow each other.
    Value number = k.add(k.mul(head, positions / formats::cachePiece), piece);
    Value byte = k.mul(k.extendUnsigned(number, k.i64()), pieceBytes);
    if (k.hasBulkCopies())
      k.expectBytes(barrier, k.constI32(2 * pieceBytes));
    Value to = stage;
    for (FlatSymbolRefAttr cache : {op.getKeysAttr(), op.getValuesAttr()}) {
      Value from = k.offset(kernel.interface.cachePointer(cache), byte);
      if (k.hasBulkCopies())
        k.bulkCopy(to, from, k.constI32(pieceBytes), barrier);
      else
        k.loop(k.shl(lane, 4), k.constI32(pieceBytes), k.constI32(kWarp * 16),
               [&, to](Value place) { k.copy16(k.offset(to, place), k.offset(from, place)); });
      to = k.offset(stage, pieceBytes);
    }
    if (!k.hasBulkCopies())
      k.arriveAfterCopies(barrier);
    stageRing().advance(slot, parity, 1);
    return Values{slot, parity, oldest, oldParity};
  });
}

void AttentionKernel::copyAll() {
  Values state(4, k.constI32(0));
  if (!k.hasBulkCopies()) {
    copyPieces(first, end, state);
    return;
  }
  Value copier = k.equal(lane, k.constI32(0)), earlyEnd = first;
  if (kernel.schedule.getEarly() != "none") {
    earlyEnd = k.max(first, k.min(end, oldPieces));
    state = k.ifElseYield(
        copier, [&] { return copyPieces(first, earlyEnd, state); }, [&] { return state; });
  }
  k.waitForPredecessor();
  k.ifThen(copier, [&] {
    // The previous kernel wrote this step's keys and values by ordinary stores.
    NVVM::FenceProxyOp::create(
        k.b, k.loc, NVVM::ProxyKindAttr::get(k.b.getContext(), NVVM::ProxyKind::async_global),
        NVVM::SharedSpaceAttr());
    copyPieces(earlyEnd, end, state);
  });
}

SmallVector<DeviceBuilder::Values> AttentionKernel::loadQueries() {
  // Lane 4n + t has, of head n, elements 8t to 8t + 7 of every 32 (4t to 4t + 3 of the last 16), as
  // keys have. Columns that no head needs are filled with the last one.
  Value n = passes == 1 ? row : k.add(firstHead, row);
  if (group % kColumns)
    n = k.min(n, k.constI32(group - 1));
  Value number = k.add(k.mul(head, group), n);
  if (tokens > 1)
    number = k.add(number, k.mul(token, heads * group));
  Value base = k.offset(kernel.interface.pointer(op.getQuery()), k.mul(number, headDim * 2));
  SmallVector<Values> queries;
  if (headDim < dim) {
    // Heads start at any word, and beyond their end are zeros.
    for (int64_t d = 0; d < dim; d += 32) {
      Values words;
      for (int64_t word = 0, e = dim - d < 32 ? 2 : 4; word < e; ++word) {
        Value place = elementOf(d, word), last = k.constI32(headDim - 2);
        Value loaded = k.loadFresh(k.i32(), k.offset(base, k.shl(k.min(place, last), 1)), 4);
        words.push_back(k.select(k.less(last, place), k.constI32(0), loaded));
      }
      queries.push_back(words);
    }
    return queries;
  }
  Value wide = k.offset(base, k.shl(column, 4));
  for (int64_t d = 0; d + 32 <= dim; d += 32)
    queries.push_back(k.lanes(k.loadFresh(k.vec(4, k.i32()), k.offset(wide, d * 2), 16)));
  if (dim % 32) {
    Value narrow = k.offset(base, k.shl(column, 3));
    queries.push_back(k.lanes(k.loadFresh(k.vec(2, k.i32()), k.offset(narrow, dim / 32 * 64), 8)));
  }
  return queries;
}

Value AttentionKernel::elementOf(int64_t d, int64_t word) {
  return k.add(k.shl(column, dim - d < 32 ? 2 : 3), d + 2 * word);
}

std::array<Value, 4> AttentionKernel::scoresOf(Value keys, ArrayRef<Values> queries) {
  Values sums(4, k.number(0.0));
  for (auto [part, query] : llvm::enumerate(queries)) {
    int64_t words = query.size();
    Value place = k.offset(k.offset(keys, k.shl(lane, words == 4 ? 4 : 3)), part * 512);
    auto load = [&](int64_t bytes) {
      return k.lanes(k.load(k.vec(words, k.i32()), k.offset(place, bytes), words * 4));
    };
    Values low = load(0), high = load(16 * dim);
    // Whatever is in a key's padding: a query's zero must not make it NaN.
    for (int64_t word = 0, d = part * 32; d + words * 8 > headDim && word < words; ++word) {
      Value exists = k.less(elementOf(d, word), k.constI32(headDim));
      low[word] = k.select(exists, low[word], k.constI32(0));
      high[word] = k.select(exists, high[word], k.constI32(0));
    }
    for (int64_t word = 0; word < words; word += 2)
      sums = k.mmaFloat(k.f16(), sums, {low[word], high[word], low[word + 1], high[word + 1]},
                        {query[word], query[word + 1]});
  }
  return {sums[0], sums[1], sums[2], sums[3]};
}

Value AttentionKernel::isOutside(Value position) {
  Value isNew = k.less(last, position);
  return window ? k.bitOr(isNew, k.less(position, oldest)) : isNew;
}

std::array<Value, 2> AttentionKernel::attended(Value firstPosition) {
  // A lane's words are positions 2t and 2t + 1, then 8 more, of two elements each.
  auto maskOf = [&](Value position) {
    Value low = k.select(isOutside(position), k.constI32(0), k.constI32(0xFFFF));
    Value high = k.select(isOutside(k.add(position, 1)), k.constI32(0), k.constI32(-0x10000));
    return k.bitOr(low, high);
  };
  Value position = k.add(firstPosition, k.shl(column, 1));
  return {maskOf(position), maskOf(k.add(position, 8))};
}

void AttentionKernel::clearValues(Value values, Value firstPosition) {
  std::array<Value, 2> masks = attended(firstPosition);
  // A lane reads what it wrote itself, and no copy comes to this stage any more.
  k.loop(k.constI32(0), k.constI32(dim / 16), k.constI32(1), [&](Value part) {
    Value place = k.at(values, part, 512);
    Values words = k.lanes(k.load(k.vec(4, k.i32()), place, 16));
    for (int64_t word = 0; word < 4; ++word)
      words[word] = k.bitAnd(words[word], masks[word / 2]);
    k.store(k.vectorOf(words), place, 16);
  });
}

void AttentionKernel::consumePiece(Value piece, Value stage, ArrayRef<Values> queries,
                                   State &state) {
  Value mine = k.offset(stage, k.mul(half, kWarpPositions * dim * 2));
  std::array<Value, 4> x = scoresOf(mine, queries);
  // Scores, rows `row` and `row` + 8, in units of which exp2 gives the exponential.
  Value firstPosition = k.add(k.mul(piece, formats::cachePiece), k.mul(half, kWarpPositions));
  Value factor = k.number(op.getScale().convertToDouble() * 1.44269504088896341);
  for (int64_t i = 0; i < 4; ++i) {
    Value position = k.add(firstPosition, i < 2 ? row : k.add(row, 8));
    x[i] = k.select(isOutside(position), k.number(-std::numeric_limits<double>::infinity()),
                    k.mulF(x[i], factor));
  }
  std::array<Value, 2> maxima;
  for (int64_t h = 0; h < 2; ++h) {
    Value greatest = k.maxF(x[h], x[h + 2]);
    for (int64_t distance = 4; distance < kWarp; distance *= 2)
      greatest = k.maxF(greatest, k.shuffleXor(greatest, distance));
    maxima[h] = k.maxF(greatest, state.maxima[h]);
  }
  Value grows = k.bitOr(k.lessF(state.maxima[0], maxima[0]), k.lessF(state.maxima[1], maxima[1]));
  Value any =
      NVVM::VoteSyncOp::create(k.b, k.loc, k.i1(), k.constI32(-1), grows, NVVM::VoteSyncKind::any);
  Values sums = k.ifElseYield(
      any,
      [&] {
        Values scaled = {state.sums[0], state.sums[1]};
        scaled.append(state.outputs);
        std::array<Value, 2> ratios;
        for (int64_t h = 0; h < 2; ++h)
          ratios[h] = k.exp2(k.subF(state.maxima[h], maxima[h]));
        for (auto [i, value] : llvm::enumerate(scaled))
          value = k.mulF(value, ratios[i % 2]);
        return scaled;
      },
      [&] {
        Values same = {state.sums[0], state.sums[1]};
        same.append(state.outputs);
        return same;
      });
  state.maxima = maxima;
  state.outputs.assign(sums.begin() + 2, sums.end());
  for (int64_t i = 0; i < 4; ++i)
    x[i] = k.exp2(k.subF(x[i], maxima[i % 2]));
  for (int64_t h = 0; h < 2; ++h)
    state.sums[h] = k.addF(sums[h], k.addF(x[h], x[h + 2]));

  // From rows of positions to the operand's rows of heads.
  auto turn = [&](Value low, Value high) {
    Value word = k.packPair(low, high, k.f16());
    return NVVM::InlinePtxOp::create(k.b, k.loc, TypeRange{k.i32()}, ValueRange{word}, ValueRange{},
                                     ptx::moveMatrixTransposed, Value())
        .getResult(0);
  };
  Value weights[] = {turn(x[0], x[1]), turn(x[2], x[3])};
  Value values = k.offset(k.offset(mine, pieceBytes), k.shl(lane, 4));
  std::array<Value, 2> masks;
  if (passes > 1)
    masks = attended(firstPosition); // other passes read the same stage: it stays as it is
  else
    k.ifThen(k.bitOr(isOutside(firstPosition), isOutside(k.add(firstPosition, kWarpPositions - 1))),
             [&] { clearValues(values, firstPosition); });
  for (int64_t part = 0; part < dim / 16; ++part) {
    Values words = k.lanes(k.load(k.vec(4, k.i32()), k.offset(values, part * 512), 16));
    for (int64_t word = 0; passes > 1 && word < 4; ++word)
      words[word] = k.bitAnd(words[word], masks[word / 2]);
    auto to = MutableArrayRef<Value>(state.outputs).slice(part * 4, 4);
    Values after = k.mmaFloat(k.f16(), Values(to), words, weights);
    llvm::copy(after, to.begin());
  }
}

DeviceBuilder::Values AttentionKernel::consume() {
  SmallVector<Values> queries = loadQueries();
  Value warpGroup = k.div(warp, groupWarps());
  Values carried = {warpGroup, k.constI32(0), k.number(kLowest), k.number(kLowest)};
  carried.append(2 + dim / 4, k.number(0.0));
  Values after =
      k.loop(k.add(first, warpGroup), end, k.constI32(warpGroups), carried,
             [&](Value piece, ValueRange values) {
               Value slot = values[0], parity = values[1];
               State state(values.drop_front(2));
               k.wait(k.at(fullAt, slot, 8), parity);
               consumePiece(piece, k.at(stagesAt, slot, 2 * pieceBytes), queries, state);
               if (reuses) {
                 k.syncWarp();
                 k.ifThen(k.equal(lane, k.constI32(0)), [&] { k.arrive(k.at(emptyAt, slot, 8)); });
               }
               stageRing().advance(slot, parity, warpGroups);
               Values next = {slot, parity};
               next.append(state.list());
               return next;
             });
  State state(ValueRange(after).drop_front(2));
  for (Value &sum : state.sums)
    for (int64_t distance = 4; distance < kWarp; distance *= 2)
      sum = k.addF(sum, k.shuffleXor(sum, distance));
  return state.list();
}

void AttentionKernel::shareParts(const State &state) {
  auto headOf = [&](int64_t h) {
    Value inPass = k.add(k.shl(column, 1), h);
    return passes == 1 ? inPass : k.add(firstHead, inPass);
  };
  for (int64_t h = 0; h < 2; ++h) {
    auto storeHead = [&] {
      Value number = k.add(k.mul(part, group), headOf(h));
      Value to = floats(stagesAt, k.add(k.mul(number, partRow()), row));
      for (int64_t i = 0; i < dim / 16; ++i) {
        k.store(state.outputs[i * 4 + h], k.offset(to, i * 64), 4);
        k.store(state.outputs[i * 4 + h + 2], k.offset(to, i * 64 + 32), 4);
      }
      k.ifThen(k.equal(row, k.constI32(0)), [&] {
        k.store(state.maxima[h], floats(maximaAt, number), 4);
        k.store(state.sums[h], floats(sumsAt, number), 4);
      });
    };
    if (group % kColumns == 0)
      storeHead();
    else
      k.ifThen(k.less(headOf(h), k.constI32(group)), storeHead);
  }
}

DeviceBuilder::Values AttentionKernel::joinWarps(Value head, Value index) {
  Values parts;
  Value greatest;
  Value maximumPlace = floats(maximaAt, head), rowSumPlace = floats(sumsAt, head);
  for (int64_t w = 0; w < AttentionPlan::parts(); ++w) {
    parts.push_back(k.load(k.f32(), k.offset(maximumPlace, w * group * 4), 4));
    greatest = greatest ? k.maxF(greatest, parts.back()) : parts.back();
  }
  Value from = floats(stagesAt, k.add(k.mul(head, partRow()), index));
  Value sum = k.number(0.0), rowSum = k.number(0.0);
  for (int64_t w = 0; w < AttentionPlan::parts(); ++w) {
    Value ratio = k.exp2(k.subF(parts[w], greatest));
    sum = k.fma(k.load(k.f32(), k.offset(from, w * group * partRow() * 4), 4), ratio, sum);
    rowSum = k.fma(k.load(k.f32(), k.offset(rowSumPlace, w * group * 4), 4), ratio, rowSum);
  }
  return {greatest, sum, rowSum};
}

void AttentionKernel::storeResult(Value index, Value sum, Value rowSum) {
  Value place = k.add(k.mul(head, group * headDim), index);
  if (tokens > 1)
    place = k.add(place, k.mul(token, heads * group * headDim));
  k.store(k.narrow(k.divF(sum, rowSum), k.f16()),
          k.offset(kernel.interface.resultPointer(0), k.shl(place, 1)), 2);
}

void AttentionKernel::combine() {
  int64_t threads = (warps + 1) * kWarp;
  if (splits > 1)
    k.clusterWait(); // the others run: their shared memory is there
  k.loop(thread, k.constI32(group * headDim), k.constI32(threads), [&](Value i) {
    Value n = k.div(i, headDim), d = k.rem(i, headDim);
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
      Value n = k.div(index, headDim);
      Value maximumPlace = floats(gatheredMaximaAt, n), rowSumPlace = floats(gatheredSumsAt, n);
      Value from = floats(gatheredAt, i), greatest;
      Values parts;
      for (int64_t part = 0; part < splits; ++part) {
        parts.push_back(k.load(k.f32(), k.offset(maximumPlace, part * group * 4), 4));
        greatest = greatest ? k.maxF(greatest, parts.back()) : parts.back();
      }
      Value sum = k.number(0.0), rowSum = k.number(0.0);
      for (int64_t part = 0; part < splits; ++part) {
        Value ratio = k.exp2(k.subF(parts[part], greatest));
        sum = k.fma(k.load(k.f32(), k.offset(from, part * own * 4), 4), ratio, sum);
        rowSum = k.fma(k.load(k.f32(), k.offset(rowSumPlace, part * group * 4), 4), ratio, rowSum);
      }
      storeResult(index, sum, rowSum);
    };
    if (own * splits == group * headDim)
      finish();
    else
      k.ifThen(k.less(index, k.constI32(group * headDim)), finish);
  });
}

void AttentionKernel::emit() {
  stagesAt = kernel.at(stages);
  fullAt = kernel.at(full);
  emptyAt = kernel.at(empty);
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
  half = k.rem(warp, kPieceWarps);
  if (passes == 1) {
    part = warp;
  } else {
    firstHead = k.mul(k.rem(k.div(warp, kPieceWarps), passes), kColumns);
    part = k.add(k.mul(k.div(warp, groupWarps()), kPieceWarps), half);
  }
  Value block = k.block();
  split = k.rem(block, splits);
  Value cluster = k.div(block, splits);
  head = tokens == 1 ? cluster : k.rem(cluster, heads);
  token = tokens == 1 ? k.constI32(0) : k.div(cluster, heads);

  k.ifThen(k.equal(thread, k.constI32(0)), [&] {
    // Before sm_90 the copying warp's lanes arrive one by one.
    for (int64_t slot = 0; slot < ring; ++slot) {
      k.initBarrier(k.offset(fullAt, slot * 8), k.hasBulkCopies() ? 1 : kWarp);
      if (reuses)
        k.initBarrier(k.offset(emptyAt, slot * 8), groupWarps());
    }
    k.fenceBarrierInit();
  });
  readPositions();
  k.barrier();
  k.launchDependents();
  if (splits > 1)
    k.clusterArrive();

  Values nothing = {k.number(kLowest), k.number(kLowest)};
  nothing.append(2 + dim / 4, k.number(0.0));
  Values parts = k.ifElseYield(
      k.less(thread, k.constI32(threads)),
      [&] {
        k.waitForPredecessor();
        if (active() == warps)
          return consume();
        return k.ifElseYield(
            k.less(warp, k.constI32(active())), [&] { return consume(); }, [&] { return nothing; });
      },
      [&] {
        copyAll();
        return nothing;
      });
  // All pieces have been read: the ring's memory is free.
  k.barrier();
  k.ifThen(k.less(warp, k.constI32(active())), [&] { shareParts(State(parts)); });
  k.barrier();
  combine();
}

LogicalResult device::emitAttention(Kernel &kernel, fused::AttentionOp op) {
  FailureOr<fused::AttentionPlan> plan =
      fused::AttentionPlan::get(op, kernel.schedule, kernel.device);
  if (failed(plan))
    return failure();
  AttentionKernel(kernel, op, *plan).emit();
  return success();
}
