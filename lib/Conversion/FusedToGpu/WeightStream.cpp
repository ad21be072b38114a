// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "WeightStream.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::device;
using formats::Encoding;
using fused::PersistentPlan;

static constexpr int64_t kGroup = PersistentPlan::kGroup;
/// Bytes of a unit's scales, f16.
static constexpr int64_t kScaleBytes = PersistentPlan::kTile * 2;
/// Stages brought into the L2 cache ahead of the ring, and the pause between two: what the memory
/// takes for a stage of all blocks is 600 ns. Few or slow, the memory rests; fast, they are in the
/// way of what the step waits for. With weights of 8 bits the ring alone is as good.
static constexpr int64_t kBroughtStages = 12, kLookNanoseconds = 64, kLooksBetween = 6,
                         kMostBroughtBits = 4;

static fused::WeightUnit unitOf(const formats::PackedShape &shape) {
  return shape.layout().kind == formats::Layout::Kind::Records
             ? fused::WeightUnit::ofRecord(shape.format())
             : fused::WeightUnit::ofGroup(shape.format().bits());
}

StreamedPart::StreamedPart(formats::PackedShape shape, int64_t groups, const PersistentPlan &plan)
    : PartStages(unitOf(shape), llvm::divideCeil(groups * kGroup, unitOf(shape).columns),
                 plan.schedule.warps),
      shape(shape), unit(unitOf(shape)), tileUnits(llvm::divideCeil(groups, unitGroups())),
      allUnits(llvm::divideCeil(shape.columns(), unit.columns)),
      unitBytes(isRecord() ? unit.bytes : PersistentPlan::kTile * kGroup * unit.bits / 8) {
  if (shape.columns() % kGroup) {
    int64_t last = shape.chunks() - 1;
    int64_t whole = shape.chunkColumns(last) / kGroup * unitBytes;
    missingBytes = unitBytes - (shape.chunkElements(last) - whole);
  }
}

std::optional<std::string> StreamedPart::problem(const formats::PackedShape &shape) {
  const Encoding &format = shape.format();
  if (shape.layout().kind == formats::Layout::Kind::Records)
    return std::nullopt;
  if (shape.layout().kind != formats::Layout::Kind::Mma)
    return "its layout is neither mma nor records";
  if (!format.isPlainInteger() || format.hasZeroPoint() || format.group != kGroup ||
      format.scale != Encoding::Scale::F16)
    return "its format is " + format.name() + ", expected int8-g128, int4-g128 or one in records";
  if (shape.layout().columns % kGroup)
    return "its chunks are not whole groups of 128 columns";
  return std::nullopt;
}

void device::computeAndCopy(DeviceBuilder &k, const PersistentPlan &plan, Value thread,
                            llvm::function_ref<void()> compute, llvm::function_ref<void()> copy) {
  int64_t threads = plan.schedule.warps * kWarp;
  std::optional<PersistentPlan::Registers> registers = plan.registers();
  k.ifElse(
      k.less(thread, k.constI32(threads)),
      [&] {
        if (registers)
          k.setRegisters(registers->computing, /*more=*/true);
        compute();
      },
      [&] {
        if (!registers)
          return copy();
        k.setRegisters(registers->copying, /*more=*/false);
        k.ifThen(k.less(thread, k.constI32(threads + kWarp)), copy);
      });
}

WeightStream::WeightStream(DeviceBuilder &k, const PersistentPlan &plan, Value shared)
    : k(k), plan(plan), ring(k.offset(shared, plan.ring.offset)),
      full(k.offset(shared, plan.full.offset)), empty(k.offset(shared, plan.empty.offset)),
      sums(k.offset(shared, plan.sums.offset)) {}

void WeightStream::initBarriers() {
  for (int64_t stage = 0; stage < plan.schedule.stages; ++stage) {
    k.initBarrier(k.offset(full, stage * 8), 1);
    k.initBarrier(k.offset(empty, stage * 8), plan.schedule.warps);
  }
}

Value WeightStream::stageCount(const StreamedPart &part, const StreamedPart::Extent &extent) {
  return k.mul(setCount(part, extent), part.tileStages);
}

