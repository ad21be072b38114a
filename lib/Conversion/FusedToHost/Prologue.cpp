// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "../FusedKernels/FixedPoint.h"
#include "../FusedKernels/RegionEvaluator.h"
#include "Products.h"

#include "dialects/Fused/Weights.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::host;

namespace {
/// A place in a row of the prologue: 16 columns, or the fewer last ones.
class Columns {
public:
  using Builder = KernelBuilder;
  static constexpr llvm::StringLiteral kRegion = "a prologue";

  Columns(KernelBuilder &k, const PrologueOp &op, const KernelInterface &interface)
      : k(k), op(op), interface(interface) {}

  /// Starts a row of all values: the token `row` (i64).
  LogicalResult startRow(Value token) {
    row = token;
    return kernels::evaluateNorms(*this, interface, op.prologue, factors);
  }
  /// Columns [column, column + count) of the prologue's result, float32; count is 1 to 16, further
  /// lanes are zero.
  FailureOr<Value> result(Value column, int64_t count);

  // The place (see RegionEvaluator.h).
  KernelBuilder &k;
  FailureOr<kernels::Values> load(Value value);
  FailureOr<Value> sumRow(llvm::function_ref<FailureOr<Value>(Value)> accumulate);
  FailureOr<kernels::Values> elsewhere(const kernels::Values &columns,
                                       llvm::function_ref<FailureOr<kernels::Values>()> body);
  Value clearMissing(size_t /*number*/, Value x) {
    return count < kLanes ? k.select(mask(), x, k.number(x.getType(), 0.0)) : x;
  }

private:
  void moveTo(Value newColumn, int64_t newCount) {
    column = newColumn;
    count = newCount;
  }
  /// Null if all lanes are columns.
  Value mask() { return count < kLanes ? k.firstLanes(kLanes, k.index(count)) : Value(); }

  const PrologueOp op;
  const KernelInterface &interface;
  Value row, column;
  int64_t count = 0;
  /// Not null: the columns (i32) that are loaded instead.
  Value others;
  kernels::NormFactors factors;
};
} // namespace

FailureOr<Value> Columns::result(Value newColumn, int64_t newCount) {
  moveTo(newColumn, newCount);
  Value value = op.input;
  if (!op.prologue.empty())
    value = cast<fused::YieldOp>(op.prologue.front().getTerminator()).getValues().front();
  FailureOr<kernels::Values> lanes = kernels::evaluateInRow(*this, interface, factors, value);
  if (failed(lanes))
    return failure();
  return lanes->front();
}

FailureOr<Value> Columns::sumRow(llvm::function_ref<FailureOr<Value>(Value)> accumulate) {
  int64_t width = op.columns, full = width / kLanes * kLanes;
  LogicalResult result = success();
  auto accumulateAt = [&](Value place, int64_t lanes, Value sums) {
    moveTo(place, lanes);
    FailureOr<Value> next = accumulate(sums);
    if (failed(next))
      result = failure();
    return succeeded(next) ? *next : sums;
  };
  Value sums = k.number(k.vec(kLanes, k.f32()), 0.0);
  if (full)
    sums = k.loop(k.index(0), k.index(full), kLanes, sums, [&](Value place, ValueRange carried) {
      return kernels::Values{accumulateAt(place, kLanes, carried[0])};
    })[0];
  if (width > full)
    sums = accumulateAt(k.index(full), width - full, sums);
  if (failed(result))
    return failure();
  return k.sumLanes(sums);
}

FailureOr<kernels::Values>
Columns::elsewhere(const kernels::Values &columns,
                   llvm::function_ref<FailureOr<kernels::Values>()> body) {
  Value numbers = arith::FPToSIOp::create(k.b, k.loc, k.vec(kLanes, k.i32()), columns[0]);
  std::swap(others, numbers);
  FailureOr<kernels::Values> result = body();
  std::swap(others, numbers);
  return result;
}

