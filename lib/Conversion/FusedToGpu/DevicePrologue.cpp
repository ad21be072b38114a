// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Kernels.h"

#include "sluice/Formats/Activations.h"

#include "llvm/ADT/TypeSwitch.h"

#include <limits>

using namespace mlir;
using namespace sluice;
using namespace sluice::device;

/// Rounds whose inputs stay in registers from a norm's sum to its use; more are read again.
static constexpr int64_t kKeptRounds = 4;

bool device::isConstant(Value value) { return value.getDefiningOp<model::ParameterOp>(); }

Value device::emitElementwise(DeviceBuilder &k, Operation *op, ValueRange operands) {
  Type element = op->getNumResults() ? getElementTypeOrSelf(op->getResult(0).getType()) : Type();
  // Arithmetic on narrow floats is that of float32, rounded once.
  auto x = [&] { return k.widen(operands[0]); };
  auto y = [&] { return k.widen(operands[1]); };
  return llvm::TypeSwitch<Operation *, Value>(op)
      .Case<arith::AddFOp, model::AddBiasOp>(
          [&](auto) { return k.narrow(k.addF(x(), y()), element); })
      .Case<arith::SubFOp>([&](auto) { return k.narrow(k.subF(x(), y()), element); })
      .Case<arith::MulFOp>([&](auto) { return k.narrow(k.mulF(x(), y()), element); })
      .Case<arith::DivFOp>([&](auto) { return k.narrow(k.divF(x(), y()), element); })
      .Case<arith::NegFOp>([&](auto) { return arith::NegFOp::create(k.b, k.loc, operands[0]); })
      .Case<arith::ExtFOp>([&](auto) { return x(); })
      .Case<arith::TruncFOp>([&](auto) { return k.narrow(x(), element); })
      .Case<model::SiluOp>([&](auto) { return k.silu(x()); })
      .Default([](Operation *) { return Value(); });
}

Prologue::Prologue(Kernel &kernel, fused::MatvecOp op, Value thread, int64_t threads)
    : kernel(kernel), k(kernel.k), op(op), thread(thread), threads(threads),
      padded(llvm::alignTo(op.getColumns(), formats::activationGroup)) {}

Value Prologue::unitIndex(int64_t n) { return k.add(thread, n * threads); }

Value Prologue::unitExists(int64_t n, int64_t width) {
  int64_t units = width / kUnit;
  return (n + 1) * threads <= units ? Value() : k.less(unitIndex(n), k.constI32(units));
}

DeviceBuilder::Values Prologue::loadUnit(Value pointer, RankedTensorType type, Value row, int64_t n,
                                         bool fresh) {
  Type element = type.getElementType();
  int64_t bytes = bytesOf(element);
  auto unitPointer = [&] {
    Value place = k.mul(unitIndex(n), kUnit * bytes);
    if (row && type.getRank() == 2)
      place = k.add(place, k.mul(row, type.getDimSize(1) * bytes));
    return k.offset(pointer, place);
  };
  if (op.getColumns() % kUnit) {
    // Rows are not aligned, and the last unit is not full: one element at a time.
    Value from = unitPointer(), first = k.mul(unitIndex(n), kUnit);
    Value zero = arith::ConstantOp::create(k.b, k.loc, k.b.getFloatAttr(element, 0.0));
    Values elements;
    for (int64_t e = 0; e < kUnit; ++e) {
      auto load = [&] {
        Value at = k.offset(from, e * bytes);
        return Values{fresh ? k.loadFresh(element, at, bytes) : k.load(element, at, bytes)};
      };
      Value exists = k.less(k.add(first, e), k.constI32(op.getColumns()));
      elements.push_back(k.ifElseYield(exists, load, [&] { return Values{zero}; }).front());
    }
    return elements;
  }
  auto loadWords = [&] {
    Value from = unitPointer();
    Values words;
    for (int64_t part = 0; part < kUnit * bytes / 16; ++part) {
      Type words4 = k.vec(4, k.i32());
      Value at = k.offset(from, part * 16);
      words.push_back(fresh ? k.loadFresh(words4, at, 16) : k.load(words4, at, 16));
    }
    return words;
  };
  Values words;
  if (Value exists = unitExists(n, op.getColumns()))
    words = k.ifElseYield(exists, loadWords, [&] {
      auto zeros = DenseElementsAttr::get(k.vec(4, k.i32()), APInt(32, 0));
      return Values(kUnit * bytes / 16, arith::ConstantOp::create(k.b, k.loc, zeros));
    });
  else
    words = loadWords();
  Values elements;
  for (Value four : words)
    for (Value word : k.lanes(four)) {
      if (bytes == 4)
        elements.push_back(k.bitcast(word, element));
      else
        llvm::append_range(elements, k.lanes(k.bitcast(word, k.vec(2, element))));
    }
  return elements;
}

