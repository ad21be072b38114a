// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// A product of many tokens by warpgroups (wgmma): Y^T = W X^T. A warp's tile of 16 packed rows is
// its share of the first operand and goes through registers; the second one is read from a stage
// in shared memory, where the prepared input lies as the instruction wants it. One warpgroup
// copies, the others multiply, 64 rows each.
//
// Integers: the tokens of a step are taken in sets, which alternate between two sets of
// accumulators: while one is multiplied, the one before is scaled. Of eight tokens, high and low
// bytes are neighbouring columns. Two steps are one pipeline, which drains at its end: with
// products under way across a loop's end, ptxas would run them one after the other.
//
// Floats: one set of accumulators has all of a tile's tokens; while a step is multiplied, the next
// one's weights are loaded. Weights in records are made f16, 128 columns at a time.

#include "MatmulTiles.h"
#include "Opaque.h"
#include "RecordProduct.h"

#include "llvm/Support/SaveAndRestore.h"

#include <deque>

using namespace mlir;
using namespace sluice;
using namespace sluice::device;
using formats::Encoding;
using Products = ptx::WarpgroupProducts;

namespace {
class WgmmaKernel : MatmulTiles {
public:
  using MatmulTiles::MatmulTiles;

  LogicalResult emit();

private:
  /// Registers of a thread that multiplies and of one that copies: with two warpgroups that
  /// multiply and one that copies as many as the block is given.
  static constexpr int64_t kConsumerRegisters = 232, kProducerRegisters = 40;

  /// A stage that a warp has waited for.
  struct Stage {
    Value slot, address;
  };
  /// Weights of a step of 16 rows, and where the rest of the step is.
  struct Step {
    Value stage;
    int64_t inStage = 0;
    SmallVector<Values> operands; ///< of each product, four words
    Value descriptor;
    SmallVector<BlockNumbers> numbers; ///< of accumulation blocks
  };
  /// Products of a set of tokens and an accumulation block.
  struct Group {
    Step step;
    int64_t set = 0, number = 0;
    Values results;
  };

  void produce(Value warp);
  LogicalResult consume(Value thread);
  Values multiplyIntegers(const Tile &tile, Value &slot, Value &parity);
  Values multiplyFloats(Value &slot, Value &parity);
  /// Runs the epilogue for tokens `first` to `last` of a tile, for the warp's rows, whose sums of
  /// them lie at `from`, of the blocks that share the tile each a part.
  LogicalResult finishTokens(const Tile &tile, Value from, Value first, int64_t tokens);
  LogicalResult finish(const Tile &tile, ValueRange sums);
  /// Lanes have the scales of 32 tokens each, from `loadTokenScales` on.
  Value tokenScale(Value token) {
    Value scale, source = k.bitAnd(token, kWarp - 1);
    for (auto [n, scales] : llvm::enumerate(tokenScales)) {
      Value mine = k.shuffleFrom(scales, source);
      scale = scale ? k.select(k.less(token, k.constI32(n * kWarp)), scale, mine) : mine;
    }
    return scale;
  }
  void meetCluster() {
    k.clusterArrive();
    k.clusterWait();
  }
  /// `recordSlot`: the record's place in its ring.
  Values multiplyRecords(const Encoding &encoding, Value &slot, Value &parity, Value &recordSlot);
  Value recordPlace(Value slot) { return k.at(recordsAt, slot, rowTiles * weightBytes); }
  Value nextRecord(Value slot) {
    Value next = k.add(slot, 1);
    return k.select(k.equal(next, k.constI32(recordSlots)), k.constI32(0), next);
  }

  Stage waitForStage(Value slot, Value parity);
  void release(Value slot, Value condition = {});
  SmallVector<Values> loadOperands(Value stage, int64_t inStage);
  /// `reused` are sums that have been added.
  Group start(const Step &step, int64_t set, int64_t number, const Values &reused);
  /// Waits until at most `pending` groups are under way, and adds the group's sums, which it
  /// returns.
  Values add(const Group &group, int64_t pending, Values &sums);

  Value recordsAt;

