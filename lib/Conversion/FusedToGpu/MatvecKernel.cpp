// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// A matrix-vector product: some warps multiply, one more fills a ring of stages in shared memory, a
// stage being one chunk of a tile of 16 rows. Block b has tiles b, b + grid, ...; their chunks
// follow each other through the ring without a gap. Weights do not depend on the previous kernel,
// so the ring fills while that one still runs.
//
// A chunk is cut into slices of columns (K slices), one per warp. If a chunk has fewer slices than
// there are warps, several warp groups take chunks in turn. The partial sums of a tile's rows go to
// shared memory; when a few tiles are held there, threads add them up and run the epilogue, each
// for rows r and r + 8 of a tile.

#include "../FusedKernels/GroupNumbers.h"
#include "Kernels.h"
#include "RecordProduct.h"
#include "StageRing.h"

#include "llvm/Support/MathExtras.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::device;
using formats::Encoding;

/// What one instruction prefetches at most. Larger ones were not tried.
static constexpr int64_t kPrefetchBytes = 16384;

namespace {
class MatvecKernel : fused::ProductPlan {
public:
  using Values = DeviceBuilder::Values;

  MatvecKernel(Kernel &kernel, fused::MatvecOp op, const fused::ProductPlan &plan,
               SmallVector<PackedSegment> segments)
      : fused::ProductPlan(plan), kernel(kernel), k(kernel.k), op(op),
        segments(std::move(segments)) {}

  LogicalResult emit();

private:
  /// A number of the weight that a tile is in.
  Value ofPart(Value tile, llvm::function_ref<Value(const fused::PackedPart &, size_t)> number);
  /// The tiles that this block has.
  Value tileCount() { return k.add(k.div(k.sub(k.constI32(tiles - 1), block), grid), 1); }
  StageRing stageRing() { return {k, ring, fullAt}; }

  void copyWeights(Value lane);
  /// After the last copy: `copies` were requested, `oldest` and `parity` name the first stage that
  /// may be under way, at most `mostUnderWay` are.
  void prefetchNext(Value copies, int64_t mostUnderWay, Value oldest, Value parity);
  LogicalResult multiply(Value thread, PreparedInput &input);
  /// What a warp needs of the input for its part of a chunk.
  struct Operands {
    SmallVector<Values> fragments;               ///< layout mma
    SmallVector<RecordProduct::Input> ofRecords; ///< layout records
  };
  bool hasRecords() const { return shape.layout().kind == formats::Layout::Kind::Records; }
  /// Sums that a lane carries.
  int64_t sumCount() {
    return hasRecords() ? 2 * op.getTokens() : shape.format().isInteger() ? 2 : 4;
  }
  Operands loadInput(PreparedInput &input, Value chunk);
  /// What a warp adds to the sums of its rows r and r + 8 from one chunk, whose stage is released
  /// as soon as nothing more is read of it.
  Values multiplyChunk(PreparedInput &input, const Operands &x, Value tile, Value chunk,
                       Value stage, Values sums, llvm::function_ref<void()> release);
  /// Writes a tile's sums to where threads add them up.
  void storeSums(ValueRange sums, Value to);
  LogicalResult finish(Value thread, Value firstTile, Value held);
  /// Whether a thread has at most one pair of rows in the whole kernel, so that it can read early
  /// what their epilogue needs.
  bool preloads() const { return held == tilesPerBlock && held * 8 <= warps * kWarp; }
  void preload(Value thread, bool fresh);

  Kernel &kernel;
  DeviceBuilder &k;
  fused::MatvecOp op;
  SmallVector<PackedSegment> segments;
  Value block, slice, warpGroup, lane, stagesAt, fullAt, emptyAt, sumsAt;
  /// For each token and segment.
  SmallVector<EpilogueLoads> early;
};
} // namespace

