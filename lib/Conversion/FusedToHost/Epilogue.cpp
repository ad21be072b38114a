// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Products.h"

#include "sluice/Formats/CacheLayout.h"

#include "llvm/ADT/SmallBitVector.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::host;
using llvm::SmallBitVector;

namespace {
/// Evaluates the epilogue region on the rows that lie in one tile.
class Epilogue {
public:
  Epilogue(KernelBuilder &k, fused::MatvecOp op, const KernelInterface &interface,
           const PackedSegment &segment, int64_t token)
      : k(k), op(op), interface(interface), segment(segment), token(token) {}

  LogicalResult emit(Value tile, Value sums);

private:
  /// Whether `source` is one whose rows the segment holds.
  bool holds(int64_t source) const {
    return source == segment.order.getFirst() ||
           (segment.order.isZip() && source == segment.order.getSecond());
  }
  void findRows(Value tile);
  /// The sources that a value of the region is computed from.
  const SmallBitVector &sourcesOf(Value value);
  /// Whether the value is computed from this segment's rows. Fails if also from another's.
  FailureOr<bool> concerns(Operation *user, Value value);
  FailureOr<Value> evaluate(Value value);
  FailureOr<Value> rotary(model::RotaryOp rotary);
  LogicalResult append(model::CacheAppendOp append);
  LogicalResult yield(Value value, unsigned result);

  /// The position of the token, clamped to [0, limit).
  Value position(Value positions, int64_t limit);
  /// The rows' elements of an array that starts at `first` (i64, in elements), as float32.
  Value load(Value pointer, Value first, Type element);
  void store(Value lanes, Type element, Value pointer, Value first);

  KernelBuilder &k;
  fused::MatvecOp op;
  const KernelInterface &interface;
  const PackedSegment &segment;
  int64_t token;
  TileRows rows;
  DenseMap<Value, Value> values;
  DenseMap<Value, SmallBitVector> sources;
};
} // namespace

void Epilogue::findRows(Value tile) {
  int64_t count = op.getSegments()[segment.order.getFirst()];
  auto run = [&](Value first, int64_t lanes, Value left, bool exact) {
    rows.runs.push_back({first, exact ? Value() : k.firstLanes(lanes, left), lanes});
  };
  if (segment.order.isNatural()) {
    Value first = k.mul(tile, kLanes);
    return run(first, kLanes, k.sub(k.index(count), first), count % kLanes == 0);
  }
  constexpr int64_t half = kLanes / 2;
  if (segment.order.isZip()) {
    Value first = k.mul(tile, half);
    return run(first, half, k.sub(k.index(count), first), count % half == 0);
  }
  // Pairs: tiles of a head, then of the next one.
  int64_t head = segment.order.getSecond(), headTiles = llvm::divideCeil(head / 2, half);
  Value inHead = k.mul(k.rem(tile, headTiles), half);
  Value first = k.add(k.mul(k.div(tile, headTiles), head), inHead);
  Value left = k.sub(k.index(head / 2), inHead);
  run(first, half, left, head / 2 % half == 0);
  run(k.add(first, head / 2), half, left, head / 2 % half == 0);
}

const SmallBitVector &Epilogue::sourcesOf(Value value) {
  auto found = sources.find(value);
  if (found != sources.end())
    return found->second;
  SmallBitVector result(op.getSegments().size());
  auto argument = dyn_cast<BlockArgument>(value);
  if (argument && argument.getParentRegion() == &op.getEpilogue()) {
    result.set(argument.getArgNumber());
  } else if (Operation *inner = value.getDefiningOp();
             inner && op.getEpilogue().isAncestor(inner->getParentRegion())) {
    for (Value operand : inner->getOperands())
      result |= sourcesOf(operand);
  }
  return sources[value] = result;
}

FailureOr<bool> Epilogue::concerns(Operation *user, Value value) {
  const SmallBitVector &used = sourcesOf(value);
  if (used.none())
    return user->emitOpError()
           << "in an epilogue reads a value that does not depend on the product";
  bool inside = false;
  int64_t outside = -1;
  for (unsigned source : used.set_bits()) {
    if (holds(source))
      inside = true;
    else
      outside = source;
  }
  if (inside && outside >= 0)
    return user->emitOpError()
           << "combines rows of segments " << segment.order.getFirst() << " and " << outside
           << ", which the row order keeps in different tiles (zip would join them)";
  return inside;
}