  bool isInteger() const { return image.format.isInteger(); }
  /// Those of the columns that the block multiplies.
  int64_t ownSteps() const { return steps / splits; }
  int64_t ownStages() const { return stages / splits; }
  int64_t productsPerStep() const { return isInteger() ? stepColumns / 32 : stepColumns / 16; }
};
} // namespace

void WgmmaKernel::produce(Value warp) {
  Value zero = k.constI32(0);
  int64_t own = llvm::divideCeil(rowTiles, kGroupWarps);
  Value row = k.add(k.mul(warp, own), lane);
  Value copiesWeights = k.bitAnd(k.less(lane, k.constI32(own)), k.less(row, k.constI32(rowTiles)));
  Value weightsTo = k.add(k.mul(row, weightBytes), records ? 0 : weightsAt);
  // Lanes of the first warp copy one piece of the input each.
  struct Section {
    int64_t count, from, rowBytes, to, bytes, tokenBytes;
  };
  int64_t groups = image.format.isScaled() ? stageColumns() / formats::activationGroup : 0;
  SmallVector<Section> sections = {{stageSteps * stepPieces, image.numbers, image.pieceBytes(), 0,
                                    tilePieceBytes, image.blockBytes() / 8}};
  if (groups)
    sections.push_back({groups, image.scales, image.paddedTokens * 4, scalesAt, tileTokens * 4, 4});
  if (groups && image.sumColumns)
    sections.push_back({groups * image.sumsPerGroup(), image.sums, image.paddedTokens * 4, sumsAt,
                        tileTokens * 4, 4});
  int64_t firstLane = 0, inputSize = 0;
  Value inputFrom = k.constI32(0), inputStride = inputFrom, inputTo = inputFrom,
        inputBytes = inputFrom, tokenBytes = inputFrom;
  for (const Section &section : sections) {
    // Of all lanes from the section's first on: later sections take theirs away again.
    Value here = k.less(k.constI32(firstLane - 1), lane);
    Value number = k.sub(lane, firstLane);
    auto choose = [&](Value mine, Value &chosen) { chosen = k.select(here, mine, chosen); };
    choose(k.add(k.mul(number, section.rowBytes), section.from), inputFrom);
    choose(k.constI32(section.count * section.rowBytes), inputStride);
    choose(k.add(k.mul(number, section.bytes), section.to), inputTo);
    choose(k.constI32(section.bytes), inputBytes);
    choose(k.constI32(section.tokenBytes), tokenBytes);
    firstLane += section.count;
    inputSize += section.count * section.bytes;
  }
  Value isFirstWarp = k.equal(warp, zero);
  Value copiesInput = k.bitAnd(isFirstWarp, k.less(lane, k.constI32(firstLane)));
  Value expects = k.bitAnd(isFirstWarp, k.equal(lane, zero));

  int64_t perStage = stageColumns() * formats::tileRows * shape.format().bits() / 8;
  auto weightsOf = [&](Value tileWeights, Value ownStage, Value bytes) {
    Value stage = k.add(k.mul(rank, ownStages()), ownStage);
    if (records)
      return k.offset(tileWeights,
                      arith::MulIOp::create(k.b, k.loc, k.toI64(k.shr(stage, 1)), k.toI64(bytes)));
    if (shape.chunks() == 1)
      return k.at(tileWeights, stage, perStage);
    int64_t perChunk = shape.layout().columns / stageColumns();
    return k.at(k.at(tileWeights, k.toI64(k.div(stage, perChunk)), shape.chunkOffset(1)),
                k.rem(stage, perChunk), perStage);
  };
  auto rowWeights = [&](Value rowGroup) {
    return weightPointer(k.min(k.add(k.mul(rowGroup, rowTiles), row), k.constI32(tiles - 1)));
  };
  // Of a row tile; all of a tile are in one part.
  auto weightSize = [&](Value rowGroup) {
    return ofPart(k.mul(rowGroup, rowTiles), [&](const fused::PackedPart &part, size_t) {
      return k.constI32(bytesOf(part, 0));
    });
  };
  // Without weights where `bytes` is null.
  auto expect = [&](Value barrier, Value bytes) {
    Value all = bytes ? k.add(k.mul(bytes, rowTiles), inputSize) : k.constI32(inputSize);
    k.ifThen(expects, [&] { k.expectBytes(barrier, all); });
  };
  auto copyWeights = [&](Value from, Value to, Value bytes, Value barrier) {
    k.ifThen(copiesWeights, [&] { k.bulkCopy(k.offset(to, weightsTo), from, bytes, barrier); });
  };
  auto copyInput = [&](Value from, Value stage, Value barrier) {
    k.ifThen(copiesInput, [&] { k.bulkCopy(k.offset(stage, inputTo), from, inputBytes, barrier); });
  };

  // Weights do not depend on the previous kernel.
  int64_t before = early ? std::min(ring, ownStages()) : 0;
  if (before) {
    Value firstWeights = rowWeights(block), bytes = weightSize(block);
    for (int64_t slot = 0; slot < before; ++slot) {
      Value barrier = k.offset(fullAt, slot * 8);
      if (records && slot % 2) {
        expect(barrier, Value());
        continue;
      }
      expect(barrier, bytes);
      copyWeights(weightsOf(firstWeights, k.constI32(slot), bytes),
                  records ? recordPlace(k.constI32(slot / 2))
                          : k.offset(stagesAt, slot * stageBytes),
                  bytes, barrier);
    }
  }
  k.waitForPredecessor();
  active = emitActiveRows(kernel, op.getActive(), image.tokens);
  Value input = k.offset(kernel.interface.pointer(op.getInput()), k.toI64(inputFrom));
  if (splits > 1)
    input = k.offset(input, arith::MulIOp::create(k.b, k.loc, k.toI64(inputStride),
                                                  k.toI64(k.mul(rank, ownStages()))));
  for (int64_t slot = 0; slot < before; ++slot)
    copyInput(k.offset(input, k.mul(k.toI64(inputStride), slot)),
              k.offset(stagesAt, slot * stageBytes), k.offset(fullAt, slot * 8));
  // Slot, parity, first stage, and of records the next one's place.
  Values start = {k.constI32(before % ring), k.constI32(before / ring), k.constI32(before)};
  if (records)
    start.push_back(k.constI32(llvm::divideCeil(before, 2) % recordSlots));
  forEachTile(start, [&](const Tile &tile, ValueRange carriedTile) {
    Value tileWeights = rowWeights(tile.rowGroup);
    Value tileInput = k.offset(input, k.toI64(k.b.createOrFold<arith::MulIOp>(
                                          k.loc, k.mul(tile.tokenTile, tileTokens), tokenBytes)));
    Value bytes = weightSize(tile.rowGroup);
    Values entry = {carriedTile[0], carriedTile[1]};
    if (records)
      entry.push_back(carriedTile[3]);
    Values end = k.loop(
        carriedTile[2], k.constI32(ownStages()), 1, entry, [&](Value number, ValueRange carried) {
          Value slot = carried[0], parity = carried[1];
          Value barrier = k.at(fullAt, slot, 8), stage = k.at(stagesAt, slot, stageBytes);
          Value weightsFrom = weightsOf(tileWeights, number, bytes);
          Value inputAt = k.offset(
              tileInput, arith::MulIOp::create(k.b, k.loc, k.toI64(number), k.toI64(inputStride)));
          k.wait(k.at(emptyAt, slot, 8), k.bitXor(parity, 1));
          if (!records) {
            expect(barrier, bytes);
            copyInput(inputAt, stage, barrier);
            copyWeights(weightsFrom, stage, bytes, barrier);
            stageRing().advance(slot, parity, 1);
            return Values{slot, parity};
          }
          Value place = carried[2];
          Value isFirst = k.equal(k.bitAnd(number, 1), zero);
          k.ifElse(isFirst, [&] { expect(barrier, bytes); }, [&] { expect(barrier, Value()); });
          copyInput(inputAt, stage, barrier);
          k.ifThen(isFirst, [&] { copyWeights(weightsFrom, recordPlace(place), bytes, barrier); });
          stageRing().advance(slot, parity, 1);
          return Values{slot, parity, k.select(isFirst, nextRecord(place), place)};
        });
    if (splits > 1) { // as those that have sums
      meetCluster();
      meetCluster();
    }
    Values next = {end[0], end[1], zero};
    if (records)
      next.push_back(end[2]);
    return next;
  });
}

