// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Heads in the registers of a warp: the prologue of attention, and the rounding of keys and values.

#ifndef SLUICE_LIB_CONVERSION_FUSEDTOGPU_ATTENTIONPROLOGUE_H
#define SLUICE_LIB_CONVERSION_FUSEDTOGPU_ATTENTIONPROLOGUE_H

#include "Kernels.h"

#include "../FusedKernels/CachePlaces.h"
#include "../FusedKernels/RegionEvaluator.h"

namespace sluice::device {

/// A head as the place of a prologue's values. Lane l has elements l, 32 + l, 64 + l, ... of it.
class Head {
public:
  using Values = DeviceBuilder::Values;
  using Builder = DeviceBuilder;
  static constexpr llvm::StringLiteral kRegion = "a prologue";

  /// Head `number` of token `token`: `dim` elements, with padding `padded`, a multiple of 32.
  Head(Kernel &kernel, fused::AttentionOp op, mlir::Value lane, mlir::Value token,
       mlir::Value number, int64_t dim, int64_t padded)
      : k(kernel.k), kernel(kernel), op(op), lane(lane), token(token), number(number), dim(dim),
        padded(padded) {}

  /// The elements of a value of the prologue, or of its query, as float32; zeros where the head is
  /// padded. `known` are values that have been loaded already.
  mlir::FailureOr<Values> evaluate(
      mlir::Value value,
      const llvm::DenseMap<mlir::Value, Values> &known = llvm::DenseMap<mlir::Value, Values>());

  // The place (see RegionEvaluator.h).
  DeviceBuilder &k;
  mlir::FailureOr<Values> load(mlir::Value value);
  mlir::FailureOr<kernels::Turn> turn(model::RotaryOp rotary) {
    return rotary.emitOpError() << "in a prologue cannot be converted to GPU code";
  }
  Values rotateHead(model::HadamardOp rotation, const Values &x);

private:
  Kernel &kernel;
  fused::AttentionOp op;
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
