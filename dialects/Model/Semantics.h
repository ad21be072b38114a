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
#include <functional>
#include <numbers>
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
      { a.erf(x) } -> std::convertible_to<typename A::Value>;
      // Extends a value of any float type to the type of arithmetic (float32 or wider), and rounds
      // one of that type to `element`, to nearest even.
      { a.widen(x) } -> std::convertible_to<typename A::Value>;
      { a.narrow(x, element) } -> std::convertible_to<typename A::Value>;
    };

/// Computes an element of a result from the operands' elements, all in the type of arithmetic.
template <typename A>
using ElementFunction = std::function<typename A::Value(A &a, llvm::ArrayRef<typename A::Value> x)>;

/// cap * tanh(x / cap).
template <Arithmetic A> typename A::Value softCapped(A &a, typename A::Value x, double cap) {
  // tanh(y) = 1 - 2 / (exp(2y) + 1), which has its limits where exp has 0 and infinity.
  auto constant = [&](double number) { return a.constantLike(x, number); };
  auto e = a.exp(a.mulF(x, constant(2 / cap)));
  return a.subF(constant(cap), a.divF(constant(2 * cap), a.addF(e, constant(1))));
}

/// x / (1 + exp(-y)), x times the logistic function of y.
template <Arithmetic A>
typename A::Value timesLogistic(A &a, typename A::Value x, typename A::Value y) {
  return a.divF(x, a.addF(a.constantLike(x, 1.0), a.exp(a.negF(y))));
}

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
  if (isa<arith::MulFOp, ScaleChannelsOp>(op))
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
    return [](A &a, X x) { return timesLogistic(a, x[0], x[0]); };
  if (auto gelu = dyn_cast<GeluOp>(op)) {
    if (!gelu.getApproximate())
      return [](A &a, X x) {
        auto constant = [&](double number) { return a.constantLike(x[0], number); };
        auto phi = a.addF(constant(1), a.erf(a.mulF(x[0], constant(std::numbers::sqrt2 / 2))));
        return a.mulF(a.mulF(x[0], constant(0.5)), phi);
      };
    // 1 + tanh(y) is 2 / (1 + exp(-2y)).
    return [](A &a, X x) {
      auto constant = [&](double number) { return a.constantLike(x[0], number); };
      auto square = a.mulF(x[0], x[0]);
      auto inner = a.addF(constant(1), a.mulF(square, constant(0.044715)));
      double factor = 2 * std::numbers::sqrt2 * std::numbers::inv_sqrtpi;
      return timesLogistic(a, x[0], a.mulF(a.mulF(x[0], constant(factor)), inner));
    };
  }
  if (auto scale = dyn_cast<ScaleOp>(op))
    return [factor = scale.getFactor().convertToDouble()](A &a, X x) {
      return a.mulF(x[0], a.constantLike(x[0], factor));
    };
  if (auto softCap = dyn_cast<SoftCapOp>(op))
    return
        [cap = softCap.getCap().convertToDouble()](A &a, X x) { return softCapped(a, x[0], cap); };
  return nullptr;
}

/// An element of the result of `op`, whose formula is `function`. Arithmetic on narrow floats is
/// that of float32, rounded once.
template <Arithmetic A>
typename A::Value applyElementFunction(A &a, const ElementFunction<A> &function,
                                       mlir::Operation *op,
                                       llvm::ArrayRef<typename A::Value> operands) {
  llvm::SmallVector<typename A::Value, 2> wide;
  for (const typename A::Value &operand : operands)
    wide.push_back(a.widen(operand));
  return a.narrow(function(a, wide), mlir::getElementTypeOrSelf(op->getResult(0).getType()));
}

/// The factor by which a norm multiplies each of `width` elements (less their mean, if it is a
/// layer norm): 1 / sqrt(mean of their squares + epsilon).
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

/// Which elements of a head of `dim` elements a rotary embedding turns together, and by which of
/// its dim / 2 angles.
struct RotaryPairs {
  int64_t dim;
  bool interleaved; ///< elements 2i and 2i + 1 instead of i and i + dim / 2

  RotaryPairs(int64_t dim, bool interleaved) : dim(dim), interleaved(interleaved) {}
  explicit RotaryPairs(RotaryOp op)
      : RotaryPairs(static_cast<int64_t>(op.getHeadDim()), op.getInterleaved()) {}

  int64_t half() const { return dim / 2; }
  int64_t first(int64_t pair) const { return interleaved ? 2 * pair : pair; }
  int64_t second(int64_t pair) const { return interleaved ? 2 * pair + 1 : pair + half(); }
  bool isFirst(int64_t element) const { return interleaved ? element % 2 == 0 : element < half(); }
  int64_t pairOf(int64_t element) const {
    return interleaved ? element / 2 : isFirst(element) ? element : element - half();
  }
  int64_t partnerOf(int64_t element) const {
    return isFirst(element) ? second(pairOf(element)) : first(pairOf(element));
  }
};

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
  static double erf(double x) { return std::erf(x); }
  static double widen(double x) { return x; }
  static double narrow(double x, mlir::Type) { return x; }
};

/// Whether the operation has an element function.
inline bool isElementwise(mlir::Operation *op) {
  return static_cast<bool>(elementFunction<DoubleArithmetic>(op));
}

inline bool isNorm(mlir::Operation *op) { return mlir::isa<RmsNormOp, LayerNormOp>(op); }

/// Whether the operation is a norm of whole rows, not of heads.
inline bool isRowNorm(mlir::Operation *op) {
  auto rms = mlir::dyn_cast<RmsNormOp>(op);
  return rms ? !rms.getHeadDim() : mlir::isa<LayerNormOp>(op);
}

} // namespace sluice::model

#endif // SLUICE_DIALECTS_MODEL_SEMANTICS_H