WgmmaKernel::Stage WgmmaKernel::waitForStage(Value slot, Value parity) {
  k.wait(k.at(fullAt, slot, 8), parity);
  return {slot, k.at(stagesAt, slot, stageBytes)};
}

void WgmmaKernel::release(Value slot, Value condition) {
  k.arriveWarp(k.at(emptyAt, slot, 8), lane, condition);
}

SmallVector<WgmmaKernel::Values> WgmmaKernel::loadOperands(Value stage, int64_t inStage) {
  bool int4 = shape.format().element == Encoding::Element::I4;
  int64_t loads = productsPerStep() / (int4 ? 2 : 1); // 512 bytes of a warp
  Value from = k.offset(k.offset(stage, weightsAt + inStage * loads * 512),
                        k.add(k.mul(rowWarp, weightBytes), k.shl(lane, 4)));
  SmallVector<Values> operands;
  for (int64_t number = 0; number < loads; ++number) {
    Values words = k.lanes(k.load(k.vec(4, k.i32()), k.offset(from, number * 512), 16));
    if (int4)
      llvm::append_range(operands, int4Operands(words));
    else
      operands.push_back(words);
  }
  return operands;
}

//===----------------------------------------------------------------------===//
// Integers
//===----------------------------------------------------------------------===//

WgmmaKernel::Group WgmmaKernel::start(const Step &step, int64_t set, int64_t number,
                                      const Values &reused) {
  int64_t perBlock = productsPerStep() / static_cast<int64_t>(step.numbers.size());
  Values operands;
  for (int64_t n = 0; n < perBlock; ++n)
    llvm::append_range(operands, step.operands[number * perBlock + n]);
  int64_t place = set * image.setTokens / 8 * image.blockBytes() + number * perBlock * 32;
  Group group{step, set, number, {}};
  group.results = k.startProducts({Products::Kind::S8, 2 * image.setTokens, perBlock}, operands,
                                  k.add(step.descriptor, place / 16), Value(), reused);
  return group;
}