FailureOr<kernels::Values> Columns::load(Value value) {
  bool isArgument = isa<BlockArgument>(value) && value.getParentRegion() == &op.prologue;
  Value pointer = interface.pointer(isArgument ? op.input : value);
  auto type = dyn_cast<RankedTensorType>(value.getType());
  if (!kernels::isFloatTensor(value) || type.getShape().back() != op.columns)
    return op.op->emitOpError() << "prologue reads a value of type " << value.getType()
                                << " in a way that cannot be converted to host code";
  Type element = type.getElementType();
  int64_t bytes = bytesOf(element);
  Value start = type.getRank() == 2 ? k.mul(row, type.getDimSize(1)) : k.index(0);
  if (!others)
    return kernels::Values{k.loadFloats(
        kLanes, element, k.offset(pointer, k.mul(k.add(start, column), bytes)), bytes, mask())};
  // Element by element.
  Type bits = IntegerType::get(k.b.getContext(), static_cast<unsigned>(8 * bytes));
  Value all = k.integer(k.vec(kLanes, bits), 0);
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    Value number = vector::ExtractOp::create(k.b, k.loc, others, lane);
    Value at = k.offset(pointer, k.mul(k.add(start, k.toI64(number)), bytes));
    all = vector::InsertOp::create(k.b, k.loc, k.load(bits, at, bytes), all, lane);
  }
  // As KernelBuilder::loadFloats.
  if (element.isBF16())
    return kernels::Values{
        k.bitcast(k.shl(k.extendUnsigned(all, k.i32()), 16), k.vec(kLanes, k.f32()))};
  return kernels::Values{k.widen(k.bitcast(all, k.vec(kLanes, element)))};
}

/// Emits the rounding of one group of `count` columns, 1 to 128, to 16-bit fixed point, or for E4M3
/// weights to f16 numbers of the same scale (docs/numerics.md).
static LogicalResult emitScaled(KernelBuilder &k, Columns &columns, const PreparedInput &input,
                                const formats::Encoding &format, Value token, Value group,
                                int64_t count) {
  VectorType floats = k.vec(kLanes, k.f32()), words = k.vec(kLanes, k.i32());
  Value first = k.mul(group, 128);
  SmallVector<Value> chunks;
  for (int64_t start = 0; start < count; start += kLanes) {
    FailureOr<Value> chunk =
        columns.result(k.add(first, start), std::min<int64_t>(kLanes, count - start));
    if (failed(chunk))
      return failure();
    chunks.push_back(*chunk);
  }
  Value greatest;
  for (Value chunk : chunks) {
    Value magnitude = kernels::magnitudeBits(k, chunk);
    greatest = greatest ? k.max(greatest, magnitude) : magnitude;
  }
  auto [usable, inverse, scale] = kernels::activationScale(
      k, k.reduce(greatest, [&](Value x, Value y) { return k.max(x, y); }));
  Value scalePlace = k.add(k.mul(token, input.groups()), group);
  if (!format.isInteger()) // products are of weights that are divided
    scale = k.mulF(scale, k.number(k.f32(), KernelBuilder::e4m3Divisor));
  k.store(scale, k.offset(input.scales, k.mul(scalePlace, 4)), 4);

  Value inverses = k.splat(inverse, kLanes), usables = k.splat(usable, kLanes);
  int64_t paddedCount = std::min<int64_t>(128, llvm::alignTo(count, 32));
  auto scaled = [&](Value chunk) {
    return k.mulF(k.select(usables, chunk, k.number(floats, 0.0)), inverses);
  };
  if (!format.isInteger()) {
    Value base = k.offset(input.values, k.mul(k.add(k.mul(token, input.padded), first), 4));
    for (auto [i, chunk] : llvm::enumerate(chunks))
      k.store(k.widen(k.narrow(scaled(chunk), k.f16())), k.offset(base, int64_t(i) * kLanes * 4),
              64);
    for (int64_t start = chunks.size() * kLanes; start < paddedCount; start += kLanes)
      k.store(k.number(floats, 0.0), k.offset(base, start * 4), 64);
    return success();
  }

  Value base = k.offset(input.x16, k.mul(k.add(k.mul(token, input.padded), first), 2));
  SmallVector<Value> fixed;
  for (auto [i, chunk] : llvm::enumerate(chunks)) {
    fixed.push_back(k.roundToInt(scaled(chunk)));
    k.store(k.truncate(fixed.back(), k.i16()), k.offset(base, int64_t(i) * kLanes * 2), 32);
  }
  for (int64_t start = chunks.size() * kLanes; start < paddedCount; start += kLanes)
    k.store(k.integer(k.vec(kLanes, k.i16()), 0), k.offset(base, start * 2), 32);

  // Sums of each accumulation block's x16, of those in lanes that `counts` (null: all), times
  // `factor`.
  auto storeSums = [&](Value destination, Value counts, int64_t factor) {
    size_t perSum = input.sumsPerGroup() == 1 ? fixed.size() : input.accumulationColumns / kLanes;
    for (size_t start = 0, number = 0; start < fixed.size(); start += perSum, ++number) {
      Value sum = fixed[start];
      for (size_t i = start + 1; i < std::min(fixed.size(), start + perSum); ++i)
        sum = k.add(sum, fixed[i]);
      if (counts)
        sum = k.select(counts, sum, k.integer(words, 0));
      Value total = k.mul(k.reduce(sum, [&](Value x, Value y) { return k.add(x, y); }), factor);
      Value place = k.add(k.mul(scalePlace, input.sumsPerGroup()), number);
      k.store(total, k.offset(destination, k.mul(place, 4)), 4);
    }
  };
  if (input.inputSums)
    storeSums(input.inputSums, Value(), 1);
  if (input.biases) {
    // Pairs in an odd place are not biased if those in an even one are, or all are.
    Value counts;
    if (!isBiased(format, 1)) {
      Value inFour = k.bitAnd(k.laneNumbers(kLanes), k.integer(words, 3));
      counts = k.less(inFour, k.integer(words, 2));
    }
    storeSums(input.biases, counts, format.qMin());
  }
  return success();
}

