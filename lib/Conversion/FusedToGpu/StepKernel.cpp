// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "StepCode.h"
#include "ThreadRows.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::device;
using fused::PersistentPlan;

static fused::AttentionShape attentionShape(fused::AttentionOp op, const PersistentPlan &plan) {
  fused::AttentionShape shape;
  auto cacheOf = [&](FlatSymbolRefAttr symbol) {
    return SymbolTable::lookupNearestSymbolFrom<model::CacheOp>(op, symbol)
        .getCacheType()
        .getShapeInfo();
  };
  shape.keys = cacheOf(op.getKeysAttr());
  shape.values = cacheOf(op.getValuesAttr());
  if (auto window = static_cast<int64_t>(op.getWindow().value_or(0)); window < shape.keys.positions)
    shape.window = window;
  shape.dim = shape.keys.dim;
  shape.group = op.getQuery().getType().getDimSize(1) / shape.dim / shape.keys.heads;
  shape.divide();
  shape.headParts = plan.headParts();
  shape.passes = llvm::divideCeil(llvm::divideCeil(shape.group, shape.kHeads), shape.headParts);
  return shape;
}

StepKernel::StepKernel(DeviceBuilder &k, StepInterface &interface, Value shared,
                       const fused::GpuDevice &device, ValueRange arguments)
    : k(k), interface(interface), first(interface.step.layers.front()), plan(interface.plan),
      shared(shared), device(device), arguments(arguments),
      constants(interface.step.constantsOf(first)), common(interface.step.commonConstants()),
      projections(first.projections), attentionOp(first.attention), gates(first.gates),
      projectionRows(*kernels::packedSegments(first.projections)),
      gateRows(*kernels::packedSegments(first.gates)), thread(k.thread()), block(k.block()),
      lane(k.bitAnd(thread, kWarp - 1)), warp(k.shr(thread, 5)),
      cluster(k.div(block, plan.schedule.clusterBlocks)), rank(k.rankInCluster()),
      attention(attentionShape(first.attention, plan)), ring(k, plan, shared),
      inner{k, plan, shared, PersistentPlan::Inner, plan.inner, plan.innerMeta},
      projected_{k, plan, shared, PersistentPlan::Projections, plan.projections, {}} {
  const fused::DecoderStep &step = interface.step;
  projectionParts.resize(plan.shape.projections.size());
  for (int64_t kind = 0, kinds = plan.shape.kinds.size(); kind < kinds; ++kind) {
    // The first layer of the kind.
    const fused::DecoderStep::Layer &layer =
        step.layers[llvm::find(plan.shape.kindOf, kind) - plan.shape.kindOf.begin()];
    auto weightsOf = [](fused::MatvecOp product) { return *fused::packedParts(product); };
    auto projected = weightsOf(layer.projections);
    for (auto [number, variants] : llvm::enumerate(projectionParts))
      variants.add(kind, projected[step.weightOf(layer, number).first], plan.widthGroups(), plan);
    outputPart.add(kind, weightsOf(layer.output).front(), plan.attendedGroups(), plan);
    gatePart.add(kind, weightsOf(layer.gates).front(), plan.widthGroups(), plan);
    downPart.add(kind, weightsOf(layer.down).front(), plan.mostClusterInnerGroups(), plan);
  }
}

void StepKernel::Variants::add(int64_t kind, const fused::PackedPart &weight, int64_t groups,
                               const PersistentPlan &plan) {
  auto same = llvm::find_if(all, [&](const Variant &variant) {
    const formats::PackedShape &one = variant.part.shape, &other = weight.shape;
    return one.format() == other.format() && one.layout() == other.layout() &&
           variant.firstTile == weight.firstTile;
  });
  if (same == all.end()) {
    all.push_back({StreamedPart(weight.shape, groups, plan), weight.firstTile});
    same = std::prev(all.end());
  }
  same->kinds.push_back(kind);
}