WgmmaKernel::Values WgmmaKernel::add(const Group &group, int64_t pending, Values &sums) {
  const Step &step = group.step;
  const BlockNumbers &numbers = step.numbers[group.number];
  int64_t blocks = image.setTokens / 8, first = group.set * blocks;
  bool hasZeros = !numbers.zeros.empty();
  auto blockCount = static_cast<int64_t>(step.numbers.size());
  SmallVector<Values> steps(blocks), inputSums(blocks);
  for (int64_t block = 0; block < blocks; ++block) {
    steps[block] = loadPair(step.stage, scalesAt, k.constI32(step.inStage), first + block, k.f32());
    if (hasZeros)
      inputSums[block] =
          loadPair(step.stage, sumsAt, k.constI32(step.inStage * blockCount + group.number),
                   first + block, k.i32());
  }
  k.waitForProducts(pending);
  Values results = k.takeSums(group.results);
  for (int64_t block = 0; block < blocks; ++block)
    for (int64_t n = 0; n < 4; ++n) {
      Value &sum = sums[sumNumber(0, first + block, n)];
      Value exact = exactFloat(results[8 * block + n], results[8 * block + 4 + n], numbers,
                               inputSums[block], n);
      sum = k.fma(exact, k.mulF(numbers.scales[n / 2], steps[block][n % 2]), sum);
    }
  return results;
}

