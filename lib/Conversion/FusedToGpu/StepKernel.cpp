// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Code of a layer is generated once, from the operations of the first one. What differs between
// layers are addresses, which every block keeps in shared memory.

#include "StepKernel.h"

#include "AttentionJoin.h"
#include "Opaque.h"
#include "ResidualExchange.h"
#include "ThreadRows.h"
#include "TileAttention.h"
#include "WeightStream.h"

#include "dialects/Fused/Weights.h"

#include "llvm/Support/SaveAndRestore.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::device;
using fused::PersistentPlan;
using kernels::KernelInterface;
using llvm::createStringError;
using llvm::Error;
using llvm::Expected;
using llvm::Twine;

//===----------------------------------------------------------------------===//
// Which steps
//===----------------------------------------------------------------------===//

static model::RmsNormOp normOf(fused::MatvecOp product) {
  return cast<model::RmsNormOp>(product.getPrologue().front().front());
}

static model::ParameterOp parameterOf(Value value) {
  return value.getDefiningOp<model::ParameterOp>();
}

/// Of a product with one weight, which is packed.
static formats::PackedShape shapeOf(fused::MatvecOp product) {
  return fused::packedParts(product)->front().shape;
}

/// The rotary operations of an epilogue.
static SmallVector<model::RotaryOp> rotariesOf(fused::MatvecOp product) {
  if (product.getEpilogue().empty())
    return {};
  return llvm::to_vector(product.getEpilogue().front().getOps<model::RotaryOp>());
}

Error StepInterface::checkProducts() {
  fused::DecoderStep::Layer &layer = step.layers.front();
  for (fused::MatvecOp product : {layer.projections, layer.output, layer.gates, layer.down}) {
    auto problem = [&](const Twine &what) {
      return createStringError(fused::KernelOp(product).getLabel() + ": " + what);
    };
    if (product.getWeights().size() != 1)
      return problem("weights of several formats");
    if (failed(fused::packedParts(product)))
      return problem("a weight that is not packed");
    if (auto what = StreamedPart::problem(shapeOf(product)))
      return problem(*what);
    if (product.getPrologue().empty())
      continue;
    model::RmsNormOp norm = normOf(product);
    if (norm.getPlusOne())
      return problem("gains of a norm to which 1 is added");
    if (!cast<RankedTensorType>(norm.getGain().getType()).getElementType().isF32())
      return problem("gains of a norm that are not float32");
  }
  FailureOr<SmallVector<PackedSegment>> rows = kernels::packedSegments(layer.projections),
                                        gates = kernels::packedSegments(layer.gates);
  if (failed(rows) || failed(gates) || rows->size() != 3 || gates->size() != 1 ||
      !gates->front().order.isZip())
    return createStringError("query, key and value, or gate and up rows, are packed in an order "
                             "that such a kernel does not read");
  for (auto [index, segment] : llvm::enumerate(*rows))
    if (segment.order.getFirst() != static_cast<int64_t>(index) || segment.order.isZip() ||
        (segment.order.isPairs() && segment.order.getSecond() != plan.shape.dim))
      return createStringError("rows of query, key and value are packed in an order that such a "
                               "kernel does not read");
  for (Value result : layer.projections.getResults())
    if (cast<RankedTensorType>(result.getType()).getElementTypeBitWidth() !=
        8 * plan.shape.projectionBytes)
      return createStringError("query, key and value are numbers of different types");
  return Error::success();
}