void MatvecKernel::copyWeights(Value lane) {
  bool hasShortChunk = llvm::any_of(parts, [&](const fused::PackedPart &part) {
    return part.shape.chunkBytes(chunks - 1) != part.shape.chunkBytes(0);
  });
  bool bounded = (inFlight < ring || reuses) && inFlight < tilesPerBlock * chunks;
  Value zero = k.constI32(0), one = k.constI32(1);
  // Carried: the number of stages so far; slot and parity of the next stage to fill and of the
  // oldest that may be under way.
  Values start = {zero, zero, zero, zero, zero};
  Values end = k.loop(zero, tileCount(), one, start, [&](Value number, ValueRange carriedTile) {
    Value tile = k.add(block, k.mul(number, grid));
    Value from = ofPart(tile, [&](const fused::PackedPart &part, size_t n) {
      Value inPart = k.extendUnsigned(part.firstTile ? k.sub(tile, part.firstTile) : tile, k.i64());
      return k.offset(kernel.interface.pointer(op.getWeights()[n]),
                      k.mul(inPart, part.shape.tileBytes()));
    });
    auto bytesOf = [&](int64_t chunk) {
      return ofPart(tile, [&](const fused::PackedPart &part, size_t) {
        return k.constI32(part.shape.chunkBytes(chunk));
      });
    };
    Value bytes = bytesOf(0), lastBytes = hasShortChunk ? bytesOf(chunks - 1) : Value();
    return k.loop(zero, k.constI32(chunks), one, carriedTile, [&](Value chunk, ValueRange carried) {
      Value count = carried[0], slot = carried[1], parity = carried[2];
      Value oldest = carried[3], oldParity = carried[4];
      if (bounded)
        stageRing().limitInFlight(count, inFlight, oldest, oldParity);
      if (reuses)
        k.wait(k.at(emptyAt, slot, 8), k.bitXor(parity, 1));
      Value size = bytes;
      if (hasShortChunk)
        size = k.select(k.equal(chunk, k.constI32(chunks - 1)), lastBytes, size);
      Value place =
          k.offset(from, k.mul(k.extendUnsigned(chunk, k.i64()), k.extendUnsigned(bytes, k.i64())));
      Value to = k.at(stagesAt, slot, stageBytes), barrier = k.at(fullAt, slot, 8);
      if (k.hasBulkCopies()) {
        k.expectBytes(barrier, size);
        k.bulkCopy(to, place, size, barrier);
      } else {
        k.loop(k.mul(lane, 16), size, k.constI32(kWarp * 16),
               [&](Value byte) { k.copy16(k.offset(to, byte), k.offset(place, byte)); });
        k.arriveAfterCopies(barrier);
      }
      stageRing().advance(slot, parity, 1);
      return Values{k.add(count, 1), slot, parity, oldest, oldParity};
    });
  });
  if (kernel.interface.prefetchedPointer())
    prefetchNext(end[0], bounded ? inFlight : tilesPerBlock * chunks, end[3], end[4]);
}

Value MatvecKernel::ofPart(Value tile,
                           llvm::function_ref<Value(const fused::PackedPart &, size_t)> number) {
  Value result = number(parts.back(), parts.size() - 1);
  for (size_t n = parts.size() - 1; n-- > 0;)
    result = k.select(k.less(tile, k.constI32(parts[n].endTile())), number(parts[n], n), result);
  return result;
}

void MatvecKernel::prefetchNext(Value copies, int64_t mostUnderWay, Value oldest, Value parity) {
  fused::PrefetchAttr ahead = *op.getPrefetch();
  // Bytes that are requested while this block's own are on their way would delay them, and with
  // them the end of this kernel.
  k.loop(k.constI32(0), k.min(copies, k.constI32(mostUnderWay)), k.constI32(1),
         Values{oldest, parity}, [&](Value, ValueRange carried) {
           Value slot = carried[0], phase = carried[1];
           k.wait(k.at(fullAt, slot, 8), phase);
           stageRing().advance(slot, phase, 1);
           return Values{slot, phase};
         });
  auto prefetch = [&] {
    Value from = k.offset(kernel.interface.prefetchedPointer(),
                          k.mul(k.extendUnsigned(block, k.i64()), ahead.getStride()));
    for (int64_t byte = 0; byte < ahead.getBytes(); byte += kPrefetchBytes)
      k.bulkPrefetch(k.offset(from, byte),
                     k.constI32(std::min(kPrefetchBytes, ahead.getBytes() - byte)));
  };
  if (ahead.getBlocks() < grid)
    k.ifThen(k.less(block, k.constI32(ahead.getBlocks())), prefetch);
  else
    prefetch();
}