StepKernel::Values
StepKernel::forVariant(Value layer, const Variants &variants,
                       llvm::function_ref<Values(const Variants::Variant &)> body) {
  if (variants.all.size() == 1)
    return body(variants.all.front());
  Value kind = k.load(k.i32(), k.at(place(plan.kinds), layer, 4), 4);
  std::function<Values(size_t)> from = [&](size_t number) -> Values {
    const Variants::Variant &variant = variants.all[number];
    if (number + 1 == variants.all.size())
      return body(variant);
    Value has;
    for (int64_t one : variant.kinds) {
      Value is = k.equal(kind, k.constI32(one));
      has = has ? k.bitOr(has, is) : is;
    }
    return k.ifElseYield(has, [&] { return body(variant); }, [&] { return from(number + 1); });
  };
  return from(0);
}

void StepKernel::storeNumbers() {
  auto store = [&](int64_t index, Value value) {
    k.store(value, k.offset(place(plan.extents), 4 * index), 4);
  };
  auto storePart = [&](int64_t index, const PartOf &part) {
    store(index, part.begin);
    store(index + 1, k.sub(part.end, part.begin));
  };
  InnerParts inner(k, plan, cluster, rank);
  store(InnerOfCluster, inner.clusterBegin);
  store(InnerOfCluster + 1, inner.clusterCount);
  store(InnerOfBlock, inner.begin);
  store(InnerOfBlock + 1, inner.count);
  storePart(SumTiles, PartOf(k, plan.widthTiles(), ranks(), rank));
  for (size_t number = 0; number < projectionParts.size(); ++number)
    storePart(tilesOf(number), PartOf(k, plan.projectionTiles(number), ranks(), rank));
  if (plan.kinds.bytes)
    for (auto [layer, kind] : llvm::enumerate(plan.shape.kindOf))
      k.store(k.constI32(kind), k.offset(place(plan.kinds), 4 * layer), 4);
  Value last = k.clampIndex(k.load(k.i32(), arguments[StepInterface::kPositions], 4),
                            attention.keys.positions);
  Value firstPiece = zero();
  if (attention.window)
    firstPiece = k.div(k.max(k.sub(last, attention.window - 1), zero()), attention.warpPositions());
  Value pieces = k.sub(k.add(k.div(last, attention.warpPositions()), 1), firstPiece);
  store(Last, last);
  store(FirstPiece, firstPiece);
  store(PieceCount, k.div(k.max(k.sub(k.add(pieces, ranks() - 1), rank), zero()), ranks()));
}

void StepKernel::storePointers() {
  // A lane of each warp stores its share, while the others do.
  SmallVector<std::pair<int64_t, Value>> all;
  int64_t slot = 0;
  for (auto [number, layer] : llvm::enumerate(interface.step.layers)) {
    for (auto [index, value] : llvm::enumerate(interface.step.constantsOf(layer)))
      if (!common[index])
        all.push_back({slot++, argumentOf(value)});
    for (int64_t c = 0; c < 2; ++c)
      all.push_back(
          {slot++,
           arguments[StepInterface::kConstants + interface.constants.size() + 2 * number + c]});
  }
  int64_t share = llvm::divideCeil(static_cast<int64_t>(all.size()), warps());
  for (int64_t w = 0; w < warps(); ++w)
    k.ifThen(k.equal(thread, k.constI32(w * kWarp)), [&] {
      for (int64_t i = w * share; i < std::min<int64_t>((w + 1) * share, all.size()); ++i)
        k.store(all[i].second, k.offset(place(plan.pointers), all[i].first * 8), 8);
    });
}

Value StepKernel::pointer(Value layer, int64_t slot) {
  Value at = k.at(place(plan.pointers), k.add(k.mul(layer, plan.shape.layerPointers), slot), 8);
  return k.load(LLVM::LLVMPointerType::get(k.b.getContext(), 1), at, 8);
}