void WeightStream::copyTile(const StreamedPart &part, const StreamedPart::Extent &extent,
                            Value tile, Value place, Value firstUnit, Value count, Value to,
                            Value barrier) {
  const formats::PackedShape &shape = part.shape;
  Value from = k.offset(extent.weight, k.mul(k.toI64(extent.place(k.add(extent.firstTile, tile))),
                                             shape.tileBytes()));
  Value firstPlace = k.mul(place, part.stageUnits);
  if (part.isRecord()) {
    k.ifThen(k.less(k.constI32(0), count), [&] {
      k.bulkCopy(k.at(to, firstPlace, part.unit.bytes), k.at(from, firstUnit, part.unit.bytes),
                 k.mul(count, part.unit.bytes), barrier);
    });
    return;
  }
  int64_t chunkGroups = shape.layout().columns / kGroup, last = shape.chunks() - 1;
  Value end = k.add(firstUnit, count);
  k.loop(k.div(firstUnit, chunkGroups), k.div(k.add(end, chunkGroups - 1), chunkGroups), 1,
         [&](Value chunk) {
           Value begin = k.mul(chunk, chunkGroups);
           Value low = k.max(firstUnit, begin), high = k.min(end, k.add(begin, chunkGroups));
           Value inChunk = k.sub(low, begin), units = k.sub(high, low);
           Value at = k.offset(from, k.mul(k.toI64(chunk), shape.chunkOffset(1)));
           Value unit = k.add(firstPlace, k.sub(low, firstUnit));
           Value bytes = k.mul(units, part.unitBytes);
           if (part.missingBytes)
             bytes = k.select(k.equal(high, k.constI32(part.allUnits)),
                              k.sub(bytes, part.missingBytes), bytes);
           k.bulkCopy(k.at(to, unit, part.unitBytes), k.at(at, inChunk, part.unitBytes), bytes,
                      barrier);
           Value scales = k.constI32(shape.chunkScales(0));
           if (shape.chunkScales(last) != shape.chunkScales(0))
             scales = k.select(k.equal(chunk, k.constI32(last)),
                               k.constI32(shape.chunkScales(last)), scales);
           k.bulkCopy(k.offset(k.offset(to, part.units * part.unitBytes), k.mul(unit, kScaleBytes)),
                      k.offset(k.offset(at, scales), k.mul(inChunk, kScaleBytes)),
                      k.mul(units, kScaleBytes), barrier);
         });
}

DeviceBuilder::Values WeightStream::copyStage(int64_t inFlight, ValueRange carried, Value lane,
                                              const Later *later,
                                              llvm::function_ref<void(Value, Value)> body) {
  Value count = carried[0], oldest = carried[1], brought = carried[2];
  // At most one stage more is under way than before.
  Value few = k.less(k.sub(count, oldest), k.constI32(inFlight));
  oldest = k.ifElseYield(
      few, [&] { return Values{oldest}; },
      [&] {
        k.wait(k.at(full, slotOf(oldest), 8), parityOf(oldest));
        return Values{k.add(oldest, 1)};
      })[0];
  Value slot = slotOf(count), room = k.at(empty, slot, 8), parity = k.bitXor(parityOf(count), 1);
  if (later && later->part.isWholeChunk() && later->part.shape.format().bits() <= kMostBroughtBits)
    brought = bringLater(*later, brought, lane, room, parity);
  k.wait(room, parity);
  body(k.at(ring, slot, plan.stageBytes), k.at(full, slot, 8));
  return {k.add(count, 1), oldest, brought};
}

Value WeightStream::bringLater(const Later &later, Value brought, Value lane, Value room,
                               Value parity) {
  Value end = stageCount(later.part, later.extent);
  end = k.min(end, later.first ? k.add(later.first, kBroughtStages) : k.constI32(kBroughtStages));
  if (later.first)
    brought = k.max(brought, later.first);
  return k.whileLoop({brought, k.constI32(0)}, [&](ValueRange carried) {
    Value stage = carried[0], looks = carried[1];
    Value stops = k.bitOr(k.hasCompleted(room, parity), k.less(k.sub(end, 1), stage));
    Values next = k.ifElseYield(
        stops, [&] { return llvm::to_vector(carried); },
        [&] {
          Values after = k.ifElseYield(
              k.equal(looks, k.constI32(0)),
              [&] {
                auto [offset, bytes] = chunkOf(later.part, later.extent, stage);
                k.ifThen(k.equal(lane, k.constI32(0)),
                         [&] { k.bulkPrefetch(k.offset(later.extent.weight, offset), bytes); });
                return Values{k.add(stage, 1), k.constI32(kLooksBetween)};
              },
              [&] { return Values{stage, k.sub(looks, 1)}; });
          k.pause(kLookNanoseconds);
          return after;
        });
    return std::pair(k.bitXor(stops, k.integer(k.i1(), 1)), next);
  })[0];
}

Value WeightStream::take(Value stage) {
  Value slot = slotOf(stage);
  k.wait(k.at(full, slot, 8), parityOf(stage));
  return k.at(ring, slot, plan.stageBytes);
}