MatvecKernel::Operands MatvecKernel::loadInput(PreparedInput &input, Value chunk) {
  Value number = k.add(k.mul(chunk, slices), slice);
  Operands x;
  if (hasRecords()) {
    x.ofRecords = RecordProduct(k, shape.format(), lane).loadInput(input, number);
    return x;
  }
  int64_t fragments = sliceColumns / input.fragmentColumns();
  Value myLane = lane;
  if (input.fragmentLanes() < kWarp) // other lanes' columns are not used
    myLane = k.min(lane, k.constI32(input.fragmentLanes() - 1));
  Value from =
      k.offset(k.offset(input.fragmentsAt, k.mul(number, fragments * input.fragmentBytes())),
               k.shl(myLane, 3));
  for (int64_t f = 0; f < fragments; ++f)
    x.fragments.push_back(
        k.lanes(k.load(k.vec(2, k.i32()), k.offset(from, f * input.fragmentBytes()), 8)));
  return x;
}

DeviceBuilder::Values MatvecKernel::multiplyChunk(PreparedInput &input, const Operands &operands,
                                                  Value tile, Value chunk, Value stage, Values sums,
                                                  llvm::function_ref<void()> release) {
  if (hasRecords()) {
    std::function<Values(size_t)> multiplyFrom = [&](size_t n) -> Values {
      const formats::Encoding &encoding = parts[n].shape.format();
      auto here = [&] {
        Value record = k.at(stage, slice, formats::RecordShape(encoding).bytes());
        return RecordProduct(k, encoding, lane)
            .multiply(input, operands.ofRecords, record, sums, release);
      };
      if (n + 1 == parts.size())
        return here();
      return k.ifElseYield(k.less(tile, k.constI32(parts[n].endTile())), here,
                           [&] { return multiplyFrom(n + 1); });
    };
    return multiplyFrom(0);
  }
  ArrayRef<Values> x = operands.fragments;
  Encoding format = shape.format();
  bool isInteger = format.isInteger(), int4 = format.element == Encoding::Element::I4;
  int64_t fragmentsPerSlice = sliceColumns / input.fragmentColumns();
  // A warp loads 512 bytes at a time: these columns of the 16 rows.
  int64_t loadColumns = int4 ? 64 : format.isScaled() ? 32 : input.fragmentColumns();
  int64_t loads = sliceColumns / loadColumns;
  // The slice that the matrix' last column cuts.
  int64_t last = chunks - 1, lastSlice = (shape.chunkColumns(last) - 1) / sliceColumns;
  int64_t rest = shape.columns() % sliceColumns;
  Value isRest;
  if (rest) {
    isRest = k.equal(slice, k.constI32(lastSlice));
    if (chunks > 1)
      isRest = arith::AndIOp::create(k.b, k.loc, isRest, k.equal(chunk, k.constI32(last)));
  }
  auto perChunk = [&](int64_t others, int64_t ofLast) {
    if (others == ofLast || chunks == 1)
      return k.constI32(ofLast);
    return k.select(k.equal(chunk, k.constI32(last)), k.constI32(ofLast), k.constI32(others));
  };
  // Columns that do not exist are multiplied like the others: with zeros of the input, and
  // whatever elements, scales and zero points come last.
  auto clamped = [&](int64_t index, int64_t existing, int64_t bytes) {
    if (!isRest || index < existing)
      return k.constI32(index * bytes);
    return k.select(isRest, k.constI32((existing - 1) * bytes), k.constI32(index * bytes));
  };

  Value elements = k.offset(stage, k.add(k.mul(slice, loads * 512), k.shl(lane, 4)));
  SmallVector<Values> w;
  for (int64_t number = 0; number < loads; ++number) {
    Value place = clamped(number, llvm::divideCeil(rest, loadColumns), 512);
    w.push_back(k.lanes(k.load(k.vec(4, k.i32()), k.offset(elements, place), 16)));
  }
  if (int4) {
    SmallVector<Values> nibbles;
    for (Values &words : w) {
      auto [high, low] = k.nibblesAtTop(words);
      nibbles.push_back(high);
      nibbles.push_back(low);
    }
    w = std::move(nibbles);
  }
  if (!format.isScaled()) {
    Type element = format.element == Encoding::Element::BF16 ? Type(k.b.getBF16Type()) : k.f16();
    Values products(4, k.number(0.0));
    for (int64_t f = 0; f < fragmentsPerSlice; ++f)
      products = k.mmaFloat(element, products, w[f], x[f]);
    // Columns 2t and 2t + 1 of the operand are tokens 2t and 2t + 1.
    Values result;
    for (auto [sum, product] : llvm::zip_equal(sums, products))
      result.push_back(k.addF(sum, product));
    release();
    return result;
  }

  if (!isInteger) {
    // 16 bytes of a lane are the f16 operands of two products.
    SmallVector<Values> halves;
    for (Values &words : w)
      for (int64_t half = 0; half < 2; ++half) {
        Values low = k.decodeE4M3(words[2 * half], /*mayBeNan=*/false),
               high = k.decodeE4M3(words[2 * half + 1], /*mayBeNan=*/false);
        halves.push_back({low[0], high[0], low[1], high[1]});
      }
    w = std::move(halves);
  }

  // Columns 2t and 2t + 1 are the high and low bytes of token t, or tokens 2t and 2t + 1.
  int64_t groupsOf128 = input.padded / 128, sumsPerRow = input.padded / input.accumulationColumns;
  Value sliceNumber = k.add(k.mul(chunk, slices), slice);
  Value column = k.bitAnd(lane, 3);
  Value sumPlace = k.mul(sliceNumber, sliceColumns / input.accumulationColumns);
  auto existingToken = [&](Value token) { return k.min(token, k.constI32(op.getTokens() - 1)); };
  // Of the tokens that the lane has sums of.
  Values activationScales;
  int64_t tokensOfLane = isInteger || op.getTokens() == 1 ? 1 : 2;
  for (int64_t number = 0; number < tokensOfLane; ++number) {
    Value place = sliceNumber;
    if (op.getTokens() > 1) {
      Value token = isInteger ? column : k.add(k.shl(column, 1), number);
      place = k.add(place, k.mul(existingToken(token), groupsOf128));
    }
    activationScales.push_back(k.load(k.f32(), k.offset(input.scalesAt, k.shl(place, 2)), 4));
  }
  if (op.getTokens() > 1)
    sumPlace = k.add(sumPlace, k.mul(existingToken(column), sumsPerRow));
  int64_t accumulationBlocks = sliceColumns / input.accumulationColumns;
  // The group of the slice's first column, in its chunk.
  int64_t group = format.group == Encoding::channel ? 0 : format.group;
  Value firstGroup = k.constI32(0);
  int64_t stride = 0;
  if (group && group <= 128) {
    firstGroup = k.mul(slice, 128 / group);
    stride = 1;
  } else if (group && shape.layout().columns % group == 0) {
    firstGroup = k.div(slice, group / 128);
  }
  Value pair = k.shr(lane, 2);
  Type scaleType = kernels::scaleType(k, format);
  int64_t scaleBytes = bytesOf(scaleType);
  Value scales = k.offset(k.offset(stage, perChunk(shape.chunkScales(0), shape.chunkScales(last))),
                          k.add(k.mul(firstGroup, 16 * scaleBytes), k.mul(pair, 2 * scaleBytes)));
  Value zeros;
  if (format.hasZeroPoint())
    zeros = k.offset(k.offset(stage, perChunk(shape.chunkOffsets(0), shape.chunkOffsets(last))),
                     k.add(k.mul(firstGroup, 16), k.shl(pair, 1)));
  int64_t fragmentsPerBlock = input.accumulationColumns / input.fragmentColumns();
  for (int64_t number = 0; number < accumulationBlocks; ++number) {
    Values products(4, isInteger ? k.constI32(0) : k.number(0.0));
    for (int64_t f = number * fragmentsPerBlock; f < (number + 1) * fragmentsPerBlock; ++f)
      products =
          isInteger ? k.mmaInt8(products, w[f], x[f]) : k.mmaFloat(k.f16(), products, w[f], x[f]);
    int64_t existing = llvm::divideCeil(rest, input.accumulationColumns);
    Value scalePair = k.load(k.vec(2, scaleType),
                             k.offset(scales, clamped(number * stride, existing, 16 * scaleBytes)),
                             2 * scaleBytes);
    Values zeroPair;
    Value inputSum;
    if (format.hasZeroPoint()) {
      zeroPair = k.lanes(
          k.load(k.vec(2, k.i8()), k.offset(zeros, clamped(number * stride, existing, 16)), 2));
      inputSum = k.load(k.i32(), k.offset(input.inputSumsAt, k.shl(k.add(sumPlace, number), 2)), 4);
    }
    for (int64_t row = 0; row < 2; ++row) {
      Value scale = k.widen(k.lane(scalePair, row));
      if (!isInteger) {
        for (auto [token, activationScale] : llvm::enumerate(activationScales))
          sums[2 * row + token] = k.fma(products[2 * row + token], k.mulF(scale, activationScale),
                                        sums[2 * row + token]);
        continue;
      }
      Value sum = k.add(k.shl(products[2 * row], 8), products[2 * row + 1]);
      if (format.hasZeroPoint()) {
        Value zero = k.extend(zeroPair[row], k.i32());
        sum = k.sub(sum, k.mul(int4 ? k.shl(zero, 4) : zero, inputSum));
      }
      sums[row] = k.fma(k.toFloat(sum), k.mulF(scale, activationScales[0]), sums[row]);
    }
  }
  release();
  return sums;
}