FailureOr<PreparedInput> Prologue::preload(formats::Format format) {
  PreparedInput input;
  input.format = format;
  input.tokens = op.getTokens();
  input.columns = op.getColumns();
  input.padded = padded;
  int64_t fragments = padded / input.fragmentColumns();
  input.fragments = kernel.shared.take(k, fragments * input.fragmentBytes());
  if (format.isInteger()) {
    input.unit = formats::unitColumns(format, input.columns);
    if (format.group == formats::Format::channel)
      input.unit = formats::activationGroup;
    input.scales = kernel.shared.take(k, input.tokens * padded / formats::activationGroup * 4);
    if (format.zeroPoint)
      input.unitSums = kernel.shared.take(k, input.tokens * padded / input.unit * 4);
  }
  if (op.getPrologue().empty())
    return input;
  scratch = kernel.shared.take(k, threads / kWarp * 4);
  if (rounds() > kKeptRounds)
    return input;
  for (Operation &inner : op.getPrologue().front())
    for (Value operand : inner.getOperands()) {
      auto type = dyn_cast<RankedTensorType>(operand.getType());
      if (!kernel.interface.pointer(operand) || !isConstant(operand) || !type ||
          type.getRank() != 1 || type.getDimSize(0) != input.columns ||
          bytesOf(type.getElementType()) > 4)
        continue;
      for (int64_t n = 0; n < rounds(); ++n)
        if (!constants.contains({operand, n}))
          constants[{operand, n}] = loadUnit(kernel.interface.pointer(operand), type, Value(), n,
                                             /*fresh=*/false);
    }
  return input;
}

LogicalResult Prologue::emit(PreparedInput &input) {
  LogicalResult result = success();
  if (input.tokens == 1) {
    result = emitRow(input, k.constI32(0));
  } else {
    k.loop(k.constI32(0), k.constI32(input.tokens), k.constI32(1), [&](Value row) {
      if (succeeded(result))
        result = emitRow(input, row);
    });
  }
  k.barrier(1, threads);
  return result;
}

LogicalResult Prologue::emitRow(PreparedInput &input, Value row) {
  currentRow = row;
  loaded.clear();
  factors.clear();
  Value result = op.getInput();
  if (!op.getPrologue().empty()) {
    result = cast<fused::YieldOp>(op.getPrologue().front().getTerminator()).getValues().front();
    for (auto norm : op.getPrologue().front().getOps<model::RmsNormOp>()) {
      FailureOr<Value> factor = normFactor(norm);
      if (failed(factor))
        return failure();
      factors[norm] = *factor;
    }
  } else if (rounds() <= 8) {
    // All loads are on their way before the first result is needed.
    for (int64_t n = 0; n < rounds(); ++n)
      if (failed(evaluate(result, n)))
        return failure();
  }
  for (int64_t n = 0; n < rounds(); ++n) {
    FailureOr<Values> x = evaluate(result, n);
    if (failed(x))
      return failure();
    for (Value &element : *x)
      element = k.widen(element);
    if (input.isInteger())
      emitFixedPoint(input, row, n, *x);
    else
      emitRounded(input, row, n, *x);
  }
  return success();
}