void WeightStream::release(Value stage, Value lane, Value count) {
  k.syncWarp();
  k.ifThen(k.equal(lane, k.constI32(0)), [&] { k.arrive(k.at(empty, slotOf(stage), 8), count); });
}

std::pair<Value, Value> WeightStream::chunkOf(const StreamedPart &part,
                                              const StreamedPart::Extent &extent, Value number) {
  Value tile = extent.place(k.add(extent.firstTile, k.div(number, part.tileStages)));
  Value start =
      k.add(unitsOf(part, extent.firstGroup), k.mul(k.rem(number, part.tileStages), part.units));
  Value inTile = part.isRecord()
                     ? k.mul(k.toI64(start), part.unit.bytes)
                     : k.mul(k.toI64(k.div(start, part.units)), part.shape.chunkOffset(1));
  Value offset = k.add(k.mul(k.toI64(tile), part.shape.tileBytes()), inTile);
  return {offset, k.constI32(part.units * part.unit.bytes)};
}

DeviceBuilder::Values WeightStream::copy(const StreamedPart &part,
                                         const StreamedPart::Extent &extent, int64_t inFlight,
                                         ValueRange carried, Value lane, const Later *later) {
  Value isFirst = k.equal(lane, k.constI32(0));
  auto copyOne = [&](Value number, Value to, Value barrier) {
    if (part.isWholeChunk()) {
      auto [from, bytes] = chunkOf(part, extent, number);
      k.ifThen(isFirst, [&, from = from, bytes = bytes] {
        k.expectBytes(barrier, bytes);
        k.bulkCopy(to, k.offset(extent.weight, from), bytes, barrier);
      });
      // The others must not fall behind by a whole ring: of a barrier they know the parity only.
      k.syncWarp();
      return;
    }
    Value firstTile = k.mul(k.div(number, part.tileStages), part.stageTiles);
    Value firstUnit = k.mul(k.rem(number, part.tileStages), part.units);
    Value tiles = k.min(k.sub(extent.tileCount, firstTile), k.constI32(part.stageTiles));
    // A block with fewer units than the one with most may have none in a last stage.
    Value units =
        k.max(k.min(k.sub(unitsOf(part, extent.groupCount), firstUnit), k.constI32(part.units)),
              k.constI32(0));
    Value start = k.add(unitsOf(part, extent.firstGroup), firstUnit);
    Value bytes = k.mul(units, part.unit.bytes);
    if (part.missingBytes)
      bytes = k.select(k.equal(k.add(start, units), k.constI32(part.allUnits)),
                       k.sub(bytes, part.missingBytes), bytes);
    k.ifThen(isFirst, [&] { k.expectBytes(barrier, k.mul(tiles, bytes)); });
    k.syncWarp();
    k.ifThen(k.less(lane, tiles), [&] {
      copyTile(part, extent, k.add(firstTile, lane), lane, start, units, to, barrier);
    });
  };
  return k.loop(
      k.constI32(0), stageCount(part, extent), 1, carried, [&](Value number, ValueRange values) {
        std::optional<Later> from;
        if (later)
          from.emplace(Later{later->part, later->extent, &later->part == &part ? number : Value()});
        return copyStage(inFlight, values, lane, from ? &*from : nullptr,
                         [&](Value to, Value barrier) { copyOne(number, to, barrier); });
      });
}

WeightStream::Operands WeightStream::loadOperands(const StreamedPart &part,
                                                  const GroupExchange &input, Value unit,
                                                  Value lane) {
  Operands result;
  if (part.isRecord()) {
    RecordProduct product(k, part.shape.format(), lane);
    Value inputs =
        k.add(k.mul(unit, part.unitGroups() * PersistentPlan::kGroupBytes), input.groups.offset);
    Value from = k.offset(input.shared, product.operandPlace(inputs, plan.zeros.offset));
    result.ofRecord.operands = product.loadOperands(from);
    Value group = k.mul(unit, part.unitGroups());
    Values &numbers = result.ofRecord.units;
    for (int64_t g = 0; g < part.unitGroups(); ++g)
      numbers.push_back(input.scale(k.add(group, g)));
    if (!part.shape.format().hasOffset())
      return result;
    int64_t sums = input.order().sums() / 4; // of a sub-block
    for (int64_t g = 0; g < part.unitGroups(); ++g)
      for (int64_t sum = 0; sum < sums; ++sum)
        numbers.push_back(input.sum(k.add(group, g), k.add(k.mul(k.bitAnd(lane, 3), sums), sum)));
    return result;
  }
  // Lanes 0 to 7 have the two columns; the others' are not used.
  Value x = k.offset(input.operands(unit), k.shl(k.min(lane, k.constI32(7)), 3));
  for (int64_t byte = 0; byte < PersistentPlan::kGroupBytes; byte += 64)
    result.fragments.push_back(k.lanes(k.load(k.vec(2, k.i32()), k.offset(x, byte), 8)));
  result.scale = input.scale(unit);
  if (part.shape.format().element == Encoding::Element::I4) // 16 times the elements
    result.scale = k.mulF(result.scale, k.number(1.0 / 16));
  return result;
}

