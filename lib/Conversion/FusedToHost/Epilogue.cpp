// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "../FusedKernels/ProductEpilogue.h"
#include "Products.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::host;
using kernels::RowRun;

namespace {
/// A vector has all 16 rows of a tile, or 8 where the order puts two kinds of rows into it.
struct HostRows {
  using Builder = KernelBuilder;
  static constexpr bool kWholeTiles = true;

  KernelBuilder &k;
  const KernelInterface &interface;

  RowRun run(Value first, int64_t offset, int64_t limit, int64_t step, int64_t count) {
    first = k.add(first, offset);
    bool allExist = limit % step == 0;
    return {first, allExist ? Value() : k.firstLanes(count, k.sub(k.index(limit), first)), count};
  }
  Value load(Value pointer, Type element, const RowRun &run, bool /*isConstant*/) {
    return k.loadFloats(run.count, element, pointer, bytesOf(element), run.exists);
  }
  void store(Value value, Type element, const RowRun &run, llvm::function_ref<Value(Value)> place) {
    k.storeFloats(k.widen(value), element, place(run.first), bytesOf(element), run.exists);
  }
  FailureOr<kernels::CachePlace> appendTo(model::CacheAppendOp append, RankedTensorType cache,
                                          Value position) {
    Type element = cache.getElementType();
    if (!isa<FloatType>(element) || element.getIntOrFloatBitWidth() > 32)
      return append.emitOpError() << "to a cache of " << element
                                  << " cannot be converted to host code";
    Value first = k.mul(position, cache.getDimSize(1) * cache.getDimSize(2));
    Value base = interface.cachePointer(append.getCacheAttr());
    return kernels::CachePlace([this, first, base, bytes = bytesOf(element)](Value row) {
      return k.offset(base, k.mul(k.add(first, row), bytes));
    });
  }
};
} // namespace

LogicalResult sluice::host::emitEpilogue(KernelBuilder &k, fused::MatvecOp op,
                                         const KernelInterface &interface,
                                         const PackedSegment &segment, Value tile, Value sums,
                                         int64_t token) {
  HostRows rows{k, interface};
  constexpr int64_t half = kLanes / 2;
  kernels::Values parts = {sums};
  if (!segment.order.isNatural())
    parts = {k.slice(sums, 0, half), k.slice(sums, half, half)};
  return kernels::ProductEpilogue<HostRows>(rows, op, interface, segment, tile, token).emit(parts);
}