void MatvecKernel::storeSums(ValueRange sums, Value to) {
  int64_t tokens = op.getTokens(), perToken = warpGroups * slices * 64;
  Value column = k.bitAnd(lane, 3);
  if (hasRecords()) {
    // Lanes 4r and 4r + 1 have rows r and r + 8.
    for (int64_t token = 0; token < tokens; ++token) {
      Value sum =
          RecordProduct(k, shape.format(), lane).addSubBlocks(sums[2 * token], sums[2 * token + 1]);
      k.ifThen(k.less(column, k.constI32(2)), [&] {
        k.store(sum, k.offset(k.offset(to, token * perToken), k.shl(column, 2)), 4);
      });
    }
    return;
  }
  // Integer products: lane 4r + s has rows r and r + 8 of token s. Float products: of
  // tokens 2s and 2s + 1.
  auto storePair = [&](Value token, Value low, Value high) {
    k.store(k.vectorOf({low, high}), k.offset(to, k.mul(token, perToken)), 8);
  };
  if (shape.format().isInteger()) {
    k.ifThen(k.less(column, k.constI32(tokens)), [&] { storePair(column, sums[0], sums[1]); });
    return;
  }
  Value first = k.shl(column, 1);
  k.ifThen(k.less(first, k.constI32(tokens)), [&] { storePair(first, sums[0], sums[2]); });
  if (tokens > 1) {
    Value second = k.add(first, 1);
    k.ifThen(k.less(second, k.constI32(tokens)), [&] { storePair(second, sums[1], sums[3]); });
  }
}