Value StepKernel::constantAt(Value layer, int64_t index) {
  if (common[index])
    return argumentOf(constants[index]);
  int64_t slot = 0;
  for (int64_t before = 0; before < index; ++before)
    slot += !common[before];
  return pointer(layer, slot);
}

void StepKernel::bind(Template &target, Value layer, const llvm::DenseMap<Value, Value> &others) {
  Values pointers;
  for (Value operand : target.interface.operands()) {
    if (operand == first.attention.getPositions())
      pointers.push_back(arguments[StepInterface::kPositions]);
    else if (parameterOf(operand))
      pointers.push_back(constant(layer, operand));
    else if (auto other = others.find(operand); other != others.end())
      pointers.push_back(other->second);
    else
      pointers.push_back(shared); // not read
  }
  for (Attribute symbol : target.interface.caches())
    pointers.push_back(cache(layer, symbol == first.attention.getKeysAttr()));
  for (int64_t result = 0; result < target.interface.results(); ++result)
    pointers.push_back(shared); // not written
  target.interface.setPointers(pointers);
}

void StepKernel::storeRotary() {
  SmallVector<model::RotaryOp> rotaries = rotariesOf(first.projections);
  if (rotaries.empty())
    return;
  Value table = rotaries.front().getTable();
  int64_t rows = rotaries.front().getTable().getType().getDimSize(0);
  Value last = k.clampIndex(k.load(k.i32(), arguments[StepInterface::kPositions], 4), rows);
  Value row = k.at(argumentOf(table), k.toI64(last), plan.shape.dim * 4);
  k.loop(thread, k.constI32(plan.shape.dim), allThreads(), [&](Value i) {
    k.store(k.load(k.f32(), k.offset(row, k.shl(i, 2)), 4),
            k.offset(place(plan.rotary), k.shl(i, 2)), 4);
  });
}

Value StepKernel::innerBytes() {
  Value groups = number(InnerOfCluster + 1);
  Value bytes = k.mul(groups, inner.groupBytes());
  // Ranks without groups send tokens.
  if (plan.mostInnerGroups() > 1)
    return bytes;
  return k.add(bytes, k.mul(k.sub(k.constI32(ranks()), groups), PersistentPlan::kTokenBytes));
}

Value StepKernel::projectionBytes() {
  int64_t bytes = plan.projections.bytes;
  for (int64_t other = 0; other < ranks(); ++other)
    if (plan.projectionCount(other) == 0)
      bytes += PersistentPlan::kTokenBytes;
  return k.constI32(bytes);
}

void StepKernel::initBarriers() {
  stream().initBarrier();
  inner.init(innerBytes());
  projected_.init(projectionBytes());
  join().initBarriers();
  ring.initBarriers();
  k.initBarrier(reachedBarrier(), 1);
  k.initBarrier(appendedBarrier(), 1);
  k.fenceBarrierInit();
}

//===----------------------------------------------------------------------===//
// Who reads which weights
//===----------------------------------------------------------------------===//

Value StepKernel::projectionPlace(Value tile) {
  // The cluster's query tiles, then those of its keys and of its values.
  auto at = [&](int64_t segment, int64_t before, int64_t tiles) {
    Value start = k.add(k.mul(cluster, tiles), projectionRows[segment].firstTile - before);
    return k.add(tile, start);
  };
  Value value = at(2, queryTiles() + keyTiles(), keyTiles()), key = at(1, queryTiles(), keyTiles());
  Value result = k.select(k.less(tile, k.constI32(queryTiles() + keyTiles())), key, value);
  return k.select(k.less(tile, k.constI32(queryTiles())), at(0, 0, queryTiles()), result);
}

StepKernel::Extent StepKernel::projectionExtent(Value layer, size_t number,
                                                const Variants::Variant &variant) {
  // The constants begin with the weights of these parts.
  Extent extent{constantAt(layer, number), this->number(tilesOf(number)),
                this->number(tilesOf(number) + 1), zero(), k.constI32(plan.widthGroups())};
  extent.placeOf = [this, number, firstTile = variant.firstTile](Value tile) {
    return k.sub(projectionPlace(k.add(tile, tilesBefore(number))), firstTile);
  };
  return extent;
}

