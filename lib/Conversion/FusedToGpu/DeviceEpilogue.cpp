// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Kernels.h"

#include "AttentionPrologue.h"

#include "llvm/ADT/SmallBitVector.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::device;
using llvm::SmallBitVector;

namespace {
/// Evaluates the epilogue region on the one or two rows of a source that a thread owns: rows r and
/// r + 8 of a tile, which pairs and zip orders fill with what belongs together.
class Epilogue {
public:
  using Values = DeviceBuilder::Values;

  Epilogue(Kernel &kernel, fused::MatvecOp op, const PackedSegment &segment, int64_t token)
      : kernel(kernel), k(kernel.k), op(op), segment(segment), token(token) {}

  LogicalResult emit(Value tile, Value row, Value low, Value high, const EpilogueLoads &loads);
  void preload(Value tile, Value row, bool fresh, EpilogueLoads &loads);

private:
  /// A row of the source; `exists` is null if it always does. `index` is a row that does.
  struct Row {
    Value index, exists;
  };

  bool holds(int64_t source) const {
    return source == segment.order.getFirst() ||
           (segment.order.isZip() && source == segment.order.getSecond());
  }
  void findRows(Value tile, Value row);
  const SmallBitVector &sourcesOf(Value value);
  /// Whether the value is computed from this segment's rows. Fails if also from another's.
  FailureOr<bool> concerns(Operation *user, Value value);
  FailureOr<Values> evaluate(Value value);
  FailureOr<Values> rotary(model::RotaryOp rotary);
  /// The elements of a tensor from outside at the rows' places: of a vector for all tokens, or
  /// of a row for each. Empty if it is no such tensor.
  Values load(Value value);
  /// Cosine and sine by which the rows turn.
  Values loadTurn(model::RotaryOp rotary);
  LogicalResult append(model::CacheAppendOp append);
  LogicalResult yield(Value value, unsigned result);
  void store(Values elements, Type element, llvm::function_ref<Value(Value row)> place);

  /// The position of the token, clamped to [0, limit).
  Value position(Value positions, int64_t limit);

  Kernel &kernel;
  DeviceBuilder &k;
  fused::MatvecOp op;
  const PackedSegment &segment;
  int64_t token;
  SmallVector<Row, 2> rows;
  EpilogueLoads loads;
  DenseMap<Value, Values> values;
  DenseMap<Value, SmallBitVector> sources;
};
} // namespace

void Epilogue::findRows(Value tile, Value row) {
  int64_t count = op.getSegments()[segment.order.getFirst()];
  constexpr int64_t half = formats::tileRows / 2;
  auto add = [&](Value index, bool exact) {
    if (exact)
      return rows.push_back({index, Value()});
    Value exists = k.less(index, k.constI32(count));
    rows.push_back({k.min(index, k.constI32(count - 1)), exists});
  };
  if (segment.order.isNatural()) {
    Value first = k.add(k.mul(tile, formats::tileRows), row);
    add(first, count % formats::tileRows == 0);
    return add(k.add(first, half), count % formats::tileRows == 0);
  }
  if (segment.order.isZip())
    return add(k.add(k.mul(tile, half), row), count % half == 0);
  // Pairs: tiles of a head, then of the next one.
  int64_t head = segment.order.getSecond(), headTiles = llvm::divideCeil(head / 2, half);
  Value inHead = k.add(k.mul(k.rem(tile, headTiles), half), row), exists;
  if (head / 2 % half) {
    exists = k.less(inHead, k.constI32(head / 2));
    inHead = k.min(inHead, k.constI32(head / 2 - 1));
  }
  Value first = k.add(k.mul(k.div(tile, headTiles), head), inHead);
  rows.push_back({first, exists});
  rows.push_back({k.add(first, head / 2), exists});
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
  Value position = k.load(k.i32(), k.offset(kernel.interface.pointer(positions), token * 4), 4);
  // The runtime checks positions; a wrong one must not reach memory outside.
  return k.max(k.min(position, k.constI32(limit - 1)), k.constI32(0));
}

void Epilogue::store(Values elements, Type element, llvm::function_ref<Value(Value)> place) {
  for (auto [row, value] : llvm::zip_equal(rows, elements)) {
    auto storeOne = [&, &row = row, &value = value] {
      k.store(k.narrow(k.widen(value), element), place(row.index), bytesOf(element));
    };
    if (row.exists)
      k.ifThen(row.exists, storeOne);
    else
      storeOne();
  }
}

