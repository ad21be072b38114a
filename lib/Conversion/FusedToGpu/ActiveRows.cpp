// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// How many of a step's rows are there.

#include "Kernels.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::device;

Value device::emitActiveRows(Kernel &kernel, Value active, int64_t most) {
  DeviceBuilder &k = kernel.k;
  if (!active)
    return k.constI32(most);
  Value count = k.loadFresh(k.i32(), kernel.interface.pointer(active), 4);
  return k.clampIndex(count, most + 1);
}

void device::ifActive(Kernel &kernel, Value active, Value row, llvm::function_ref<void()> body) {
  if (!active)
    return body();
  DeviceBuilder &k = kernel.k;
  k.ifThen(k.less(row, k.load(k.i32(), kernel.interface.pointer(active), 4)), body);
}
