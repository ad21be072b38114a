// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What the builders of host and GPU kernels have in common: constants, arithmetic, memory, control
// flow.

#ifndef SLUICE_LIB_CONVERSION_FUSEDKERNELS_COMPUTEBUILDER_H
#define SLUICE_LIB_CONVERSION_FUSEDKERNELS_COMPUTEBUILDER_H

#include "sluice/Conversion/Passes.h"

namespace sluice::kernels {

/// Builds the body of one kernel. Values are scalars or vectors; floats of arithmetic are f32.
class ComputeBuilder {
public:
  using Value = mlir::Value;
  using Values = llvm::SmallVector<Value>;
  using Body = llvm::function_ref<Values(Value index, mlir::ValueRange carried)>;

  mlir::OpBuilder b;
  const mlir::Location loc;

  // Types.
  mlir::Type i1() { return b.getI1Type(); }
  mlir::Type i8() { return b.getI8Type(); }
  mlir::Type i16() { return b.getI16Type(); }
  mlir::Type i32() { return b.getI32Type(); }
  mlir::Type i64() { return b.getI64Type(); }
  mlir::Type f16() { return b.getF16Type(); }
  mlir::Type f32() { return b.getF32Type(); }
  mlir::VectorType vec(int64_t lanes, mlir::Type element) {
    return mlir::VectorType::get({lanes}, element);
  }
  /// `shape`'s type (scalar or vector) with another element.
  mlir::Type like(mlir::Type shape, mlir::Type element);

  // Constants: of scalars, or the same in all lanes of a vector.
  Value integer(mlir::Type type, int64_t value);
  Value number(mlir::Type type, double value);
  /// In every lane of a value like `x`.
  Value constantLike(Value x, double value) { return number(x.getType(), value); }
  Value constI32(int64_t value) { return integer(i32(), value); }
  /// A constant of the type in which this builder counts rows, columns and bytes.
  Value index(int64_t value) { return integer(indexType, value); }

  // Integer arithmetic.
  Value add(Value x, Value y) { return b.createOrFold<mlir::arith::AddIOp>(loc, x, y); }
  Value sub(Value x, Value y) { return b.createOrFold<mlir::arith::SubIOp>(loc, x, y); }
  Value mul(Value x, Value y) { return b.createOrFold<mlir::arith::MulIOp>(loc, x, y); }
  Value bitAnd(Value x, Value y) { return b.createOrFold<mlir::arith::AndIOp>(loc, x, y); }
  Value bitOr(Value x, Value y) { return b.createOrFold<mlir::arith::OrIOp>(loc, x, y); }
  Value bitXor(Value x, Value y) { return b.createOrFold<mlir::arith::XOrIOp>(loc, x, y); }
  Value add(Value x, int64_t y) { return add(x, integer(x.getType(), y)); }
  Value sub(Value x, int64_t y) { return sub(x, integer(x.getType(), y)); }
  Value mul(Value x, int64_t y) { return mul(x, integer(x.getType(), y)); }
  Value bitAnd(Value x, int64_t y) { return bitAnd(x, integer(x.getType(), y)); }
  Value bitXor(Value x, int64_t y) { return bitXor(x, integer(x.getType(), y)); }
  /// Unsigned.
  Value div(Value x, int64_t y) {
    return b.createOrFold<mlir::arith::DivUIOp>(loc, x, integer(x.getType(), y));
  }
  Value rem(Value x, int64_t y) {
    return b.createOrFold<mlir::arith::RemUIOp>(loc, x, integer(x.getType(), y));
  }
  Value shl(Value x, int64_t y) {
    return b.createOrFold<mlir::arith::ShLIOp>(loc, x, integer(x.getType(), y));
  }
  Value sar(Value x, int64_t y) {
    return b.createOrFold<mlir::arith::ShRSIOp>(loc, x, integer(x.getType(), y));
  }
  Value shr(Value x, int64_t y) {
    return b.createOrFold<mlir::arith::ShRUIOp>(loc, x, integer(x.getType(), y));
  }
  Value min(Value x, Value y) { return b.createOrFold<mlir::arith::MinSIOp>(loc, x, y); }
  Value max(Value x, Value y) { return b.createOrFold<mlir::arith::MaxSIOp>(loc, x, y); }
  /// Clamps to 0 .. size - 1. For what a kernel reads and uses as an index: the runtime checks
  /// tokens and positions, but a wrong one must not reach memory outside.
  Value clampIndex(Value x, int64_t size) {
    return max(min(x, integer(x.getType(), size - 1)), integer(x.getType(), 0));
  }
  Value less(Value x, Value y) {
    return mlir::arith::CmpIOp::create(b, loc, mlir::arith::CmpIPredicate::slt, x, y);
  }
  Value equal(Value x, Value y) {
    return mlir::arith::CmpIOp::create(b, loc, mlir::arith::CmpIPredicate::eq, x, y);
  }
  Value select(Value condition, Value x, Value y) {
    return mlir::arith::SelectOp::create(b, loc, condition, x, y);
  }
  Value extend(Value x, mlir::Type element);         ///< sign-extends
  Value extendUnsigned(Value x, mlir::Type element); ///< zero-extends
  Value truncate(Value x, mlir::Type element);
  /// Widens a non-negative i32 to the type in which this builder counts.
  Value toIndex(Value x) { return indexType == x.getType() ? x : extend(x, indexType); }
  /// Widens a non-negative count of this builder to i64.
  Value toI64(Value x) { return x.getType() == i64() ? x : extendUnsigned(x, i64()); }

