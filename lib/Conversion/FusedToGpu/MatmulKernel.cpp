// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// A product of many tokens: Y^T = W X^T, so that weights are the tensor cores' first operand, in
// whose order they are packed. One warp copies stages of weights and activations to a ring in
// shared memory, the others multiply. What a warp has accumulated of a tile goes to shared memory,
// a set of tokens at a time, from where all threads run the epilogue, each for rows r and r + 8 of
// a tile of 16 rows and a token.
//
// The second operand's 8 columns are 8 tokens: of integers their high bytes in one product and
// their low bytes in another one.

#include "MatmulTiles.h"
#include "RecordProduct.h"

#include "sluice/Formats/Activations.h"

#include "llvm/Support/MathExtras.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::device;
using formats::Encoding;

namespace {
class MatmulKernel : MatmulTiles {
public:
  using MatmulTiles::MatmulTiles;

  LogicalResult emit();

private:
  /// What a step has in shared memory, for the warp that takes it.
  struct Step {
    Value stage, inStage; ///< the stage's address, the step's number in it
    Value number;         ///< the step's number in the row
    Value isLast;         ///< null if the last step is like the others
    Value pieces;         ///< its activations from the warp's first token on
    Value tokens;         ///< active tokens of the warp
  };

  void produce(Value lane);
  struct Copy {
    Value to, from, bytes;
  };
  /// Copies to a stage: with bulk copies by as many lanes as there are copies.
  void copyAll(Value lane, Value count, Value barrier, llvm::function_ref<Copy(Value number)> copy);

  LogicalResult consume(Value thread);
  Values multiplyStep(const Step &step, const Tile &tile, ValueRange sums);
  Values multiplyRecords(const Step &step, const Tile &tile, ValueRange sums);
  /// Multiplies 16-bit floats, `pieces` of activations by the operands of each row tile.
  void multiplyHalves(const Step &step, Value pieces, Type element,
                      ArrayRef<SmallVector<Values>> operands, Values &sums);
  /// Runs `body` for the sets of 8-token blocks that have active tokens; it changes their sums.
  void forEachSet(const Step &step, Values &sums,
                  llvm::function_ref<void(int64_t firstBlock, Values &sums)> body);
  /// Operands of 8 tokens of 64 columns of floats: those of four products, two words each.
  Values loadHalves(Value piece, int64_t block);
  /// Operands of 8 tokens of integers: columns 32 number to 32 number + 31 of a piece, two words of
  /// high bytes and two of low ones.
  Values loadBytes(Value piece, int64_t block, Value number);

  /// Where the row that the lane names lies in a block of eight tokens: of chunks 0 to 3 and of 4
  /// to 7; of chunks 0 and 1 of high bytes and of low bytes.
  Value chunks[2], byteChunks;
};
} // namespace

//===----------------------------------------------------------------------===//
// Copies
//===----------------------------------------------------------------------===//

void MatmulKernel::copyAll(Value copier, Value count, Value barrier,
                           llvm::function_ref<Copy(Value)> copy) {
  if (k.hasBulkCopies()) {
    k.loop(copier, count, kWarp, [&](Value number) {
      Copy one = copy(number);
      k.bulkCopy(one.to, one.from, one.bytes, barrier);
    });
    return;
  }
  k.loop(k.constI32(0), count, 1, [&](Value number) {
    Copy one = copy(number);
    k.loop(k.mul(copier, 16), one.bytes, kWarp * 16,
           [&](Value byte) { k.copy16(k.offset(one.to, byte), k.offset(one.from, byte)); });
  });
}

