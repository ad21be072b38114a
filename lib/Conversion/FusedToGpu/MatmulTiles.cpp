// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "MatmulTiles.h"

#include "RecordProduct.h"

#include "../FusedKernels/GroupNumbers.h"

#include "llvm/Support/MathExtras.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::device;
using formats::Encoding;

Value MatmulTiles::ofPart(Value tile,
                          llvm::function_ref<Value(const fused::PackedPart &, size_t)> number) {
  Value result = number(parts.back(), parts.size() - 1);
  for (size_t n = parts.size() - 1; n-- > 0;)
    result = k.select(k.less(tile, k.constI32(parts[n].endTile())), number(parts[n], n), result);
  return result;
}

Value MatmulTiles::weightPointer(Value tile) {
  return ofPart(tile, [&](const fused::PackedPart &part, size_t n) {
    Value inPart = k.extendUnsigned(part.firstTile ? k.sub(tile, part.firstTile) : tile, k.i64());
    return k.offset(kernel.interface.pointer(op.getWeights()[n]),
                    k.mul(inPart, part.shape.tileBytes()));
  });
}

DeviceBuilder::Values
MatmulTiles::forEachTile(ValueRange carried,
                         llvm::function_ref<Values(const Tile &, ValueRange)> body) {
  // Blocks that run at the same time share the weights' rows: tokens come first.
  Value tokenCount = tokenTiles == 1 ? k.min(active, k.constI32(1))
                                     : k.div(k.add(active, tileTokens - 1), tileTokens);
  return k.loop(block, k.mul(tokenCount, rowGroups), k.constI32(grid / splits), carried,
                [&](Value number, ValueRange values) {
                  Tile tile{number, k.constI32(0), active};
                  if (tokenTiles > 1) {
                    tile.rowGroup = divide(number, tokenCount);
                    tile.tokenTile =
                        k.sub(number, arith::MulIOp::create(k.b, k.loc, tile.rowGroup, tokenCount));
                    tile.tokens = k.min(k.sub(active, k.mul(tile.tokenTile, tileTokens)),
                                        k.constI32(tileTokens));
                  }
                  return body(tile, values);
                });
}

Value MatmulTiles::clampedPlace(Value isLast, int64_t index, int64_t existing, int64_t bytes) {
  if (!isLast || index < existing)
    return k.constI32(index * bytes);
  return k.select(isLast, k.constI32((existing - 1) * bytes), k.constI32(index * bytes));
}

SmallVector<MatmulTiles::RawNumbers> MatmulTiles::loadNumbers(Value weights, Value number,
                                                              Value isLast) {
  const Encoding &format = shape.format();
  int64_t columns = fused::accumulationColumns(format), rest = op.getColumns() % stepColumns;
  int64_t last = shape.chunks() - 1, chunkSteps = shape.layout().columns / stepColumns;
  Value chunk = k.constI32(0), inChunk = number;
  if (last) {
    chunk = k.div(number, chunkSteps);
    inChunk = k.rem(number, chunkSteps);
    weights = k.at(weights, k.toI64(chunk), shape.chunkOffset(1));
  }
  auto perChunk = [&](int64_t others, int64_t ofLast) {
    if (others == ofLast || !last)
      return k.constI32(ofLast);
    return k.select(k.equal(chunk, k.constI32(last)), k.constI32(ofLast), k.constI32(others));
  };
  int64_t group = format.group == Encoding::channel ? 0 : format.group, stride = 0;
  Value firstGroup = k.constI32(0);
  if (group && group <= stepColumns) {
    firstGroup = k.mul(inChunk, stepColumns / group);
    stride = 1;
  } else if (group && shape.layout().columns % group == 0) {
    firstGroup = k.div(inChunk, group / stepColumns);
  }
  Type scaleType = kernels::scaleType(k, format);
  int64_t scaleBytes = kernels::bytesOf(scaleType);
  Value pair = k.shr(lane, 2);
  Value scalesFrom =
      k.offset(k.offset(weights, perChunk(shape.chunkScales(0), shape.chunkScales(last))),
               k.add(k.mul(firstGroup, 16 * scaleBytes), k.mul(pair, 2 * scaleBytes)));
  int64_t existing = llvm::divideCeil(rest, columns);
  if (!rest)
    isLast = Value();
  SmallVector<RawNumbers> result;
  for (int64_t block = 0; block < stepColumns / columns; ++block) {
    RawNumbers raw;
    Value place = clampedPlace(isLast, block * stride, existing, 16 * scaleBytes);
    raw.scales = k.load(k.vec(2, scaleType), k.offset(scalesFrom, place), 2 * scaleBytes);
    if (format.hasZeroPoint()) {
      Value from =
          k.offset(k.offset(weights, perChunk(shape.chunkOffsets(0), shape.chunkOffsets(last))),
                   k.add(k.mul(firstGroup, 16), k.shl(pair, 1)));
      place = clampedPlace(isLast, block * stride, existing, 16);
      raw.zeros = k.load(k.vec(2, k.i8()), k.offset(from, place), 2);
    }
    result.push_back(raw);
  }
  return result;
}

