// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "ComputeBuilder.h"

using namespace mlir;
using namespace sluice::kernels;

Type ComputeBuilder::like(Type shape, Type element) {
  if (auto vector = dyn_cast<VectorType>(shape))
    return vector.clone(element);
  return element;
}

Value ComputeBuilder::integer(Type type, int64_t value) {
  TypedAttr attr = b.getIntegerAttr(getElementTypeOrSelf(type), value);
  if (auto vector = dyn_cast<VectorType>(type))
    attr = DenseElementsAttr::get(vector, Attribute(attr));
  return arith::ConstantOp::create(b, loc, attr);
}

Value ComputeBuilder::number(Type type, double value) {
  TypedAttr attr = b.getFloatAttr(getElementTypeOrSelf(type), value);
  if (auto vector = dyn_cast<VectorType>(type))
    attr = DenseElementsAttr::get(vector, Attribute(attr));
  return arith::ConstantOp::create(b, loc, attr);
}

Value ComputeBuilder::extend(Value x, Type element) {
  return arith::ExtSIOp::create(b, loc, like(x.getType(), element), x);
}

Value ComputeBuilder::extendUnsigned(Value x, Type element) {
  return b.createOrFold<arith::ExtUIOp>(loc, like(x.getType(), element), x);
}

Value ComputeBuilder::truncate(Value x, Type element) {
  return arith::TruncIOp::create(b, loc, like(x.getType(), element), x);
}

Value ComputeBuilder::toFloat(Value x) {
  return arith::SIToFPOp::create(b, loc, like(x.getType(), f32()), x);
}

Value ComputeBuilder::broadcastLike(Value scalar, Value x) {
  Type type = like(x.getType(), scalar.getType());
  return isa<VectorType>(type) ? vector::BroadcastOp::create(b, loc, type, scalar).getResult()
                               : scalar;
}

Value ComputeBuilder::offset(Value pointer, Value bytes) {
  if (std::optional<int64_t> constant = getConstantIntValue(bytes))
    return offset(pointer, *constant);
  return LLVM::GEPOp::create(b, loc, pointer.getType(), i8(), pointer, ValueRange{bytes},
                             LLVM::GEPNoWrapFlags::inbounds);
}

Value ComputeBuilder::offset(Value pointer, int64_t bytes) {
  if (!bytes)
    return pointer;
  if (!llvm::isInt<31>(bytes))
    return offset(pointer, integer(i64(), bytes));
  return LLVM::GEPOp::create(b, loc, pointer.getType(), i8(), pointer,
                             ArrayRef<LLVM::GEPArg>{static_cast<int32_t>(bytes)},
                             LLVM::GEPNoWrapFlags::inbounds);
}

ComputeBuilder::Values ComputeBuilder::loop(Value lower, Value upper, Value step,
                                            ValueRange carried, Body body) {
  auto build = [&](OpBuilder &nested, Location, Value index, ValueRange values) {
    OpBuilder::InsertionGuard guard(b);
    b.setInsertionPointToEnd(nested.getInsertionBlock());
    Values results = body(index, values);
    scf::YieldOp::create(b, loc, results);
  };
  ValueRange results = scf::ForOp::create(b, loc, lower, upper, step, carried, build).getResults();
  return Values(results.begin(), results.end());
}

void ComputeBuilder::loop(Value lower, Value upper, Value step,
                          llvm::function_ref<void(Value)> body) {
  loop(lower, upper, step, ValueRange{}, [&](Value index, ValueRange) {
    body(index);
    return Values();
  });
}

ComputeBuilder::Values ComputeBuilder::ifElseYield(Value condition,
                                                   llvm::function_ref<Values()> then,
                                                   llvm::function_ref<Values()> otherwise) {
  auto block = [&](llvm::function_ref<Values()> fill) {
    return [this, fill](OpBuilder &nested, Location) {
      OpBuilder::InsertionGuard guard(b);
      b.setInsertionPointToEnd(nested.getInsertionBlock());
      Values results = fill();
      scf::YieldOp::create(b, loc, results);
    };
  };
  ValueRange results =
      scf::IfOp::create(b, loc, condition, block(then), block(otherwise)).getResults();
  return Values(results.begin(), results.end());
}

void ComputeBuilder::ifElse(Value condition, llvm::function_ref<void()> then,
                            llvm::function_ref<void()> otherwise) {
  auto none = [](llvm::function_ref<void()> fill) {
    return [fill] {
      fill();
      return Values();
    };
  };
  ifElseYield(condition, none(then), none(otherwise));
}

void ComputeBuilder::ifThen(Value condition, llvm::function_ref<void()> then) {
  ifElse(condition, then, [] {});
}
