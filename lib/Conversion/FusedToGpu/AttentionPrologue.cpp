// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "AttentionPrologue.h"

#include "sluice/Formats/Activations.h"

#include <cmath>
#include <limits>

using namespace mlir;
using namespace sluice;
using namespace sluice::device;
using formats::CacheEncoding;
using formats::CacheShape;
using Values = DeviceBuilder::Values;

//===----------------------------------------------------------------------===//
// Prologue
//===----------------------------------------------------------------------===//

FailureOr<Values> Head::evaluate(Value value, const DenseMap<Value, Values> &known) {
  kernels::NormFactors none;
  kernels::RegionEvaluator<Head> evaluator(*this, kernel.interface, none);
  for (const auto &[loaded, elements] : known)
    evaluator.bind(loaded, elements);
  FailureOr<Values> elements = evaluator.evaluate(value);
  if (failed(elements))
    return failure();
  for (auto [i, element] : llvm::enumerate(*elements)) {
    int64_t first = static_cast<int64_t>(i) * kWarp;
    element = k.widen(element);
    if (first + kWarp > dim)
      element = k.select(k.less(k.add(lane, first), k.constI32(dim)), element, k.number(0.0));
  }
  return elements;
}

LogicalResult Head::preload(ValueRange values) {
  Block &block = prologue.front();
  llvm::SetVector<Operation *> needed;
  auto need = [&](ValueRange operands) {
    for (Value operand : operands)
      if (Operation *source = operand.getDefiningOp(); source && source->getBlock() == &block)
        needed.insert(source);
  };
  need(values);
  for (size_t i = 0; i < needed.size(); ++i)
    need(needed[i]->getOperands());
  for (Operation *inner : needed) {
    if (auto rotary = dyn_cast<model::RotaryOp>(inner)) {
      FailureOr<kernels::Turn> turn = loadTurn(rotary);
      if (failed(turn))
        return failure();
      constants.turns[rotary] = *turn;
    } else if (auto norm = dyn_cast<model::RmsNormOp>(inner); norm && isConstant(norm.getGain())) {
      FailureOr<Values> gain = load(norm.getGain());
      if (failed(gain))
        return failure();
      constants.vectors[norm.getGain()] = *gain;
    }
  }
  return success();
}

FailureOr<Values> Head::load(Value value) {
  if (auto found = constants.vectors.find(value); found != constants.vectors.end())
    return found->second;
  Value pointer = kernel.interface.pointer(sourceOf(value));
  auto type = dyn_cast<RankedTensorType>(value.getType());
  // A vector is for all heads.
  bool isVector = type && type.getRank() == 1;
  if (!pointer || !kernels::isFloatTensor(value) || (isVector && type.getDimSize(0) != dim))
    return op->emitOpError() << "prologue reads a value of type " << value.getType()
                             << " in a way that cannot be converted to GPU code";
  Type element = type.getElementType();
  int64_t bytes = bytesOf(element);
  Value base = pointer;
  if (!isVector)
    base = k.at(pointer, k.add(k.mul(number, dim), k.mul(token, type.getDimSize(1))), bytes);
  Values elements;
  for (int64_t first = 0; first < padded; first += kWarp) {
    Value d = k.add(lane, first);
    if (first + kWarp > dim)
      d = k.min(d, k.constI32(dim - 1));
    Value place = k.at(base, d, bytes);
    elements.push_back(isConstant(value) ? k.load(element, place, bytes)
                                         : k.loadFresh(element, place, bytes));
  }
  return elements;
}

Value Head::isFirstOfPair(const model::RotaryPairs &pairs, int64_t firstElement) {
  return pairs.interleaved ? k.equal(k.bitAnd(lane, 1), k.constI32(0))
                           : k.less(k.add(lane, firstElement), k.constI32(pairs.half()));
}

