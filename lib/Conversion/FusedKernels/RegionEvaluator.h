// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Evaluates the regions of fused operations (norms, activations, rotary embedding, residuals) for
// host and GPU kernels alike.
//
// A region computes on whole tensors, a kernel on the part that one vector or thread has at a time.
// A *place* stands for that part: it knows which elements they are, how they are loaded, and in
// which registers they lie. All values of a region have the same number of registers at a place; a
// register is a scalar on a GPU and a vector of neighbouring elements on the host.

#ifndef SLUICE_LIB_CONVERSION_FUSEDKERNELS_REGIONEVALUATOR_H
#define SLUICE_LIB_CONVERSION_FUSEDKERNELS_REGIONEVALUATOR_H

#include "ComputeBuilder.h"
#include "KernelInterface.h"

#include "dialects/Model/Semantics.h"

namespace sluice::kernels {

/// Cosines and sines for a place of n registers, n / 2 each: entry i turns registers i and
/// i + n / 2, which hold the two elements of rotary pairs.
struct Turn {
  Values cosines, sines;
};

/// What a norm subtracts from every element of a row (null: nothing) and then multiplies it by,
/// float32 scalars.
struct NormFactor {
  mlir::Value mean, factor;
};
/// Those of a region's norms for the row that is being computed.
using NormFactors = llvm::DenseMap<mlir::Operation *, NormFactor>;

template <typename P>
concept Place = std::derived_from<typename P::Builder, ComputeBuilder> &&
                model::Arithmetic<typename P::Builder> && requires(P &place, mlir::Value value) {
                  { place.k } -> std::convertible_to<typename P::Builder &>;
                  // Which region this is, for messages: "a prologue".
                  { P::kRegion } -> std::convertible_to<llvm::StringRef>;
                  // The elements of a region's argument, or of a tensor from outside. Fails, with
                  // a message, if they cannot be read.
                  { place.load(value) } -> std::same_as<mlir::FailureOr<Values>>;
                };

/// A place that can read elements of other columns of its row.
template <typename P>
concept ReorderPlace = Place<P> && requires(P &place, const Values &columns,
                                            llvm::function_ref<mlir::FailureOr<Values>()> body) {
  // Runs `body`, whose loads are of the elements that the registers `columns`, whole float32
  // numbers, name; behind the row's end of any elements.
  { place.elsewhere(columns, body) } -> std::same_as<mlir::FailureOr<Values>>;
};

/// A place that has rotary pairs: in its order of rows the two elements of a pair are half of its
/// registers apart.
template <typename P>
concept PairPlace = Place<P> && requires(P &place, model::RotaryOp rotary) {
  // Fails, with a message, if the registers are no pairs of this rotation.
  { place.turn(rotary) } -> std::same_as<mlir::FailureOr<Turn>>;
};

/// A place that is a whole head. Registers are float32; those of padding, and its lanes, may hold
/// anything.
template <typename P>
concept HeadPlace = Place<P> && requires(P &place, model::HadamardOp rotation,
                                         model::RotaryOp rotary, const Values &x) {
  // The head times a Walsh-Hadamard matrix.
  { place.rotateHead(rotation, x) } -> std::same_as<Values>;
  // The head turned by its position. Fails, with a message, without a table of angles.
  { place.turnHead(rotary, x) } -> std::same_as<mlir::FailureOr<Values>>;
  // The sum of the squares of the head's elements, a scalar.
  { place.sumOfSquares(x) } -> std::same_as<mlir::Value>;
};

/// The registers of rotary pairs, turned.
template <typename B> Values turnPairs(B &k, const Values &x, const Turn &turn) {
  size_t pairs = turn.cosines.size();
  Values result(2 * pairs);
  for (size_t i = 0; i < pairs; ++i)
    std::tie(result[i], result[i + pairs]) =
        model::turned(k, k.widen(x[i]), k.widen(x[i + pairs]), turn.cosines[i], turn.sines[i]);
  return result;
}

/// Emits the code of a region's values at one place, each once.
template <Place P> class RegionEvaluator {
public:
  /// Norms can be evaluated only if `factors` has theirs (see evaluateNorms).
  RegionEvaluator(P &place, const KernelInterface &interface, const NormFactors &factors)
      : place(place), k(place.k), interface(interface), factors(factors) {}

  /// Gives the elements of a value that has been computed or loaded already.
  void bind(mlir::Value value, Values elements) { known[value] = std::move(elements); }

  /// Emits the elements of a value, in its float type. Fails, with a message, at an operation that
  /// is no element operation, norm or rotation.
  mlir::FailureOr<Values> evaluate(mlir::Value value) {
    if (auto found = known.find(value); found != known.end())
      return found->second;
    mlir::FailureOr<Values> elements = compute(value);
    if (succeeded(elements))
      known[value] = *elements;
    return elements;
  }

private:
  using Function = model::ElementFunction<typename P::Builder>;

  mlir::FailureOr<Values> compute(mlir::Value value) {
    if (isa<mlir::BlockArgument>(value) || interface.pointer(value))
      return place.load(value);
    mlir::Operation *op = value.getDefiningOp();
    if constexpr (HeadPlace<P>)
      if (isa<model::HadamardOp, model::RotaryOp, model::RmsNormOp>(op))
        return computeHead(op);
    if constexpr (PairPlace<P>)
      if (auto rotary = dyn_cast<model::RotaryOp>(op)) {
        mlir::FailureOr<Turn> turn = place.turn(rotary);
        if (failed(turn))
          return mlir::failure();
        mlir::FailureOr<Values> x = evaluate(rotary.getInput());
        if (failed(x))
          return mlir::failure();
        return turnPairs(k, *x, *turn);
      }
    if constexpr (ReorderPlace<P>)
      if (auto reorder = dyn_cast<model::ReorderOp>(op)) {
        mlir::FailureOr<Values> columns = evaluate(reorder.getOrder());
        if (failed(columns))
          return mlir::failure();
        return place.elsewhere(*columns, [&] {
          return RegionEvaluator(place, interface, factors).evaluate(reorder.getInput());
        });
      }
    Function function = model::elementFunction<typename P::Builder>(op);
    bool isNorm = factors.contains(op);
    if (!function && !isNorm)
      return op->emitOpError() << "in " << P::kRegion << " cannot be converted to "
                               << P::Builder::kCode;
    llvm::SmallVector<Values> operands;
    for (mlir::Value operand : op->getOperands()) {
      mlir::FailureOr<Values> elements = evaluate(operand);
      if (failed(elements))
        return mlir::failure();
      operands.push_back(std::move(*elements));
    }
    Values result;
    for (size_t i = 0; i < operands.front().size(); ++i) {
      Values x = llvm::map_to_vector(operands, [&](Values &all) { return all[i]; });
      result.push_back(isNorm ? normalize(op, x, factors.lookup(op))
                              : model::applyElementFunction(k, function, op, x));
    }
    return result;
  }

  /// `x` are elements of the norm's operands: input, gain and perhaps bias.
  mlir::Value normalize(mlir::Operation *norm, llvm::ArrayRef<mlir::Value> x,
                        const NormFactor &here) {
    mlir::Value wide = k.widen(x[0]), gain = k.widen(x[1]);
    if (auto rms = dyn_cast<model::RmsNormOp>(norm); rms && rms.getPlusOne())
      gain = k.addF(gain, k.constantLike(gain, 1.0));
    if (here.mean)
      wide = k.subF(wide, k.broadcastLike(here.mean, wide));
    mlir::Value result = model::normalized(k, wide, k.broadcastLike(here.factor, wide), gain);
    return x.size() > 2 ? k.addF(result, k.widen(x[2])) : result;
  }

  /// What mixes a head's elements.
  mlir::FailureOr<Values> computeHead(mlir::Operation *op)
    requires HeadPlace<P>
  {
    mlir::FailureOr<Values> x = evaluate(op->getOperand(0));
    if (failed(x))
      return mlir::failure();
    for (mlir::Value &element : *x)
      element = k.widen(element);
    if (auto rotation = dyn_cast<model::HadamardOp>(op))
      return place.rotateHead(rotation, *x);
    if (auto rotary = dyn_cast<model::RotaryOp>(op))
      return place.turnHead(rotary, *x);
    auto norm = cast<model::RmsNormOp>(op);
    mlir::FailureOr<Values> gain = evaluate(norm.getGain());
    if (failed(gain))
      return mlir::failure();
    mlir::Value factor = model::normFactor(k, place.sumOfSquares(*x), norm.getWidth(),
                                           norm.getEpsilon().convertToDouble());
    for (auto [element, g] : llvm::zip_equal(*x, *gain))
      element = normalize(norm, {element, g}, {mlir::Value(), factor});
    return x;
  }

  P &place;
  typename P::Builder &k;
  const KernelInterface &interface;
  const NormFactors &factors;
  llvm::DenseMap<mlir::Value, Values> known;
};

/// Emits the writes of a region, in its order: appends to caches and the values that it yields.
/// `isHere` tells whether the value that an operation writes is computed at this place, or fails.
template <Place P>
mlir::LogicalResult emitWrites(
    RegionEvaluator<P> &evaluator, mlir::Block &block,
    llvm::function_ref<mlir::FailureOr<bool>(mlir::Operation &writer, mlir::Value value)> isHere,
    llvm::function_ref<mlir::LogicalResult(model::CacheAppendOp append, const Values &elements)>
        append,
    llvm::function_ref<void(unsigned result, const Values &elements)> yield) {
  for (mlir::Operation &writer : block) {
    auto cacheAppend = dyn_cast<model::CacheAppendOp>(writer);
    llvm::SmallVector<mlir::Value> written;
    if (cacheAppend)
      written = {cacheAppend.getInput()};
    else if (auto end = dyn_cast<fused::YieldOp>(writer))
      written = llvm::to_vector(end.getValues());
    for (auto [number, value] : llvm::enumerate(written)) {
      mlir::FailureOr<bool> here = isHere(writer, value);
      if (failed(here))
        return mlir::failure();
      if (!*here)
        continue;
      mlir::FailureOr<Values> elements = evaluator.evaluate(value);
      if (failed(elements) || (cacheAppend && failed(append(cacheAppend, *elements))))
        return mlir::failure();
      if (!cacheAppend)
        yield(number, *elements);
    }
  }
  return mlir::success();
}

//===----------------------------------------------------------------------===//
// Rows with norms
//===----------------------------------------------------------------------===//

/// A place that can be anywhere in a row (of an activation, or of a head).
template <typename P>
concept RowPlace =
    Place<P> && requires(P &place, mlir::Value x, size_t number,
                         llvm::function_ref<mlir::FailureOr<mlir::Value>(mlir::Value)> accumulate) {
      // Moves the place through the whole row, calls `accumulate` everywhere with the sum so far
      // (null at first), adds up the sums of all registers, lanes and threads, and returns a
      // scalar.
      { place.sumRow(accumulate) } -> std::same_as<mlir::FailureOr<mlir::Value>>;
      // Register `number` with zeros for elements that lie behind the row's end.
      { place.clearMissing(number, x) } -> std::convertible_to<mlir::Value>;
    };

/// The elements of a value where `place` now is, as float32; zero behind the row's end.
template <RowPlace P>
mlir::FailureOr<Values> evaluateInRow(P &place, const KernelInterface &interface,
                                      const NormFactors &factors, mlir::Value value) {
  mlir::FailureOr<Values> elements = RegionEvaluator<P>(place, interface, factors).evaluate(value);
  if (failed(elements))
    return mlir::failure();
  // Loads already give zeros there.
  bool isLoaded = isa<mlir::BlockArgument>(value) || interface.pointer(value);
  for (auto [number, element] : llvm::enumerate(*elements)) {
    element = place.k.widen(element);
    if (!isLoaded)
      element = place.clearMissing(number, element);
  }
  return elements;
}

/// Emits the factors of all norms in `region` for the row that `place` is in.
template <RowPlace P>
mlir::LogicalResult evaluateNorms(P &place, const KernelInterface &interface, mlir::Region &region,
                                  NormFactors &factors) {
  factors.clear();
  for (mlir::Operation &norm : region.getOps()) {
    if (!model::isNorm(&norm))
      continue;
    auto rms = dyn_cast<model::RmsNormOp>(norm);
    if (rms && rms.getHeadDim())
      return rms.emitOpError() << "of heads in " << P::kRegion << " of rows cannot be converted to "
                               << P::Builder::kCode;
    mlir::Value input = norm.getOperand(0), mean;
    int64_t width = cast<mlir::RankedTensorType>(input.getType()).getDimSize(1);
    auto elements = [&] { return evaluateInRow(place, interface, factors, input); };
    if (isa<model::LayerNormOp>(norm)) {
      auto sum = place.sumRow([&](mlir::Value sum) -> mlir::FailureOr<mlir::Value> {
        mlir::FailureOr<Values> x = elements();
        if (failed(x))
          return mlir::failure();
        for (mlir::Value element : *x)
          sum = sum ? place.k.addF(sum, element) : element;
        return sum;
      });
      if (failed(sum))
        return mlir::failure();
      mean = place.k.divF(*sum, place.k.constantLike(*sum, static_cast<double>(width)));
    }
    // The mean is known before squares are added: their difference from it may be small.
    auto sum = place.sumRow([&](mlir::Value sum) -> mlir::FailureOr<mlir::Value> {
      mlir::FailureOr<Values> x = elements();
      if (failed(x))
        return mlir::failure();
      for (auto [number, element] : llvm::enumerate(*x)) {
        if (mean)
          element = place.clearMissing(number,
                                       place.k.subF(element, place.k.broadcastLike(mean, element)));
        sum = sum ? place.k.fma(element, element, sum) : place.k.mulF(element, element);
      }
      return sum;
    });
    if (failed(sum))
      return mlir::failure();
    llvm::APFloat epsilon = rms ? rms.getEpsilon() : cast<model::LayerNormOp>(norm).getEpsilon();
    factors[&norm] = {mean, model::normFactor(place.k, *sum, width, epsilon.convertToDouble())};
  }
  return mlir::success();
}

} // namespace sluice::kernels

#endif // SLUICE_LIB_CONVERSION_FUSEDKERNELS_REGIONEVALUATOR_H
