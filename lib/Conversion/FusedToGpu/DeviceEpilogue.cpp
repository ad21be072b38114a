// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "ThreadRows.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::device;

void device::preloadEpilogue(Kernel &kernel, fused::ProductOp op, const PackedSegment &segment,
                             Value tile, Value row, Value token, bool fresh, EpilogueLoads &loads) {
  ThreadRows rows{kernel.k, row};
  kernels::ProductEpilogue<ThreadRows>(rows, op, kernel.interface, segment, tile, token)
      .preload(fresh, loads);
}

LogicalResult device::emitEpilogue(Kernel &kernel, fused::ProductOp op,
                                   const PackedSegment &segment, Value tile, Value row, Value low,
                                   Value high, Value token, const EpilogueLoads &loads) {
  ThreadRows rows{kernel.k, row};
  return kernels::ProductEpilogue<ThreadRows>(rows, op, kernel.interface, segment, tile, token)
      .emit({low, high}, loads);
}
