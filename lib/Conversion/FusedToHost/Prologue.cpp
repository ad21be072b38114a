// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Products.h"

#include "sluice/Formats/Activations.h"

#include <limits>

using namespace mlir;
using namespace sluice;
using namespace sluice::host;

namespace {
/// Evaluates the prologue region 16 columns at a time. What a norm needs of its whole row is
/// computed beforehand.
class Columns {
public:
  Columns(KernelBuilder &k, fused::MatvecOp op, const KernelInterface &interface)
      : k(k), op(op), interface(interface) {}

  /// Starts a row of all values: the token `row` (i64).
  LogicalResult startRow(Value row);
  /// Columns [column, column + count) of the prologue's result, float32; count is 1 to 16, further
  /// lanes are zero.
  FailureOr<Value> result(Value column, int64_t count);

private:
  FailureOr<Value> evaluate(Value value, Value column, int64_t count);
  /// 1 / sqrt(mean(x^2) + epsilon) over a whole row.
  FailureOr<Value> normFactor(model::RmsNormOp norm);
  Value load(Value pointer, RankedTensorType type, Value row, Value column, int64_t count);
  Value mask(int64_t count) {
    return count < kLanes ? k.firstLanes(kLanes, k.index(count)) : Value();
  }

  KernelBuilder &k;
  fused::MatvecOp op;
  const KernelInterface &interface;
  Value row;
  DenseMap<Operation *, Value> factors;
};
} // namespace

LogicalResult Columns::startRow(Value token) {
  row = token;
  factors.clear();
  if (op.getPrologue().empty())
    return success();
  for (auto norm : op.getPrologue().front().getOps<model::RmsNormOp>()) {
    FailureOr<Value> factor = normFactor(norm);
    if (failed(factor))
      return failure();
    factors[norm] = *factor;
  }
  return success();
}

FailureOr<Value> Columns::result(Value column, int64_t count) {
  Value value = op.getInput();
  if (!op.getPrologue().empty())
    value = cast<fused::YieldOp>(op.getPrologue().front().getTerminator()).getValues().front();
  FailureOr<Value> lanes = evaluate(value, column, count);
  if (failed(lanes))
    return failure();
  Value wide = k.widen(*lanes);
  return count < kLanes ? k.select(mask(count), wide, k.number(wide.getType(), 0.0)) : wide;
}

Value Columns::load(Value pointer, RankedTensorType type, Value row, Value column, int64_t count) {
  Type element = type.getElementType();
  int64_t bytes = bytesOf(element);
  Value place = type.getRank() == 2 ? k.add(k.mul(row, type.getDimSize(1)), column) : column;
  return k.loadFloats(kLanes, element, k.offset(pointer, k.mul(place, bytes)), bytes, mask(count));
}

FailureOr<Value> Columns::normFactor(model::RmsNormOp norm) {
  VectorType type = k.vec(kLanes, k.f32());
  int64_t width = op.getColumns(), full = width / kLanes * kLanes;
  bool failedInside = false;
  auto accumulate = [&](Value sums, Value column, int64_t count) -> Value {
    FailureOr<Value> lanes = evaluate(norm.getInput(), column, count);
    if (failed(lanes)) {
      failedInside = true;
      return sums;
    }
    Value x = k.widen(*lanes);
    if (count < kLanes)
      x = k.select(mask(count), x, k.number(type, 0.0));
    return k.fma(x, x, sums);
  };
  Value sums = k.number(type, 0.0);
  if (full)
    sums = k.loop(k.index(0), k.index(full), kLanes, sums, [&](Value column, ValueRange carried) {
      return SmallVector<Value>{accumulate(carried[0], column, kLanes)};
    })[0];
  if (width > full)
    sums = accumulate(sums, k.index(full), width - full);
  if (failedInside)
    return failure();
  Value mean = k.divF(k.sumLanes(sums), k.number(k.f32(), static_cast<double>(width)));
  Value shifted = k.addF(mean, k.number(k.f32(), norm.getEpsilon().convertToDouble()));
  return k.divF(k.number(k.f32(), 1.0), math::SqrtOp::create(k.b, k.loc, shifted));
}