Error StepInterface::checkLayers() {
  SmallVector<std::string> keys;
  SmallVector<Value> table;
  for (auto [number, layer] : llvm::enumerate(step.layers)) {
    for (auto [index, op] : llvm::enumerate(layer.operations())) {
      for (NamedAttribute attribute : llvm::to_vector(op->getDiscardableAttrs()))
        op->removeDiscardableAttr(attribute.getName());
      if (auto product = dyn_cast<fused::MatvecOp>(op))
        product.removePrefetchAttr();
      op->removeAttr("schedule");
      FailureOr<KernelInterface> found = KernelInterface::get(op);
      if (failed(found))
        return createStringError("an operation's interface");
      std::string key = found->key();
      if (number == 0)
        keys.push_back(std::move(key));
      else if (keys[index] != key)
        return createStringError(cast<fused::KernelOp>(op).getLabel() +
                                 ": its layer differs from the first one");
    }
    SmallVector<Value> read = fused::DecoderStep::constantsOf(layer);
    constants.insert(read.begin(), read.end());
    caches.push_back(layer.attention.getKeysAttr());
    caches.push_back(layer.attention.getValuesAttr());
    for (model::RotaryOp rotary : rotariesOf(layer.projections))
      if (rotary.getTable() != rotariesOf(step.layers.front().projections).front().getTable())
        return createStringError("rotations by different tables");
    if (layer.attention.getPositions() != positions())
      return createStringError("layers with different positions");
  }
  return Error::success();
}

Expected<StepInterface> StepInterface::get(fused::DecoderStep step,
                                           const fused::PersistentSchedule &schedule,
                                           const fused::GpuDevice &device) {
  Expected<PersistentPlan> plan = PersistentPlan::get(step.shape, schedule, device);
  if (!plan)
    return plan.takeError();
  StepInterface result(std::move(step), std::move(*plan));
  if (Error error = result.checkProducts())
    return std::move(error);
  if (Error error = result.checkLayers())
    return std::move(error);
  return std::move(result);
}

//===----------------------------------------------------------------------===//
// The kernel
//===----------------------------------------------------------------------===//

namespace {
class StepKernel {
public:
  using Values = DeviceBuilder::Values;
  using Extent = StreamedPart::Extent;

  StepKernel(DeviceBuilder &k, StepInterface &interface, Value shared,
             const fused::GpuDevice &device, ValueRange arguments);
  LogicalResult emit();

private:
  /// An operation of the first layer, with the interface that its code is generated from.
  struct Template {
    explicit Template(Operation *op) : op(op), interface(llvm::cantFail(expected(op))) {}
    Operation *op;
    KernelInterface interface;

  private:
    static Expected<KernelInterface> expected(Operation *op) {
      FailureOr<KernelInterface> found = KernelInterface::get(op);
      if (failed(found))
        return createStringError("an interface that was found before");
      return std::move(*found);
    }
  };
  /// Numbers of the block that are kept in shared memory. Of ranges the begin, then the size.
  enum Number : int64_t {
    InnerOfBlock = 0,
    InnerOfCluster = 2,
    SumTiles = 4,
    ProjectionTiles = 6,
    Last = 8, ///< the token's position
    FirstPiece,
    PieceCount ///< of the block
  };

  int64_t ranks() const { return plan.schedule.clusterBlocks; }
  int64_t warps() const { return plan.schedule.warps; }
  int64_t threads() const { return warps() * kWarp; }
  int64_t headTiles() const { return plan.shape.dim / PersistentPlan::kTile; }
  int64_t queryTiles() const { return plan.clusterHeads() * plan.shape.group() * headTiles(); }
  int64_t keyTiles() const { return plan.clusterHeads() * headTiles(); }
  int64_t pieceTiles() const { return attention.warpTiles; }

  Value place(fused::SharedRange range) { return k.offset(shared, range.offset); }
  Value zero() { return k.constI32(0); }
  Value number(int64_t index) {
    return k.load(k.i32(), k.offset(place(plan.extents), 4 * index), 4);
  }
  void storeNumbers();
  void storePointers();
  void storeRotary();
  void initBarriers();
  /// Address `slot` of a layer.
  Value pointer(Value layer, int64_t slot);
  /// The kernel's argument for something that layers read.
  Value argumentOf(Value value) {
    return arguments[StepInterface::kConstants +
                     (llvm::find(interface.constants, value) - interface.constants.begin())];
  }
  /// What a layer has in the place of the first one's `value`.
  Value constant(Value layer, Value value);
  Value cache(Value layer, bool isKeys) {
    return pointer(layer, plan.shape.layerPointers - (isKeys ? 2 : 1));
  }
  /// Gives an operation's values the addresses of a layer. `others`: of values that another
  /// operation of the layer computes, in shared memory.
  void bind(Template &target, Value layer,
            const llvm::DenseMap<Value, Value> &others = llvm::DenseMap<Value, Value>());