LogicalResult MatvecKernel::multiply(Value thread, PreparedInput &input) {
  int64_t active = warpGroups * slices;
  Value zero = k.constI32(0), one = k.constI32(1);
  Value number = k.div(thread, kWarp);
  lane = k.bitAnd(thread, kWarp - 1);
  warpGroup = warpGroups == 1 ? zero : k.div(number, slices);
  slice = warpGroups == 1 ? number : k.rem(number, slices);
  Value takesPart = active < warps ? k.less(number, k.constI32(active)) : Value();
  Value mine = k.offset(sumsAt, k.add(k.mul(number, 64), k.shl(k.shr(lane, 2), 3)));
  Value count = tileCount();

  // The last chunk may have fewer slices.
  int64_t lastSlices = llvm::divideCeil(shape.chunkColumns(chunks - 1), sliceColumns);
  // A warp whose part of every tile are the same columns keeps their input in registers.
  bool keepsInput = hasRecords() && op.getTokens() == 1 && resident == 1 && chunks == warpGroups &&
                    lastSlices == slices;
  Operands kept;
  if (keepsInput) // warps that take no part read some place that exists
    kept = loadInput(input, takesPart ? k.min(warpGroup, k.constI32(warpGroups - 1)) : warpGroup);

  // Carried from tile to tile: slot and parity of the warp group's next stage, and the first chunk
  // of the next tile that is its turn.
  auto multiplyTile = [&](Value tile, Value heldNumber, ValueRange carried) {
    Values inner = {carried[0], carried[1]};
    inner.append(sumCount(), k.number(0.0));
    auto multiplyOne = [&](Value chunk, ValueRange values) {
      Value slot = values[0], parity = values[1];
      Values partial = llvm::to_vector(values.drop_front(2));
      Value stage = k.at(stagesAt, slot, stageBytes);
      auto release = [&] {
        if (reuses)
          k.arriveWarp(k.at(emptyAt, slot, 8), lane);
      };
      if (lastSlices < slices) {
        k.wait(k.at(fullAt, slot, 8), parity);
        Value exists = k.less(slice, k.select(k.equal(chunk, k.constI32(chunks - 1)),
                                              k.constI32(lastSlices), k.constI32(slices)));
        partial = k.ifElseYield(
            exists,
            [&] {
              return multiplyChunk(input, loadInput(input, chunk), tile, chunk, stage, partial,
                                   [] {});
            },
            [&] { return partial; });
        release();
      } else {
        // While the weights are on their way; where registers are few, when they have come, so that
        // not all of the input is held at once.
        bool late = hasRecords() && resident > 1;
        Operands x = keepsInput ? kept : late ? Operands() : loadInput(input, chunk);
        k.wait(k.at(fullAt, slot, 8), parity);
        if (late)
          x = loadInput(input, chunk);
        partial = multiplyChunk(input, x, tile, chunk, stage, partial, release);
      }
      stageRing().advance(slot, parity, warpGroups);
      Values next = {slot, parity};
      next.append(partial);
      return next;
    };
    Values after = keepsInput ? multiplyOne(carried[2], inner)
                              : k.loop(carried[2], k.constI32(chunks), k.constI32(warpGroups),
                                       inner, multiplyOne);
    storeSums(ValueRange(after).drop_front(2), k.offset(mine, k.mul(heldNumber, heldBytes)));
    Value first = carried[2];
    if (int64_t shift = (warpGroups - chunks % warpGroups) % warpGroups) {
      first = k.add(first, shift);
      first = k.select(k.less(first, k.constI32(warpGroups)), first, k.sub(first, warpGroups));
    }
    return Values{after[0], after[1], first};
  };
  LogicalResult result = success();
  auto batch = [&](Value base, Value heldNow, ValueRange carried) {
    auto products = [&] {
      return k.loop(zero, heldNow, one, carried, [&](Value number, ValueRange values) {
        Value tile = k.add(block, k.mul(k.add(base, number), grid));
        return multiplyTile(tile, number, values);
      });
    };
    Values next = takesPart
                      ? k.ifElseYield(takesPart, products, [&] { return llvm::to_vector(carried); })
                      : products();
    k.barrier(1, warps * kWarp);
    if (succeeded(result))
      result = finish(thread, base, heldNow);
    return next;
  };
  Values start = {k.rem(warpGroup, ring), k.bitAnd(k.div(warpGroup, ring), 1), warpGroup};
  if (held == tilesPerBlock) {
    batch(zero, count, start);
    return result;
  }
  k.loop(zero, count, k.constI32(held), start, [&](Value base, ValueRange carried) {
    Values next = batch(base, k.min(k.sub(count, base), k.constI32(held)), carried);
    k.barrier(1, warps * kWarp); // before the next tiles' sums come to the same place
    return next;
  });
  return result;
}