FailureOr<kernels::Turn> Head::loadTurn(model::RotaryOp rotary) {
  if (auto found = constants.turns.find(rotary); found != constants.turns.end())
    return found->second;
  if (!rotary.getTable())
    return rotary.emitOpError() << "needs a table (fused-tabulate-rotary makes one)";
  model::RotaryPairs pairs(rotary);
  int64_t rows = rotary.getTable().getType().getDimSize(0), half = pairs.half();
  Value position = k.clampIndex(
      k.load(k.i32(), k.at(kernel.interface.pointer(rotary.getPositions()), token, 4), 4), rows);
  // Cosines, then sines.
  Value entry = k.at(kernel.interface.pointer(rotary.getTable()), k.toI64(position), dim * 4);
  kernels::Turn turn;
  for (int64_t first = 0; first < (areRegisters(pairs) ? half : dim); first += kWarp) {
    Value d = k.add(lane, first), pair = d;
    if (pairs.interleaved)
      pair = k.shr(d, 1);
    else if (!areRegisters(pairs))
      pair = k.select(isFirstOfPair(pairs, first), d, k.sub(d, half));
    if (first + kWarp > dim)
      pair = k.min(pair, k.constI32(half - 1));
    Value place = k.at(entry, pair, 4);
    turn.cosines.push_back(k.load(k.f32(), place, 4));
    turn.sines.push_back(k.load(k.f32(), k.offset(place, half * 4), 4));
  }
  return turn;
}

Value Head::partners(const model::RotaryPairs &pairs, const Values &x, size_t i) {
  if (pairs.interleaved)
    return k.shuffleXor(x[i], 1);
  auto first = static_cast<int64_t>(i) * kWarp;
  Value d = k.add(lane, first), half = k.constI32(pairs.half());
  Value source = k.select(isFirstOfPair(pairs, first), k.add(d, half), k.sub(d, half));
  Value sourceLane = k.bitAnd(source, kWarp - 1), sourceRegister = k.shr(source, 5);
  llvm::SmallSetVector<int64_t, 4> registers;
  for (int64_t element = first; element < std::min(first + kWarp, dim); ++element)
    registers.insert(pairs.partnerOf(element) / kWarp);
  Value result;
  for (int64_t number : registers) {
    Value shuffled = k.shuffleFrom(x[number], sourceLane);
    result =
        result ? k.select(k.equal(sourceRegister, k.constI32(number)), shuffled, result) : shuffled;
  }
  return result;
}

FailureOr<Values> Head::turnHead(model::RotaryOp rotary, const Values &x) {
  model::RotaryPairs pairs(rotary);
  FailureOr<kernels::Turn> turn = loadTurn(rotary);
  if (failed(turn))
    return failure();
  if (areRegisters(pairs))
    return kernels::turnPairs(k, x, *turn);
  Values result = x;
  for (size_t i = 0; i < turn->cosines.size(); ++i) {
    Value other = partners(pairs, x, i);
    Value isFirst = isFirstOfPair(pairs, static_cast<int64_t>(i) * kWarp);
    auto [first, second] =
        model::turned(k, k.select(isFirst, x[i], other), k.select(isFirst, other, x[i]),
                      turn->cosines[i], turn->sines[i]);
    result[i] = k.select(isFirst, first, second);
  }
  return result;
}

Value Head::sumOfSquares(const Values &x) {
  Value sum;
  for (auto [i, element] : llvm::enumerate(x)) {
    int64_t first = static_cast<int64_t>(i) * kWarp;
    if (first >= dim)
      break;
    Value mine = element;
    if (first + kWarp > dim)
      mine = k.select(k.less(k.add(lane, first), k.constI32(dim)), element, k.number(0.0));
    sum = sum ? k.fma(mine, mine, sum) : k.mulF(mine, mine);
  }
  return k.sumOfWarp(sum);
}

Values Head::rotateHead(model::HadamardOp rotation, const Values &x) {
  Values elements = x;
  for (int64_t distance = 1; distance < rotation.getBlock(); distance *= 2) {
    Values next(elements.size());
    if (distance < kWarp) {
      Value isHigh = k.equal(k.bitAnd(lane, distance), k.constI32(distance));
      for (auto [out, own] : llvm::zip_equal(next, elements)) {
        Value other = k.shuffleXor(own, distance);
        out = k.select(isHigh, k.subF(other, own), k.addF(own, other));
      }
    } else {
      auto step = static_cast<size_t>(distance / kWarp);
      for (size_t i = 0; i < elements.size(); ++i)
        next[i] = i & step ? k.subF(elements[i ^ step], elements[i])
                           : k.addF(elements[i], elements[i ^ step]);
    }
    elements = std::move(next);
  }
  for (Value &element : elements)
    element = k.mulF(element, k.number(1 / std::sqrt(static_cast<double>(rotation.getBlock()))));
  return elements;
}

