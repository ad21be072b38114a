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
  static constexpr quantized::CacheLayout kKeys = quantized::CacheLayout::LanesKeys,
                                          kValues = quantized::CacheLayout::LanesValues;
  static constexpr llvm::StringLiteral kDevice = "a host";

  KernelBuilder &k;

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
  void scatter(Value value, Type element, const RowRun &run,
               llvm::function_ref<Value(Value)> place) {
    Value bits = k.bitcast(k.narrow(k.widen(value), element), k.like(value.getType(), k.i16()));
    for (int64_t lane = 0; lane < run.count; ++lane) {
      auto storeOne = [&] {
        k.store(vector::ExtractOp::create(k.b, k.loc, bits, lane), place(k.add(run.first, lane)),
                bytesOf(element));
      };
      if (run.exists)
        k.ifThen(vector::ExtractOp::create(k.b, k.loc, run.exists, lane), storeOne);
      else
        storeOne();
    }
  }
};
} // namespace

LogicalResult sluice::host::emitEpilogue(KernelBuilder &k, fused::ProductOp op,
                                         const KernelInterface &interface,
                                         const PackedSegment &segment, Value tile, Value sums,
                                         Value token) {
  HostRows rows{k};
  constexpr int64_t half = kLanes / 2;
  kernels::Values parts = {sums};
  if (!segment.order.isNatural())
    parts = {k.slice(sums, 0, half), k.slice(sums, half, half)};
  return kernels::ProductEpilogue<HostRows>(rows, op, interface, segment, tile, token).emit(parts);
}