FailureOr<Value> Prologue::normFactor(model::RmsNormOp norm) {
  Value sum;
  for (int64_t n = 0; n < rounds(); ++n) {
    FailureOr<Values> x = evaluate(norm.getInput(), n);
    if (failed(x))
      return failure();
    for (Value element : *x) {
      Value wide = k.widen(element);
      sum = sum ? k.fma(wide, wide, sum) : k.mulF(wide, wide);
    }
    if (rounds() > kKeptRounds)
      loaded.clear();
  }
  for (int64_t distance = kWarp / 2; distance; distance /= 2)
    sum = k.addF(sum, k.shuffleXor(sum, distance));
  Value lane = k.bitAnd(thread, kWarp - 1), warp = k.shr(thread, 5);
  k.ifThen(k.equal(lane, k.constI32(0)),
           [&] { k.store(sum, k.offset(scratch, k.shl(warp, 2)), 4); });
  k.barrier(1, threads);
  Value total;
  for (int64_t part = 0; part < threads / kWarp; part += 4)
    for (Value four : k.lanes(k.load(k.vec(4, k.f32()), k.offset(scratch, part * 4), 16)))
      total = total ? k.addF(total, four) : four;
  if (op.getTokens() > 1)
    k.barrier(1, threads); // the next row's sums come to the same place
  Value mean = k.divF(total, k.number(static_cast<double>(op.getColumns())));
  Value shifted = k.addF(mean, k.number(norm.getEpsilon().convertToDouble()));
  return k.divF(k.number(1.0), k.sqrt(shifted));
}

FailureOr<DeviceBuilder::Values> Prologue::evaluate(Value value, int64_t n) {
  if (auto found = constants.find({value, n}); found != constants.end())
    return found->second;
  if (auto found = loaded.find({value, n}); found != loaded.end())
    return found->second;
  auto type = dyn_cast<RankedTensorType>(value.getType());
  bool isInput = value == op.getInput() ||
                 (isa<BlockArgument>(value) && value.getParentRegion() == &op.getPrologue());
  Value pointer = kernel.interface.pointer(isInput ? Value(op.getInput()) : value);
  if (pointer) {
    if (!type || !isa<FloatType>(type.getElementType()) || bytesOf(type.getElementType()) > 4 ||
        type.getDimSize(type.getRank() - 1) != op.getColumns())
      return op.emitOpError() << "prologue reads a value of type " << value.getType()
                              << " in a way that cannot be converted to GPU code";
    Values elements = loadUnit(pointer, type, currentRow, n, !isConstant(value));
    return loaded[{value, n}] = elements;
  }
  Operation *inner = value.getDefiningOp();
  SmallVector<Values> operands;
  for (Value operand : inner->getOperands()) {
    FailureOr<Values> elements = evaluate(operand, n);
    if (failed(elements))
      return failure();
    operands.push_back(*elements);
  }
  Values result;
  for (int64_t e = 0; e < kUnit; ++e) {
    if (isa<model::RmsNormOp>(inner)) {
      Value scaled = k.mulF(k.widen(operands[0][e]), factors.lookup(inner));
      result.push_back(k.mulF(scaled, k.widen(operands[1][e])));
      continue;
    }
    Values scalars = llvm::map_to_vector(operands, [&](Values &all) { return all[e]; });
    Value element = emitElementwise(k, inner, scalars);
    if (!element)
      return inner->emitOpError() << "in a prologue cannot be converted to GPU code";
    result.push_back(element);
  }
  return result;
}

