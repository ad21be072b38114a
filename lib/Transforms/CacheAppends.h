// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_LIB_TRANSFORMS_CACHEAPPENDS_H
#define SLUICE_LIB_TRANSFORMS_CACHEAPPENDS_H

#include "dialects/Model/Model.h"

namespace sluice {

/// Whether every element is stored by itself. An integer cache rounds a head to a common scale, and
/// a Hadamard rotation mixes a head's elements, of which an epilogue sees 8 or 16 rows; fp8
/// elements are left to attention, too.
inline bool storesElements(model::CacheAppendOp append) {
  auto cache =
      mlir::SymbolTable::lookupNearestSymbolFrom<model::CacheOp>(append, append.getCacheAttr());
  return cache && cache.getCacheType().getEncoding().bits() >= 16 &&
         !append.getInput().getDefiningOp<model::HadamardOp>();
}

} // namespace sluice

#endif // SLUICE_LIB_TRANSFORMS_CACHEAPPENDS_H
