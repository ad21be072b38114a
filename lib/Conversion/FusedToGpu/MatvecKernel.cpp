// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// A matrix-vector product: 16 warps multiply, one more fills a ring of stages in shared memory, a
// stage being one chunk of a tile of 16 rows. Block b has tiles b, b + grid, ...; their chunks
// follow each other through the ring without a gap. Weights do not depend on the previous kernel,
// so the ring fills while that one still runs.
//
// A chunk is cut into slices of columns, one a warp. If a chunk has fewer slices than
// there are warps, several groups of warps take chunks in turn. Partial sums of a tile's rows
// meet in shared memory; when a few tiles are held there, threads add them up and run the epilogue,
// each for rows r and r + 8 of a tile.

#include "Kernels.h"

#include "llvm/Support/MathExtras.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::device;
using formats::Format;

/// Tiles whose partial sums wait in shared memory.
static constexpr int64_t kHeldTiles = 14;

Format device::formatOf(Type weight) {
  if (auto quantized = dyn_cast<quantized::QuantizedTensorType>(weight))
    return quantized.getFormat().toFormat();
  return quantized::FormatAttr::get(weight.getContext(),
                                    cast<RankedTensorType>(weight).getElementType(), 0, false)
      .toFormat();
}

/// The packed weight's segments with their tiles, in order.
static FailureOr<SmallVector<PackedSegment>> packedSegments(fused::MatvecOp op) {
  SmallVector<PackedSegment> result;
  ArrayRef<int64_t> rows = op.getSegments();
  ArrayAttr orders = op.getOrder().value_or(ArrayAttr());
  llvm::Expected<formats::RowOrder> checked =
      quantized::expandRowOrder(orders ? orders : ArrayAttr::get(op.getContext(), {}), rows);
  if (!checked)
    return op.emitOpError() << "has a row order that does not fit: "
                            << llvm::toString(checked.takeError());
  if (orders && !orders.empty()) {
    for (auto order : orders.getAsRange<quantized::RowOrderAttr>())
      result.push_back({order});
  } else {
    for (int64_t i = 0, e = rows.size(); i < e; ++i)
      result.push_back({quantized::RowOrderAttr::get(op.getContext(), "natural", i, 0)});
  }
  int64_t tile = 0;
  for (PackedSegment &segment : result) {
    segment.firstTile = tile;
    segment.tiles = segment.order.toSegment().tiles(rows[segment.order.getFirst()]);
    tile += segment.tiles;
  }
  return result;
}

namespace {
class MatvecKernel {
public:
  using Values = DeviceBuilder::Values;

  MatvecKernel(Kernel &kernel, fused::MatvecOp op, formats::PackedShape shape,
               SmallVector<PackedSegment> segments)
      : kernel(kernel), k(kernel.k), op(op), shape(shape), segments(std::move(segments)) {}

  FailureOr<Launch> emit();

private:
  LogicalResult plan();
  /// The tiles that this block has.
  Value tileCount() { return k.add(k.div(k.sub(k.constI32(tiles - 1), block), grid), 1); }
  Value slotOf(Value base, Value slot, int64_t bytes) { return k.offset(base, k.mul(slot, bytes)); }
  /// `slot` and `parity` of the stage that comes `stages` later.
  void advance(Value &slot, Value &parity, int64_t steps);

  void copyWeights(Value lane);
  LogicalResult multiply(Value thread, PreparedInput &input);
  /// The warp's part of the input, as operands.
  SmallVector<Values> loadInput(PreparedInput &input, Value chunk);
  /// What a warp adds to the sums of its rows r and r + 8 from one chunk.
  Values multiplyChunk(PreparedInput &input, ArrayRef<Values> x, Value chunk, Value stage,
                       Values sums);
  LogicalResult finish(Value thread, Value firstTile, Value held);
  /// Whether a thread has at most one pair of rows in the whole kernel, so that it can read early
  /// what their epilogue needs.
  bool preloads() const { return held == tilesPerBlock && held * 8 <= warps * kWarp; }
  void preload(Value thread, bool fresh);

