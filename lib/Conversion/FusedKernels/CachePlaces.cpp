// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "CachePlaces.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::kernels;

FailureOr<AppendPlace> AppendPlace::get(ComputeBuilder &k, const KernelInterface &interface,
                                        model::CacheAppendOp append, quantized::CacheLayout keys,
                                        quantized::CacheLayout values, StringRef where) {
  quantized::CacheType cache = interface.cacheType(append.getCacheAttr());
  bool isPlaced = cache.getLayout() == keys || cache.getLayout() == values;
  if (!isPlaced || cache.getShapeInfo().encoding.bits() != 16)
    return append.emitOpError() << "to cache " << append.getCacheAttr() << " of type " << cache
                                << ", " << where << " stores f16 or bf16 in layout "
                                << quantized::stringifyCacheLayout(keys) << " or "
                                << quantized::stringifyCacheLayout(values);
  return AppendPlace(append, cache);
}

void AppendPlace::moveTo(ComputeBuilder &k, const KernelInterface &interface, Value token) {
  Value stored = k.at(interface.pointer(append.getPositions()), token, 4);
  Value at = k.toIndex(k.clampIndex(k.load(k.i32(), stored, 4), shape.positions));
  base = interface.cachePointer(append.getCacheAttr());
  if (shape.sequences != 1)
    base = k.at(base, k.toI64(token), shape.heads * shape.headBytes());
  base = k.offset(base, k.mul(k.toI64(k.div(at, formats::cacheTile)), shape.tileBytes()));
  inTile = k.rem(at, formats::cacheTile);
}

Value AppendPlace::of(ComputeBuilder &k, Value index) const {
  Value head = k.div(index, shape.dim), d = k.rem(index, shape.dim);
  Value byte = formats::cacheCodeByte<Value>(cacheArithmetic(k), shape, inTile, d);
  return k.offset(base, k.add(k.mul(k.toI64(head), shape.headBytes()), k.toI64(byte)));
}