FailureOr<Value> Columns::evaluate(Value value, Value column, int64_t count) {
  auto type = dyn_cast<RankedTensorType>(value.getType());
  if (isa<BlockArgument>(value) && value.getParentRegion() == &op.getPrologue())
    return load(interface.pointer(op.getInput()), type, row, column, count);
  if (Value pointer = interface.pointer(value)) {
    if (!type || !isa<FloatType>(type.getElementType()) ||
        type.getDimSize(type.getRank() - 1) != op.getColumns())
      return op.emitOpError() << "prologue reads a value of type " << value.getType()
                              << " in a way that cannot be converted to host code";
    return load(pointer, type, row, column, count);
  }
  Operation *inner = value.getDefiningOp();
  SmallVector<Value> operands;
  for (Value operand : inner->getOperands()) {
    FailureOr<Value> lanes = evaluate(operand, column, count);
    if (failed(lanes))
      return failure();
    operands.push_back(*lanes);
  }
  if (isa<model::RmsNormOp>(inner)) {
    Value scaled = k.mulF(operands[0], k.splat(factors.lookup(inner), kLanes));
    return k.mulF(scaled, k.widen(operands[1]));
  }
  if (isa<model::AddBiasOp>(inner))
    return k.addF(operands[0], k.widen(operands[1]));
  if (Value lanes = emitElementwise(k, inner, operands))
    return lanes;
  return inner->emitOpError() << "in a prologue cannot be converted to host code";
}

/// Emits the rounding of one group of `count` columns, 1 to 128, to 16-bit fixed point
/// (docs/numerics.md).
static LogicalResult emitFixedPoint(KernelBuilder &k, Columns &columns, const PreparedInput &input,
                                    Value token, Value block, int64_t count) {
  VectorType floats = k.vec(kLanes, k.f32()), words = k.vec(kLanes, k.i32());
  Value first = k.mul(block, 128);
  SmallVector<Value> chunks;
  for (int64_t start = 0; start < count; start += kLanes) {
    FailureOr<Value> chunk =
        columns.result(k.add(first, start), std::min<int64_t>(kLanes, count - start));
    if (failed(chunk))
      return failure();
    chunks.push_back(*chunk);
  }
  // Magnitudes compare as integers, infinity and NaN above all numbers.
  Value greatest;
  for (Value chunk : chunks) {
    Value magnitude = k.bitcast(math::AbsFOp::create(k.b, k.loc, chunk), words);
    greatest = greatest ? k.max(greatest, magnitude) : magnitude;
  }
  Value bits = k.reduce(greatest, [&](Value x, Value y) { return k.max(x, y); });
  Value finite = k.less(bits, k.integer(k.i32(), 0x7F800000));
  Value m = k.bitcast(bits, k.f32());
  Value large = k.lessF(k.number(k.f32(), formats::activationFloor), m);
  Value usable = arith::AndIOp::create(k.b, k.loc, finite, large);
  Value limit = k.number(k.f32(), formats::activationLimit);
  // The divisor is made harmless where the quotient is not used.
  Value inverse = k.select(usable, k.divF(limit, k.select(usable, m, k.number(k.f32(), 1.0))),
                           k.number(k.f32(), 0.0));
  Value notANumber = k.number(k.f32(), std::numeric_limits<double>::quiet_NaN());
  Value step = k.select(finite, k.divF(m, limit), notANumber);
  Value scalePlace = k.add(k.mul(token, input.blocks()), block);
  k.store(step, k.offset(input.scales, k.mul(scalePlace, 4)), 4);

  Value base = k.offset(input.x16, k.mul(k.add(k.mul(token, input.padded), first), 2));
  Value inverses = k.splat(inverse, kLanes), usables = k.splat(usable, kLanes);
  SmallVector<Value> fixed;
  for (auto [i, chunk] : llvm::enumerate(chunks)) {
    Value safe = k.select(usables, chunk, k.number(floats, 0.0));
    fixed.push_back(k.roundToInt(k.mulF(safe, inverses)));
    k.store(k.truncate(fixed.back(), k.i16()), k.offset(base, int64_t(i) * kLanes * 2), 32);
  }
  int64_t paddedCount = std::min<int64_t>(128, llvm::alignTo(count, 32));
  for (int64_t start = chunks.size() * kLanes; start < paddedCount; start += kLanes)
    k.store(k.integer(k.vec(kLanes, k.i16()), 0), k.offset(base, start * 2), 32);

  // Sums of each unit's x16, of those in lanes that `counts` (null: all), times `factor`.
  auto storeSums = [&](Value destination, Value counts, int64_t factor) {
    size_t perUnit = input.unitsPerBlock() == 1 ? fixed.size() : input.unit / kLanes;
    for (size_t start = 0, unit = 0; start < fixed.size(); start += perUnit, ++unit) {
      Value sum = fixed[start];
      for (size_t i = start + 1; i < std::min(fixed.size(), start + perUnit); ++i)
        sum = k.add(sum, fixed[i]);
      if (counts)
        sum = k.select(counts, sum, k.integer(words, 0));
      Value total = k.mul(k.reduce(sum, [&](Value x, Value y) { return k.add(x, y); }), factor);
      Value place = k.add(k.mul(scalePlace, input.unitsPerBlock()), unit);
      k.store(total, k.offset(destination, k.mul(place, 4)), 4);
    }
  };
  if (input.unitSums)
    storeSums(input.unitSums, Value(), 1);
  if (input.lowBiases) {
    // Of four columns, the first two are in low nibbles.
    Value inFour = arith::AndIOp::create(k.b, k.loc, k.laneNumbers(kLanes), k.integer(words, 3));
    storeSums(input.lowBiases, k.less(inFour, k.integer(words, 2)), -8);
  }
  return success();
}