void MatvecKernel::preload(Value thread, bool fresh) {
  if (!preloads() || op.getEpilogue().empty())
    return;
  size_t parts = op.getTokens() * segments.size();
  early.resize(parts);
  SmallVector<EpilogueLoads> loads(parts);
  SmallVector<Type> types;
  Values results = k.ifElseYield(
      k.less(thread, k.shl(tileCount(), 3)),
      [&] {
        Value tile = k.add(block, k.mul(k.shr(thread, 3), grid)), row = k.bitAnd(thread, 7);
        Values all;
        for (size_t part = 0; part < parts; ++part) {
          // Every segment's, as if the tile were in each of them: loads of a place that exists cost
          // less than finding out.
          const PackedSegment &segment = segments[part % segments.size()];
          Value inSegment = k.max(
              k.min(k.sub(tile, segment.firstTile), k.constI32(segment.tiles - 1)), k.constI32(0));
          preloadEpilogue(kernel, op, segment, inSegment, row, k.constI32(part / segments.size()),
                          fresh, loads[part]);
          for (auto &[key, elements] : loads[part])
            all.append(elements);
        }
        for (Value value : all)
          types.push_back(value.getType());
        return all;
      },
      [&] {
        return Values(llvm::map_range(types, [&](Type type) -> Value {
          return arith::ConstantOp::create(k.b, k.loc, k.b.getFloatAttr(type, 0.0));
        }));
      });
  size_t next = 0;
  for (size_t part = 0; part < parts; ++part)
    for (auto &[key, elements] : loads[part])
      for (size_t e = 0; e < elements.size(); ++e)
        early[part][key].push_back(results[next++]);
}