  void waitForAll() { k.barrier(1, threads()); }
  Value roundingPlace() { return k.at(place(plan.scratch), warp, PersistentPlan::kGroupBytes); }

  ResidualExchange stream() {
    Value sums = arguments[StepInterface::kSums];
    return {k,
            plan,
            {shared, arguments[StepInterface::kEmbedding], sums,
             k.offset(sums, (interface.sumWords() - 1) * 8)},
            thread};
  }
  AttentionJoin join() { return {k, plan, shared, thread}; }
  /// While it lives, what is computed from the thread's numbers is not computed before. Else all
  /// layers' addresses were, and kept in registers.
  struct Fresh {
    explicit Fresh(StepKernel &kernel)
        : thread(kernel.thread, opaqueCopy(kernel.k, kernel.thread)),
          lane(kernel.lane, kernel.k.bitAnd(kernel.thread, kWarp - 1)),
          warp(kernel.warp, kernel.k.shr(kernel.thread, 5)),
          cluster(kernel.cluster, opaqueCopy(kernel.k, kernel.cluster)),
          rank(kernel.rank, opaqueCopy(kernel.k, kernel.rank)) {}
    llvm::SaveAndRestore<Value> thread, lane, warp, cluster, rank;
  };

  // The parts of a layer.
  Extent projectionExtent(Value layer);
  Extent outputExtent(Value layer);
  Extent gateExtent(Value layer);
  Extent downExtent(Value layer);
  Value innerBytes();
  Value projectionBytes();

  Values copyPieces(Value layer, Value head, ValueRange carried);
  void copyAll();

  /// Each takes and gives the stages that have passed.
  LogicalResult computeAll();
  Value project(Value layer, Value passed);
  void finishProjection(Value layer, Value ofCluster, Value inRank, Value row, Value low,
                        Value high);
  void sendProjections(Value layer);
  Value attend(Value layer, Value passed);
  /// Where rows of the cluster's query, key and value heads are.
  llvm::DenseMap<Value, Value> projected();
  void makeQueries(Value layer);
  void readPieces(Value layer, Value head, Value passed);
  /// Outputs of the warps that read pieces.
  TileAttention::Parts attentionParts() {
    int64_t count = plan.pieceReaders() * attention.group;
    Value maxima = k.offset(place(plan.sums), count * attention.partRow() * 4);
    return {place(plan.sums), maxima, k.offset(maxima, count * 4), plan.pieceReaders()};
  }
  void patchNewest(Value layer, Value head, Value passed);
  Value addOutput(Value layer, Value passed);
  Value multiplyGates(Value layer, Value passed);
  Value addDown(Value layer, Value passed);

  DeviceBuilder &k;
  StepInterface &interface;
  fused::DecoderStep::Layer first;
  const PersistentPlan &plan;
  Value shared;
  fused::GpuDevice device;
  ValueRange arguments;
  SmallVector<Value> constants; ///< of the first layer
  llvm::SmallBitVector common;  ///< those that all layers have
  Template projections, attentionOp, gates;
  SmallVector<PackedSegment> projectionRows, gateRows;
  Value thread, block, lane, warp, cluster, rank;
  fused::AttentionShape attention;
  WeightStream ring;
  GroupExchange inner, projected_;
  StreamedPart projectionPart, outputPart, gatePart, downPart;
  LogicalResult result = success();
};
} // namespace

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
      constants(fused::DecoderStep::constantsOf(first)), common(interface.step.commonConstants()),
      projections(first.projections), attentionOp(first.attention), gates(first.gates),
      projectionRows(*kernels::packedSegments(first.projections)),
      gateRows(*kernels::packedSegments(first.gates)), thread(k.thread()), block(k.block()),
      lane(k.bitAnd(thread, kWarp - 1)), warp(k.shr(thread, 5)),
      cluster(k.div(block, plan.schedule.clusterBlocks)), rank(k.rankInCluster()),
      attention(attentionShape(first.attention, plan)), ring(k, plan, shared),
      inner{k, plan, shared, PersistentPlan::Inner, plan.inner, plan.innerMeta},
      projected_{k, plan, shared, PersistentPlan::Projections, plan.projections, {}},
      projectionPart(shapeOf(first.projections), plan.widthGroups(), plan),
      outputPart(shapeOf(first.output), plan.attendedGroups(), plan),
      gatePart(shapeOf(first.gates), plan.widthGroups(), plan),
      downPart(shapeOf(first.down), plan.mostClusterInnerGroups(), plan) {}