Value Epilogue::position(Value positions, int64_t limit) {
  Value position = k.load(k.i32(), k.offset(interface.pointer(positions), token * 4), 4);
  // The runtime checks positions; a wrong one must not reach memory outside.
  position = k.max(k.min(position, k.integer(k.i32(), limit - 1)), k.integer(k.i32(), 0));
  return k.extend(position, k.i64());
}

Value Epilogue::load(Value pointer, Value first, Type element) {
  int64_t bytes = bytesOf(element);
  Value lanes;
  for (const TileRows::Run &run : rows.runs) {
    Value place = k.offset(pointer, k.mul(k.add(first, run.first), bytes));
    Value part = k.loadFloats(run.laneCount, element, place, bytes, run.mask);
    lanes = lanes ? k.concat(lanes, part) : part;
  }
  return lanes;
}

void Epilogue::store(Value lanes, Type element, Value pointer, Value first) {
  int64_t bytes = bytesOf(element), lane = 0;
  lanes = k.widen(lanes);
  for (const TileRows::Run &run : rows.runs) {
    Value place = k.offset(pointer, k.mul(k.add(first, run.first), bytes));
    k.storeFloats(k.slice(lanes, lane, run.laneCount), element, place, bytes, run.mask);
    lane += run.laneCount;
  }
}

FailureOr<Value> Epilogue::evaluate(Value value) {
  if (Value known = values.lookup(value))
    return known;
  Operation *inner = value.getDefiningOp();
  if (Value pointer = interface.pointer(value)) {
    // A tensor from outside, read at the rows' places: a vector for all tokens, or a row for
    // each.
    auto type = dyn_cast<RankedTensorType>(value.getType());
    if (!type || !isa<FloatType>(type.getElementType()) || type.getRank() > 2)
      return op.emitOpError() << "epilogue reads a value of type " << value.getType()
                              << " in a way that cannot be converted to host code";
    int64_t first = type.getRank() == 2 ? token * type.getDimSize(1) : 0;
    return values[value] = load(pointer, k.index(first), type.getElementType());
  }
  if (!inner)
    return op.emitOpError() << "epilogue combines rows of different segments";
  if (auto rotation = dyn_cast<model::RotaryOp>(inner)) {
    FailureOr<Value> lanes = rotary(rotation);
    if (succeeded(lanes))
      values[value] = *lanes;
    return lanes;
  }
  SmallVector<Value> operands;
  for (Value operand : inner->getOperands()) {
    FailureOr<Value> lanes = evaluate(operand);
    if (failed(lanes))
      return failure();
    operands.push_back(*lanes);
  }
  Value lanes = isa<model::AddBiasOp>(inner) ? k.addF(operands[0], k.widen(operands[1]))
                                             : emitElementwise(k, inner, operands);
  if (!lanes)
    return inner->emitOpError() << "in an epilogue cannot be converted to host code";
  return values[value] = lanes;
}

FailureOr<Value> Epilogue::rotary(model::RotaryOp rotary) {
  int64_t head = rotary.getHeadDim();
  if (!segment.order.isPairs() || segment.order.getSecond() != head)
    return rotary.emitOpError() << "needs its rows in the order pairs(" << segment.order.getFirst()
                                << ", " << head << "), found " << segment.order;
  if (!rotary.getTable())
    return rotary.emitOpError() << "needs a table (fused-tabulate-rotary makes one)";
  FailureOr<Value> input = evaluate(rotary.getInput());
  if (failed(input))
    return failure();
  constexpr int64_t half = kLanes / 2;
  auto tableType = rotary.getTable().getType();
  Value row = k.mul(position(rotary.getPositions(), tableType.getDimSize(0)), head);
  // Row i of the first half turns by angle i of the head.
  const TileRows::Run &run = rows.runs.front();
  Value pair = k.rem(run.first, head);
  Value cosines = k.offset(interface.pointer(rotary.getTable()), k.mul(k.add(row, pair), 4));
  Value sines = k.offset(cosines, head / 2 * 4);
  Value cosine = k.load(k.vec(half, k.f32()), cosines, 4, run.mask);
  Value sine = k.load(k.vec(half, k.f32()), sines, 4, run.mask);
  Value x = k.slice(*input, 0, half), y = k.slice(*input, half, half);
  Value turnedX = k.subF(k.mulF(x, cosine), k.mulF(y, sine));
  Value turnedY = k.addF(k.mulF(y, cosine), k.mulF(x, sine));
  return k.concat(turnedX, turnedY);
}