void MatmulKernel::produce(Value copier) {
  bool hasShort = llvm::any_of(parts, [&](const fused::PackedPart &part) {
    return bytesOf(part, stages - 1) != bytesOf(part, 0);
  });
  Value zero = k.constI32(0), rows = k.constI32(rowTiles);
  Value input = kernel.interface.pointer(op.getInput());
  // Stages whose weights are copied before the input is ready; all of the tile's tokens are then.
  int64_t before = early ? std::min(ring, stages) : 0;

  auto isLastStage = [&](Value number) {
    return stages > 1 ? k.equal(number, k.constI32(stages - 1)) : Value();
  };
  auto perStage = [&](Value number, Value others, Value last) {
    Value isLast = isLastStage(number);
    return !isLast ? last : k.select(isLast, last, others);
  };
  auto perStageNumber = [&](Value number, int64_t perStep) {
    return stages == 1 || lastStageSteps() == stageSteps
               ? k.constI32(lastStageSteps() * perStep)
               : perStage(number, k.constI32(stageSteps * perStep),
                          k.constI32(lastStageSteps() * perStep));
  };
  // Behind the last tile of rows, it once more.
  auto rowTileOf = [&](Value rowGroup, Value row) {
    return k.min(k.add(k.mul(rowGroup, rowTiles), row), k.constI32(tiles - 1));
  };
  auto sizeOf = [&](Value rowTile, int64_t stage) {
    return ofPart(rowTile, [&](const fused::PackedPart &part, size_t) {
      return k.constI32(bytesOf(part, stage));
    });
  };
  // Weights of a stage: of all row tiles.
  auto weightsOf = [&](Value rowGroup) {
    auto sizeOfAll = [&](int64_t stage) {
      if (parts.size() == 1)
        return k.constI32(rowTiles * bytesOf(parts.front(), stage));
      Value sum = zero;
      for (int64_t r = 0; r < rowTiles; ++r)
        sum = k.add(sum, sizeOf(rowTileOf(rowGroup, k.constI32(r)), stage));
      return sum;
    };
    Value all = sizeOfAll(0);
    return std::pair(all, hasShort ? sizeOfAll(stages - 1) : all);
  };
  // How many copies of each section a stage has.
  struct Counts {
    Value pieces, groups, sumRows;
  };
  auto countsOf = [&](Value number) {
    Counts counts{perStageNumber(number, stepPieces), {}, {}};
    if (image.format.isScaled()) {
      counts.groups = perStageNumber(number, stepColumns / formats::activationGroup);
      if (image.sumColumns)
        counts.sumRows = perStageNumber(number, stepColumns / image.sumColumns);
    }
    return counts;
  };
  auto expect = [&](Value number, Value barrier, Value tokens, Value weights, Value lastWeights) {
    if (!k.hasBulkCopies())
      return;
    Counts counts = countsOf(number);
    Value expected = k.add(k.mul(counts.pieces, Value(k.mul(k.shr(tokens, 3), image.blockBytes()))),
                           perStage(number, weights, lastWeights));
    for (Value count : {counts.groups, counts.sumRows})
      if (count)
        expected = k.add(expected, k.mul(count, Value(k.shl(tokens, 2))));
    k.ifThen(k.equal(copier, zero), [&] { k.expectBytes(barrier, expected); });
    k.syncWarp();
  };
  auto copyWeights = [&](Value number, Value stage, Value barrier, Value rowGroup) {
    copyAll(copier, rows, barrier, [&](Value row) {
      Value number16 = rowTileOf(rowGroup, row);
      Value from = weightPointer(number16);
      if (records) {
        Value bytes = sizeOf(number16, 0);
        from = k.offset(from, k.mul(k.toI64(number), k.toI64(bytes)));
      } else {
        int64_t bytes = stageColumns() * formats::tileRows * shape.format().bits() / 8;
        if (shape.chunks() > 1) {
          int64_t perChunk = shape.layout().columns / stageColumns();
          from = k.at(from, k.toI64(k.div(number, perChunk)), shape.chunkOffset(1));
          from = k.at(from, k.rem(number, perChunk), bytes);
        } else {
          from = k.at(from, number, bytes);
        }
      }
      Value size = sizeOf(number16, 0);
      if (hasShort)
        size = perStage(number, size, sizeOf(number16, stages - 1));
      return Copy{k.at(k.offset(stage, weightsAt), row, weightBytes), from, size};
    });
  };
  auto copyInput = [&](Value number, Value stage, Value barrier, Value firstToken, Value tokens) {
    Counts counts = countsOf(number);
    copyAll(copier, counts.pieces, barrier, [&](Value piece) {
      Value from = k.add(k.mul(number, stageSteps * stepPieces), piece);
      return Copy{k.at(stage, piece, tilePieceBytes),
                  k.offset(k.at(k.offset(input, image.numbers), k.toI64(from), image.pieceBytes()),
                           k.mul(k.shr(firstToken, 3), image.blockBytes())),
                  k.mul(k.shr(tokens, 3), image.blockBytes())};
    });
    auto copyRows = [&](Value count, int64_t perStage, int64_t section, int64_t to) {
      copyAll(copier, count, barrier, [&](Value row) {
        Value from = k.add(k.mul(number, perStage), row);
        return Copy{k.at(k.offset(stage, to), row, tileTokens * 4),
                    k.offset(k.at(k.offset(input, section), from, image.paddedTokens * 4),
                             k.shl(firstToken, 2)),
                    k.shl(tokens, 2)};
      });
    };
    if (counts.groups)
      copyRows(counts.groups, stageColumns() / formats::activationGroup, image.scales, scalesAt);
    if (counts.sumRows)
      copyRows(counts.sumRows, stageColumns() / image.sumColumns, image.sums, sumsAt);
  };

  Value hasTile = k.less(block, k.constI32(rowGroups));
  auto forEarly = [&](llvm::function_ref<void(Value number, Value stage, Value barrier)> body) {
    if (before)
      k.ifThen(hasTile, [&] {
        k.loop(zero, k.constI32(before), 1, [&](Value number) {
          body(number, k.at(stagesAt, number, stageBytes), k.at(fullAt, number, 8));
        });
      });
  };
  Value allTokens = k.constI32(tileTokens);
  std::pair<Value, Value> firstWeights;
  if (before)
    firstWeights = weightsOf(block);
  forEarly([&](Value number, Value stage, Value barrier) {
    expect(number, barrier, allTokens, firstWeights.first, firstWeights.second);
    copyWeights(number, stage, barrier, block);
  });
  k.waitForPredecessor();
  active = emitActiveRows(kernel, op.getActive(), image.tokens);
  forEarly([&](Value number, Value stage, Value barrier) {
    copyInput(number, stage, barrier, zero, allTokens);
  });
  // Slot and parity of the next stage, and the tile's first one that is not under way.
  Values start = {k.constI32(before % ring), k.constI32(before / ring), k.constI32(before)};
  forEachTile(start, [&](const Tile &tile, ValueRange carriedTile) {
    Value tokens = allTokens;
    if (!early)
      tokens =
          k.mul(k.div(k.add(tile.tokens, image.setTokens - 1), image.setTokens), image.setTokens);
    Value firstToken = k.mul(tile.tokenTile, tileTokens);
    auto [weights, lastWeights] = weightsOf(tile.rowGroup);
    Value all = weights, last = lastWeights;
    Values end = k.loop(carriedTile[2], k.constI32(stages), 1, carriedTile.take_front(2),
                        [&](Value number, ValueRange carried) {
                          Value slot = carried[0], parity = carried[1];
                          Value barrier = k.at(fullAt, slot, 8),
                                stage = k.at(stagesAt, slot, stageBytes);
                          k.wait(k.at(emptyAt, slot, 8), k.bitXor(parity, 1));
                          expect(number, barrier, tokens, all, last);
                          copyInput(number, stage, barrier, firstToken, tokens);
                          copyWeights(number, stage, barrier, tile.rowGroup);
                          if (!k.hasBulkCopies())
                            k.arriveAfterCopies(barrier);
                          stageRing().advance(slot, parity, 1);
                          return Values{slot, parity};
                        });
    return Values{end[0], end[1], zero};
  });
}

