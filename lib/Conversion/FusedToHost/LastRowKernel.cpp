// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The last row that is there, or each sequence's, copied. Work items are 16 columns of a row.

#include "ActiveTokens.h"

#include "../FusedKernels/CachePlaces.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::host;

FailureOr<int64_t> sluice::host::emitLastRow(KernelBuilder &k, fused::LastRowOp op,
                                             const KernelInterface &interface, Value begin,
                                             Value end) {
  RankedTensorType type = op.getInput().getType();
  int64_t tokens = type.getDimSize(0), width = type.getDimSize(1);
  int64_t bytes = bytesOf(type.getElementType());
  VectorType bits = k.vec(kLanes, k.b.getIntegerType(bytes * 8));
  Value active = activeTokens(k, interface, op.getActive(), tokens);
  int64_t pieces = llvm::divideCeil(width, kLanes);
  k.loop(begin, end, 1, [&](Value item) {
    Value row = k.div(item, pieces), column = k.mul(k.rem(item, pieces), int64_t(kLanes));
    Value last = op.getStarts() ? kernels::lastRowOf(k, interface, op.getStarts(), tokens, row)
                                : k.sub(k.max(active, k.index(1)), 1);
    Value from = k.at(interface.pointer(op.getInput()), last, width * bytes);
    Value to = k.at(interface.resultPointer(0), row, width * bytes);
    Value mask = width % kLanes ? k.firstLanes(kLanes, k.sub(k.index(width), column)) : Value();
    k.store(k.load(bits, k.at(from, column, bytes), bytes, mask), k.at(to, column, bytes), bytes,
            mask);
  });
  return op.getType().getDimSize(0) * pieces;
}