//===----------------------------------------------------------------------===//
// Rounding
//===----------------------------------------------------------------------===//

/// The greatest magnitude as bits, which compare as integers, infinity and NaN above all numbers.
static Value greatestMagnitude(DeviceBuilder &k, ArrayRef<Value> elements) {
  Value greatest;
  for (Value element : elements) {
    Value magnitude = k.bitAnd(k.bitcast(element, k.i32()), 0x7FFFFFFF);
    greatest = greatest ? k.max(greatest, magnitude) : magnitude;
  }
  return greatest;
}

/// The greatest element, or the greatest negated one, as bits; 0 if none is positive.
static Value greatestWithSign(DeviceBuilder &k, ArrayRef<Value> elements, bool negated) {
  Value greatest = k.constI32(0);
  for (Value element : elements) {
    Value bits = k.bitcast(element, k.i32());
    greatest = k.max(greatest,
                     negated ? k.bitXor(bits, int64_t(std::numeric_limits<int32_t>::min())) : bits);
  }
  return greatest;
}

static Value notANumber(DeviceBuilder &k) {
  return k.number(std::numeric_limits<double>::quiet_NaN());
}

FixedPointScale device::fixedPointScale(DeviceBuilder &k, ArrayRef<Value> elements,
                                        llvm::function_ref<Value(Value)> reduce) {
  Value greatest = reduce(greatestMagnitude(k, elements));
  Value finite = k.less(greatest, k.constI32(0x7F800000));
  Value m = k.bitcast(greatest, k.f32());
  Value usable = k.bitAnd(finite, k.lessF(k.number(formats::activationFloor), m));
  Value limit = k.number(formats::activationLimit);
  return {k.select(usable, k.divF(limit, m), k.number(0.0)),
          k.select(finite, k.divF(m, limit), notANumber(k))};
}

Value device::cacheScaleExponent(DeviceBuilder &k, Value scale) {
  return k.fma(k.toFloat(k.bitcast(scale, k.i32())), k.number(0x1p-23),
               k.number(formats::cacheScaleExponentOffset));
}

/// The code of an E4M3 number in the low byte (formats::floatToE4M3).
static Value encodeE4M3(DeviceBuilder &k, Value x) {
  Value bits = k.bitcast(x, k.i32()), magnitude = k.bitAnd(bits, 0x7FFFFFFF);
  Value clamped = k.min(magnitude, k.constI32(0x43E00000)); // 448
  // To nearest even at the last of three bits of mantissa; the exponent's bias becomes 7.
  Value odd = k.bitAnd(k.shr(clamped, 20), 1);
  Value normal = k.sub(k.shr(k.add(k.add(clamped, 0x7FFFF), odd), 20), 120 << 3);
  // Below 2^-6 codes are multiples of 2^-9, as the last bit of numbers around 2^14 is.
  Value shifted = k.addF(k.bitcast(clamped, k.f32()), k.number(16384.0));
  Value subnormal = k.sub(k.bitcast(shifted, k.i32()), 0x46800000);
  Value code = k.select(k.less(clamped, k.constI32(0x3C800000)), subnormal, normal);
  code = k.select(k.less(k.constI32(0x7F800000), magnitude), k.constI32(0x7F), code);
  return k.bitOr(code, k.bitAnd(k.shr(bits, 24), 0x80));
}

