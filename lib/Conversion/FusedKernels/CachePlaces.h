// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The formulas of CacheLayout.h in a kernel.

#ifndef SLUICE_LIB_CONVERSION_FUSEDKERNELS_CACHEPLACES_H
#define SLUICE_LIB_CONVERSION_FUSEDKERNELS_CACHEPLACES_H

#include "ComputeBuilder.h"

#include "sluice/Formats/CacheLayout.h"

namespace sluice::kernels {

/// The arithmetic of CacheLayout.h on a kernel's integers.
inline formats::CacheArithmetic<mlir::Value> cacheArithmetic(ComputeBuilder &k) {
  using mlir::Value;
  return {[&k](Value x, Value y) { return k.add(x, y); },
          [&k](Value x, int64_t y) { return k.mul(x, y); },
          [&k](Value x, int64_t y) { return k.div(x, y); },
          [&k](Value x, int64_t y) { return k.rem(x, y); }};
}

} // namespace sluice::kernels

#endif // SLUICE_LIB_CONVERSION_FUSEDKERNELS_CACHEPLACES_H