//===----------------------------------------------------------------------===//
// Products
//===----------------------------------------------------------------------===//

DeviceBuilder::Values MatmulKernel::loadHalves(Value piece, int64_t block) {
  Values words;
  for (Value chunk : chunks)
    llvm::append_range(
        words, k.loadMatrices(k.offset(k.offset(piece, chunk), block * image.blockBytes())));
  return words;
}

DeviceBuilder::Values MatmulKernel::loadBytes(Value piece, int64_t block, Value number) {
  Value row = k.bitXor(byteChunks, k.shl(number, 5));
  return k.loadMatrices(k.offset(k.offset(piece, row), block * image.blockBytes()));
}

void MatmulKernel::forEachSet(const Step &step, Values &sums,
                              llvm::function_ref<void(int64_t, Values &)> body) {
  int64_t blocks = image.setTokens / 8;
  for (int64_t first = 0; first < warpTokens / 8; first += blocks) {
    if (first == 0 && warpColumns == 1) { // a tile has an active token
      body(first, sums);
      continue;
    }
    SmallVector<size_t> places;
    for (int64_t rowTile = 0; rowTile < warpRowTiles; ++rowTile)
      for (int64_t n = 0; n < blocks * 4; ++n)
        places.push_back(sumNumber(rowTile, first, n));
    auto own = [&](const Values &all) {
      return llvm::map_to_vector(places, [&](size_t place) { return all[place]; });
    };
    Values after = k.ifElseYield(
        k.less(k.constI32(first * 8), step.tokens),
        [&] {
          Values changed = sums;
          body(first, changed);
          return Values(own(changed));
        },
        [&] { return Values(own(sums)); });
    for (auto [place, value] : llvm::zip_equal(places, after))
      sums[place] = value;
  }
}