std::pair<Value, Value> WeightStream::multiplyUnit(const StreamedPart &part, Value stage,
                                                   Value unit, Value isLast,
                                                   const Operands &operands, Value lane) {
  bool int4 = part.shape.format().element == Encoding::Element::I4;
  Value elements = k.offset(k.at(stage, unit, part.unitBytes), k.shl(lane, 4));
  Values products(4, k.constI32(0));
  int64_t fragment = 0;
  auto multiply = [&](ArrayRef<Value> words) {
    products = k.mmaInt8(products, words, operands.fragments[fragment++]);
  };
  for (int64_t byte = 0; byte < part.unitBytes; byte += 512) {
    // Columns that do not exist are multiplied with zeros of the input: any elements will do.
    int64_t lastByte = std::min(byte, part.unitBytes - part.missingBytes - 512);
    Value place = isLast && lastByte < byte
                      ? k.select(isLast, k.constI32(lastByte), k.constI32(byte))
                      : k.constI32(byte);
    Values words = k.lanes(k.load(k.vec(4, k.i32()), k.offset(elements, place), 16));
    if (!int4) {
      multiply(words);
      continue;
    }
    DeviceBuilder::Nibbles nibbles = k.nibblesAtTop(words);
    multiply(nibbles.high);
    multiply(nibbles.low);
  }
  Value scalesAt = k.offset(k.offset(stage, part.units * part.unitBytes),
                            k.add(k.mul(unit, kScaleBytes), k.shl(k.shr(lane, 2), 2)));
  Values pair = k.lanes(k.load(k.vec(2, k.f16()), scalesAt, 4));
  Value sums[2];
  for (int64_t row = 0; row < 2; ++row) {
    Value sum = k.add(k.shl(products[2 * row], 8), products[2 * row + 1]);
    sums[row] = k.mulF(k.toFloat(sum), k.mulF(k.widen(pair[row]), operands.scale));
  }
  return {sums[0], sums[1]};
}

WeightStream::Values WeightStream::multiplyRecord(const StreamedPart &part,
                                                  const GroupExchange &input, Value record,
                                                  const Operands &operands, Value lane,
                                                  llvm::function_ref<void()> release) {
  fused::InputPlan numbers;
  numbers.sumColumns = input.order().sumColumns;
  numbers.hasSums = numbers.sumColumns;
  return RecordProduct(k, part.shape.format(), lane)
      .multiply(numbers, operands.ofRecord, record, Values(2, k.number(0.0)), release);
}

Value WeightStream::forBatches(
    const StreamedPart &part, const StreamedPart::Extent &extent, int64_t mostTiles, Value passed,
    llvm::function_ref<void(const StreamedPart::Extent &, Value, Value)> body) {
  int64_t batch =
      std::max<int64_t>(plan.sums.bytes / (part.tileSets() * part.units * 64), 1) * part.stageTiles;
  if (mostTiles <= batch) {
    body(extent, k.constI32(0), passed);
    return k.add(passed, stageCount(part, extent));
  }
  return k.loop(k.constI32(0), extent.tileCount, batch, {passed},
                [&](Value first, ValueRange carried) {
                  StreamedPart::Extent some = extent;
                  some.firstTile = k.add(extent.firstTile, first);
                  some.tileCount = k.min(k.sub(extent.tileCount, first), k.constI32(batch));
                  body(some, first, carried[0]);
                  return Values{k.add(carried[0], stageCount(part, some))};
                })[0];
}