StepKernel::Extent StepKernel::outputExtent(Value layer) {
  return {constant(layer, first.output.getWeights().front()), number(SumTiles),
          number(SumTiles + 1), k.mul(cluster, plan.attendedGroups()),
          k.constI32(plan.attendedGroups())};
}

StepKernel::Extent StepKernel::gateExtent(Value layer) {
  constexpr int64_t tiles = 2 * PersistentPlan::kGroup / PersistentPlan::kTile;
  return {constant(layer, first.gates.getWeights().front()), k.mul(number(InnerOfBlock), tiles),
          k.mul(number(InnerOfBlock + 1), tiles), zero(), k.constI32(plan.widthGroups())};
}

StepKernel::Extent StepKernel::downExtent(Value layer) {
  return {constant(layer, first.down.getWeights().front()), number(SumTiles), number(SumTiles + 1),
          number(InnerOfCluster), number(InnerOfCluster + 1)};
}

StepKernel::Values StepKernel::copyPieces(Value layer, Value head, const WeightStream::Later *later,
                                          ValueRange carried) {
  return k.loop(zero(), number(PieceCount), 1, carried, [&](Value n, ValueRange values) {
    return ring.copyStage(
        plan.schedule.attentionInFlight, values, lane, later, [&](Value to, Value barrier) {
          Value piece = k.add(number(FirstPiece), k.add(k.mul(n, ranks()), rank));
          Value tile = k.mul(piece, pieceTiles());
          k.ifThen(k.equal(lane, zero()),
                   [&] { k.expectBytes(barrier, k.constI32(plan.shape.pieceBytes)); });
          k.syncWarp();
          int64_t at = 0;
          for (bool isKeys : {true, false}) {
            const formats::CacheShape &shape = isKeys ? attention.keys : attention.values;
            Value number =
                k.add(k.mul(k.add(k.mul(cluster, plan.clusterHeads()), head), shape.tiles()), tile);
            int64_t bytes = pieceTiles() * shape.tileBytes();
            k.ifThen(k.equal(lane, k.constI32(isKeys ? 0 : 1)), [&] {
              k.bulkCopy(k.offset(to, at),
                         k.offset(cache(layer, isKeys), k.mul(k.toI64(number), shape.tileBytes())),
                         k.constI32(bytes), barrier);
            });
            at += bytes;
          }
        });
  });
}

void StepKernel::copyAll() {
  int64_t inAttention = plan.schedule.attentionInFlight, inMlp = plan.schedule.mlpInFlight;
  Value attends = k.less(cluster, k.constI32(plan.schedule.attentionClusters));
  k.loop(zero(), k.constI32(plan.shape.layers), 1, {zero(), zero()},
         [&](Value layer, ValueRange carried) {
           // Most of a layer's weights are the gates'.
           Extent gateTiles = gateExtent(layer);
           std::optional<WeightStream::Later> later;
           if (gatePart.all.size() == 1)
             later.emplace(WeightStream::Later{gatePart.all.front().part, gateTiles});
           const WeightStream::Later *ahead = later ? &*later : nullptr;
           auto copy = [&](const Variants &variants,
                           llvm::function_ref<Extent(const Variants::Variant &)> extentOf,
                           int64_t inFlight, const Values &now,
                           const WeightStream::Later *soon = nullptr) {
             return forVariant(layer, variants, [&](const Variants::Variant &variant) {
               return ring.copy(variant.part, extentOf(variant), inFlight, now, lane, soon);
             });
           };
           Values start = {carried[0], carried[1], zero()};
           Values after = k.ifElseYield(
               attends,
               [&] {
                 Values now = start;
                 for (auto [number, variants] : llvm::enumerate(projectionParts))
                   now = copy(
                       variants,
                       [&, number = number](const Variants::Variant &variant) {
                         return projectionExtent(layer, number, variant);
                       },
                       inAttention, now, ahead);
                 now = k.loop(zero(), k.constI32(plan.clusterHeads()), 1, now,
                              [&](Value head, ValueRange values) {
                                return copyPieces(layer, head, ahead, values);
                              });
                 return copy(
                     outputPart, [&](const Variants::Variant &) { return outputExtent(layer); },
                     inAttention, now, ahead);
               },
               [&] { return start; });
           after = copy(
               gatePart, [&](const Variants::Variant &) { return gateTiles; }, inMlp, after, ahead);
           after = copy(
               downPart, [&](const Variants::Variant &) { return downExtent(layer); }, inMlp,
               after);
           return Values{after[0], after[1]};
         });
  k.launchDependents();
}