  Kernel &kernel;
  DeviceBuilder &k;
  fused::MatvecOp op;
  formats::PackedShape shape;
  SmallVector<PackedSegment> segments;

  int64_t grid = 0, warps = 0, ring = 0, inFlight = 0, tiles = 0, tilesPerBlock = 0, chunks = 0;
  int64_t sliceColumns = 0; ///< columns of a warp's part of a chunk
  int64_t slices = 0;       ///< slices of a full chunk
  int64_t warpGroups = 0;
  int64_t held = 0;      ///< tiles whose sums are held
  int64_t heldBytes = 0; ///< of a tile's sums
  bool reuses = false;   ///< whether a stage is filled more than once
  Value block, slice, warpGroup, lane, stages, full, empty, sums;
  /// For each token and segment.
  SmallVector<EpilogueLoads> early;
};
} // namespace

LogicalResult MatvecKernel::plan() {
  fused::GpuScheduleAttr schedule = kernel.schedule;
  grid = schedule.getBlocks();
  warps = schedule.getWarps();
  ring = schedule.getStages();
  inFlight = std::min(schedule.getInFlight(), ring);
  tiles = shape.tiles();
  chunks = shape.chunks();
  auto reject = [&]() -> InFlightDiagnostic {
    return op.emitOpError() << "cannot run with " << schedule << ": ";
  };
  if (grid < 1 || grid > tiles)
    return reject() << "its weight has " << tiles
                    << " tiles of 16 rows, one for each block at most";
  if (warps < 1 || warps > 31 || ring < 1 || inFlight < 1)
    return reject() << "warps must be 1 to 31, stages and in_flight at least 1";
  if (schedule.getSplits() != 1)
    return reject() << "products are not split";
  sliceColumns = shape.format().isInteger() ? 128 : 64;
  int64_t full = std::min(shape.layout().columns, shape.columns());
  if (chunks > 1 && shape.layout().columns % sliceColumns)
    return reject() << "chunks of " << shape.layout().columns << " columns are no multiple of "
                    << sliceColumns;
  slices = llvm::divideCeil(full, sliceColumns);
  if (slices > warps)
    return reject() << "a chunk of " << full << " columns needs " << slices << " warps";
  tilesPerBlock = llvm::divideCeil(tiles, grid);
  reuses = tilesPerBlock * chunks > ring;
  // A warp group must not wait for a stage whose previous filling it cannot know to have arrived:
  // the barrier's parity would look as if the new one had.
  for (warpGroups = warps / slices; warpGroups > 1; --warpGroups)
    if (!reuses || ring % warpGroups == 0 || ring >= warpGroups + inFlight)
      break;
  held = std::min(tilesPerBlock, kHeldTiles);
  // Sums of neighbouring tiles lie half a row of banks apart.
  heldBytes = op.getTokens() * warpGroups * slices * 64;
  heldBytes += heldBytes % 128 == 0 ? 64 : 0;
  return success();
}

void MatvecKernel::advance(Value &slot, Value &parity, int64_t steps) {
  slot = k.add(slot, steps % ring);
  if (steps / ring % 2)
    parity = k.bitXor(parity, 1);
  if (steps % ring == 0)
    return;
  Value wraps = k.less(k.constI32(ring - 1), slot);
  slot = k.select(wraps, k.sub(slot, ring), slot);
  parity = k.select(wraps, k.bitXor(parity, 1), parity);
}