LogicalResult Epilogue::append(model::CacheAppendOp append) {
  FailureOr<Value> lanes = evaluate(append.getInput());
  if (failed(lanes))
    return failure();
  quantized::CacheType cache = interface.cacheType(append.getCacheAttr());
  formats::CacheShape shape = cache.getShapeInfo();
  bool isKeys = shape.order == formats::CacheOrder::LanesKeys;
  if ((!isKeys && shape.order != formats::CacheOrder::LanesValues) || shape.encoding.bits() != 16)
    return append.emitOpError()
           << "to cache " << append.getCacheAttr() << " of type " << cache
           << ", an epilogue on a host stores f16 or bf16 in layout lanes_keys "
              "or lanes_values";
  // Rows are elements of one position. Of a value they lie side by side, of a key 16 elements
  // apart.
  Value at = position(append.getPositions(), shape.positions);
  Value tile = k.mul(k.div(at, formats::cacheTile), shape.tileBytes());
  Value base =
      k.offset(interface.cachePointer(append.getCacheAttr()),
               k.add(tile, shape.sequences == 1 ? 0 : token * shape.heads * shape.headBytes()));
  Value inTile = k.rem(at, formats::cacheTile);
  formats::CacheArithmetic<Value> arithmetic = {[&](Value x, Value y) { return k.add(x, y); },
                                                [&](Value x, int64_t y) { return k.mul(x, y); },
                                                [&](Value x, int64_t y) { return k.div(x, y); },
                                                [&](Value x, int64_t y) { return k.rem(x, y); }};
  Value bits = k.bitcast(k.narrow(k.widen(*lanes), cache.getElement()), k.i16());
  int64_t lane = 0;
  for (const TileRows::Run &run : rows.runs)
    for (int64_t i = 0; i < run.laneCount; ++i, ++lane) {
      Value element = vector::ExtractOp::create(k.b, k.loc, bits, lane);
      auto storeOne = [&] {
        Value row = k.add(run.first, i), head = k.div(row, shape.dim), d = k.rem(row, shape.dim);
        Value byte = formats::cacheCodeByte<Value>(arithmetic, shape, inTile, d);
        k.store(element, k.offset(base, k.add(k.mul(head, shape.headBytes()), byte)), 2);
      };
      if (run.mask)
        k.ifElse(vector::ExtractOp::create(k.b, k.loc, run.mask, i), storeOne, [] {});
      else
        storeOne();
    }
  return success();
}

LogicalResult Epilogue::yield(Value value, unsigned result) {
  FailureOr<Value> lanes = evaluate(value);
  if (failed(lanes))
    return failure();
  auto type = cast<RankedTensorType>(op.getResult(result).getType());
  store(*lanes, type.getElementType(), interface.resultPointer(result),
        k.index(token * type.getDimSize(1)));
  return success();
}

LogicalResult Epilogue::emit(Value tile, Value sums) {
  findRows(tile);
  if (op.getEpilogue().empty()) {
    if (segment.order.isZip())
      return op.emitOpError() << "with zipped rows needs an epilogue";
    store(sums, k.f32(), interface.resultPointer(segment.order.getFirst()),
          k.index(token * op.getSegments()[segment.order.getFirst()]));
    return success();
  }
  Block &block = op.getEpilogue().front();
  if (segment.order.isZip()) {
    values[block.getArgument(segment.order.getFirst())] = k.slice(sums, 0, kLanes / 2);
    values[block.getArgument(segment.order.getSecond())] = k.slice(sums, kLanes / 2, kLanes / 2);
  } else {
    values[block.getArgument(segment.order.getFirst())] = sums;
  }
  for (Operation &inner : block) {
    if (auto cacheAppend = dyn_cast<model::CacheAppendOp>(inner)) {
      FailureOr<bool> here = concerns(&inner, cacheAppend.getInput());
      if (failed(here) || (*here && failed(append(cacheAppend))))
        return failure();
    } else if (auto end = dyn_cast<fused::YieldOp>(inner)) {
      for (auto [result, value] : llvm::enumerate(end.getValues())) {
        FailureOr<bool> here = concerns(&inner, value);
        if (failed(here) || (*here && failed(yield(value, result))))
          return failure();
      }
    }
  }
  return success();
}

LogicalResult sluice::host::emitEpilogue(KernelBuilder &k, fused::MatvecOp op,
                                         const KernelInterface &interface,
                                         const PackedSegment &segment, Value tile, Value sums,
                                         int64_t token) {
  return Epilogue(k, op, interface, segment, token).emit(tile, sums);
}