MatmulTiles::BlockNumbers MatmulTiles::numbersOf(const RawNumbers &raw) {
  const Encoding &format = shape.format();
  bool int4 = format.element == Encoding::Element::I4;
  BlockNumbers block;
  for (Value scale : k.lanes(raw.scales)) {
    scale = k.widen(scale);
    if (int4)
      scale = k.mulF(scale, k.number(1.0 / 16));
    else if (!format.isInteger())
      scale = k.mulF(scale, k.number(DeviceBuilder::e4m3Divisor));
    block.scales.push_back(scale);
  }
  if (!raw.zeros)
    return block;
  for (Value zero : k.lanes(raw.zeros)) {
    zero = k.extend(zero, k.i32());
    block.zeros.push_back(int4 ? k.shl(zero, 4) : zero);
  }
  return block;
}

SmallVector<DeviceBuilder::Values> MatmulTiles::int4Operands(const Values &words) {
  auto [high, low] = k.nibblesAtTop(words);
  return {high, low};
}

Value MatmulTiles::exactFloat(Value high, Value low, const BlockNumbers &block,
                              const Values &inputSums, int64_t number) {
  Value exact = exactSum(high, low);
  if (!block.zeros.empty())
    exact = k.sub(exact, k.mul(block.zeros[number / 2], inputSums[number % 2]));
  return k.toFloat(exact);
}

void MatmulTiles::start(int64_t copiers, int64_t readers) {
  block = k.block();
  rank = k.constI32(0);
  if (splits > 1) {
    rank = k.rem(block, splits);
    block = k.div(block, splits);
  }
  stagesAt = kernel.at(stagesRange);
  fullAt = kernel.at(full);
  emptyAt = kernel.at(empty);
  partialSums = kernel.at(sums);
  k.ifThen(k.equal(k.thread(), k.constI32(0)), [&] {
    for (int64_t slot = 0; slot < ring; ++slot) {
      k.initBarrier(k.offset(fullAt, slot * 8), copiers);
      k.initWarpBarrier(k.offset(emptyAt, slot * 8), readers);
    }
    k.fenceBarrierInit();
  });
  k.barrier();
  k.launchDependents();
}

DeviceBuilder::Values MatmulTiles::loadPair(Value stage, int64_t section, Value row, int64_t block,
                                            Type element) {
  Value from = k.at(k.offset(stage, section), row, tileTokens * 4);
  from = k.offset(from, k.add(k.mul(columnWarp, warpTokens * 4), k.shl(k.bitAnd(lane, 3), 3)));
  return k.lanes(k.load(k.vec(2, element), k.offset(from, block * 32), 8));
}

void MatmulTiles::forEachSetOf(const Tile &tile, llvm::function_ref<void(int64_t)> body) {
  for (int64_t first = 0; first < warpTokens; first += image.setTokens) {
    if (first == 0)
      body(first);
    else
      k.ifThen(k.less(k.constI32(first), tile.tokens), [&] { body(first); });
  }
}

void MatmulTiles::storeSums(Value to, ValueRange sums, int64_t rowTile, int64_t first) {
  to = k.offset(k.at(to, k.shl(k.bitAnd(lane, 3), 1), kSumBytes), k.shl(k.shr(lane, 2), 3));
  for (int64_t block = 0; block < image.setTokens / 8; ++block)
    for (int64_t token = 0; token < 2; ++token) {
      size_t low = sumNumber(rowTile, first / 8 + block, token);
      k.store(k.vectorOf({sums[low], sums[low + 2]}), k.offset(to, (block * 8 + token) * kSumBytes),
              8);
    }
}

void MatmulTiles::loadTokenScales(Value thread, int64_t threads, const Tile &tile) {
  tokenScales.clear();
  if (!records)
    return;
  Value scales = k.offset(kernel.interface.pointer(op.getInput()), image.scales);
  for (int64_t first = 0; first < tileTokens; first += threads) {
    Value token = k.add(k.add(thread, first), k.mul(tile.tokenTile, tileTokens));
    token = k.min(token, k.sub(active, 1)); // the others have none
    tokenScales.push_back(k.loadFresh(k.f32(), k.offset(scales, k.shl(token, 2)), 4));
  }
}