void MatvecKernel::copyWeights(Value lane) {
  int64_t lastBytes = shape.chunkBytes(chunks - 1), bytes = shape.chunkBytes(0);
  Value weights = kernel.interface.pointer(op.getWeights().front());
  bool bounded = inFlight < ring || reuses;
  Value zero = k.constI32(0), one = k.constI32(1);
  // Carried: the number of stages so far; slot and parity of the next stage to fill and of the
  // oldest that may be under way.
  Values start = {zero, zero, zero, zero, zero};
  k.loop(zero, tileCount(), one, start, [&](Value number, ValueRange carriedTile) {
    Value tile = k.extendUnsigned(k.add(block, k.mul(number, grid)), k.i64());
    Value from = k.offset(weights, k.mul(tile, shape.tileBytes()));
    return k.loop(zero, k.constI32(chunks), one, carriedTile, [&](Value chunk, ValueRange carried) {
      Value count = carried[0], slot = carried[1], parity = carried[2];
      Value oldest = carried[3], oldParity = carried[4];
      if (bounded && inFlight < tilesPerBlock * chunks) {
        Values next = k.ifElseYield(
            k.less(count, k.constI32(inFlight)), [&] { return Values{oldest, oldParity}; },
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
      Value size = k.constI32(bytes);
      if (lastBytes != bytes)
        size = k.select(k.equal(chunk, k.constI32(chunks - 1)), k.constI32(lastBytes), size);
      Value place = k.offset(from, k.mul(k.extendUnsigned(chunk, k.i64()), bytes));
      Value to = slotOf(stages, slot, bytes), barrier = slotOf(full, slot, 8);
      if (k.hasBulkCopies()) {
        k.expectBytes(barrier, size);
        k.bulkCopy(to, place, size, barrier);
      } else {
        k.loop(k.mul(lane, 16), size, k.constI32(kWarp * 16),
               [&](Value byte) { k.copy16(k.offset(to, byte), k.offset(place, byte)); });
        k.arriveAfterCopies(barrier);
      }
      advance(slot, parity, 1);
      return Values{k.add(count, 1), slot, parity, oldest, oldParity};
    });
  });
}

SmallVector<DeviceBuilder::Values> MatvecKernel::loadInput(PreparedInput &input, Value chunk) {
  int64_t fragments = sliceColumns / input.fragmentColumns();
  Value myLane = lane;
  if (input.fragmentLanes() < kWarp) // other lanes' columns are not used
    myLane = k.min(lane, k.constI32(input.fragmentLanes() - 1));
  Value number = k.add(k.mul(chunk, slices), slice);
  Value from = k.offset(k.offset(input.fragments, k.mul(number, fragments * input.fragmentBytes())),
                        k.shl(myLane, 3));
  SmallVector<Values> x;
  for (int64_t f = 0; f < fragments; ++f)
    x.push_back(k.lanes(k.load(k.vec(2, k.i32()), k.offset(from, f * input.fragmentBytes()), 8)));
  return x;
}

DeviceBuilder::Values MatvecKernel::multiplyChunk(PreparedInput &input, ArrayRef<Values> x,
                                                  Value chunk, Value stage, Values sums) {
  Format format = shape.format();
  bool isInteger = format.isInteger(), int4 = format.element == Format::Element::I4;
  int64_t fragmentsPerSlice = sliceColumns / input.fragmentColumns();
  int64_t blockColumns = int4 ? 64 : input.fragmentColumns(); ///< columns of 512 bytes
  int64_t blocks = sliceColumns / blockColumns;
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

  Value elements = k.offset(stage, k.add(k.mul(slice, blocks * 512), k.shl(lane, 4)));
  SmallVector<Values> w;
  for (int64_t block = 0; block < blocks; ++block) {
    Value place = clamped(block, llvm::divideCeil(rest, blockColumns), 512);
    w.push_back(k.lanes(k.load(k.vec(4, k.i32()), k.offset(elements, place), 16)));
  }
  if (int4) {
    // Of 8 bits only the high nibble: 16 times the element.
    SmallVector<Values> nibbles;
    for (Values &words : w) {
      Values high, low;
      for (Value word : words) {
        high.push_back(k.bitAnd(word, 0xF0F0F0F0));
        low.push_back(k.bitAnd(k.shl(word, 4), 0xF0F0F0F0));
      }
      nibbles.push_back(high);
      nibbles.push_back(low);
    }
    w = std::move(nibbles);
  }
  if (!isInteger) {
    Type element = format.element == Format::Element::BF16 ? Type(k.b.getBF16Type()) : k.f16();
    Values products(4, k.number(0.0));
    for (int64_t f = 0; f < fragmentsPerSlice; ++f)
      products = k.mmaFloat(element, products, w[f], x[f]);
    // Columns 2t and 2t + 1 of the operand are tokens 2t and 2t + 1.
    Values result;
    for (auto [sum, product] : llvm::zip_equal(sums, products))
      result.push_back(k.addF(sum, product));
    return result;
  }

  // Columns 2t and 2t + 1 are the high and low bytes of token t.
  int64_t groupsOf128 = input.padded / 128, sumsPerRow = input.padded / input.unit;
  Value sliceNumber = k.add(k.mul(chunk, slices), slice);
  Value token = k.bitAnd(lane, 3);
  Value scalePlace = sliceNumber, sumPlace = k.mul(sliceNumber, sliceColumns / input.unit);
  if (op.getTokens() > 1) {
    Value existing = k.min(token, k.constI32(op.getTokens() - 1));
    scalePlace = k.add(scalePlace, k.mul(existing, groupsOf128));
    sumPlace = k.add(sumPlace, k.mul(existing, sumsPerRow));
  }
  Value step = k.load(k.f32(), k.offset(input.scales, k.shl(scalePlace, 2)), 4);
  int64_t units = sliceColumns / input.unit;
  // The group of the slice's first column, in its chunk.
  int64_t group = format.group == Format::channel ? 0 : format.group;
  Value firstGroup = k.constI32(0);
  int64_t stride = 0;
  if (group && group <= 128) {
    firstGroup = k.mul(slice, 128 / group);
    stride = 1;
  } else if (group && shape.layout().columns % group == 0) {
    firstGroup = k.div(slice, group / 128);
  }
  Value pair = k.shr(lane, 2);
  Value scales = k.offset(k.offset(stage, perChunk(shape.chunkScales(0), shape.chunkScales(last))),
                          k.add(k.mul(firstGroup, 32), k.shl(pair, 2)));
  Value zeros;
  if (format.zeroPoint)
    zeros = k.offset(k.offset(stage, perChunk(shape.chunkZeros(0), shape.chunkZeros(last))),
                     k.add(k.mul(firstGroup, 16), k.shl(pair, 1)));
  int64_t fragmentsPerUnit = input.unit / 32;
  for (int64_t unit = 0; unit < units; ++unit) {
    Values products(4, k.constI32(0));
    for (int64_t f = unit * fragmentsPerUnit; f < (unit + 1) * fragmentsPerUnit; ++f)
      products = k.mmaInt8(products, w[f], x[f]);
    int64_t existing = llvm::divideCeil(rest, input.unit);
    Value scalePair =
        k.load(k.vec(2, k.f16()), k.offset(scales, clamped(unit * stride, existing, 32)), 4);
    Values zeroPair;
    Value unitSum;
    if (format.zeroPoint) {
      zeroPair = k.lanes(
          k.load(k.vec(2, k.i8()), k.offset(zeros, clamped(unit * stride, existing, 16)), 2));
      unitSum = k.load(k.i32(), k.offset(input.unitSums, k.shl(k.add(sumPlace, unit), 2)), 4);
    }
    for (int64_t row = 0; row < 2; ++row) {
      Value sum = k.add(k.shl(products[2 * row], 8), products[2 * row + 1]);
      if (format.zeroPoint) {
        Value zero = k.extend(zeroPair[row], k.i32());
        sum = k.sub(sum, k.mul(int4 ? k.shl(zero, 4) : zero, unitSum));
      }
      Value factor = k.mulF(k.widen(k.lane(scalePair, row)), step);
      sums[row] = k.fma(k.toFloat(sum), factor, sums[row]);
    }
  }
  return sums;
}

LogicalResult MatvecKernel::multiply(Value thread, PreparedInput &input) {
  int64_t active = warpGroups * slices;
  bool isInteger = shape.format().isInteger();
  Value zero = k.constI32(0), one = k.constI32(1);
  Value number = k.div(thread, kWarp);
  lane = k.bitAnd(thread, kWarp - 1);
  warpGroup = warpGroups == 1 ? zero : k.div(number, slices);
  slice = warpGroups == 1 ? number : k.rem(number, slices);
  Value takesPart = active < warps ? k.less(number, k.constI32(active)) : Value();
  Value mine = k.offset(sums, k.add(k.mul(number, 64), k.shl(k.shr(lane, 2), 3)));
  Value count = tileCount();

  // Carried from tile to tile: slot and parity of the warp group's next stage, and the first chunk
  // of the next tile that is its turn.
  auto multiplyTile = [&](Value heldNumber, ValueRange carried) {
    Values inner = {carried[0], carried[1]};
    inner.append(isInteger ? 2 : 4, k.number(0.0));
    Values after = k.loop(
        carried[2], k.constI32(chunks), k.constI32(warpGroups), inner,
        [&](Value chunk, ValueRange values) {
          Value slot = values[0], parity = values[1];
          Values partial = llvm::to_vector(values.drop_front(2));
          // The last chunk may have fewer slices.
          int64_t lastSlices = llvm::divideCeil(shape.chunkColumns(chunks - 1), sliceColumns);
          Value stage = slotOf(stages, slot, shape.chunkBytes(0));
          if (lastSlices < slices) {
            k.wait(slotOf(full, slot, 8), parity);
            Value exists = k.less(slice, k.select(k.equal(chunk, k.constI32(chunks - 1)),
                                                  k.constI32(lastSlices), k.constI32(slices)));
            partial = k.ifElseYield(
                exists,
                [&] {
                  return multiplyChunk(input, loadInput(input, chunk), chunk, stage, partial);
                },
                [&] { return partial; });
          } else {
            SmallVector<Values> x = loadInput(input, chunk); // while the weights are on their way
            k.wait(slotOf(full, slot, 8), parity);
            partial = multiplyChunk(input, x, chunk, stage, partial);
          }
          if (reuses) {
            k.syncWarp();
            k.ifThen(k.equal(lane, zero), [&] { k.arrive(slotOf(empty, slot, 8)); });
          }
          advance(slot, parity, warpGroups);
          Values next = {slot, parity};
          next.append(partial);
          return next;
        });
    // Integer products: lane 4r + s has rows r and r + 8 of token s. Float products: of
    // tokens 2s and 2s + 1.
    int64_t tokens = op.getTokens();
    Value column = k.bitAnd(lane, 3);
    Value to = k.offset(mine, k.mul(heldNumber, heldBytes));
    auto storePair = [&](Value token, Value low, Value high) {
      Value place = k.offset(to, k.mul(token, active * 64));
      k.store(k.vectorOf({low, high}), place, 8);
    };
    if (isInteger) {
      k.ifThen(k.less(column, k.constI32(tokens)), [&] { storePair(column, after[2], after[3]); });
    } else {
      Value first = k.shl(column, 1);
      k.ifThen(k.less(first, k.constI32(tokens)), [&] { storePair(first, after[2], after[4]); });
      if (tokens > 1) {
        Value second = k.add(first, 1);
        k.ifThen(k.less(second, k.constI32(tokens)),
                 [&] { storePair(second, after[3], after[5]); });
      }
    }
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
      return k.loop(zero, heldNow, one, carried,
                    [&](Value number, ValueRange values) { return multiplyTile(number, values); });
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
          preloadEpilogue(kernel, op, segment, inSegment, row, part / segments.size(), fresh,
                          loads[part]);
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
      Value from = k.offset(k.offset(sums, token * active * 64),
                            k.add(k.mul(number, heldBytes), k.shl(row, 3)));
      Value low, high;
      for (int64_t part = 0; part < active; ++part) {
        Values pair = k.lanes(k.load(k.vec(2, k.f32()), k.offset(from, part * 64), 8));
        low = low ? k.addF(low, pair[0]) : pair[0];
        high = high ? k.addF(high, pair[1]) : pair[1];
      }
      // A chain of comparisons finds the tile's segment; there are at most a handful.
      std::function<void(size_t)> emitSegment = [&](size_t n) {
        const PackedSegment &segment = segments[n];
        auto here = [&] {
          Value inSegment = k.sub(tile, segment.firstTile);
          if (succeeded(result))
            result =
                emitEpilogue(kernel, op, segment, inSegment, row, low, high, token,
                             early.empty() ? EpilogueLoads() : early[token * segments.size() + n]);
        };
        if (n + 1 == segments.size())
          return here();
        k.ifElse(k.less(tile, k.constI32(segment.firstTile + segment.tiles)), here,
                 [&] { emitSegment(n + 1); });
      };
      emitSegment(0);
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

FailureOr<Launch> MatvecKernel::emit() {
  if (failed(plan()))
    return failure();
  int64_t threads = warps * kWarp;
  Value thread = k.thread();
  block = k.block();
  stages = kernel.shared.take(k, ring * shape.chunkBytes(0), 128);
  full = kernel.shared.take(k, ring * 8, 8);
  if (reuses)
    empty = kernel.shared.take(k, ring * 8, 8);
  sums = kernel.shared.take(k, held * heldBytes);

  k.ifThen(k.equal(thread, k.constI32(0)), [&] {
    // Before sm_90 the copying warp's lanes arrive one by one.
    for (int64_t slot = 0; slot < ring; ++slot) {
      k.initBarrier(k.offset(full, slot * 8), k.hasBulkCopies() ? 1 : kWarp);
      if (reuses)
        k.initBarrier(k.offset(empty, slot * 8), slices);
    }
    k.fenceBarrierInit();
  });
  k.barrier();
  k.launchDependents();

  LogicalResult result = success();
  k.ifElse(
      k.less(thread, k.constI32(threads)),
      [&] {
        Prologue prologue(kernel, op, thread, threads);
        FailureOr<PreparedInput> input = prologue.preload(shape.format());
        if (failed(input)) {
          result = failure();
          return;
        }
        preload(thread, /*fresh=*/false);
        k.waitForPredecessor();
        preload(thread, /*fresh=*/true);
        result = prologue.emit(*input);
        if (succeeded(result))
          result = multiply(thread, *input);
      },
      [&] {
        Value copier = k.sub(thread, threads);
        if (!k.hasBulkCopies())
          return copyWeights(copier);
        k.ifThen(k.equal(copier, k.constI32(0)), [&] { copyWeights(copier); });
      });
  if (failed(result))
    return failure();
  if (kernel.shared.bytes() > kernel.sharedLimit)
    return op.emitOpError() << "with " << kernel.schedule << " needs " << kernel.shared.bytes()
                            << " bytes of shared memory, the target has " << kernel.sharedLimit
                            << " a block";
  Launch launch;
  launch.grid = grid;
  launch.block = threads + kWarp;
  launch.shared = kernel.shared.bytes();
  // Else ptxas saves registers for a second block, that shared memory has no room for.
  launch.resident = 1;
  launch.overlap = kernel.schedule.getEarly() != "none" && k.hasBulkCopies();
  return launch;
}

FailureOr<Launch> device::emitMatvec(Kernel &kernel, fused::MatvecOp op) {
  if (op.getWeights().size() != 1)
    return op.emitOpError() << "has " << op.getWeights().size()
                            << " weights, expected one packed weight";
  auto type = dyn_cast<quantized::QuantizedTensorType>(op.getWeights().front().getType());
  if (!type || type.getLayout().getKind() != quantized::LayoutKind::Mma)
    return op.emitOpError() << "weight must be packed in layout mma, found "
                            << op.getWeights().front().getType();
  // Of the tensor cores' 8 columns an integer product uses two a token.
  int64_t most = type.getFormat().isInteger() ? 4 : 8;
  if (op.getTokens() > most)
    return op.emitOpError() << "has " << op.getTokens() << " tokens, GPU kernels of "
                            << type.getFormat().getName() << " weights take at most " << most;
  FailureOr<SmallVector<PackedSegment>> segments = packedSegments(op);
  if (failed(segments))
    return failure();
  int64_t tiles = segments->back().firstTile + segments->back().tiles;
  auto shape = formats::PackedShape::get(formatOf(type), type.getLayout().toLayout(),
                                         tiles * formats::tileRows, op.getColumns());
  if (!shape)
    return op.emitOpError() << llvm::toString(shape.takeError());
  return MatvecKernel(kernel, op, *shape, std::move(*segments)).emit();
}