DeviceBuilder::Values MatmulKernel::multiplyStep(const Step &step, const Tile &tile,
                                                 ValueRange carried) {
  Encoding format = shape.format();
  bool isInteger = format.isInteger(), int4 = format.element == Encoding::Element::I4;
  Values sums = llvm::to_vector(carried);
  SmallVector<int64_t> all = llvm::to_vector(llvm::seq<int64_t>(warpRowTiles));
  int64_t rest = op.getColumns() % stepColumns;
  // Columns that do not exist are multiplied like the others: with zeros of the input, and whatever
  // elements, scales and zero points come last.
  auto clamped = [&](int64_t index, int64_t existing, int64_t bytes) {
    return clampedPlace(rest ? step.isLast : Value(), index, existing, bytes);
  };
  // A warp loads 512 bytes at a time: these columns of 16 rows.
  int64_t loadColumns = int4 ? 64 : format.isScaled() ? 32 : 16, loads = stepColumns / loadColumns;
  Value weights = k.offset(step.stage, weightsAt);
  weights = k.offset(weights, k.add(k.mul(step.inStage, loads * 512), k.shl(lane, 4)));
  SmallVector<SmallVector<Values>> operands;
  for (int64_t rowTile : all) {
    Value from =
        k.offset(weights, k.mul(k.add(k.mul(rowWarp, warpRowTiles), rowTile), weightBytes));
    SmallVector<Values> w;
    for (int64_t number = 0; number < loads; ++number) {
      Value place = clamped(number, llvm::divideCeil(rest, loadColumns), 512);
      Values words = k.lanes(k.load(k.vec(4, k.i32()), k.offset(from, place), 16));
      if (int4) {
        llvm::append_range(w, int4Operands(words));
      } else if (format.isScaled() && !isInteger) {
        // 16 bytes of a lane are the f16 operands of two products.
        for (int64_t half = 0; half < 2; ++half) {
          Values low = k.decodeE4M3(words[2 * half], /*mayBeNan=*/false),
                 high = k.decodeE4M3(words[2 * half + 1], /*mayBeNan=*/false);
          w.push_back({low[0], high[0], low[1], high[1]});
        }
      } else {
        w.push_back(words);
      }
    }
    operands.push_back(std::move(w));
  }

  if (!format.isScaled()) {
    Type element = format.element == Encoding::Element::BF16 ? Type(k.b.getBF16Type()) : k.f16();
    multiplyHalves(step, step.pieces, element, operands, sums);
    return sums;
  }

  int64_t accumulationBlocks = stepColumns / fused::accumulationColumns(format);
  SmallVector<SmallVector<BlockNumbers>> numbers; // [row tile][block]
  for (int64_t rowTile : all) {
    Value number =
        k.add(k.mul(tile.rowGroup, rowTiles), k.add(k.mul(rowWarp, warpRowTiles), rowTile));
    Value from = weightPointer(k.min(number, k.constI32(tiles - 1)));
    numbers.push_back(llvm::map_to_vector(loadNumbers(from, step.number, step.isLast),
                                          [&](const RawNumbers &raw) { return numbersOf(raw); }));
  }

  int64_t products16 = isInteger ? 4 : 8; // of a step
  int64_t perBlock = products16 / accumulationBlocks;
  forEachSet(step, sums, [&](int64_t first, Values &set) {
    for (int64_t block = first; block < first + image.setTokens / 8; ++block) {
      SmallVector<Values> x; // of each product, two words, or two of high and two of low bytes
      if (isInteger) {
        for (int64_t f = 0; f < products16; ++f)
          x.push_back(loadBytes(step.pieces, block, k.constI32(f)));
      } else {
        for (int64_t piece = 0; piece < stepPieces; ++piece) {
          Values words = loadHalves(k.offset(step.pieces, piece * tilePieceBytes), block);
          for (int64_t f = 0; f < 4; ++f)
            x.push_back({words[2 * f], words[2 * f + 1]});
        }
      }
      Values steps = loadPair(step.stage, scalesAt, step.inStage, block, k.f32());
      for (int64_t number = 0; number < accumulationBlocks; ++number) {
        Values inputSums;
        if (format.hasZeroPoint())
          inputSums =
              loadPair(step.stage, sumsAt, k.add(k.mul(step.inStage, accumulationBlocks), number),
                       block, k.i32());
        for (int64_t rowTile : all) {
          Values high(4, isInteger ? k.constI32(0) : k.number(0.0)), low = high;
          for (int64_t f = number * perBlock; f < (number + 1) * perBlock; ++f) {
            ArrayRef<Value> words = x[f];
            if (isInteger) {
              high = k.mmaInt8(high, operands[rowTile][f], words.take_front(2));
              low = k.mmaInt8(low, operands[rowTile][f], words.drop_front(2));
            } else {
              high = k.mmaFloat(k.f16(), high, operands[rowTile][f], words);
            }
          }
          for (int64_t n = 0; n < 4; ++n) {
            Value &sum = set[sumNumber(rowTile, block, n)];
            const BlockNumbers &block = numbers[rowTile][number];
            Value exact = high[n];
            if (isInteger)
              exact = exactFloat(high[n], low[n], block, inputSums, n);
            sum = k.fma(exact, k.mulF(block.scales[n / 2], steps[n % 2]), sum);
          }
        }
      }
    }
  });
  return sums;
}