Value MatmulTiles::recordFactor(Value rowTile) {
  return ofPart(rowTile, [&](const fused::PackedPart &part, size_t) {
    return k.number(1 / RecordProduct::halfFactor(part.shape.format()));
  });
}

LogicalResult MatmulTiles::finish(Value thread, const Tile &tile, ValueRange sums) {
  LogicalResult result = success();
  int64_t set = image.setTokens, span = set * warpColumns, threads = warps * kWarp;
  for (auto [n, scale] : llvm::enumerate(tokenScales)) {
    Value token = k.add(thread, n * threads);
    k.ifThen(k.less(token, k.constI32(tileTokens)), [&] {
      Value inWarp = k.rem(token, warpTokens);
      Value inSpan = k.add(k.mul(k.div(token, warpTokens), set), k.rem(inWarp, set));
      Value to = k.offset(k.at(partialSums, inSpan, kSumBytes), kScalesInSums);
      k.store(scale, k.offset(to, k.shl(k.div(inWarp, set), 2)), 4);
    });
  }
  forEachSetOf(tile, [&](int64_t first) {
    for (int64_t rowTile = 0; rowTile < warpRowTiles; ++rowTile) {
      Value place = k.add(k.mul(slice, rowTiles), k.add(k.mul(rowWarp, warpRowTiles), rowTile));
      place = k.add(k.mul(place, span), k.mul(columnWarp, set));
      storeSums(k.at(partialSums, place, kSumBytes), sums, rowTile, first);
    }
    k.barrier(1, threads);
    // Several at a time, whose loads are on their way together.
    int64_t items = 8 * rowTiles * span, stride = threads, together = 1;
    while (segments.size() == 1 && together < 4 && items % (2 * together * stride) == 0)
      together *= 2;
    k.loop(thread, k.constI32(items), together * stride, [&](Value firstOfAll) {
      struct Item {
        Value row, inBlock, inSpan, token, number, exists;
        EpilogueLoads loads;
      };
      SmallVector<Item> all(together);
      for (int64_t n = 0; n < together; ++n) {
        Value item = k.add(firstOfAll, n * stride), rest = k.shr(item, 3);
        Item &one = all[n];
        one.row = k.bitAnd(item, 7);
        one.inBlock = k.rem(rest, rowTiles);
        one.inSpan = k.div(rest, rowTiles);
        one.token = k.add(k.mul(tile.tokenTile, tileTokens), first);
        if (warpColumns > 1)
          one.token = k.add(
              one.token, k.add(k.mul(k.div(one.inSpan, set), warpTokens), k.rem(one.inSpan, set)));
        else
          one.token = k.add(one.token, one.inSpan);
        one.number = k.add(k.mul(tile.rowGroup, rowTiles), one.inBlock);
        one.exists = k.bitAnd(k.less(one.token, active), k.less(one.number, k.constI32(tiles)));
        if (together == 1)
          continue;
        // Of a place that exists.
        Value token = k.min(one.token, k.sub(active, 1));
        Value number = k.min(one.number, k.constI32(tiles - 1));
        for (bool fresh : {false, true})
          preloadEpilogue(kernel, op, segments.front(), k.sub(number, segments.front().firstTile),
                          one.row, token, fresh, one.loads);
      }
      for (Item &one : all)
        k.ifThen(one.exists, [&] {
          Value place = k.add(k.mul(one.inBlock, span), one.inSpan);
          Value from = k.offset(k.at(partialSums, place, kSumBytes), k.shl(one.row, 3));
          Value low, high;
          for (int64_t part = 0; part < slices; ++part) {
            Values both = k.lanes(
                k.load(k.vec(2, k.f32()), k.offset(from, part * rowTiles * span * kSumBytes), 8));
            low = low ? k.addF(low, both[0]) : both[0];
            high = high ? k.addF(high, both[1]) : both[1];
          }
          if (records) {
            Value scale =
                k.offset(k.at(partialSums, one.inSpan, kSumBytes), kScalesInSums + first / set * 4);
            Value factor = k.mulF(recordFactor(one.number), k.load(k.f32(), scale, 4));
            low = k.mulF(low, factor);
            high = k.mulF(high, factor);
          }
          kernels::emitForSegment(k, segments, one.number, [&](size_t n, Value inSegment) {
            if (succeeded(result))
              result = emitEpilogue(kernel, op, segments[n], inSegment, one.row, low, high,
                                    one.token, one.loads);
          });
        });
    });
    k.barrier(1, threads); // before the next sums come to the same place
  });
  return result;
}