Value StepKernel::forBatches(
    Value layer, const Variants &variants, const Extent &extent, int64_t mostTiles, Value passed,
    llvm::function_ref<void(const StreamedPart &, const Extent &, Value, Value)> body) {
  return forVariant(layer, variants, [&](const Variants::Variant &variant) {
    return Values{ring.forBatches(variant.part, extent, mostTiles, passed,
                                  [&](const Extent &batch, Value firstTile, Value before) {
                                    body(variant.part, batch, firstTile, before);
                                  })};
  })[0];
}

Value StepKernel::addRows(Value layer, const Variants &variants, const Extent &extent, Value passed,
                          const GroupExchange &input, llvm::function_ref<void(Value, Value)> add) {
  return forBatches(layer, variants, extent, llvm::divideCeil(plan.widthTiles(), ranks()), passed,
                    [&](const StreamedPart &part, const Extent &batch, Value, Value before) {
                      ring.multiply(part, batch, before, warp, lane, input);
                      waitForAll();
                      ring.finish(part, batch, thread, threads(),
                                  [&](Value tile, Value row, Value low, Value high) {
                                    Value at = k.add(k.shl(k.add(batch.firstTile, tile), 4), row);
                                    add(at, low);
                                    add(k.add(at, 8), high);
                                  });
                      waitForAll(); // before other sums come to the same place
                    });
}

Value StepKernel::addOutput(Value layer, Value passed) {
  Fresh fresh(*this);
  GroupExchange input = join().exchange();
  return addRows(layer, outputPart, outputExtent(layer), passed, input,
                 [&](Value row, Value x) { stream().addAttention(row, x); });
}

//===----------------------------------------------------------------------===//
// The MLP
//===----------------------------------------------------------------------===//

Value StepKernel::multiplyGates(Value layer, Value passed) {
  Fresh fresh(*this);
  constexpr int64_t tilesOfGroup = 2 * PersistentPlan::kGroup / PersistentPlan::kTile;
  GroupExchange input = stream().exchange();
  Value factor = stream().normFactor(normOf(first.gates).getEpsilon().convertToDouble());
  Value values = place(plan.innerValues);
  passed = forBatches(
      layer, gatePart, gateExtent(layer), plan.mostInnerGroups() * tilesOfGroup, passed,
      [&](const StreamedPart &part, const Extent &batch, Value firstTile, Value before) {
        ring.multiply(part, batch, before, warp, lane, input);
        waitForAll();
        ring.finish(
            part, batch, thread, threads(), [&](Value tile, Value row, Value low, Value high) {
              bind(gates, layer);
              CapturedRows rows{{k, row}, {}};
              kernels::ProductEpilogue<CapturedRows> epilogue(rows, first.gates, gates.interface,
                                                              gateRows.front(),
                                                              k.add(batch.firstTile, tile), zero());
              if (failed(epilogue.emit({k.mulF(low, factor), k.mulF(high, factor)}))) {
                result = failure();
                return;
              }
              Value at = k.add(k.shl(k.add(firstTile, tile), 3), row);
              k.store(k.widen(rows.written.front()), k.at(values, at, 4), 4);
            });
        waitForAll();
      });
  Value count = number(InnerOfBlock + 1);
  Value before = k.sub(number(InnerOfBlock), number(InnerOfCluster));
  k.loop(warp, count, warps(), [&](Value group) {
    Value at = k.offset(k.at(values, group, PersistentPlan::kGroup * 4), k.shl(lane, 4));
    inner.send(k.lanes(k.load(k.vec(4, k.f32()), at, 16)), k.number(0.0), k.add(before, group),
               roundingPlace(), lane);
  });
  k.ifThen(k.equal(count, zero()), [&] { inner.sendToken(rank, thread); });
  inner.receive(layer, innerBytes(), thread);
  return passed;
}