void WeightStream::multiply(const StreamedPart &part, const StreamedPart::Extent &extent,
                            Value passed, Value warp, Value lane, const GroupExchange &input,
                            int64_t sumsFrom) {
  // Teams of as many warps as a stage has units take sets of stages in turn; each stands for its
  // share of all warps.
  int64_t teams = plan.teams(part.unit, part.setStages), tileSets = part.tileSets();
  int64_t share = plan.schedule.warps / part.units;
  Value team = k.div(warp, part.units), place = k.rem(warp, part.units);
  Value tile = k.div(place, part.stageUnits), first = k.rem(place, part.stageUnits);
  Value unitCount = unitsOf(part, extent.groupCount);
  // A warp has the same units of all its sets, but the operands of two or more of 128 columns would
  // spill beside what else a kernel has in 96 registers: of 4096 columns 12 bytes a thread with
  // two (int4), 160 with four (int8).
  bool kept = part.setStages == 1 && teams % tileSets == 0;
  auto load = [&](Value unit) { return loadOperands(part, input, unit, lane); };
  // Of a set, in a tile.
  auto firstUnit = [&](Value set) {
    return tileSets == 1 ? first : k.add(first, k.mul(k.rem(set, tileSets), part.units));
  };
  Operands operands;
  if (kept)
    operands = load(k.max(k.min(firstUnit(team), k.sub(unitCount, 1)), k.constI32(0)));
  Value sets = k.mul(setCount(part, extent), tileSets);
  if (teams < share)
    sets = k.select(k.less(team, k.constI32(teams)), sets, k.constI32(0));
  k.loop(team, sets, teams, [&](Value set) {
    Values all(2, k.number(0.0));
    Value tileSet = k.div(set, tileSets), begin = firstUnit(set);
    Value tileExists =
        k.bitAnd(k.less(k.add(k.mul(tileSet, part.stageTiles), tile), extent.tileCount),
                 k.less(tile, k.constI32(part.stageTiles)));
    for (int64_t step = 0; step < part.setStages; ++step) {
      Value stage = k.add(passed, k.add(k.mul(set, part.setStages), step));
      Value slot = slotOf(stage), unit = k.add(begin, step * part.units);
      Value at = k.at(ring, slot, plan.stageBytes);
      auto releaseNow = [&] { release(stage, lane, k.constI32(share)); };
      k.wait(k.at(full, slot, 8), parityOf(stage));
      Value exists = k.bitAnd(tileExists, k.less(unit, unitCount));
      auto operandsNow = [&] { return kept ? operands : load(unit); };
      if (part.isRecord()) {
        all = k.ifElseYield(
            exists,
            [&] {
              return multiplyRecord(part, input, k.at(at, place, part.unit.bytes), operandsNow(),
                                    lane, releaseNow);
            },
            [&] {
              releaseNow();
              return all;
            });
        continue;
      }
      all = k.ifElseYield(
          exists,
          [&] {
            Value isLast = part.missingBytes ? k.equal(k.add(extent.firstGroup, unit),
                                                       k.constI32(part.allUnits - 1))
                                             : Value();
            auto [low, high] = multiplyUnit(part, at, place, isLast, operandsNow(), lane);
            return Values{k.addF(all[0], low), k.addF(all[1], high)};
          },
          [&] { return all; });
      releaseNow();
    }
    Value to =
        k.offset(k.offset(sums, sumsFrom),
                 k.add(k.mul(k.add(k.mul(set, part.units), place), 64), k.shl(k.shr(lane, 2), 3)));
    Value column = k.bitAnd(lane, 3);
    if (part.isRecord()) {
      // Lanes 4r and 4r + 1 have rows r and r + 8.
      Value sum = RecordProduct(k, part.shape.format(), lane).addSubBlocks(all[0], all[1]);
      k.ifThen(k.less(column, k.constI32(2)),
               [&] { k.store(sum, k.offset(to, k.shl(column, 2)), 4); });
      return;
    }
    k.ifThen(k.equal(column, k.constI32(0)), [&] { k.store(k.vectorOf(all), to, 8); });
  });
}

void WeightStream::finish(const StreamedPart &part, const StreamedPart::Extent &extent,
                          Value thread, int64_t threads,
                          llvm::function_ref<void(Value, Value, Value, Value)> body,
                          int64_t sumsFrom) {
  k.loop(thread, k.shl(extent.tileCount, 3), threads, [&](Value item) {
    Value tile = k.shr(item, 3), row = k.bitAnd(item, 7);
    Value first = k.add(k.mul(k.div(tile, part.stageTiles), part.tileSets() * part.units),
                        k.mul(k.rem(tile, part.stageTiles), part.stageUnits));
    Value from = k.offset(k.at(k.offset(sums, sumsFrom), first, 64), k.shl(row, 3));
    Value low, high;
    for (int64_t set = 0; set < part.tileSets(); ++set)
      for (int64_t unit = 0; unit < part.stageUnits; ++unit) {
        Value at = k.offset(from, (set * part.units + unit) * 64);
        Values pair = k.lanes(k.load(k.vec(2, k.f32()), at, 8));
        low = low ? k.addF(low, pair[0]) : pair[0];
        high = high ? k.addF(high, pair[1]) : pair[1];
      }
    body(tile, row, low, high);
  });
}
