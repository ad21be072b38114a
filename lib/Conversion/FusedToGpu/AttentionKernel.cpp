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
// running maximum; the warps' parts meet in shared memory, the blocks' in each other's.

#include "Kernels.h"

#include "sluice/Formats/CacheLayout.h"
#include "sluice/Target/InlinePtx.h"

#include "llvm/Support/MathExtras.h"

#include <limits>

using namespace mlir;
using namespace sluice;
using namespace sluice::device;

/// Warps that share a piece, and positions of each.
static constexpr int64_t kPieceWarps = 2, kWarpPositions = formats::cachePiece / kPieceWarps;
/// Columns of the tensor cores' second operand.
static constexpr int64_t kColumns = 8;
/// Below every score; subtracting it from itself gives 0, unlike minus infinity.
static constexpr double kLowest = -1e30;

namespace {
class AttentionKernel {
public:
  using Values = DeviceBuilder::Values;

  AttentionKernel(Kernel &kernel, fused::AttentionOp op) : kernel(kernel), k(kernel.k), op(op) {}

  FailureOr<Launch> emit();

private:
  /// Running maxima and sums of query heads 2t and 2t + 1 of a lane with t = lane % 4, then, for
  /// every 16 elements of a head, the products' accumulators.
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

  LogicalResult plan();
  void takeShared();
  /// The number of this token's positions, less one, and of pieces that no token appends to
  /// in this step.
  void readPositions();
  Value slotOf(Value base, Value slot, int64_t bytes) { return k.offset(base, k.mul(slot, bytes)); }
  Value floats(Value base, Value index) { return k.offset(base, k.shl(index, 2)); }
  void advance(Value &slot, Value &parity, int64_t steps);

  /// Copies pieces [begin, end) of this block, by one thread, or before sm_90 by one warp.
  Values copyPieces(Value begin, Value end, const Values &state);
  void copyAll();
  SmallVector<Values> loadQueries();
  Values consume();
  void consumePiece(Value piece, Value stage, ArrayRef<Values> queries, State &state);
  std::array<Value, 4> scoresOf(Value keys, ArrayRef<Values> queries);
  /// Zeroes the values of positions that do not exist yet: whatever is there, a weight of 0 must
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
  int64_t tokens = 0, positions = 0, heads = 0, dim = 0, group = 0;
  int64_t warps = 0, splits = 0, ring = 0, inFlight = 0, warpGroups = 0;
  int64_t pieceBytes = 0;                ///< of the keys, and of the values
  int64_t active = 0;                    ///< warps that consume
  int64_t own = 0;                       ///< outputs that a block finishes
  bool reuses = false;                   ///< whether a stage is filled more than once
  Value thread, warp, lane, row, column; ///< row, column: lane / 4, lane % 4
  Value split, head, token;
  Value last, oldPieces; ///< see readPositions
  Value first, end;      ///< pieces of this block
  Value stages, full, empty, rowMaxima, rowSums, gatheredOutputs, gatheredMaxima, gatheredSums;
};
} // namespace

