// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Heads in the registers of a warp: the prologue of attention, and the rounding of keys and values.

#ifndef SLUICE_LIB_CONVERSION_FUSEDTOGPU_ATTENTIONPROLOGUE_H
#define SLUICE_LIB_CONVERSION_FUSEDTOGPU_ATTENTIONPROLOGUE_H

#include "Kernels.h"

#include "../FusedKernels/CachePlaces.h"

namespace sluice::device {

/// Evaluates a value of an attention's prologue, or its query, one head at a time. Lane l has
/// elements l, 32 + l, 64 + l, ... of a head, padded with zeros, as float32.
class HeadEvaluator {
public:
  using Values = DeviceBuilder::Values;

  /// `padded` is a multiple of 32.
  HeadEvaluator(Kernel &kernel, fused::AttentionOp op, mlir::Value lane, int64_t padded)
      : kernel(kernel), k(kernel.k), op(op), lane(lane), padded(padded) {}

  /// Emits the loads of the new key and value of head `head` (of `heads`), for evaluate().
  void preload(int64_t heads, mlir::Value head, mlir::Value token);

  /// Head `head` of `value`'s rows of `heads` heads, for one token. Errors name an operation that
  /// cannot be converted.
  mlir::FailureOr<Values> evaluate(mlir::Value value, mlir::Value head, int64_t heads,
                                   mlir::Value token);

private:
  int64_t count() const { return padded / kWarp; }
  Values load(mlir::Value pointer, mlir::RankedTensorType type, int64_t dim, mlir::Value head,
              mlir::Value token);
  Values hadamard(Values elements, int64_t block);

  Kernel &kernel;
  DeviceBuilder &k;
  fused::AttentionOp op;
  mlir::Value lane;
  int64_t padded;
  llvm::DenseMap<mlir::Value, Values> loaded;
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

/// A vector as a cache stores it, in the registers of a warp (as HeadEvaluator has it).
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
