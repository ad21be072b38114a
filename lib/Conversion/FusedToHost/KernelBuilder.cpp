// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "KernelBuilder.h"

using namespace mlir;
using namespace sluice::host;

Type KernelBuilder::like(Type shape, Type element) {
  if (auto vector = dyn_cast<VectorType>(shape))
    return vector.clone(element);
  return element;
}

Value KernelBuilder::integer(Type type, int64_t value) {
  TypedAttr attr = b.getIntegerAttr(getElementTypeOrSelf(type), value);
  if (auto vector = dyn_cast<VectorType>(type))
    attr = DenseElementsAttr::get(vector, Attribute(attr));
  return arith::ConstantOp::create(b, loc, attr);
}

Value KernelBuilder::number(Type type, double value) {
  TypedAttr attr = b.getFloatAttr(getElementTypeOrSelf(type), value);
  if (auto vector = dyn_cast<VectorType>(type))
    attr = DenseElementsAttr::get(vector, Attribute(attr));
  return arith::ConstantOp::create(b, loc, attr);
}

Value KernelBuilder::laneNumbers(int64_t lanes) {
  auto numbers = llvm::to_vector(llvm::seq<int32_t>(0, lanes));
  return arith::ConstantOp::create(
      b, loc, DenseElementsAttr::get(vec(lanes, i32()), ArrayRef<int32_t>(numbers)));
}

Value KernelBuilder::maxF(Value x, Value y) {
  Value greater = arith::CmpFOp::create(b, loc, arith::CmpFPredicate::OGT, x, y);
  return select(greater, x, y);
}

Value KernelBuilder::extend(Value x, Type element) {
  return arith::ExtSIOp::create(b, loc, like(x.getType(), element), x);
}

Value KernelBuilder::truncate(Value x, Type element) {
  return arith::TruncIOp::create(b, loc, like(x.getType(), element), x);
}

Value KernelBuilder::bitcast(Value x, Type type) {
  if (auto vector = dyn_cast<VectorType>(type))
    return vector::BitCastOp::create(b, loc, vector, x);
  return arith::BitcastOp::create(b, loc, type, x);
}

Value KernelBuilder::toFloat(Value x) {
  return arith::SIToFPOp::create(b, loc, like(x.getType(), f32()), x);
}

Value KernelBuilder::roundToInt(Value x) {
  Value rounded = math::RoundEvenOp::create(b, loc, x);
  return arith::FPToSIOp::create(b, loc, like(x.getType(), i32()), rounded);
}

Value KernelBuilder::widen(Value x) {
  Type element = getElementTypeOrSelf(x.getType());
  if (element.isF32())
    return x;
  if (element.isF16())
    return arith::ExtFOp::create(b, loc, like(x.getType(), f32()), x);
  // A bfloat16 is a float32's upper half.
  Value bits = bitcast(x, like(x.getType(), i16()));
  Value wide = arith::ExtUIOp::create(b, loc, like(x.getType(), i32()), bits);
  return bitcast(shl(wide, 16), like(x.getType(), f32()));
}

Value KernelBuilder::narrow(Value x, Type element) {
  if (element.isF32())
    return x;
  if (element.isF16())
    return arith::TruncFOp::create(b, loc, like(x.getType(), element), x);
  // LLVM's truncation to bfloat16 is a library call without AVX512_BF16.
  Type words = like(x.getType(), i32());
  Value bits = bitcast(x, words);
  Value odd = b.createOrFold<arith::AndIOp>(loc, shr(bits, 16), integer(words, 1));
  Value rounded = shr(add(add(bits, integer(words, 0x7FFF)), odd), 16);
  Value quiet = b.createOrFold<arith::OrIOp>(loc, shr(bits, 16), integer(words, 0x40));
  Value isNan = arith::CmpFOp::create(b, loc, arith::CmpFPredicate::UNO, x, x);
  return bitcast(truncate(select(isNan, quiet, rounded), i16()), like(x.getType(), element));
}