LogicalResult AttentionKernel::plan() {
  auto keys = kernel.interface.cacheType(op.getKeysAttr());
  auto values = kernel.interface.cacheType(op.getValuesAttr());
  for (auto [symbol, type] : {std::pair(op.getKeysAttr(), keys), {op.getValuesAttr(), values}}) {
    if (!type.getElementType().isF16())
      return op.emitOpError() << "reads cache " << symbol << " of " << type.getElementType()
                              << ", GPU kernels have caches of f16";
    if (std::optional<std::string> error =
            formats::checkCacheShape(type.getDimSize(0), type.getDimSize(2)))
      return op.emitOpError() << "reads cache " << symbol << ": " << *error;
  }
  positions = keys.getDimSize(0);
  heads = keys.getDimSize(1);
  dim = keys.getDimSize(2);
  tokens = op.getQuery().getType().getDimSize(0);
  group = op.getQuery().getType().getDimSize(1) / dim / heads;
  if (group > kColumns)
    return op.emitOpError() << "has " << group << " query heads for a key/value head, GPU kernels "
                            << "take at most " << kColumns;

  fused::GpuScheduleAttr schedule = kernel.schedule;
  warps = schedule.getWarps();
  splits = schedule.getSplits();
  auto reject = [&]() -> InFlightDiagnostic {
    return op.emitOpError() << "cannot run with " << schedule << ": ";
  };
  if (warps < kPieceWarps || warps > 31 || schedule.getStages() < 1 || schedule.getInFlight() < 1)
    return reject() << "warps must be " << kPieceWarps << " to 31, stages and in_flight at least 1";
  if (schedule.getColumns() != formats::cachePiece)
    return reject() << "a stage holds " << formats::cachePiece << " positions";
  if (splits < 1 || splits > 8)
    return reject() << "a cluster has 1 to 8 blocks";
  if (splits > 1 && !k.hasBulkCopies())
    return reject() << "sm_" << k.arch << " has no clusters, splits must be 1";
  if (schedule.getBlocks() != tokens * heads * splits)
    return reject() << heads << " key/value heads and " << tokens << " tokens need "
                    << tokens * heads * splits << " blocks";

  int64_t most = llvm::divideCeil(positions / formats::cachePiece, splits);
  ring = std::min(schedule.getStages(), most);
  warpGroups = std::min(warps / kPieceWarps, ring);
  // Each stage belongs to one warpGroup: one that met a stage filled by another warp group's turn
  // could not tell from the barrier's parity which filling it waits for.
  ring -= ring % warpGroups;
  inFlight = std::min(schedule.getInFlight(), ring);
  active = warpGroups * kPieceWarps;
  reuses = most > ring;
  pieceBytes = formats::cachePieceBytes(dim);
  own = llvm::divideCeil(group * dim, splits);
  return success();
}

void AttentionKernel::takeShared() {
  // The warps' sums come where the ring was. Rows of 4 floats more keep the lanes of a warp that
  // write different heads in different banks.
  int64_t partBytes = active * group * (dim + 4) * 4;
  stages = kernel.shared.take(k, std::max(ring * 2 * pieceBytes, partBytes), 128);
  full = kernel.shared.take(k, ring * 8, 8);
  if (reuses)
    empty = kernel.shared.take(k, ring * 8, 8);
  rowMaxima = kernel.shared.take(k, active * group * 4);
  rowSums = kernel.shared.take(k, active * group * 4);
  if (splits == 1)
    return;
  gatheredOutputs = kernel.shared.take(k, splits * own * 4);
  gatheredMaxima = kernel.shared.take(k, splits * group * 4);
  gatheredSums = kernel.shared.take(k, splits * group * 4);
}

void AttentionKernel::readPositions() {
  Value pointer = kernel.interface.pointer(op.getPositions());
  // The runtime checks positions; a wrong one must not reach memory outside the cache.
  auto clamped = [&](Value place) {
    return k.max(k.min(k.load(k.i32(), place, 4), k.constI32(positions - 1)), k.constI32(0));
  };
  last = clamped(k.offset(pointer, k.shl(token, 2)));
  Value lowest = last;
  for (int64_t other = 0; tokens > 1 && other < tokens; ++other)
    lowest = k.min(lowest, clamped(k.offset(pointer, other * 4)));
  oldPieces = k.div(lowest, formats::cachePiece);
  Value pieces = k.add(k.div(last, formats::cachePiece), 1);
  Value each = k.div(k.add(pieces, splits - 1), splits);
  first = k.mul(split, each);
  end = k.min(pieces, k.add(first, each));
}

void AttentionKernel::advance(Value &slot, Value &parity, int64_t steps) {
  if (steps == ring) {
    parity = k.bitXor(parity, 1);
    return;
  }
  slot = k.add(slot, steps);
  Value wraps = k.less(k.constI32(ring - 1), slot);
  slot = k.select(wraps, k.sub(slot, ring), slot);
  parity = k.select(wraps, k.bitXor(parity, 1), parity);
}

