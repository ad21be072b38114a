// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The formulas of element operations, activations, norms and rotations. The reference evaluator
// instantiates them for double, the generators of host and GPU kernels for their builders, so that
// a new activation is one line of `elementFunction`.

#ifndef SLUICE_DIALECTS_MODEL_SEMANTICS_H
#define SLUICE_DIALECTS_MODEL_SEMANTICS_H

#include "dialects/Model/Model.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/IR/TypeUtilities.h"

#include <cmath>
#include <concepts>
#include <utility>

namespace sluice::model {

/// How to compute with floats. A `Value` is a number, or several that are treated alike.
template <typename A>
concept Arithmetic =
    requires(A &a, typename A::Value x, double number, mlir::Type element, typename A::Value y) {
      { a.constantLike(x, number) } -> std::convertible_to<typename A::Value>;
      { a.addF(x, y) } -> std::convertible_to<typename A::Value>;
      { a.subF(x, y) } -> std::convertible_to<typename A::Value>;
      { a.mulF(x, y) } -> std::convertible_to<typename A::Value>;
      { a.divF(x, y) } -> std::convertible_to<typename A::Value>;
      { a.negF(x) } -> std::convertible_to<typename A::Value>;
      { a.sqrt(x) } -> std::convertible_to<typename A::Value>;
      { a.exp(x) } -> std::convertible_to<typename A::Value>;
      // Extends a value of any float type to the type of arithmetic (float32 or wider), and rounds
      // one of that type to `element`, to nearest even.
      { a.widen(x) } -> std::convertible_to<typename A::Value>;
      { a.narrow(x, element) } -> std::convertible_to<typename A::Value>;
    };

/// Computes an element of a result from the operands' elements, all in the type of arithmetic.
template <typename A>
using ElementFunction = typename A::Value (*)(A &a, llvm::ArrayRef<typename A::Value> x);

/// The formula of an operation that computes each element of its result from the same element of
/// its operands (an operand of fewer dimensions is repeated for every row); null for any other
/// operation.
template <Arithmetic A> ElementFunction<A> elementFunction(mlir::Operation *op) {
  using namespace mlir;
  using X = llvm::ArrayRef<typename A::Value>;
  if (isa<arith::AddFOp, AddBiasOp>(op))
    return [](A &a, X x) { return a.addF(x[0], x[1]); };
  if (isa<arith::SubFOp>(op))
    return [](A &a, X x) { return a.subF(x[0], x[1]); };
  if (isa<arith::MulFOp, ScaleOp>(op))
    return [](A &a, X x) { return a.mulF(x[0], x[1]); };
  if (isa<arith::DivFOp>(op))
    return [](A &a, X x) { return a.divF(x[0], x[1]); };
  if (isa<arith::NegFOp>(op))
    return [](A &a, X x) { return a.negF(x[0]); };
  // `applyElementFunction` rounds every result to its type.
  if (isa<arith::ExtFOp>(op))
    return [](A &, X x) { return x[0]; };
  if (auto truncation = dyn_cast<arith::TruncFOp>(op)) {
    auto nearest = arith::RoundingMode::to_nearest_even;
    if (truncation.getRoundingmode().value_or(nearest) != nearest)
      return nullptr;
    return [](A &, X x) { return x[0]; };
  }
  if (isa<SiluOp>(op))
    return [](A &a, X x) {
      return a.divF(x[0], a.addF(a.constantLike(x[0], 1.0), a.exp(a.negF(x[0]))));
    };
  return nullptr;
}

/// An element of the result of `op`, whose formula is `function`. Arithmetic on narrow floats is
/// that of float32, rounded once.
template <Arithmetic A>
typename A::Value applyElementFunction(A &a, ElementFunction<A> function, mlir::Operation *op,
                                       llvm::ArrayRef<typename A::Value> operands) {
  llvm::SmallVector<typename A::Value, 2> wide;
  for (const typename A::Value &operand : operands)
    wide.push_back(a.widen(operand));
  return a.narrow(function(a, wide), mlir::getElementTypeOrSelf(op->getResult(0).getType()));
}

/// The factor by which a norm multiplies each of `width` elements: 1 / sqrt(mean of squares +
/// epsilon).
template <Arithmetic A>
typename A::Value normFactor(A &a, typename A::Value sumOfSquares, int64_t width, double epsilon) {
  auto constant = [&](double number) { return a.constantLike(sumOfSquares, number); };
  auto mean = a.divF(sumOfSquares, constant(static_cast<double>(width)));
  return a.divF(constant(1.0), a.sqrt(a.addF(mean, constant(epsilon))));
}

/// An element of a norm's result.
template <Arithmetic A>
typename A::Value normalized(A &a, typename A::Value x, typename A::Value factor,
                             typename A::Value gain) {
  return a.mulF(a.mulF(x, factor), gain);
}

/// The rotary pair (x, y), rotated by the angle that has this cosine and sine.
template <Arithmetic A>
std::pair<typename A::Value, typename A::Value>
turned(A &a, typename A::Value x, typename A::Value y, typename A::Value cosine,
       typename A::Value sine) {
  return {a.subF(a.mulF(x, cosine), a.mulF(y, sine)), a.addF(a.mulF(y, cosine), a.mulF(x, sine))};
}

/// The arithmetic of the reference evaluator, which rounds tensors itself.
struct DoubleArithmetic {
  using Value = double;
  static double constantLike(double, double number) { return number; }
  static double addF(double x, double y) { return x + y; }
  static double subF(double x, double y) { return x - y; }
  static double mulF(double x, double y) { return x * y; }
  static double divF(double x, double y) { return x / y; }
  static double negF(double x) { return -x; }
  static double sqrt(double x) { return std::sqrt(x); }
  static double exp(double x) { return std::exp(x); }
  static double widen(double x) { return x; }
  static double narrow(double x, mlir::Type) { return x; }
};

/// Whether the operation has an element function.
inline bool isElementwise(mlir::Operation *op) { return elementFunction<DoubleArithmetic>(op); }

} // namespace sluice::model

#endif // SLUICE_DIALECTS_MODEL_SEMANTICS_H
