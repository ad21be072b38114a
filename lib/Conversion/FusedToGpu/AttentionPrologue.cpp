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

FailureOr<Values> Head::load(Value value) {
  Value pointer = kernel.interface.pointer(op.getSource(value));
  auto type = dyn_cast<RankedTensorType>(value.getType());
  if (!pointer || !kernels::isFloatTensor(value) || type.getRank() != 2)
    return op.emitOpError() << "prologue reads a value of type " << value.getType()
                            << " in a way that cannot be converted to GPU code";
  Type element = type.getElementType();
  int64_t bytes = bytesOf(element);
  Value base = k.at(pointer, k.add(k.mul(number, dim), k.mul(token, type.getDimSize(1))), bytes);
  Values elements;
  for (int64_t first = 0; first < padded; first += kWarp) {
    Value d = k.add(lane, first);
    if (first + kWarp > dim)
      d = k.min(d, k.constI32(dim - 1));
    elements.push_back(k.loadFresh(element, k.at(base, d, bytes), bytes));
  }
  return elements;
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