WgmmaKernel::Values WgmmaKernel::multiplyIntegers(const Tile &tile, Value &slot, Value &parity) {
  int64_t unit = stageSteps; // steps of a pipeline
  int64_t sets = tileTokens / image.setTokens;
  Value row = k.add(k.mul(tile.rowGroup, rowTiles), rowWarp);
  Value weights = weightPointer(k.min(row, k.constI32(tiles - 1)));
  auto words = [](ArrayRef<RawNumbers> all) {
    Values result;
    for (const RawNumbers &raw : all) {
      result.push_back(raw.scales);
      if (raw.zeros)
        result.push_back(raw.zeros);
    }
    return result;
  };
  // Scales are loaded a step before they are needed.
  Value firstStep = k.mul(rank, ownSteps());
  SmallVector<RawNumbers> next = loadNumbers(weights, firstStep, Value());
  Values carried = {slot, parity};
  carried.append(words(next));
  size_t numbers = carried.size();
  carried.append(tileTokens / 2, k.number(0.0));
  // Both sets of accumulators keep their registers.
  int64_t accumulators = image.setTokens;
  size_t sumsEnd = carried.size();
  carried.append(2 * accumulators, LLVM::UndefOp::create(k.b, k.loc, k.i32()));
  Values end = k.loop(
      k.constI32(0), k.constI32(ownSteps()), unit, carried, [&](Value first, ValueRange values) {
        Value at = values[0], phase = values[1];
        size_t place = 2;
        for (RawNumbers &raw : next) {
          raw.scales = values[place++];
          if (raw.zeros)
            raw.zeros = values[place++];
        }
        Values sums(values.begin() + numbers, values.begin() + sumsEnd);
        std::deque<Values> reused = {Values(values.slice(sumsEnd, accumulators)),
                                     Values(values.drop_front(sumsEnd + accumulators))};
        std::optional<Group> before;
        // A wait amid the products would be where ptxas moves sums to, and spills them.
        SmallVector<Stage> read;
        for (int64_t n = 0; n < unit; n += stageSteps) {
          read.push_back(waitForStage(at, phase));
          stageRing().advance(at, phase, 1);
        }
        for (int64_t n = 0; n < unit; ++n) {
          const Stage &stage = read[n / stageSteps];
          bool isNew = n > 0 && n % stageSteps == 0;
          Step step;
          step.stage = stage.address;
          step.inStage = n % stageSteps;
          step.operands = loadOperands(stage.address, step.inStage);
          step.descriptor = k.operandDescriptor(
              k.offset(stage.address, step.inStage * stepPieces * tilePieceBytes));
          for (const RawNumbers &raw : next)
            step.numbers.push_back(numbersOf(raw));
          next = loadNumbers(weights,
                             k.min(k.add(k.add(firstStep, first), n + 1), k.constI32(steps - 1)),
                             Value());
          for (int64_t set = 0; set < sets; ++set)
            for (int64_t number = 0; number < static_cast<int64_t>(step.numbers.size()); ++number) {
              Group group = start(step, set, number, reused.front());
              reused.pop_front();
              if (before)
                reused.push_back(add(*before, /*pending=*/1, sums));
              if (isNew)
                release(read[n / stageSteps - 1].slot);
              isNew = false;
              before = group;
            }
        }
        reused.push_back(add(*before, /*pending=*/0, sums));
        release(read.back().slot);
        Values result = {at, phase};
        result.append(words(next));
        result.append(sums);
        for (const Values &set : reused)
          result.append(set);
        return result;
      });
  slot = end[0];
  parity = end[1];
  return Values(end.begin() + numbers, end.begin() + sumsEnd);
}

//===----------------------------------------------------------------------===//
// Floats
//===----------------------------------------------------------------------===//