PreparedInput sluice::host::allocateInput(KernelBuilder &k, const formats::Encoding &format,
                                          int64_t tokens, int64_t columns, bool hasSums,
                                          bool hasBiases) {
  PreparedInput input;
  input.tokens = tokens;
  input.columns = columns;
  input.padded = llvm::alignTo(input.columns, 32);
  if (format.isScaled()) {
    input.accumulationColumns = fused::accumulationColumns(format);
    input.scales = k.scratch(input.tokens * input.groups() * 4);
  }
  if (format.isInteger()) {
    input.x16 = k.scratch(input.tokens * input.padded * 2);
    int64_t sumBytes = input.tokens * input.groups() * input.sumsPerGroup() * 4;
    if (hasSums)
      input.inputSums = k.scratch(sumBytes);
    if (hasBiases)
      input.biases = k.scratch(sumBytes);
  } else {
    input.values = k.scratch(input.tokens * input.padded * 4);
  }
  return input;
}

LogicalResult sluice::host::emitInput(KernelBuilder &k, const PrologueOp &op,
                                      const KernelInterface &interface,
                                      const formats::Encoding &format, const PreparedInput &input,
                                      Value firstRow, Value begin, Value end) {
  Columns columns(k, op, interface);
  LogicalResult result = success();
  auto emitGroup = [&](Value token, Value group, int64_t count) {
    if (failed(result))
      return;
    result = emitScaled(k, columns, input, format, token, group, count);
  };
  auto emitRounded = [&](Value token, Value column, int64_t count) {
    if (failed(result))
      return;
    FailureOr<Value> chunk = columns.result(column, count);
    if (failed(chunk)) {
      result = failure();
      return;
    }
    Type element = format.element == formats::Encoding::Element::F16    ? Type(k.f16())
                   : format.element == formats::Encoding::Element::BF16 ? Type(k.b.getBF16Type())
                                                                        : k.f32();
    Value place = k.add(k.mul(token, input.padded), column);
    k.store(k.widen(k.narrow(*chunk, element)), k.offset(input.values, k.mul(place, 4)), 64);
  };
  k.loop(begin, end, 1, [&](Value token) {
    result = columns.startRow(k.add(token, firstRow));
    if (failed(result))
      return;
    if (format.isScaled()) {
      int64_t full = input.columns / 128, rest = input.columns % 128;
      if (full)
        k.loop(k.index(0), k.index(full), 1, [&](Value group) { emitGroup(token, group, 128); });
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
  return result;
}

FailureOr<PreparedInput> sluice::host::emitPrologue(KernelBuilder &k, fused::MatvecOp op,
                                                    const KernelInterface &interface,
                                                    const formats::Encoding &format) {
  PreparedInput input =
      allocateInput(k, format, op.getTokens(), op.getColumns(),
                    format.offset != formats::Encoding::Offset::None, hasBiases(format));
  if (failed(emitInput(k, {op, op.getInput(), op.getPrologue(), op.getColumns()}, interface, format,
                       input, k.index(0), k.index(0), k.index(input.tokens))))
    return failure();
  return input;
}
