// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What attention's kernels for one and for many tokens have in common: the cache's tiles, and the
// exponents of softmax weights.

#ifndef SLUICE_LIB_CONVERSION_FUSEDTOGPU_ATTENTIONTILES_H
#define SLUICE_LIB_CONVERSION_FUSEDTOGPU_ATTENTIONTILES_H

#include "Kernels.h"

#include "../FusedKernels/CachePlaces.h"

#include "sluice/Formats/CacheLayout.h"

#include <array>

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
/// Copies tiles of keys and values of a head to shared memory, by one thread with bulk copies, or
/// before sm_90 by a warp, whose lane `lane` this is.
class TileCopies {
public:
  TileCopies(Kernel &kernel, const formats::CacheShape &keys, mlir::FlatSymbolRefAttr keyCache,
             const formats::CacheShape &values, mlir::FlatSymbolRefAttr valueCache,
             const CachedHead &head, mlir::Value lane)
      : kernel(kernel), head(head), lane(lane), caches{{{keys, keyCache}, {values, valueCache}}} {}

  /// What copy() takes of a tile: its page, asked for here, long before it is needed if possible,
  /// so that no copy waits for the table. Null where caches are not in pages. Tiles that there are
  /// not have that of the last one.
  mlir::Value pageOf(mlir::Value tile);
  /// Copies `count` tiles, at least one, from `tile` on, whose page is `page`: their keys to
  /// `toKeys`, values to `toValues`. The copies arrive at `barrier`. Returns the page of tile
  /// `next`.
  mlir::Value copy(mlir::Value tile, mlir::Value count, mlir::Value page, mlir::Value next,
                   mlir::Value toKeys, mlir::Value toValues, mlir::Value barrier);

private:
  Kernel &kernel;
  CachedHead head;
  mlir::Value lane;
  struct Cached {
    const formats::CacheShape &shape;
    mlir::FlatSymbolRefAttr cache;
  };
  std::array<Cached, 2> caches;
  void copyBytes(mlir::Value from, mlir::Value to, mlir::Value bytes, mlir::Value barrier);
  kernels::HeadTiles tilesOf(const Cached &cached);
};

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