WgmmaKernel::Values WgmmaKernel::multiplyFloats(Value &slot, Value &parity) {
  Products products{shape.format().element == Encoding::Element::BF16 ? Products::Kind::BF16
                                                                      : Products::Kind::F16,
                    tileTokens, productsPerStep()};
  auto flat = [](const SmallVector<Values> &operands) {
    Values all;
    for (const Values &words : operands)
      llvm::append_range(all, words);
    return all;
  };
  auto load = [&](const Stage &stage) { return flat(loadOperands(stage.address, 0)); };
  auto multiply = [&](const Stage &stage, const Values &operands, Value adds, ValueRange sums) {
    return k.startProducts(products, operands, k.operandDescriptor(stage.address), adds, sums);
  };
  Value zero = k.constI32(0), one = k.constI32(1);
  Stage first = waitForStage(slot, parity);
  Values operands = load(first);
  // Carried: the stage of `operands`, the stage before it, both sets of registers.
  Values carried = {slot, parity, slot};
  carried.append(operands);
  carried.append(products.sums(), k.number(0.0));
  auto two = [&](ValueRange values, Value isNotFirst, bool isLast) {
    Value at = values[0], phase = values[1], before = values[2];
    Values own(values.begin() + 3, values.begin() + 3 + products.operands());
    Stage stage{at, k.at(stagesAt, at, stageBytes)};
    Values sums = multiply(stage, own, isNotFirst ? k.select(isNotFirst, one, zero) : one,
                           values.drop_front(3 + products.operands()));
    k.waitForProducts(1);
    release(before, isNotFirst);
    stageRing().advance(at, phase, 1);
    Stage second = waitForStage(at, phase);
    Values others = load(second);
    sums = multiply(second, others, one, sums);
    k.waitForProducts(isLast ? 0 : 1);
    release(stage.slot);
    Value previous = second.slot;
    if (isLast) {
      release(second.slot);
      sums = k.takeSums(sums);
    }
    stageRing().advance(at, phase, 1);
    Values result = {at, phase, previous};
    if (!isLast)
      result.append(load(waitForStage(at, phase)));
    result.append(sums);
    return result;
  };
  if (ownSteps() > 2)
    carried =
        k.loop(zero, k.constI32(ownSteps() - 2), 2, carried, [&](Value number, ValueRange values) {
          return two(values, k.less(zero, number), /*isLast=*/false);
        });
  Value isNotFirst = arith::ConstantOp::create(k.b, k.loc, k.b.getBoolAttr(ownSteps() > 2));
  Values end = two(carried, isNotFirst, /*isLast=*/true);
  slot = end[0];
  parity = end[1];
  return Values(end.begin() + 3, end.end());
}

//===----------------------------------------------------------------------===//
// Results
//===----------------------------------------------------------------------===//

LogicalResult WgmmaKernel::finishTokens(const Tile &tile, Value from, Value first, int64_t tokens) {
  LogicalResult result = success();
  // A lane has one pair of rows; loads of several tokens are under way at once.
  int64_t perPass = kWarp / 8, passes = std::min<int64_t>(4, tokens / perPass);
  Value row = k.bitAnd(lane, 7), number = k.add(k.mul(tile.rowGroup, rowTiles), rowWarp);
  from = k.offset(from, k.shl(row, 3));
  Value firstToken = k.add(k.mul(tile.tokenTile, tileTokens), first);
  k.ifThen(k.less(number, k.constI32(tiles)), [&] {
    kernels::emitForSegment(k, segments, number, [&](size_t segment, Value inSegment) {
      k.loop(k.shr(lane, 3), k.constI32(tokens), perPass * passes, [&](Value start) {
        struct Item {
          Value token, low, high;
          EpilogueLoads loads;
        };
        SmallVector<Item> items(passes);
        for (auto [pass, item] : llvm::enumerate(items)) {
          Value inRange = k.add(start, static_cast<int64_t>(pass) * perPass);
          Value place = k.at(from, inRange, kSumBytes);
          for (int64_t split = 0; split < splits; ++split) {
            Value there = splits == 1 ? place : k.ofBlock(place, k.constI32(split));
            Values both = k.lanes(k.load(k.vec(2, k.f32()), there, 8));
            item.low = item.low ? k.addF(item.low, both[0]) : both[0];
            item.high = item.high ? k.addF(item.high, both[1]) : both[1];
          }
          if (records) {
            Value factor = k.mulF(recordFactor(number), tokenScale(k.add(first, inRange)));
            item.low = k.mulF(item.low, factor);
            item.high = k.mulF(item.high, factor);
          }
          item.token = k.add(firstToken, inRange);
          Value existing = k.min(item.token, k.sub(active, 1));
          for (bool fresh : {false, true})
            preloadEpilogue(kernel, op, segments[segment], inSegment, row, existing, fresh,
                            item.loads);
        }
        for (Item &item : items)
          k.ifThen(k.less(item.token, active), [&] {
            if (succeeded(result))
              result = emitEpilogue(kernel, op, segments[segment], inSegment, row, item.low,
                                    item.high, item.token, item.loads);
          });
      });
    });
  });
  return result;
}