LogicalResult MatvecKernel::finish(Value thread, Value base, Value heldNow) {
  LogicalResult result = success();
  int64_t active = warpGroups * slices;
  auto finishPair = [&](Value item) {
    Value number = k.shr(item, 3), row = k.bitAnd(item, 7);
    Value tile = k.add(block, k.mul(k.add(base, number), grid));
    for (int64_t token = 0; token < op.getTokens(); ++token) {
      Value from = k.offset(k.offset(sumsAt, token * active * 64),
                            k.add(k.mul(number, heldBytes), k.shl(row, 3)));
      Value low, high;
      for (int64_t part = 0; part < active; ++part) {
        Values pair = k.lanes(k.load(k.vec(2, k.f32()), k.offset(from, part * 64), 8));
        low = low ? k.addF(low, pair[0]) : pair[0];
        high = high ? k.addF(high, pair[1]) : pair[1];
      }
      kernels::emitForSegment(k, segments, tile, [&](size_t n, Value inSegment) {
        if (succeeded(result))
          result =
              emitEpilogue(kernel, op, segments[n], inSegment, row, low, high, k.constI32(token),
                           early.empty() ? EpilogueLoads() : early[token * segments.size() + n]);
      });
    }
  };
  Value items = k.shl(heldNow, 3);
  int64_t threads = warps * kWarp;
  if (held * 8 <= threads)
    k.ifThen(k.less(thread, items), [&] { finishPair(thread); });
  else
    k.loop(thread, items, k.constI32(threads), finishPair);
  return result;
}

LogicalResult MatvecKernel::emit() {
  int64_t threads = warps * kWarp;
  Value thread = k.thread();
  block = k.block();
  stagesAt = kernel.at(stages);
  fullAt = kernel.at(full);
  emptyAt = kernel.at(empty);
  sumsAt = kernel.at(sums);

  k.ifThen(k.equal(thread, k.constI32(0)), [&] {
    // Before sm_90 the copying warp's lanes arrive one by one.
    for (int64_t slot = 0; slot < ring; ++slot) {
      k.initBarrier(k.offset(fullAt, slot * 8), k.hasBulkCopies() ? 1 : kWarp);
      if (reuses)
        k.initWarpBarrier(k.offset(emptyAt, slot * 8), slices);
    }
    k.fenceBarrierInit();
  });
  k.barrier();
  k.launchDependents();

  LogicalResult result = success();
  k.ifElse(
      k.less(thread, k.constI32(threads)),
      [&] {
        Prologue prologue(kernel, op, op.getPrologue(), op.getInput(), input, thread, threads);
        FailureOr<PreparedInput> prepared = prologue.preload();
        if (failed(prepared)) {
          result = failure();
          return;
        }
        preload(thread, /*fresh=*/false);
        k.waitForPredecessor();
        preload(thread, /*fresh=*/true);
        result = prologue.emit(*prepared);
        if (succeeded(result))
          result = multiply(thread, *prepared);
      },
      [&] {
        Value copier = k.sub(thread, threads);
        if (!k.hasBulkCopies())
          return copyWeights(copier);
        k.ifThen(k.equal(copier, k.constI32(0)), [&] { copyWeights(copier); });
      });
  return result;
}

LogicalResult device::emitMatvec(Kernel &kernel, fused::MatvecOp op) {
  FailureOr<fused::ProductPlan> plan = fused::ProductPlan::get(op, kernel.schedule, kernel.device);
  if (failed(plan))
    return failure();
  FailureOr<SmallVector<PackedSegment>> segments = kernels::packedSegments(op);
  if (failed(segments))
    return failure();
  return MatvecKernel(kernel, op, *plan, std::move(*segments)).emit();
}