DeviceBuilder::Values Epilogue::load(Value value) {
  auto type = dyn_cast<RankedTensorType>(value.getType());
  if (!type || !isa<FloatType>(type.getElementType()) || type.getRank() > 2)
    return {};
  Type element = type.getElementType();
  int64_t bytes = bytesOf(element);
  int64_t first = type.getRank() == 2 ? token * type.getDimSize(1) : 0;
  Value base = k.offset(kernel.interface.pointer(value), first * bytes);
  Values elements;
  for (const Row &row : rows) {
    Value place = k.offset(base, k.mul(row.index, bytes));
    elements.push_back(isConstant(value) ? k.load(element, place, bytes)
                                         : k.loadFresh(element, place, bytes));
  }
  return elements;
}

DeviceBuilder::Values Epilogue::loadTurn(model::RotaryOp rotary) {
  int64_t head = rotary.getHeadDim();
  auto tableType = rotary.getTable().getType();
  Value row = k.mul(position(rotary.getPositions(), tableType.getDimSize(0)), head);
  // Row i of the first half turns by angle i of the head.
  Value place = k.add(row, k.rem(rows.front().index, head));
  Value cosines = k.offset(kernel.interface.pointer(rotary.getTable()),
                           k.extendUnsigned(k.mul(place, 4), k.i64()));
  return {k.load(k.f32(), cosines, 4), k.load(k.f32(), k.offset(cosines, head / 2 * 4), 4)};
}

void Epilogue::preload(Value tile, Value row, bool fresh, EpilogueLoads &result) {
  if (op.getEpilogue().empty())
    return;
  findRows(tile, row);
  for (Operation &inner : op.getEpilogue().front()) {
    bool concernsSegment = llvm::any_of(inner.getResults(), [&](Value value) {
      return llvm::any_of(sourcesOf(value).set_bits(), [&](unsigned n) { return holds(n); });
    });
    if (!concernsSegment)
      continue;
    if (auto rotary = dyn_cast<model::RotaryOp>(inner)) {
      if (!fresh && rotary.getTable() && segment.order.isPairs())
        result[&inner] = loadTurn(rotary);
      continue;
    }
    for (Value operand : inner.getOperands())
      if (kernel.interface.pointer(operand) && isConstant(operand) != fresh)
        if (Values elements = load(operand); !elements.empty())
          result[operand.getAsOpaquePointer()] = elements;
  }
}

FailureOr<DeviceBuilder::Values> Epilogue::evaluate(Value value) {
  if (auto found = values.find(value); found != values.end())
    return found->second;
  if (auto found = loads.find(value.getAsOpaquePointer()); found != loads.end())
    return found->second;
  if (kernel.interface.pointer(value)) {
    Values elements = load(value);
    if (elements.empty())
      return op.emitOpError() << "epilogue reads a value of type " << value.getType()
                              << " in a way that cannot be converted to GPU code";
    return values[value] = elements;
  }
  Operation *inner = value.getDefiningOp();
  if (!inner)
    return op.emitOpError() << "epilogue combines rows of different segments";
  if (auto rotation = dyn_cast<model::RotaryOp>(inner)) {
    FailureOr<Values> turned = rotary(rotation);
    if (succeeded(turned))
      values[value] = *turned;
    return turned;
  }
  SmallVector<Values> operands;
  for (Value operand : inner->getOperands()) {
    FailureOr<Values> elements = evaluate(operand);
    if (failed(elements))
      return failure();
    operands.push_back(*elements);
  }
  Values result;
  for (size_t row = 0; row < rows.size(); ++row) {
    Values scalars = llvm::map_to_vector(operands, [&](Values &all) { return all[row]; });
    Value element = emitElementwise(k, inner, scalars);
    if (!element)
      return inner->emitOpError() << "in an epilogue cannot be converted to GPU code";
    result.push_back(element);
  }
  return values[value] = result;
}