LogicalResult WgmmaKernel::finish(const Tile &tile, ValueRange sums) {
  LogicalResult result = success();
  // Else what the epilogue computes from them is computed before all tiles, and takes the registers
  // that the products need.
  llvm::SaveAndRestore keptLane(lane, opaqueCopy(k, lane)),
      keptWarp(rowWarp, opaqueCopy(k, rowWarp)), keptActive(active, opaqueCopy(k, active));
  int64_t set = image.setTokens;
  if (splits == 1) {
    // A warp needs no other one.
    Value own = k.at(partialSums, k.mul(rowWarp, set), kSumBytes);
    forEachSetOf(tile, [&](int64_t first) {
      storeSums(own, sums, /*rowTile=*/0, first);
      k.syncWarp();
      if (succeeded(result))
        result = finishTokens(tile, own, k.constI32(first), set);
      k.syncWarp();
    });
    return result;
  }
  // The cluster's only tile: its stages have been read, and their memory takes all sums.
  k.barrier(1, warps * kWarp);
  Value own = k.at(stagesAt, k.mul(rowWarp, tileTokens), kSumBytes);
  for (int64_t first = 0; first < tileTokens; first += set)
    storeSums(k.offset(own, first * kSumBytes), sums, /*rowTile=*/0, first);
  meetCluster();
  int64_t share = tileTokens / splits;
  Value first = k.mul(rank, share);
  result = finishTokens(tile, k.at(own, first, kSumBytes), first, share);
  meetCluster();
  return result;
}

//===----------------------------------------------------------------------===//
// Records
//===----------------------------------------------------------------------===//

WgmmaKernel::Values WgmmaKernel::multiplyRecords(const Encoding &encoding, Value &slot,
                                                 Value &parity, Value &recordSlot) {
  Products products{Products::Kind::F16, tileTokens, 4}; // of a piece
  RecordProduct product(k, encoding, lane);
  auto load = [&](Value place, unsigned group) {
    Values all;
    Value record = k.offset(recordPlace(place), k.mul(rowWarp, weightBytes));
    for (unsigned half = 0; half < 2; ++half)
      for (const Values &words : product.loadHalves(record, 2 * group + half))
        llvm::append_range(all, words);
    return all;
  };
  // Two groups of products.
  auto multiply = [&](const Stage &stage, ArrayRef<Value> operands, Value adds, ValueRange sums) {
    Values next(sums.begin(), sums.end());
    for (int64_t piece = 0; piece < 2; ++piece) {
      next = k.startProducts(
          products, operands.slice(piece * products.operands(), products.operands()),
          k.operandDescriptor(k.offset(stage.address, piece * tilePieceBytes)), adds, next);
      adds = k.constI32(1);
    }
    return next;
  };
  Value zero = k.constI32(0), one = k.constI32(1);
  waitForStage(slot, parity);
  // Carried: the stage of `operands`, the one before it, the record's place, operands, sums.
  Values carried = {slot, parity, slot, recordSlot};
  size_t first = carried.size(), operands = 2 * products.operands();
  carried.append(load(recordSlot, 0));
  carried.append(products.sums(), k.number(0.0));
  auto multiplyRecord = [&](ValueRange values, Value isNotFirst, bool isLast) {
    Value at = values[0], phase = values[1], before = values[2], place = values[3];
    Values own(values.begin() + first, values.begin() + first + operands);
    Stage stage{at, k.at(stagesAt, at, stageBytes)};
    Values sums = multiply(stage, own, isNotFirst ? k.select(isNotFirst, one, zero) : zero,
                           values.drop_front(first + operands));
    k.waitForProducts(2);
    if (isNotFirst)
      release(before, isNotFirst);
    Values others = load(place, 1);
    stageRing().advance(at, phase, 1);
    Stage second = waitForStage(at, phase);
    sums = multiply(second, others, one, sums);
    k.waitForProducts(isLast ? 0 : 2);
    release(stage.slot);
    if (isLast) {
      release(second.slot);
      sums = k.takeSums(sums);
    }
    stageRing().advance(at, phase, 1);
    place = nextRecord(place);
    Values result = {at, phase, second.slot, place};
    if (!isLast) {
      waitForStage(at, phase);
      result.append(load(place, 0));
    }
    result.append(sums);
    return result;
  };
  int64_t count = ownSteps() / 2;
  if (count > 1)
    carried = k.loop(zero, k.constI32(count - 1), 1, carried, [&](Value number, ValueRange values) {
      return multiplyRecord(values, k.less(zero, number), /*isLast=*/false);
    });
  Value isNotFirst;
  if (count > 1)
    isNotFirst = arith::ConstantOp::create(k.b, k.loc, k.b.getBoolAttr(true));
  Values end = multiplyRecord(carried, isNotFirst, /*isLast=*/true);
  slot = end[0];
  parity = end[1];
  recordSlot = end[3];
  return Values(end.begin() + first, end.end());
}

