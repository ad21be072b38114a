// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "KernelBuilder.h"

#include <cmath>
#include <numbers>

using namespace mlir;
using namespace sluice::host;

Value KernelBuilder::laneNumbers(int64_t lanes) {
  auto numbers = llvm::to_vector(llvm::seq<int32_t>(0, lanes));
  return arith::ConstantOp::create(
      b, loc, DenseElementsAttr::get(vec(lanes, i32()), ArrayRef<int32_t>(numbers)));
}

Value KernelBuilder::maxF(Value x, Value y) {
  Value greater = arith::CmpFOp::create(b, loc, arith::CmpFPredicate::OGT, x, y);
  return select(greater, x, y);
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
static Value expReduced(KernelBuilder &k, Value n, Value r) {
  Type type = r.getType(), words = k.like(type, k.i32());
  auto number = [&](Type numberType, double value) { return k.number(numberType, value); };
  auto fma = [&](Value x, Value y, Value z) { return k.fma(x, y, z); };
  Value p = number(type, 1.9875691500e-4);
  for (double coefficient :
       {1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1})
    p = fma(p, r, number(type, coefficient));
  p = fma(k.mulF(r, r), p, k.addF(r, number(type, 1.0)));
  Value power = arith::FPToSIOp::create(k.b, k.loc, words, n);
  Value half = k.sar(power, 1);
  auto powerOfTwo = [&](Value exponent) {
    return k.bitcast(k.shl(k.add(exponent, 127), 23), type);
  };
  return k.mulF(k.mulF(p, powerOfTwo(half)), powerOfTwo(k.sub(power, half)));
}

Value KernelBuilder::exp(Value x) {
  Type type = x.getType();
  x = select(lessF(x, number(type, -104.0)), number(type, -104.0), x);
  x = select(lessF(number(type, 89.0), x), number(type, 89.0), x);
  Value n = math::RoundEvenOp::create(b, loc, mulF(x, number(type, 1.44269504088896341)));
  Value r = fma(n, number(type, -0.693359375), x);
  r = fma(n, number(type, 2.12194440e-4), r);
  return expReduced(*this, n, r);
}

Value KernelBuilder::exp2(Value x) {
  Type type = x.getType(), words = like(type, i32());
  x = select(lessF(x, number(type, -127.0)), number(type, -127.0), x);
  Value n = math::RoundEvenOp::create(b, loc, x), r = subF(x, n);
  // The polynomial of expReduced, of r ln 2.
  Value p = number(type, 1.9875691500e-4 * std::pow(std::numbers::ln2, 7));
  int power = 7;
  for (double coefficient :
       {1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1})
    p = fma(p, r, number(type, coefficient * std::pow(std::numbers::ln2, --power)));
  p = fma(mulF(r, r), p, fma(r, number(type, std::numbers::ln2), number(type, 1.0)));
  Value exponent = arith::FPToSIOp::create(b, loc, words, n);
  return bitcast(add(bitcast(p, words), shl(exponent, 23)), type);
}

Value KernelBuilder::multiplyAddPairs(Value sums, Value words, Value pair) {
  int64_t lanes = cast<VectorType>(sums.getType()).getDimSize(0);
  if (isa == Isa::Avx2 && lanes > 8) {
    // Halves are registers of their own.
    Value low = multiplyAddPairs(slice(sums, 0, lanes / 2), slice(words, 0, lanes), pair);
    Value high =
        multiplyAddPairs(slice(sums, lanes / 2, lanes / 2), slice(words, lanes, lanes), pair);
    return concat(low, high);
  }
  Value pairs = bitcast(splat(pair, lanes), words.getType());
  if (isa == Isa::Avx512Vnni)
    return intrinsic("llvm.x86.avx512.vpdpwssd.512", sums.getType(), {sums, words, pairs});
  StringRef multiply =
      isa == Isa::Avx512 ? "llvm.x86.avx512.pmaddw.d.512" : "llvm.x86.avx2.pmadd.wd";
  return add(sums, intrinsic(multiply, sums.getType(), {words, pairs}));
}

Value KernelBuilder::multiplyAddBytes(Value sums, Value bytes, Value four) {
  int64_t lanes = cast<VectorType>(sums.getType()).getDimSize(0);
  assert(isa == Isa::Avx512Vnni && "no such instruction");
  return intrinsic("llvm.x86.avx512.vpdpbusd.512", sums.getType(),
                   {sums, bytes, bitcast(splat(four, lanes), bytes.getType())});
}

Value KernelBuilder::encodeE4M3(Value x) {
  Type words = like(x.getType(), i32());
  auto word = [&](int64_t value) { return integer(words, value); };
  auto both = [&](Value y, int64_t mask) -> Value {
    return arith::AndIOp::create(b, loc, y, word(mask));
  };
  Value bits = bitcast(x, words), magnitude = both(bits, 0x7FFFFFFF);
  Value clamped = min(magnitude, word(0x43E00000)); // 448
  // To nearest even at the last of three bits of mantissa; the exponent's bias becomes 7.
  Value odd = both(shr(clamped, 20), 1);
  Value normal = sub(shr(add(add(clamped, 0x7FFFF), odd), 20), word(120 << 3));
  // Below 2^-6 codes are multiples of 2^-9, as the last bit of numbers around 2^14 is.
  Value shifted = addF(bitcast(clamped, x.getType()), number(x.getType(), 16384.0));
  Value subnormal = sub(bitcast(shifted, words), word(0x46800000));
  Value code = select(less(clamped, word(0x3C800000)), subnormal, normal);
  code = select(less(word(0x7F800000), magnitude), word(0x7F), code);
  code = arith::OrIOp::create(b, loc, code, both(shr(bits, 24), 0x80));
  return truncate(code, i8());
}

Value KernelBuilder::decodeE4M3Words(Value words, bool high) {
  // Exponent and mantissa move to those of an f16, whose bias is greater by 8. One more than the
  // magnitude of NaN carries into the exponent's highest bit, which no other code sets.
  Value shifted = bitAnd(sar(high ? words : shl(words, 8), 1), -0x4080);
  Value bits = bitOr(shifted, bitAnd(add(shifted, 0x80), 0x4000));
  return bitcast(bits, like(words.getType(), f16()));
}

Value KernelBuilder::decodeE4M3(Value codes) {
  // As above. The extended sign lies in the exponent's highest bit, too.
  Type words = like(codes.getType(), i16());
  Value shifted = shl(extend(codes, i16()), 7);
  return bitcast(bitAnd(shifted, integer(words, int16_t(0xBF80))), like(codes.getType(), f16()));
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

void KernelBuilder::emptyRegisters() {
  std::string clobbers;
  for (int i = 0; i < (isa == Isa::Avx2 ? 16 : 32); ++i)
    clobbers += (i ? ",~{xmm" : "~{xmm") + std::to_string(i) + "}";
  LLVM::InlineAsmOp::create(b, loc, TypeRange{}, ValueRange{}, "", clobbers,
                            /*has_side_effects=*/true, /*is_align_stack=*/false,
                            LLVM::tailcallkind::TailCallKind::None, LLVM::AsmDialectAttr(),
                            ArrayAttr());
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