DeviceBuilder::Values AttentionKernel::copyPieces(Value begin, Value end, const Values &state) {
  // Carried: slot and parity of the next stage to fill and of the oldest that may be under way.
  return k.loop(begin, end, k.constI32(1), state, [&](Value piece, ValueRange carried) {
    Value slot = carried[0], parity = carried[1], oldest = carried[2], oldParity = carried[3];
    if (inFlight < ring) {
      Values next = k.ifElseYield(
          k.less(k.sub(piece, first), k.constI32(inFlight)),
          [&] { return Values{oldest, oldParity}; },
          [&] {
            k.wait(slotOf(full, oldest, 8), oldParity);
            Value slotAfter = oldest, parityAfter = oldParity;
            advance(slotAfter, parityAfter, 1);
            return Values{slotAfter, parityAfter};
          });
      oldest = next[0];
      oldParity = next[1];
    }
    if (reuses)
      k.wait(slotOf(empty, slot, 8), k.bitXor(parity, 1));
    Value barrier = slotOf(full, slot, 8), stage = slotOf(stages, slot, 2 * pieceBytes);
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
    advance(slot, parity, 1);
    return Values{slot, parity, oldest, oldParity};
  });
}

void AttentionKernel::copyAll() {
  Values state(4, k.constI32(0));
  if (!k.hasBulkCopies()) {
    copyPieces(first, end, state);
    return;
  }
  Value copier = k.equal(lane, k.constI32(0));
  if (kernel.schedule.getEarly() == "none") {
    k.waitForPredecessor();
    k.ifThen(copier, [&] { copyPieces(first, end, state); });
    return;
  }
  Value earlyEnd = k.max(first, k.min(end, oldPieces));
  state = k.ifElseYield(
      copier, [&] { return copyPieces(first, earlyEnd, state); }, [&] { return state; });
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
  Value n = group < kColumns ? k.min(row, k.constI32(group - 1)) : row;
  Value number = k.add(k.mul(head, group), n);
  if (tokens > 1)
    number = k.add(number, k.mul(token, heads * group));
  Value base = k.offset(kernel.interface.pointer(op.getQuery()), k.mul(number, dim * 2));
  SmallVector<Values> queries;
  Value wide = k.offset(base, k.shl(column, 4));
  for (int64_t d = 0; d + 32 <= dim; d += 32)
    queries.push_back(k.lanes(k.loadFresh(k.vec(4, k.i32()), k.offset(wide, d * 2), 16)));
  if (dim % 32) {
    Value narrow = k.offset(base, k.shl(column, 3));
    queries.push_back(k.lanes(k.loadFresh(k.vec(2, k.i32()), k.offset(narrow, dim / 32 * 64), 8)));
  }
  return queries;
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
    for (int64_t word = 0; word < words; word += 2)
      sums = k.mmaFloat(k.f16(), sums, {low[word], high[word], low[word + 1], high[word + 1]},
                        {query[word], query[word + 1]});
  }
  return {sums[0], sums[1], sums[2], sums[3]};
}

void AttentionKernel::clearValues(Value values, Value firstPosition) {
  // A lane's words are positions 2t and 2t + 1, then 8 more, of two elements each.
  auto maskOf = [&](Value position) {
    Value low = k.select(k.less(last, position), k.constI32(0), k.constI32(0xFFFF));
    Value high = k.select(k.less(last, k.add(position, 1)), k.constI32(0), k.constI32(-0x10000));
    return k.bitOr(low, high);
  };
  Value position = k.add(firstPosition, k.shl(column, 1));
  Value masks[] = {maskOf(position), maskOf(k.add(position, 8))};
  // A lane reads what it wrote itself, and no copy comes to this stage any more.
  k.loop(k.constI32(0), k.constI32(dim / 16), k.constI32(1), [&](Value part) {
    Value place = slotOf(values, part, 512);
    Values words = k.lanes(k.load(k.vec(4, k.i32()), place, 16));
    for (int64_t word = 0; word < 4; ++word)
      words[word] = k.bitAnd(words[word], masks[word / 2]);
    k.store(k.vectorOf(words), place, 16);
  });
}