LogicalResult WgmmaKernel::consume(Value thread) {
  rowWarp = k.shr(thread, 5);
  columnWarp = slice = k.constI32(0);
  k.waitForPredecessor();
  active = emitActiveRows(kernel, op.getActive(), image.tokens);
  LogicalResult result = success();
  Value zero = k.constI32(0);
  Values start = {zero, zero};
  if (records)
    start.push_back(zero);
  forEachTile(start, [&](const Tile &tile, ValueRange carried) {
    Value slot = carried[0], parity = carried[1];
    Values sums, next;
    loadTokenScales(lane, kWarp, tile);
    if (records) {
      Value firstTile = k.mul(tile.rowGroup, rowTiles);
      // Slot, parity, the next record's place, sums.
      std::function<Values(size_t)> multiplyPart = [&](size_t n) -> Values {
        auto here = [&] {
          Value at = carried[0], phase = carried[1], place = carried[2];
          Values own = multiplyRecords(parts[n].shape.format(), at, phase, place);
          Values all = {at, phase, place};
          all.append(own);
          return all;
        };
        if (n + 1 == parts.size())
          return here();
        return k.ifElseYield(k.less(firstTile, k.constI32(parts[n].endTile())), here,
                             [&] { return multiplyPart(n + 1); });
      };
      Values all = multiplyPart(0);
      next.append(all.begin(), all.begin() + 3);
      sums.append(all.begin() + 3, all.end());
    } else {
      sums = isInteger() ? multiplyIntegers(tile, slot, parity) : multiplyFloats(slot, parity);
      next = {slot, parity};
    }
    if (succeeded(result))
      result = finish(tile, sums);
    return next;
  });
  return result;
}

LogicalResult WgmmaKernel::emit() {
  int64_t consumers = warps * kWarp;
  Value thread = k.thread();
  lane = k.bitAnd(thread, kWarp - 1);
  MatmulTiles::start(/*copiers=*/1, /*readers=*/warps);
  if (records)
    recordsAt = kernel.at(recordsRange);
  LogicalResult result = success();
  k.ifElse(
      k.less(thread, k.constI32(consumers)),
      [&] {
        k.setRegisters(kConsumerRegisters, /*more=*/true);
        result = consume(thread);
      },
      [&] {
        k.setRegisters(kProducerRegisters, /*more=*/false);
        produce(k.shr(k.sub(thread, consumers), 5));
      });
  return result;
}

LogicalResult device::emitWgmma(Kernel &kernel, fused::MatmulOp op, const fused::MatmulPlan &plan,
                                SmallVector<PackedSegment> segments) {
  return WgmmaKernel(kernel, op, plan, std::move(segments)).emit();
}