// Reduction by Cody and Waite: exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln(2) / 2; the
// polynomial is that of the Cephes library's expf (S. Moshier), whose error is below 1 ulp there.
// 2^n is applied in two steps, so that results beyond the range become infinity and zero.
Value KernelBuilder::exp(Value x) {
  Type type = x.getType(), words = like(type, i32());
  x = select(lessF(x, number(type, -104.0)), number(type, -104.0), x);
  x = select(lessF(number(type, 89.0), x), number(type, 89.0), x);
  Value n = math::RoundEvenOp::create(b, loc, mulF(x, number(type, 1.44269504088896341)));
  Value r = fma(n, number(type, -0.693359375), x);
  r = fma(n, number(type, 2.12194440e-4), r);
  Value p = number(type, 1.9875691500e-4);
  for (double coefficient :
       {1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1})
    p = fma(p, r, number(type, coefficient));
  p = fma(mulF(r, r), p, addF(r, number(type, 1.0)));
  Value power = arith::FPToSIOp::create(b, loc, words, n);
  Value half = sar(power, 1);
  auto powerOfTwo = [&](Value exponent) { return bitcast(shl(add(exponent, 127), 23), type); };
  return mulF(mulF(p, powerOfTwo(half)), powerOfTwo(sub(power, half)));
}

Value KernelBuilder::silu(Value x) {
  Type type = x.getType();
  Value negated = arith::NegFOp::create(b, loc, x);
  return divF(x, addF(number(type, 1.0), exp(negated)));
}

Value KernelBuilder::splat(Value scalar, int64_t lanes) {
  return vector::BroadcastOp::create(b, loc, vec(lanes, scalar.getType()), scalar);
}

Value KernelBuilder::slice(Value x, int64_t first, int64_t lanes) {
  if (cast<VectorType>(x.getType()).getDimSize(0) == lanes)
    return x;
  return shuffle(x, x, llvm::to_vector(llvm::seq<int64_t>(first, first + lanes)));
}

Value KernelBuilder::concat(Value x, Value y) {
  int64_t lanes =
      cast<VectorType>(x.getType()).getDimSize(0) + cast<VectorType>(y.getType()).getDimSize(0);
  return shuffle(x, y, llvm::to_vector(llvm::seq<int64_t>(0, lanes)));
}

Value KernelBuilder::reduce(Value x, llvm::function_ref<Value(Value, Value)> combine) {
  for (int64_t lanes = cast<VectorType>(x.getType()).getDimSize(0); lanes > 1; lanes /= 2)
    x = combine(slice(x, 0, lanes / 2), slice(x, lanes / 2, lanes / 2));
  return vector::ExtractOp::create(b, loc, x, 0);
}

Value KernelBuilder::firstLanes(int64_t lanes, Value count) {
  Value limit = truncate(min(count, index(lanes)), i32());
  return less(laneNumbers(lanes), splat(limit, lanes));
}

Value KernelBuilder::offset(Value pointer, Value bytes) {
  return LLVM::GEPOp::create(b, loc, ptr(), i8(), pointer, ValueRange{bytes},
                             LLVM::GEPNoWrapFlags::inbounds);
}

Value KernelBuilder::offset(Value pointer, int64_t bytes) {
  if (!bytes)
    return pointer;
  if (!llvm::isInt<31>(bytes))
    return offset(pointer, index(bytes));
  return LLVM::GEPOp::create(b, loc, ptr(), i8(), pointer,
                             ArrayRef<LLVM::GEPArg>{static_cast<int32_t>(bytes)},
                             LLVM::GEPNoWrapFlags::inbounds);
}

Value KernelBuilder::load(Type type, Value pointer, unsigned alignment) {
  return LLVM::LoadOp::create(b, loc, type, pointer, alignment);
}

void KernelBuilder::store(Value value, Value pointer, unsigned alignment) {
  LLVM::StoreOp::create(b, loc, value, pointer, alignment);
}