FailureOr<PreparedInput> sluice::host::emitPrologue(KernelBuilder &k, fused::MatvecOp op,
                                                    const KernelInterface &interface,
                                                    formats::Format format) {
  PreparedInput input;
  input.tokens = op.getTokens();
  input.columns = op.getColumns();
  input.padded = llvm::alignTo(input.columns, 32);
  if (format.isInteger()) {
    // A group that spans the row is cut at 128 columns as well.
    input.unit =
        format.group == formats::Format::channel ? 128 : std::min<int64_t>(format.group, 128);
    input.x16 = k.scratch(input.tokens * input.padded * 2);
    input.scales = k.scratch(input.tokens * input.blocks() * 4);
    int64_t sumBytes = input.tokens * input.blocks() * input.unitsPerBlock() * 4;
    if (format.zeroPoint)
      input.unitSums = k.scratch(sumBytes);
    if (format.element == formats::Format::Element::I4)
      input.lowBiases = k.scratch(sumBytes);
  } else {
    input.values = k.scratch(input.tokens * input.padded * 4);
  }

  Columns columns(k, op, interface);
  LogicalResult result = success();
  auto emitGroup = [&](Value token, Value block, int64_t count) {
    if (failed(result))
      return;
    result = emitFixedPoint(k, columns, input, token, block, count);
  };
  auto emitRounded = [&](Value token, Value column, int64_t count) {
    if (failed(result))
      return;
    FailureOr<Value> chunk = columns.result(column, count);
    if (failed(chunk)) {
      result = failure();
      return;
    }
    Type element = format.element == formats::Format::Element::F16    ? Type(k.f16())
                   : format.element == formats::Format::Element::BF16 ? Type(k.b.getBF16Type())
                                                                      : k.f32();
    Value place = k.add(k.mul(token, input.padded), column);
    k.store(k.widen(k.narrow(*chunk, element)), k.offset(input.values, k.mul(place, 4)), 64);
  };
  k.loop(k.index(0), k.index(input.tokens), 1, [&](Value token) {
    result = columns.startRow(token);
    if (failed(result))
      return;
    if (format.isInteger()) {
      int64_t full = input.columns / 128, rest = input.columns % 128;
      if (full)
        k.loop(k.index(0), k.index(full), 1, [&](Value block) { emitGroup(token, block, 128); });
      if (rest)
        emitGroup(token, k.index(full), rest);
      return;
    }
    int64_t full = input.columns / kLanes * kLanes, rest = input.columns % kLanes;
    if (full)
      k.loop(k.index(0), k.index(full), kLanes,
             [&](Value column) { emitRounded(token, column, kLanes); });
    if (rest)
      emitRounded(token, k.index(full), rest);
    for (int64_t start = llvm::alignTo(input.columns, kLanes); start < input.padded;
         start += kLanes) {
      Value place = k.add(k.mul(token, input.padded), start);
      k.store(k.number(k.vec(kLanes, k.f32()), 0.0), k.offset(input.values, k.mul(place, 4)), 64);
    }
  });
  if (failed(result))
    return failure();
  return input;
}
