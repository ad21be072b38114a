// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Kernels.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::device;
using kernels::RowRun;

namespace {
/// A thread owns rows r and r + 8 of a tile (pairs and zip orders fill them with what belongs
/// together), each in a register.
struct ThreadRows {
  using Builder = DeviceBuilder;
  static constexpr bool kWholeTiles = false;
  static constexpr quantized::CacheLayout kKeys = quantized::CacheLayout::MmaKeys,
                                          kValues = quantized::CacheLayout::MmaValues;
  static constexpr llvm::StringLiteral kDevice = "a GPU";

  DeviceBuilder &k;
  Value row; ///< 0 <= r < 8

  RowRun run(Value first, int64_t offset, int64_t limit, int64_t step, int64_t /*count*/) {
    Value index = k.add(k.add(first, row), offset);
    if (limit % step == 0)
      return {index, Value()};
    return {k.min(index, k.constI32(limit - 1)), k.less(index, k.constI32(limit))};
  }
  Value load(Value pointer, Type element, const RowRun &, bool isConstant) {
    return isConstant ? k.load(element, pointer, bytesOf(element))
                      : k.loadFresh(element, pointer, bytesOf(element));
  }
  void store(Value value, Type element, const RowRun &run, llvm::function_ref<Value(Value)> place) {
    auto storeOne = [&] {
      k.store(k.narrow(k.widen(value), element), place(run.first), bytesOf(element));
    };
    if (run.exists)
      k.ifThen(run.exists, storeOne);
    else
      storeOne();
  }
  void scatter(Value value, Type element, const RowRun &run,
               llvm::function_ref<Value(Value)> place) {
    store(value, element, run, place);
  }
};
} // namespace

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