void MatmulKernel::multiplyHalves(const Step &step, Value pieces, Type element,
                                  ArrayRef<SmallVector<Values>> operands, Values &sums) {
  SmallVector<int64_t> all = llvm::to_vector(llvm::seq<int64_t>(warpRowTiles));
  forEachSet(step, sums, [&](int64_t first, Values &set) {
    for (int64_t block = first; block < first + image.setTokens / 8; ++block)
      for (size_t piece = 0; piece < operands.front().size() / 4; ++piece) {
        Values x = loadHalves(k.offset(pieces, piece * tilePieceBytes), block);
        for (int64_t rowTile : all) {
          auto own = MutableArrayRef<Value>(set).slice(sumNumber(rowTile, block, 0), 4);
          Values products(own.begin(), own.end());
          for (int64_t f = 0; f < 4; ++f)
            products = k.mmaFloat(element, products, operands[rowTile][4 * piece + f],
                                  ArrayRef<Value>(x).slice(2 * f, 2));
          llvm::copy(products, own.begin());
        }
      }
  });
}

DeviceBuilder::Values MatmulKernel::multiplyRecords(const Step &step, const Tile &tile,
                                                    ValueRange carried) {
  Values sums = llvm::to_vector(carried);
  for (unsigned quarter = 0; quarter < 4; ++quarter) {
    SmallVector<SmallVector<Values>> operands;
    for (int64_t rowTile = 0; rowTile < warpRowTiles; ++rowTile) {
      Value inBlock = k.add(k.mul(rowWarp, warpRowTiles), rowTile);
      Value number = k.add(k.mul(tile.rowGroup, rowTiles), inBlock);
      Value from = k.offset(k.offset(step.stage, weightsAt), k.mul(inBlock, weightBytes));
      // Words of all products, one after the other.
      std::function<Values(size_t)> loadFrom = [&](size_t n) -> Values {
        const Encoding &encoding = parts[n].shape.format();
        auto here = [&] {
          Value record = k.at(from, step.inStage, formats::RecordShape(encoding).bytes());
          Values words;
          for (const Values &product : RecordProduct(k, encoding, lane).loadHalves(record, quarter))
            llvm::append_range(words, product);
          return words;
        };
        if (n + 1 == parts.size())
          return here();
        return k.ifElseYield(k.less(number, k.constI32(parts[n].endTile())), here,
                             [&] { return loadFrom(n + 1); });
      };
      Values words = loadFrom(0);
      SmallVector<Values> &products = operands.emplace_back();
      for (size_t first = 0; first < words.size(); first += 4)
        products.emplace_back(words.begin() + first, words.begin() + first + 4);
    }
    multiplyHalves(step, k.offset(step.pieces, quarter * tilePieceBytes), k.f16(), operands, sums);
  }
  return sums;
}