StoredVector device::encodeVector(DeviceBuilder &k, const CacheShape &shape,
                                  ArrayRef<Value> elements, Value lane) {
  CacheEncoding encoding = shape.encoding;
  elements = elements.take_front(shape.paddedDim() / 32);
  StoredVector result;
  if (!encoding.isInteger()) {
    for (Value x : elements) {
      if (encoding.element == CacheEncoding::Element::E4M3) {
        result.codes.push_back(encodeE4M3(k, x));
        continue;
      }
      Type element =
          encoding.element == CacheEncoding::Element::BF16 ? Type(k.b.getBF16Type()) : k.f16();
      result.codes.push_back(k.bitcast(k.narrow(x, element), k.i16()));
    }
    return result;
  }
  int64_t perGroup = encoding.group == CacheEncoding::head ? elements.size() : encoding.group / 32;
  Value divisor = k.number(-encoding.codeMin());
  for (int64_t begin = 0, end = elements.size(); begin < end; begin += perGroup) {
    ArrayRef<Value> part = elements.slice(begin, std::min(perGroup, end - begin));
    bool pads = static_cast<int64_t>(result.scales.size()) == shape.groups();
    Value greatest, isNegative;
    if (encoding.hasSignedScale()) {
      Value positive = k.greatestOfWarp(greatestWithSign(k, part, false));
      Value negative = k.greatestOfWarp(greatestWithSign(k, part, true));
      greatest = k.max(positive, negative);
      isNegative = k.less(negative, positive);
    } else {
      greatest = k.greatestOfWarp(greatestMagnitude(k, part));
    }
    Value m = k.divF(k.bitcast(greatest, k.f32()), divisor);
    Value scale = k.narrow(k.maxF(m, k.number(formats::cacheScaleFloor)), k.f16());
    // Neither infinity nor NaN, nor what f16 cannot hold.
    Value scaleBits = k.extendUnsigned(k.bitcast(scale, k.i16()), k.i32());
    Value finite =
        k.bitAnd(k.less(greatest, k.constI32(0x7F800000)), k.less(scaleBits, k.constI32(0x7C00)));
    if (isNegative)
      scale = k.select(isNegative, k.negF(scale), scale);
    scale = k.select(finite, scale, k.narrow(notANumber(k), k.f16()));
    Value inverse = k.divF(k.number(1.0), k.widen(scale));
    for (Value x : part) {
      Value shifted = k.addF(k.mulF(x, inverse), k.number(12582912.0));
      Value code = k.sub(k.bitcast(shifted, k.i32()), 0x4B400000);
      code = k.max(k.min(code, k.constI32(encoding.codeMax())), k.constI32(encoding.codeMin()));
      result.codes.push_back(k.select(finite, code, k.constI32(0)));
    }
    if (!pads)
      result.scales.push_back(scale);
  }
  if (encoding.bits() == 8)
    return result;
  // Two nibbles of a byte are 32 elements apart in keys, which one lane has, 16 in values.
  Values bytes;
  auto join = [&](Value high, Value low) {
    return k.bitOr(k.shl(k.bitAnd(high, 0xF), 4), k.bitAnd(low, 0xF));
  };
  if (shape.areKeys())
    for (size_t e = 0; e < result.codes.size(); e += 2)
      bytes.push_back(join(result.codes[e], result.codes[e + 1]));
  else
    for (Value code : result.codes)
      bytes.push_back(join(code, k.shuffleXor(code, 16)));
  result.codes.assign(bytes.begin(), bytes.end());
  return result;
}

void device::storeVector(DeviceBuilder &k, const CacheShape &shape, const StoredVector &vector,
                         Value tile, Value position, Value lane) {
  formats::CacheArithmetic<Value> arithmetic = kernels::cacheArithmetic(k);
  bool nibbles = shape.encoding.bits() == 4;
  int64_t stride = nibbles && shape.areKeys() ? 64 : 32;
  int64_t bytes = shape.encoding.bits() == 16 ? 2 : 1;
  auto storeCodes = [&] {
    for (auto [i, code] : llvm::enumerate(vector.codes)) {
      Value d = k.add(lane, static_cast<int64_t>(i) * stride);
      Value place = k.offset(tile, formats::cacheCodeByte<Value>(arithmetic, shape, position, d));
      k.store(bytes == 2 ? code : k.truncate(code, k.i8()), place, bytes);
    }
  };
  if (nibbles && !shape.areKeys())
    k.ifThen(k.less(lane, k.constI32(16)), storeCodes);
  else
    storeCodes();
  if (vector.scales.empty())
    return;
  k.ifThen(k.equal(lane, k.constI32(0)), [&] {
    Value place = k.offset(tile, k.shl(position, 1));
    for (auto [g, scale] : llvm::enumerate(vector.scales))
      k.store(scale, k.offset(place, formats::cacheScaleByte(shape, g)), 2);
  });
}
