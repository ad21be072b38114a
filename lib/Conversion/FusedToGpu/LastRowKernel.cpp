// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Kernels.h"

#include "../FusedKernels/CachePlaces.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::device;

LogicalResult device::emitLastRow(Kernel &kernel, fused::LastRowOp op) {
  FailureOr<fused::LastRowPlan> plan = fused::LastRowPlan::get(op, kernel.schedule, kernel.device);
  if (failed(plan))
    return failure();
  DeviceBuilder &k = kernel.k;
  Type element = op.getInput().getType().getElementType();
  int64_t bytes = bytesOf(element);
  k.launchDependents();
  Value result = k.div(k.block(), plan->blocks), part = k.rem(k.block(), plan->blocks);
  Value row;
  if (op.getStarts()) {
    row = kernels::lastRowOf(k, kernel.interface, op.getStarts(), plan->rows, result);
  } else {
    Value count = k.load(k.i32(), kernel.interface.pointer(op.getActive()), 4);
    row = k.clampIndex(k.sub(count, 1), plan->rows);
  }
  Value from = k.at(kernel.interface.pointer(op.getInput()), row, plan->width * bytes);
  Value to = k.at(kernel.interface.resultPointer(0), result, plan->width * bytes);
  k.waitForPredecessor();
  k.loop(k.add(k.mul(part, plan->threads), k.thread()), k.constI32(plan->width),
         plan->blocks * plan->threads, [&](Value column) {
           k.store(k.loadFresh(element, k.at(from, column, bytes), bytes), k.at(to, column, bytes),
                   bytes);
         });
  return success();
}