Value StepKernel::addDown(Value layer, Value passed) {
  Fresh fresh(*this);
  return addRows(layer, downPart, downExtent(layer), passed, inner,
                 [&](Value row, Value x) { stream().addMlp(layer, row, x); });
}

//===----------------------------------------------------------------------===//
// The whole
//===----------------------------------------------------------------------===//

LogicalResult StepKernel::computeAll() {
  Value layers = k.constI32(plan.shape.layers);
  Value attends = k.less(cluster, k.constI32(plan.schedule.attentionClusters));
  // The embedding, and sums that are zero.
  k.waitForPredecessor();
  stream().start();
  Value inAttention = normOf(first.projections).getGain(), inMlp = normOf(first.gates).getGain();
  k.loop(zero(), layers, 1, {zero(), zero()}, [&](Value layer, ValueRange carried) {
    Value passed = carried[0], round = carried[1];
    Fresh fresh(*this);
    stream().readMlp(k.sub(layer, 1), constant(layer, inAttention), attends);
    Values after = k.ifElseYield(
        attends,
        [&] {
          stream().receive(round);
          Value now = project(layer, passed);
          now = attend(layer, now);
          return Values{addOutput(layer, now), k.add(round, 1)};
        },
        [&] { return Values{passed, round}; });
    Fresh again(*this);
    stream().readAttention(layer, constant(layer, inMlp));
    stream().receive(after[1]);
    passed = multiplyGates(layer, after[0]);
    return Values{addDown(layer, passed), k.add(after[1], 1)};
  });
  stream().readMlp(k.sub(layers, 1));
  k.ifThen(k.equal(cluster, zero()), [&] { stream().store(arguments.back()); });
  return result;
}

LogicalResult StepKernel::emit() {
  storePointers();
  storeRotary();
  // Of heads that only fill up a set.
  k.loop(thread, k.constI32(plan.outputs.bytes / 4), allThreads(),
         [&](Value i) { k.store(k.number(0.0), k.at(place(plan.outputs), i, 4), 4); });
  k.loop(thread, k.constI32(plan.outputMeta.bytes / 4), allThreads(),
         [&](Value i) { k.store(k.number(0.0), k.at(place(plan.outputMeta), i, 4), 4); });
  k.loop(thread, k.constI32(plan.zeros.bytes / 4), allThreads(),
         [&](Value i) { k.store(zero(), k.at(place(plan.zeros), i, 4), 4); });
  k.ifThen(k.equal(thread, zero()), [&] {
    storeNumbers();
    initBarriers();
  });
  k.clusterArrive();
  k.clusterWait();
  LogicalResult computed = success();
  computeAndCopy(k, plan, thread, [&] { computed = computeAll(); }, [&] { copyAll(); });
  // Nobody sends to a block that has ended.
  k.clusterArrive();
  k.clusterWait();
  return computed;
}

LogicalResult device::emitStep(DeviceBuilder &k, StepInterface &interface, Value shared,
                               const fused::GpuDevice &device, ValueRange arguments) {
  return StepKernel(k, interface, shared, device, arguments).emit();
}