void Prologue::emitFixedPoint(PreparedInput &input, Value row, int64_t n, const Values &x) {
  // Magnitudes compare as integers, infinity and NaN above all numbers.
  Value greatest;
  for (Value element : x) {
    Value magnitude = k.bitAnd(k.bitcast(element, k.i32()), 0x7FFFFFFF);
    greatest = greatest ? k.max(greatest, magnitude) : magnitude;
  }
  // 16 threads have a group of 128.
  for (int64_t distance = 1; distance < formats::activationGroup / kUnit; distance *= 2)
    greatest = k.max(greatest, k.shuffleXor(greatest, distance));
  Value finite = k.less(greatest, k.constI32(0x7F800000));
  Value m = k.bitcast(greatest, k.f32());
  Value usable =
      arith::AndIOp::create(k.b, k.loc, finite, k.lessF(k.number(formats::activationFloor), m));
  Value limit = k.number(formats::activationLimit);
  Value inverse = k.select(usable, k.divF(limit, m), k.number(0.0));
  Value step =
      k.select(finite, k.divF(m, limit), k.number(std::numeric_limits<float>::quiet_NaN()));
  // The nibbles of int4 weights are multiplied where they lie, at the top of a byte.
  if (input.format.element == formats::Format::Element::I4)
    step = k.mulF(step, k.number(1.0 / 16));

  Values fixed;
  for (Value element : x) {
    // Adding 1.5 * 2^23 rounds to the nearest integer, ties to even, and leaves it in the low bits.
    Value shifted = k.addF(k.mulF(element, inverse), k.number(12582912.0));
    Value integer = k.sub(k.bitcast(shifted, k.i32()), 0x4B400000);
    fixed.push_back(k.select(usable, integer, k.constI32(0)));
  }
  auto bytes = [&](llvm::function_ref<Value(Value)> byteOf, int64_t first) {
    Value word;
    for (int64_t e = 0; e < 4; ++e) {
      Value byte = k.shl(k.bitAnd(byteOf(fixed[first + e]), 0xFF), 8 * e);
      word = word ? k.bitOr(word, byte) : byte;
    }
    return word;
  };
  auto low = [](Value q) { return q; };
  auto high = [&](Value q) { return k.shr(k.add(q, 128), 8); };
  Value sum;
  if (input.unitSums) {
    for (Value q : fixed)
      sum = sum ? k.add(sum, q) : q;
    for (int64_t distance = 1; distance < input.unit / kUnit; distance *= 2)
      sum = k.add(sum, k.shuffleXor(sum, distance));
  }
  auto storeAll = [&] {
    Value unit = unitIndex(n);
    // Columns 8 * unit on: fragment unit / 4, lane column % 16 / 4, half column % 32 / 16.
    Value place = k.add(k.mul(k.shr(unit, 2), input.fragmentBytes()),
                        k.add(k.shl(k.bitAnd(unit, 1), 4), k.shl(k.bitAnd(k.shr(unit, 1), 1), 2)));
    if (input.tokens > 1)
      place = k.add(place, k.mul(row, 64));
    Value to = k.offset(input.fragments, place);
    k.store(bytes(high, 0), to, 4);
    k.store(bytes(high, 4), k.offset(to, 8), 4);
    k.store(bytes(low, 0), k.offset(to, 32), 4);
    k.store(bytes(low, 4), k.offset(to, 40), 4);
    auto storeFirst = [&](int64_t units, Value value, Value base, int64_t perRow) {
      k.ifThen(k.equal(k.bitAnd(unit, units - 1), k.constI32(0)), [&] {
        Value index = k.div(unit, units);
        if (input.tokens > 1)
          index = k.add(index, k.mul(row, perRow));
        k.store(value, k.offset(base, k.shl(index, 2)), 4);
      });
    };
    storeFirst(formats::activationGroup / kUnit, step, input.scales,
               padded / formats::activationGroup);
    if (sum)
      storeFirst(input.unit / kUnit, sum, input.unitSums, padded / input.unit);
  };
  if (Value exists = unitExists(n, padded))
    k.ifThen(exists, storeAll);
  else
    storeAll();
}

void Prologue::emitRounded(PreparedInput &input, Value row, int64_t n, const Values &x) {
  Type element =
      input.format.element == formats::Format::Element::BF16 ? Type(k.b.getBF16Type()) : k.f16();
  auto storeAll = [&] {
    Value unit = unitIndex(n);
    // Columns 8 * unit on: fragment unit / 2, lane column % 8 / 2, half column % 16 / 8.
    Value place = k.add(k.mul(k.shr(unit, 1), input.fragmentBytes()), k.shl(k.bitAnd(unit, 1), 2));
    if (input.tokens > 1)
      place = k.add(place, k.mul(row, 32));
    Value to = k.offset(input.fragments, place);
    for (int64_t e = 0; e < kUnit; e += 2)
      k.store(k.packPair(x[e], x[e + 1], element), k.offset(to, e / 2 * 8), 4);
  };
  if (Value exists = unitExists(n, padded))
    k.ifThen(exists, storeAll);
  else
    storeAll();
}