  // Float arithmetic.
  Value addF(Value x, Value y) { return mlir::arith::AddFOp::create(b, loc, x, y); }
  Value subF(Value x, Value y) { return mlir::arith::SubFOp::create(b, loc, x, y); }
  Value mulF(Value x, Value y) { return mlir::arith::MulFOp::create(b, loc, x, y); }
  Value divF(Value x, Value y) { return mlir::arith::DivFOp::create(b, loc, x, y); }
  Value absF(Value x) { return mlir::LLVM::FAbsOp::create(b, loc, x); }
  Value negF(Value x) { return mlir::arith::NegFOp::create(b, loc, x); }
  Value fma(Value x, Value y, Value z) { return mlir::LLVM::FMAOp::create(b, loc, x, y, z); }
  Value sqrt(Value x) { return mlir::LLVM::SqrtOp::create(b, loc, x); }
  Value lessF(Value x, Value y) {
    return mlir::arith::CmpFOp::create(b, loc, mlir::arith::CmpFPredicate::OLT, x, y);
  }
  Value toFloat(Value x); ///< i32 to f32

  /// The same bits as another type; vectors may have another number of lanes.
  Value bitcast(Value x, mlir::Type type) { return mlir::LLVM::BitcastOp::create(b, loc, type, x); }
  /// Broadcasts a scalar to all lanes that `x` has.
  Value broadcastLike(Value scalar, Value x);

  // Memory. Alignments are in bytes; addresses count bytes.
  Value offset(Value pointer, Value bytes);
  Value offset(Value pointer, int64_t bytes);
  /// Entry `number` of an array of things of `bytes` each.
  Value at(Value array, Value number, int64_t bytes) { return offset(array, mul(number, bytes)); }
  Value load(mlir::Type type, Value pointer, unsigned alignment) {
    return mlir::LLVM::LoadOp::create(b, loc, type, pointer, alignment);
  }
  void store(Value value, Value pointer, unsigned alignment) {
    mlir::LLVM::StoreOp::create(b, loc, value, pointer, alignment);
  }

  // Control flow.
  Values loop(Value lower, Value upper, Value step, mlir::ValueRange carried, Body body);
  void loop(Value lower, Value upper, Value step, llvm::function_ref<void(Value index)> body);
  Values loop(Value lower, Value upper, int64_t step, mlir::ValueRange carried, Body body) {
    return loop(lower, upper, integer(lower.getType(), step), carried, body);
  }
  void loop(Value lower, Value upper, int64_t step, llvm::function_ref<void(Value index)> body) {
    loop(lower, upper, integer(lower.getType(), step), body);
  }
  void ifThen(Value condition, llvm::function_ref<void()> then);
  void ifElse(Value condition, llvm::function_ref<void()> then,
              llvm::function_ref<void()> otherwise);
  Values ifElseYield(Value condition, llvm::function_ref<Values()> then,
                     llvm::function_ref<Values()> otherwise);

protected:
  ComputeBuilder(mlir::OpBuilder builder, mlir::Location loc, mlir::Type indexType)
      : b(builder), loc(loc), indexType(indexType) {}

private:
  const mlir::Type indexType;
};

using Values = ComputeBuilder::Values;

/// erf(x) within 3e-7, of a float32 or a vector of them (Abramowitz and Stegun, 7.1.26).
template <typename Builder> mlir::Value erf(Builder &k, mlir::Value x) {
  auto number = [&](double value) { return k.constantLike(x, value); };
  mlir::Value magnitude = k.absF(x);
  mlir::Value t = k.divF(number(1), k.fma(magnitude, number(0.3275911), number(1)));
  mlir::Value sum = number(1.061405429);
  for (double coefficient : {-1.453152027, 1.421413741, -0.284496736, 0.254829592})
    sum = k.fma(sum, t, number(coefficient));
  mlir::Value tail = k.mulF(k.mulF(sum, t), k.exp(k.negF(k.mulF(x, x))));
  mlir::Value positive = k.subF(number(1), tail);
  return k.select(k.lessF(x, number(0)), k.negF(positive), positive);
}

/// Bytes of a float or integer element, 1 or more.
inline int64_t bytesOf(mlir::Type element) { return element.getIntOrFloatBitWidth() / 8; }

} // namespace sluice::kernels

#endif // SLUICE_LIB_CONVERSION_FUSEDKERNELS_COMPUTEBUILDER_H