LogicalResult MatmulKernel::consume(Value thread) {
  lane = k.bitAnd(thread, kWarp - 1);
  Value warp = k.shr(thread, 5);
  columnWarp = k.rem(warp, warpColumns);
  Value rest = k.div(warp, warpColumns);
  slice = k.rem(rest, slices);
  rowWarp = k.div(rest, slices);
  Value row = k.bitAnd(lane, 7), matrix = k.shr(lane, 3);
  for (int64_t half : {0, 1})
    chunks[half] = k.add(k.shl(row, 7), k.shl(k.bitXor(k.add(matrix, half * 4), row), 4));
  byteChunks = k.add(k.shl(row, 7), k.shl(k.bitXor(k.bitAnd(matrix, 1), row), 4));
  byteChunks = k.add(byteChunks, k.mul(k.shr(matrix, 1), image.blockBytes() / 2));

  k.waitForPredecessor();
  active = emitActiveRows(kernel, op.getActive(), image.tokens);
  LogicalResult result = success();
  Value zero = k.constI32(0);
  forEachTile(Values{zero, zero}, [&](const Tile &tile, ValueRange carriedTile) {
    loadTokenScales(thread, warps * kWarp, tile);
    Values start = llvm::to_vector(carriedTile);
    start.append(warpRowTiles * (warpTokens / 8) * 4, k.number(0.0));
    Values end = k.loop(zero, k.constI32(stages), 1, start, [&](Value stage, ValueRange carried) {
      Value slot = carried[0], parity = carried[1];
      Step step;
      step.stage = k.at(stagesAt, slot, stageBytes);
      step.tokens = k.sub(tile.tokens, k.mul(columnWarp, warpTokens));
      k.wait(k.at(fullAt, slot, 8), parity);
      Value stepCount = k.constI32(stageSteps);
      if (lastStageSteps() < stageSteps)
        stepCount = k.select(k.equal(stage, k.constI32(stages - 1)), k.constI32(lastStageSteps()),
                             stepCount);
      Values sums = k.loop(
          slice, stepCount, k.constI32(slices), carried.drop_front(2),
          [&](Value inStage, ValueRange values) {
            step.inStage = inStage;
            step.number = k.add(k.mul(stage, stageSteps), inStage);
            step.isLast = k.equal(step.number, k.constI32(steps - 1));
            step.pieces =
                k.offset(step.stage, k.add(k.mul(inStage, stepPieces * tilePieceBytes),
                                           k.mul(columnWarp, warpTokens / 8 * image.blockBytes())));
            return records ? multiplyRecords(step, tile, values) : multiplyStep(step, tile, values);
          });
      k.arriveWarp(k.at(emptyAt, slot, 8), lane);
      stageRing().advance(slot, parity, 1);
      Values next = {slot, parity};
      next.append(sums);
      return next;
    });
    if (succeeded(result))
      result = finish(thread, tile, ValueRange(end).drop_front(2));
    return Values{end[0], end[1]};
  });
  return result;
}

LogicalResult MatmulKernel::emit() {
  int64_t threads = warps * kWarp;
  Value thread = k.thread();
  // Before sm_90 the copying warp's lanes arrive one by one.
  start(/*copiers=*/k.hasBulkCopies() ? 1 : kWarp, /*readers=*/warps);
  LogicalResult result = success();
  k.ifElse(
      k.less(thread, k.constI32(threads)), [&] { result = consume(thread); },
      [&] { produce(k.sub(thread, threads)); });
  return result;
}

LogicalResult device::emitMatmul(Kernel &kernel, fused::MatmulOp op) {
  FailureOr<fused::MatmulPlan> plan = fused::MatmulPlan::get(op, kernel.schedule, kernel.device);
  if (failed(plan))
    return failure();
  FailureOr<SmallVector<PackedSegment>> segments = kernels::packedSegments(op);
  if (failed(segments))
    return failure();
  if (plan->wgmma)
    return emitWgmma(kernel, op, *plan, std::move(*segments));
  return MatmulKernel(kernel, op, *plan, std::move(*segments)).emit();
}
