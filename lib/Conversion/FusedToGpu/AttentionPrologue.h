// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Heads in the registers of a warp: the prologue of attention, and the rounding of keys and values.

#ifndef SLUICE_LIB_CONVERSION_FUSEDTOGPU_ATTENTIONPROLOGUE_H
#define SLUICE_LIB_CONVERSION_FUSEDTOGPU_ATTENTIONPROLOGUE_H

#include "Kernels.h"

#include "../FusedKernels/CachePlaces.h"
#include "../FusedKernels/RegionEvaluator.h"

namespace sluice::device {

/// What a prologue reads that no earlier kernel of the step writes: gains of norms, and cosines and
/// sines of rotary embeddings, which are the same for all heads of a token.
struct HeadConstants {
  llvm::DenseMap<mlir::Value, kernels::Values> vectors;
  /// Of each register of a head, or only of the first half of them where registers are pairs.
  llvm::DenseMap<mlir::Operation *, kernels::Turn> turns;
};

/// A head as the place of a prologue's values. Lane l has elements l, 32 + l, 64 + l, ... of it.
class Head {
public:
  using Values = DeviceBuilder::Values;
  using Builder = DeviceBuilder;
  static constexpr llvm::StringLiteral kRegion = "a prologue";

  /// A head of token `token` in the prologue of `op` (attention or append): `dim` elements, with
  /// padding `padded`, a multiple of 32.
  template <typename Op>
  Head(Kernel &kernel, Op op, mlir::Value lane, mlir::Value token, int64_t dim, int64_t padded)
      : k(kernel.k), kernel(kernel), op(op), prologue(op.getPrologue()),
        sourceOf([op](mlir::Value value) mutable { return op.getSource(value); }), lane(lane),
        token(token), dim(dim), padded(padded) {}

  /// Emits the loads of what `values` are computed with that may be read before the previous kernel
  /// has ended. Fails, with a message, if it cannot be read.
  mlir::LogicalResult preload(mlir::ValueRange values);
  /// Makes this head `head` of its token.
  void moveTo(mlir::Value head) { number = head; }

  /// The elements of a value of the prologue, or of its query, as float32; zeros where the head is
  /// padded. `known` are values that have been loaded already.
  mlir::FailureOr<Values> evaluate(
      mlir::Value value,
      const llvm::DenseMap<mlir::Value, Values> &known = llvm::DenseMap<mlir::Value, Values>());

  // The place (see RegionEvaluator.h).
  DeviceBuilder &k;
  mlir::FailureOr<Values> load(mlir::Value value);
  Values rotateHead(model::HadamardOp rotation, const Values &x);
  mlir::FailureOr<Values> turnHead(model::RotaryOp rotary, const Values &x);
  mlir::Value sumOfSquares(const Values &x);

private:
  mlir::FailureOr<kernels::Turn> loadTurn(model::RotaryOp rotary);
  /// Whether the elements of a pair are different registers of one lane.
  static bool areRegisters(const model::RotaryPairs &pairs) {
    return !pairs.interleaved && pairs.half() % kWarp == 0;
  }
  /// For lanes whose element is the first of its pair.
  mlir::Value isFirstOfPair(const model::RotaryPairs &pairs, int64_t firstElement);
  /// The other elements of the pairs that lanes have in register `i`.
  mlir::Value partners(const model::RotaryPairs &pairs, const Values &x, size_t i);

  HeadConstants constants;
  Kernel &kernel;
  mlir::Operation *op;
  mlir::Region &prologue;
  std::function<mlir::Value(mlir::Value)> sourceOf;
  mlir::Value lane, token, number;
  int64_t dim, padded;
};

/// What 16-bit fixed point multiplies by: 32512 over the greatest magnitude of `elements`, which
/// `reduce` takes over all lanes as bits, and its inverse. NaN where an element is not finite.
struct FixedPointScale {
  mlir::Value inverse, scale;
};
FixedPointScale fixedPointScale(DeviceBuilder &k, llvm::ArrayRef<mlir::Value> elements,
                                llvm::function_ref<mlir::Value(mlir::Value)> reduce);

/// formats::cacheScaleExponent of a positive f32.
mlir::Value cacheScaleExponent(DeviceBuilder &k, mlir::Value scale);

/// A vector as a cache stores it, in the registers of a warp (as Head has it).
struct StoredVector {
  llvm::SmallVector<mlir::Value> codes;  ///< a lane's, i32
  llvm::SmallVector<mlir::Value> scales; ///< of all groups, f16
};
StoredVector encodeVector(DeviceBuilder &k, const formats::CacheShape &shape,
                          llvm::ArrayRef<mlir::Value> elements, mlir::Value lane);
/// Stores it as position `position` (0 to 31) of a tile.
void storeVector(DeviceBuilder &k, const formats::CacheShape &shape, const StoredVector &vector,
                 mlir::Value tile, mlir::Value position, mlir::Value lane);

} // namespace sluice::device

#endif // SLUICE_LIB_CONVERSION_FUSEDTOGPU_ATTENTIONPROLOGUE_H