void StepKernel::storeNumbers() {
  auto store = [&](int64_t index, Value value) {
    k.store(value, k.offset(place(plan.extents), 4 * index), 4);
  };
  auto storePart = [&](int64_t index, const PartOf &part) {
    store(index, part.begin);
    store(index + 1, k.sub(part.end, part.begin));
  };
  storePart(InnerOfBlock, PartOf(k, plan.innerGroups(), plan.blocks(), block));
  storePart(InnerOfCluster, PartOf(k, plan.innerGroups(), plan.schedule.clusters, cluster));
  storePart(SumTiles, PartOf(k, plan.widthTiles(), ranks(), rank));
  storePart(ProjectionTiles, PartOf(k, queryTiles() + 2 * keyTiles(), ranks(), rank));
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
    for (auto [index, value] : llvm::enumerate(fused::DecoderStep::constantsOf(layer)))
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

Value StepKernel::constant(Value layer, Value value) {
  int64_t index = llvm::find(constants, value) - constants.begin(), slot = 0;
  if (common[index])
    return argumentOf(value);
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
  k.loop(thread, k.constI32(plan.shape.dim), threads() + kWarp, [&](Value i) {
    k.store(k.load(k.f32(), k.offset(row, k.shl(i, 2)), 4),
            k.offset(place(plan.rotary), k.shl(i, 2)), 4);
  });
}

Value StepKernel::innerBytes() {
  Value groups = number(InnerOfCluster + 1);
  Value bytes = k.mul(groups, PersistentPlan::kGroupBytes + PersistentPlan::kGroupMetaBytes);
  // Ranks without groups send tokens.
  if (plan.mostInnerGroups() > 1)
    return bytes;
  return k.add(bytes, k.mul(k.sub(k.constI32(ranks()), groups), PersistentPlan::kTokenBytes));
}

Value StepKernel::projectionBytes() {
  int64_t bytes = plan.projections.bytes;
  for (int64_t other = 0; other < ranks(); ++other)
    if (plan.projectionTiles(other).size() == 0)
      bytes += PersistentPlan::kTokenBytes;
  return k.constI32(bytes);
}

void StepKernel::initBarriers() {
  stream().initBarrier();
  inner.init(innerBytes());
  projected_.init(projectionBytes());
  join().initBarriers();
  ring.initBarriers();
  k.initBarrier(place(plan.appended), 1);
  k.fenceBarrierInit();
}

//===----------------------------------------------------------------------===//
// Who reads which weights
//===----------------------------------------------------------------------===//

StepKernel::Extent StepKernel::projectionExtent(Value layer) {
  Extent extent{constant(layer, first.projections.getWeights().front()), number(ProjectionTiles),
                number(ProjectionTiles + 1), zero(), k.constI32(plan.widthGroups())};
  extent.placeOf = [this](Value tile) {
    // The cluster's query tiles, then those of its keys and of its values.
    auto at = [&](int64_t segment, int64_t before, int64_t tiles) {
      Value start = k.add(k.mul(cluster, tiles), projectionRows[segment].firstTile - before);
      return k.add(tile, start);
    };
    Value value = at(2, queryTiles() + keyTiles(), keyTiles()),
          key = at(1, queryTiles(), keyTiles());
    Value result = k.select(k.less(tile, k.constI32(queryTiles() + keyTiles())), key, value);
    return k.select(k.less(tile, k.constI32(queryTiles())), at(0, 0, queryTiles()), result);
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

StepKernel::Values StepKernel::copyPieces(Value layer, Value head, ValueRange carried) {
  return k.loop(zero(), number(PieceCount), 1, carried, [&](Value n, ValueRange values) {
    return ring.copyStage(plan.schedule.attentionInFlight, values, [&](Value to, Value barrier) {
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
           Values after = k.ifElseYield(
               attends,
               [&] {
                 Values now =
                     ring.copy(projectionPart, projectionExtent(layer), inAttention, carried, lane);
                 now = k.loop(zero(), k.constI32(plan.clusterHeads()), 1, now,
                              [&](Value head, ValueRange values) {
                                return copyPieces(layer, head, values);
                              });
                 return ring.copy(outputPart, outputExtent(layer), inAttention, now, lane);
               },
               [&] { return llvm::to_vector(carried); });
           after = ring.copy(gatePart, gateExtent(layer), inMlp, after, lane);
           return ring.copy(downPart, downExtent(layer), inMlp, after, lane);
         });
  k.launchDependents();
}

//===----------------------------------------------------------------------===//
// Query, key and value
//===----------------------------------------------------------------------===//

void StepKernel::finishProjection(Value layer, Value ofCluster, Value inRank, Value row, Value low,
                                  Value high) {
  bind(projections, layer);
  Value tile = projectionExtent(layer).place(ofCluster);
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
  // Half a tile are neighbouring rows of a head, 16 bytes or 32.
  int64_t bytes = plan.shape.projectionBytes, pieces = 16 * bytes / 16;
  Value count = number(ProjectionTiles + 1), begin = number(ProjectionTiles);
  k.loop(thread, k.mul(count, pieces * ranks()), threads(), [&](Value item) {
    Value peer = k.rem(item, ranks()), piece = k.div(item, ranks());
    Value words = k.load(k.vec(4, k.i32()), k.offset(place(plan.projected), k.shl(piece, 4)), 16);
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
  k.ifThen(k.equal(count, zero()), [&] { projected_.sendToken(rank, thread); });
  projected_.receive(layer, projectionBytes(), thread);
}

Value StepKernel::project(Value layer, Value passed) {
  Fresh fresh(*this);
  GroupExchange input = stream().exchange();
  Value factor = stream().normFactor(normOf(first.projections).getEpsilon().convertToDouble());
  passed = ring.forBatches(
      projectionPart, projectionExtent(layer), plan.mostProjectionTiles(), passed,
      [&](const Extent &batch, Value firstTile, Value before) {
        ring.multiply(
            projectionPart, batch, before, warp, lane,
            [&](Value group) { return input.operands(group); },
            [&](Value group) { return input.scale(group); });
        waitForAll();
        ring.finish(projectionPart, batch, thread, threads(),
                    [&](Value tile, Value row, Value low, Value high) {
                      finishProjection(layer, k.add(batch.firstTile, tile), k.add(firstTile, tile),
                                       row, k.mulF(low, factor), k.mulF(high, factor));
                    });
        waitForAll();
      });
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
    Value stage = ring.take(k.add(passed, k.sub(count, 1)));
    Value inPiece = k.rem(tile, pieceTiles());
    for (Target &target : targets) {
      const formats::CacheShape &shape = target.isKeys ? attention.keys : attention.values;
      Value at = k.offset(stage, target.isKeys ? 0 : pieceTiles() * attention.keys.tileBytes());
      storeVector(k, shape, target.vector, k.at(at, inPiece, shape.tileBytes()), position, lane);
    }
    k.fenceAsyncShared(); // the stage is copied to next
    k.syncWarp();
    k.ifThen(k.equal(lane, zero()), [&] { k.arrive(place(plan.appended)); });
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
  SmallVector<TileAttention::Query> queries = tiles.loadQueries();
  Values after =
      k.loop(part, number(PieceCount), plan.pieceReaders(), tiles.nothing(),
             [&](Value n, ValueRange carried) {
               Value number = k.add(passed, n);
               Value stage = ring.take(number);
               Value piece = k.add(this->number(FirstPiece), k.add(k.mul(n, ranks()), rank));
               k.ifThen(k.equal(piece, newest), [&] {
                 Value round = k.add(k.mul(layer, plan.clusterHeads()), head);
                 k.wait(place(plan.appended), k.bitAnd(round, 1));
               });
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
  Value appender = k.constI32(warps() > plan.attentionWarps() ? plan.attentionWarps() : 0);
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

Value StepKernel::addOutput(Value layer, Value passed) {
  Fresh fresh(*this);
  GroupExchange input = join().exchange();
  return ring.forBatches(
      outputPart, outputExtent(layer), llvm::divideCeil(plan.widthTiles(), ranks()), passed,
      [&](const Extent &batch, Value, Value before) {
        ring.multiply(
            outputPart, batch, before, warp, lane,
            [&](Value group) { return input.operands(group); },
            [&](Value group) { return input.scale(group); });
        waitForAll();
        ring.finish(outputPart, batch, thread, threads(),
                    [&](Value tile, Value row, Value low, Value high) {
                      Value at = k.add(k.shl(k.add(batch.firstTile, tile), 4), row);
                      stream().addAttention(at, low);
                      stream().addAttention(k.add(at, 8), high);
                    });
        waitForAll(); // before other sums come to the same place
      });
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
  passed = ring.forBatches(
      gatePart, gateExtent(layer), plan.mostInnerGroups() * tilesOfGroup, passed,
      [&](const Extent &batch, Value firstTile, Value before) {
        ring.multiply(
            gatePart, batch, before, warp, lane, [&](Value group) { return input.operands(group); },
            [&](Value group) { return input.scale(group); });
        waitForAll();
        ring.finish(
            gatePart, batch, thread, threads(), [&](Value tile, Value row, Value low, Value high) {
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
  return ring.forBatches(
      downPart, downExtent(layer), llvm::divideCeil(plan.widthTiles(), ranks()), passed,
      [&](const Extent &batch, Value, Value before) {
        ring.multiply(
            downPart, batch, before, warp, lane, [&](Value group) { return inner.operands(group); },
            [&](Value group) { return inner.scale(group); });
        waitForAll();
        ring.finish(downPart, batch, thread, threads(),
                    [&](Value tile, Value row, Value low, Value high) {
                      Value at = k.add(k.shl(k.add(batch.firstTile, tile), 4), row);
                      stream().addMlp(layer, at, low);
                      stream().addMlp(layer, k.add(at, 8), high);
                    });
        waitForAll(); // before other sums come to the same place
      });
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
  auto readMlp = [&](Value layer) {
    k.ifThen(k.less(zero(), layer), [&] { stream().readMlp(k.sub(layer, 1)); });
  };
  Value inAttention = normOf(first.projections).getGain(), inMlp = normOf(first.gates).getGain();
  k.loop(zero(), layers, 1, {zero(), zero()}, [&](Value layer, ValueRange carried) {
    Value passed = carried[0], round = carried[1];
    Fresh fresh(*this);
    readMlp(layer);
    Values after = k.ifElseYield(
        attends,
        [&] {
          stream().send(constant(layer, inAttention));
          stream().receive(round);
          Value now = project(layer, passed);
          now = attend(layer, now);
          return Values{addOutput(layer, now), k.add(round, 1)};
        },
        [&] { return Values{passed, round}; });
    Fresh again(*this);
    stream().readAttention(layer);
    stream().send(constant(layer, inMlp));
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
  k.loop(thread, k.constI32(plan.outputs.bytes / 4), threads() + kWarp,
         [&](Value i) { k.store(k.number(0.0), k.at(place(plan.outputs), i, 4), 4); });
  k.loop(thread, k.constI32(plan.outputMeta.bytes / 4), threads() + kWarp,
         [&](Value i) { k.store(k.number(0.0), k.at(place(plan.outputMeta), i, 4), 4); });
  k.ifThen(k.equal(thread, zero()), [&] {
    storeNumbers();
    initBarriers();
  });
  k.clusterArrive();
  k.clusterWait();
  LogicalResult computed = success();
  k.ifElse(
      k.less(thread, k.constI32(threads())), [&] { computed = computeAll(); }, [&] { copyAll(); });
  // Nobody sends to a block that has ended.
  k.clusterArrive();
  k.clusterWait();
  return computed;
}

LogicalResult device::emitStep(DeviceBuilder &k, StepInterface &interface, Value shared,
                               const fused::GpuDevice &device, ValueRange arguments) {
  return StepKernel(k, interface, shared, device, arguments).emit();
}