FailureOr<DeviceBuilder::Values> Epilogue::rotary(model::RotaryOp rotary) {
  int64_t head = rotary.getHeadDim();
  if (!segment.order.isPairs() || segment.order.getSecond() != head)
    return rotary.emitOpError() << "needs its rows in the order pairs(" << segment.order.getFirst()
                                << ", " << head << "), found " << segment.order;
  if (!rotary.getTable())
    return rotary.emitOpError() << "needs a table (fused-tabulate-rotary makes one)";
  FailureOr<Values> input = evaluate(rotary.getInput());
  if (failed(input))
    return failure();
  auto found = loads.find(rotary.getOperation());
  Values turn = found != loads.end() ? found->second : loadTurn(rotary);
  Value cosine = turn[0], sine = turn[1];
  Value x = (*input)[0], y = (*input)[1];
  return Values{k.subF(k.mulF(x, cosine), k.mulF(y, sine)),
                k.addF(k.mulF(y, cosine), k.mulF(x, sine))};
}

LogicalResult Epilogue::append(model::CacheAppendOp append) {
  FailureOr<Values> elements = evaluate(append.getInput());
  if (failed(elements))
    return failure();
  quantized::CacheType cache = kernel.interface.cacheType(append.getCacheAttr());
  formats::CacheShape shape = cache.getShapeInfo();
  if (!shape.isMma() || shape.encoding.bits() != 16)
    return append.emitOpError()
           << "to cache " << append.getCacheAttr() << " of type " << cache
           << ", an epilogue on a GPU stores f16 or bf16 in layout mma_keys or "
              "mma_values";
  if (std::optional<std::string> error = formats::checkMmaCache(shape))
    return append.emitOpError() << "to cache " << append.getCacheAttr() << ": " << *error;
  Value at = position(append.getPositions(), shape.positions);
  Value base = k.offset(kernel.interface.cachePointer(append.getCacheAttr()),
                        shape.sequences == 1 ? 0 : token * shape.heads * shape.headBytes());
  Value tile = k.mul(k.extendUnsigned(k.div(at, formats::cacheTile), k.i64()), shape.tileBytes());
  store(*elements, cache.getElement(), [&](Value row) {
    Value head = k.div(row, shape.dim), d = k.rem(row, shape.dim);
    Value byte =
        formats::cacheCodeByte<Value>(cacheArithmetic(k), shape, k.rem(at, formats::cacheTile), d);
    Value first = k.add(tile, k.mul(k.extendUnsigned(head, k.i64()), shape.headBytes()));
    return k.offset(base, k.add(first, k.extendUnsigned(byte, k.i64())));
  });
  return success();
}

LogicalResult Epilogue::yield(Value value, unsigned result) {
  FailureOr<Values> elements = evaluate(value);
  if (failed(elements))
    return failure();
  auto type = cast<RankedTensorType>(op.getResult(result).getType());
  int64_t bytes = bytesOf(type.getElementType());
  Value base = k.offset(kernel.interface.resultPointer(result), token * type.getDimSize(1) * bytes);
  store(*elements, type.getElementType(),
        [&](Value row) { return k.offset(base, k.mul(row, bytes)); });
  return success();
}

LogicalResult Epilogue::emit(Value tile, Value row, Value low, Value high,
                             const EpilogueLoads &preloaded) {
  loads = preloaded;
  findRows(tile, row);
  int64_t first = segment.order.getFirst();
  if (op.getEpilogue().empty()) {
    if (segment.order.isZip())
      return op.emitOpError() << "with zipped rows needs an epilogue";
    Value base =
        k.offset(kernel.interface.resultPointer(first), token * op.getSegments()[first] * 4);
    store({low, high}, k.f32(), [&](Value index) { return k.offset(base, k.mul(index, 4)); });
    return success();
  }
  Block &block = op.getEpilogue().front();
  if (segment.order.isZip()) {
    values[block.getArgument(first)] = {low};
    values[block.getArgument(segment.order.getSecond())] = {high};
  } else {
    values[block.getArgument(first)] = {low, high};
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

void device::preloadEpilogue(Kernel &kernel, fused::MatvecOp op, const PackedSegment &segment,
                             Value tile, Value row, int64_t token, bool fresh,
                             EpilogueLoads &loads) {
  Epilogue(kernel, op, segment, token).preload(tile, row, fresh, loads);
}

LogicalResult device::emitEpilogue(Kernel &kernel, fused::MatvecOp op, const PackedSegment &segment,
                                   Value tile, Value row, Value low, Value high, int64_t token,
                                   const EpilogueLoads &loads) {
  return Epilogue(kernel, op, segment, token).emit(tile, row, low, high, loads);
}