void AttentionKernel::consumePiece(Value piece, Value stage, ArrayRef<Values> queries,
                                   State &state) {
  Value half = k.rem(warp, kPieceWarps);
  Value mine = k.offset(stage, k.mul(half, kWarpPositions * dim * 2));
  std::array<Value, 4> x = scoresOf(mine, queries);
  // Scores, rows `row` and `row` + 8, in units of which exp2 gives the exponential.
  Value firstPosition = k.add(k.mul(piece, formats::cachePiece), k.mul(half, kWarpPositions));
  Value factor = k.number(op.getScale().convertToDouble() * 1.44269504088896341);
  for (int64_t i = 0; i < 4; ++i) {
    Value position = k.add(firstPosition, i < 2 ? row : k.add(row, 8));
    x[i] = k.select(k.less(last, position), k.number(-std::numeric_limits<double>::infinity()),
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
  k.ifThen(k.less(last, k.add(firstPosition, kWarpPositions - 1)),
           [&] { clearValues(values, firstPosition); });
  for (int64_t part = 0; part < dim / 16; ++part) {
    Values words = k.lanes(k.load(k.vec(4, k.i32()), k.offset(values, part * 512), 16));
    auto to = MutableArrayRef<Value>(state.outputs).slice(part * 4, 4);
    Values after = k.mmaFloat(k.f16(), Values(to), words, weights);
    llvm::copy(after, to.begin());
  }
}

DeviceBuilder::Values AttentionKernel::consume() {
  SmallVector<Values> queries = loadQueries();
  Value warpGroup = k.div(warp, kPieceWarps);
  Values carried = {warpGroup, k.constI32(0), k.number(kLowest), k.number(kLowest)};
  carried.append(2 + dim / 4, k.number(0.0));
  Values after =
      k.loop(k.add(first, warpGroup), end, k.constI32(warpGroups), carried,
             [&](Value piece, ValueRange values) {
               Value slot = values[0], parity = values[1];
               State state(values.drop_front(2));
               k.wait(slotOf(full, slot, 8), parity);
               consumePiece(piece, slotOf(stages, slot, 2 * pieceBytes), queries, state);
               if (reuses) {
                 k.syncWarp();
                 k.ifThen(k.equal(lane, k.constI32(0)), [&] { k.arrive(slotOf(empty, slot, 8)); });
               }
               advance(slot, parity, warpGroups);
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
  for (int64_t h = 0; h < 2; ++h) {
    auto storeHead = [&] {
      Value number = k.add(k.mul(warp, group), k.add(k.shl(column, 1), h));
      Value to = floats(stages, k.add(k.mul(number, dim + 4), row));
      for (int64_t part = 0; part < dim / 16; ++part) {
        k.store(state.outputs[part * 4 + h], k.offset(to, part * 64), 4);
        k.store(state.outputs[part * 4 + h + 2], k.offset(to, part * 64 + 32), 4);
      }
      k.ifThen(k.equal(row, k.constI32(0)), [&] {
        k.store(state.maxima[h], floats(rowMaxima, number), 4);
        k.store(state.sums[h], floats(rowSums, number), 4);
      });
    };
    if (group == kColumns)
      storeHead();
    else
      k.ifThen(k.less(k.add(k.shl(column, 1), h), k.constI32(group)), storeHead);
  }
}

DeviceBuilder::Values AttentionKernel::joinWarps(Value head, Value index) {
  Values parts;
  Value greatest;
  Value topPlace = floats(rowMaxima, head), totalPlace = floats(rowSums, head);
  for (int64_t w = 0; w < active; ++w) {
    parts.push_back(k.load(k.f32(), k.offset(topPlace, w * group * 4), 4));
    greatest = greatest ? k.maxF(greatest, parts.back()) : parts.back();
  }
  Value from = floats(stages, k.add(k.mul(head, dim + 4), index));
  Value sum = k.number(0.0), rowSum = k.number(0.0);
  for (int64_t w = 0; w < active; ++w) {
    Value ratio = k.exp2(k.subF(parts[w], greatest));
    sum = k.fma(k.load(k.f32(), k.offset(from, w * group * (dim + 4) * 4), 4), ratio, sum);
    rowSum = k.fma(k.load(k.f32(), k.offset(totalPlace, w * group * 4), 4), ratio, rowSum);
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
    push(joined[1], gatheredOutputs, k.add(k.mul(split, own), place));
    // A head's maximum and sum go once to each block that finishes elements of it.
    Value starts = k.bitOr(k.equal(place, k.constI32(0)), k.equal(d, k.constI32(0)));
    k.ifThen(starts, [&] {
      Value number = k.add(k.mul(split, group), n);
      push(joined[0], gatheredMaxima, number);
      push(joined[2], gatheredSums, number);
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
      Value topPlace = floats(gatheredMaxima, n), totalPlace = floats(gatheredSums, n);
      Value from = floats(gatheredOutputs, i), greatest;
      Values parts;
      for (int64_t part = 0; part < splits; ++part) {
        parts.push_back(k.load(k.f32(), k.offset(topPlace, part * group * 4), 4));
        greatest = greatest ? k.maxF(greatest, parts.back()) : parts.back();
      }
      Value sum = k.number(0.0), rowSum = k.number(0.0);
      for (int64_t part = 0; part < splits; ++part) {
        Value ratio = k.exp2(k.subF(parts[part], greatest));
        sum = k.fma(k.load(k.f32(), k.offset(from, part * own * 4), 4), ratio, sum);
        rowSum = k.fma(k.load(k.f32(), k.offset(totalPlace, part * group * 4), 4), ratio, rowSum);
      }
      storeResult(index, sum, rowSum);
    };
    if (own * splits == group * dim)
      finish();
    else
      k.ifThen(k.less(index, k.constI32(group * dim)), finish);
  });
}

FailureOr<Launch> AttentionKernel::emit() {
  if (failed(plan()))
    return failure();
  takeShared();
  if (kernel.shared.bytes() > kernel.sharedLimit)
    return op.emitOpError() << "with " << kernel.schedule << " needs " << kernel.shared.bytes()
                            << " bytes of shared memory, the target has " << kernel.sharedLimit
                            << " a block";
  int64_t threads = warps * kWarp;
  thread = k.thread();
  warp = k.shr(thread, 5);
  lane = k.bitAnd(thread, kWarp - 1);
  row = k.shr(lane, 2);
  column = k.bitAnd(lane, 3);
  Value block = k.block();
  split = k.rem(block, splits);
  Value cluster = k.div(block, splits);
  head = tokens == 1 ? cluster : k.rem(cluster, heads);
  token = tokens == 1 ? k.constI32(0) : k.div(cluster, heads);

  k.ifThen(k.equal(thread, k.constI32(0)), [&] {
    // Before sm_90 the copying warp's lanes arrive one by one.
    for (int64_t slot = 0; slot < ring; ++slot) {
      k.initBarrier(k.offset(full, slot * 8), k.hasBulkCopies() ? 1 : kWarp);
      if (reuses)
        k.initBarrier(k.offset(empty, slot * 8), kPieceWarps);
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
        if (active == warps)
          return consume();
        return k.ifElseYield(
            k.less(warp, k.constI32(active)), [&] { return consume(); }, [&] { return nothing; });
      },
      [&] {
        copyAll();
        return nothing;
      });
  // All pieces have been read: the ring's memory is free.
  k.barrier();
  k.ifThen(k.less(warp, k.constI32(active)), [&] { shareParts(State(parts)); });
  k.barrier();
  combine();

  Launch launch;
  launch.grid = tokens * heads * splits;
  launch.block = threads + kWarp;
  launch.shared = kernel.shared.bytes();
  launch.cluster = splits;
  // Leaves registers for a block of the product that follows, whose weights stream meanwhile.
  // Longer heads do not fit in so few, and before sm_90 no kernel starts early.
  launch.resident = k.hasBulkCopies() && dim <= 128 ? 2 : 0;
  launch.overlap = k.hasBulkCopies();
  return launch;
}

FailureOr<Launch> device::emitAttention(Kernel &kernel, fused::AttentionOp op) {
  return AttentionKernel(kernel, op).emit();
}
