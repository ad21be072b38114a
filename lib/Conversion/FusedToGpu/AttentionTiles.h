// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What attention's kernels for one and for many tokens have in common: the cache's tiles, and the
// exponents of softmax weights.

#ifndef SLUICE_LIB_CONVERSION_FUSEDTOGPU_ATTENTIONTILES_H
#define SLUICE_LIB_CONVERSION_FUSEDTOGPU_ATTENTIONTILES_H

#include "Kernels.h"

#include "sluice/Formats/CacheLayout.h"

namespace sluice::device {

/// Below every score; subtracting it from itself gives 0, unlike minus infinity.
inline constexpr double kLowestScore = -1e30;

/// A head of keys and values of a sequence; `sequence` is null where there is one. `pages` is the
/// page table, null if a head's tiles follow each other.
struct CachedHead {
  mlir::Value pages, sequence, head;
};
/// The address of tile `tile` of a head.
mlir::Value tilePlace(Kernel &kernel, const formats::CacheShape &shape,
                      mlir::FlatSymbolRefAttr cache, const CachedHead &head, mlir::Value tile);
/// Copies `count` tiles of a head from `tile` on to shared memory, by one thread with bulk copies
/// that arrive at `barrier`, or before sm_90 by a warp, whose lane `lane` this is.
void copyTiles(Kernel &kernel, const formats::CacheShape &shape, mlir::FlatSymbolRefAttr cache,
               const CachedHead &head, mlir::Value tile, mlir::Value count, mlir::Value to,
               mlir::Value barrier, mlir::Value lane);

/// From scores to exponents of 2.
double exponentScale(fused::AttentionOp op);
/// An exponent of 2, capped where attention caps its scores.
mlir::Value cappedExponent(DeviceBuilder &k, fused::AttentionOp op, mlir::Value exponent);

/// Masks of a lane's words of an operand of float values (four masks for elements of 16 bits, two
/// for those of 8): zeros at positions for which `isOutside` holds. `first` is the first of the
/// lane's positions.
DeviceBuilder::Values valueMasks(DeviceBuilder &k, const formats::CacheShape &values,
                                 mlir::Value first,
                                 llvm::function_ref<mlir::Value(mlir::Value)> isOutside);
/// Applies them to what lane `lane` reads of elements 16 * `part` on of a tile.
void clearValues(DeviceBuilder &k, const formats::CacheShape &values, mlir::Value tile,
                 mlir::Value part, mlir::Value lane, const DeviceBuilder::Values &masks);

} // namespace sluice::device

#endif // SLUICE_LIB_CONVERSION_FUSEDTOGPU_ATTENTIONTILES_H