Value KernelBuilder::load(VectorType type, Value pointer, unsigned alignment, Value mask) {
  if (!mask)
    return load(type, pointer, alignment);
  Value zeros = llvm::isa<FloatType>(type.getElementType()) ? number(type, 0.0) : integer(type, 0);
  return LLVM::MaskedLoadOp::create(b, loc, type, pointer, mask, zeros,
                                    static_cast<uint32_t>(alignment));
}

void KernelBuilder::store(Value value, Value pointer, unsigned alignment, Value mask) {
  if (!mask)
    return store(value, pointer, alignment);
  LLVM::MaskedStoreOp::create(b, loc, value, pointer, mask, static_cast<uint32_t>(alignment));
}

Value KernelBuilder::loadFloats(int64_t lanes, Type element, Value pointer, unsigned alignment,
                                Value mask) {
  if (!element.isBF16())
    return widen(load(vec(lanes, element), pointer, alignment, mask));
  Value bits = load(vec(lanes, i16()), pointer, alignment, mask);
  Value wide = arith::ExtUIOp::create(b, loc, vec(lanes, i32()), bits);
  return bitcast(shl(wide, 16), vec(lanes, f32()));
}

void KernelBuilder::storeFloats(Value value, Type element, Value pointer, unsigned alignment,
                                Value mask) {
  Value stored = narrow(value, element);
  if (element.isBF16())
    stored = bitcast(stored, like(stored.getType(), i16()));
  store(stored, pointer, alignment, mask);
}

Value KernelBuilder::scratch(int64_t bytes) {
  OpBuilder::InsertionGuard guard(b);
  Block *block = b.getInsertionBlock();
  auto function = dyn_cast<LLVM::LLVMFuncOp>(block->getParentOp());
  if (!function)
    function = block->getParentOp()->getParentOfType<LLVM::LLVMFuncOp>();
  b.setInsertionPointToStart(&function.front());
  return LLVM::AllocaOp::create(b, loc, ptr(), i8(), index(bytes), 64);
}

Value KernelBuilder::outside(Value pointer, Value bytes) {
  return LLVM::GEPOp::create(b, loc, ptr(), i8(), pointer, ValueRange{bytes});
}

void KernelBuilder::prefetch(Value pointer, unsigned locality) {
  // For reading, data.
  LLVM::Prefetch::create(b, loc, pointer, 0u, locality, 1u);
}

Value KernelBuilder::intrinsic(StringRef name, Type result, ValueRange operands) {
  return LLVM::CallIntrinsicOp::create(b, loc, result, b.getStringAttr(name), operands)
      .getResults();
}

SmallVector<Value> KernelBuilder::loop(Value lower, Value upper, int64_t step, ValueRange carried,
                                       Body body) {
  auto build = [&](OpBuilder &nested, Location, Value iv, ValueRange values) {
    OpBuilder::InsertionGuard guard(b);
    b.setInsertionPointToEnd(nested.getInsertionBlock());
    SmallVector<Value> results = body(iv, values);
    scf::YieldOp::create(b, loc, results);
  };
  return scf::ForOp::create(b, loc, lower, upper, index(step), carried, build).getResults();
}

void KernelBuilder::loop(Value lower, Value upper, int64_t step,
                         llvm::function_ref<void(Value)> body) {
  loop(lower, upper, step, ValueRange{}, [&](Value iv, ValueRange) {
    body(iv);
    return SmallVector<Value>();
  });
}

void KernelBuilder::ifElse(Value condition, llvm::function_ref<void()> then,
                           llvm::function_ref<void()> otherwise) {
  auto block = [&](llvm::function_ref<void()> fill) {
    return [this, fill](OpBuilder &nested, Location) {
      OpBuilder::InsertionGuard guard(b);
      b.setInsertionPointToEnd(nested.getInsertionBlock());
      fill();
      scf::YieldOp::create(b, loc);
    };
  };
  scf::IfOp::create(b, loc, condition, block(then), block(otherwise));
}
