// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Kernels.h"

#include "sluice/Formats/CacheLayout.h"

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

  DeviceBuilder &k;
  Kernel &kernel;
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
  FailureOr<kernels::CachePlace> appendTo(model::CacheAppendOp append, RankedTensorType cache,
                                          Value position);
};
} // namespace

FailureOr<kernels::CachePlace> ThreadRows::appendTo(model::CacheAppendOp append,
                                                    RankedTensorType cache, Value position) {
  if (!cache.getElementType().isF16())
    return append.emitOpError() << "to a cache of " << cache.getElementType()
                                << ", GPU kernels have caches of f16";
  // How attention reads the cache says in which order it lies.
  bool isKeys = false, isValues = false;
  append->getParentOfType<func::FuncOp>().walk([&](fused::AttentionOp attention) {
    isKeys |= attention.getKeysAttr() == append.getCacheAttr();
    isValues |= attention.getValuesAttr() == append.getCacheAttr();
  });
  if (isKeys == isValues)
    return append.emitOpError() << "to cache " << append.getCacheAttr()
                                << (isKeys ? ", which attention reads as keys and as values"
                                           : ", which no attention reads");
  int64_t positions = cache.getDimSize(0), dim = cache.getDimSize(2);
  if (std::optional<std::string> error = formats::checkCacheShape(positions, dim))
    return append.emitOpError() << "to cache " << append.getCacheAttr() << ": " << *error;
  // In the cache, heads may be padded.
  int64_t headDim = append.getInput().getType().getDimSize(1) / cache.getDimSize(1);
  Value base = kernel.interface.cachePointer(append.getCacheAttr());
  return kernels::CachePlace([=, &k = k](Value row) {
    Value head = k.div(row, headDim), d = k.rem(row, headDim);
    auto place = isKeys ? formats::keyByte<Value> : formats::valueByte<Value>;
    auto ops = formats::CacheArithmetic<Value>{
        [&](Value x, Value y) { return k.add(x, y); },
        [&](Value x, int64_t y) { return k.mul(x, y); },
        [&](Value x, int64_t y) { return k.div(x, y); },
        [&](Value x, int64_t y) { return k.rem(x, y); },
        [&](Value x, int64_t limit, llvm::function_ref<Value()> below,
            llvm::function_ref<Value()> above) {
          return k.select(k.less(x, k.constI32(limit)), below(), above());
        }};
    Value byte = k.toI64(place(ops, dim, position, d));
    Value first = k.mul(k.toI64(head), positions * dim * 2);
    return k.offset(base, k.add(first, byte));
  });
}

void device::preloadEpilogue(Kernel &kernel, fused::MatvecOp op, const PackedSegment &segment,
                             Value tile, Value row, int64_t token, bool fresh,
                             EpilogueLoads &loads) {
  ThreadRows rows{kernel.k, kernel, row};
  kernels::ProductEpilogue<ThreadRows>(rows, op, kernel.interface, segment, tile, token)
      .preload(fresh, loads);
}

LogicalResult device::emitEpilogue(Kernel &kernel, fused::MatvecOp op, const PackedSegment &segment,
                                   Value tile, Value row, Value low, Value high, int64_t token,
                                   const EpilogueLoads &loads) {
  ThreadRows rows{kernel.k, kernel, row};
  return kernels::ProductEpilogue<ThreadRows>(rows, op, kernel.interface, segment, tile, token)
      .emit({low, high}, loads);
}
