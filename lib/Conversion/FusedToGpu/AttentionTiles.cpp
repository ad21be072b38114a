// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "AttentionTiles.h"

#include "dialects/Model/Semantics.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::device;
using formats::CacheShape;
using Values = DeviceBuilder::Values;

static constexpr double kLog2e = 1.44269504088896341;

Value device::tilePlace(Kernel &kernel, const CacheShape &shape, FlatSymbolRefAttr cache,
                        const CachedHead &head, Value tile) {
  DeviceBuilder &k = kernel.k;
  Value sequence = shape.sequences == 1 ? k.constI32(0) : head.sequence;
  if (shape.pages)
    return kernels::HeadTiles(k, kernel.interface, shape, cache, head.pages, sequence, head.head)
        .at(k, tile);
  // A head's tiles follow each other; so do the heads of all sequences.
  Value heads = shape.sequences == 1 ? head.head : k.add(k.mul(sequence, shape.heads), head.head);
  Value number = k.add(k.mul(heads, shape.tiles()), tile);
  Value byte = k.mul(k.extendUnsigned(number, k.i64()), shape.tileBytes());
  return k.offset(kernel.interface.cachePointer(cache), byte);
}

kernels::HeadTiles TileCopies::tilesOf(const Cached &cached) {
  DeviceBuilder &k = kernel.k;
  Value sequence = cached.shape.sequences == 1 ? k.constI32(0) : head.sequence;
  return {k, kernel.interface, cached.shape, cached.cache, head.pages, sequence, head.head};
}

Value TileCopies::pageOf(Value tile) {
  const CacheShape &shape = caches[0].shape;
  if (!shape.pages)
    return Value();
  return tilesOf(caches[0]).pageOf(kernel.k, kernel.k.clampIndex(tile, shape.tiles()));
}

void TileCopies::copyBytes(Value from, Value to, Value bytes, Value barrier) {
  DeviceBuilder &k = kernel.k;
  if (k.hasBulkCopies())
    return k.bulkCopy(to, from, bytes, barrier);
  k.loop(k.shl(lane, 4), bytes, k.constI32(kWarp * 16),
         [&](Value byte) { k.copy16(k.offset(to, byte), k.offset(from, byte)); });
}

Value TileCopies::copy(Value tile, Value count, Value page, Value next, Value toKeys,
                       Value toValues, Value barrier) {
  DeviceBuilder &k = kernel.k;
  Value targets[] = {toKeys, toValues};
  if (!page) {
    for (auto [cached, to] : llvm::zip_equal(caches, targets))
      copyBytes(tilePlace(kernel, cached.shape, cached.cache, head, tile), to,
                k.mul(count, cached.shape.tileBytes()), barrier);
    return Value();
  }
  Values after =
      k.loop(k.constI32(0), count, 1, page, [&](Value number, ValueRange carried) -> Values {
        Value following = k.add(number, 1);
        Value ahead = pageOf(k.select(k.less(following, count), k.add(tile, following), next));
        for (auto [cached, to] : llvm::zip_equal(caches, targets)) {
          int64_t bytes = cached.shape.tileBytes();
          copyBytes(tilesOf(cached).atPage(k, carried[0]), k.at(to, number, bytes),
                    k.constI32(bytes), barrier);
        }
        return {ahead};
      });
  return after[0];
}

double device::exponentScale(fused::AttentionOp op) {
  return op.getScale().convertToDouble() * kLog2e;
}

Value device::cappedExponent(DeviceBuilder &k, fused::AttentionOp op, Value exponent) {
  std::optional<APFloat> cap = op.getSoftCap();
  return cap ? model::softCapped(k, exponent, cap->convertToDouble() * kLog2e) : exponent;
}

Values device::valueMasks(DeviceBuilder &k, const CacheShape &values, Value first,
                          llvm::function_ref<Value(Value)> isOutside) {
  // Words and bytes of a lane, as CacheLayout.h has positions 8t .. 8t+7.
  auto mask = [&](ArrayRef<int64_t> positions, int64_t bits) {
    Value word = k.constI32(0);
    for (auto [i, p] : llvm::enumerate(positions)) {
      int64_t ones = ((int64_t(1) << bits) - 1) << (bits * i);
      Value part =
          k.select(isOutside(k.add(first, p)), k.constI32(0), k.constI32(int64_t(int32_t(ones))));
      word = k.bitOr(word, part);
    }
    return word;
  };
  if (values.encoding.bits() == 16)
    return {mask({0, 4}, 16), mask({1, 5}, 16), mask({2, 6}, 16), mask({3, 7}, 16)};
  return {mask({0, 4, 1, 5}, 8), mask({2, 6, 3, 7}, 8)};
}

void device::clearValues(DeviceBuilder &k, const CacheShape &values, Value tile, Value part,
                         Value lane, const Values &masks) {
  auto clear = [&](Value place, Value early, Value late) {
    Values words = k.lanes(k.load(k.vec(4, k.i32()), place, 16));
    for (int64_t word = 0; word < 4; ++word)
      words[word] = k.bitAnd(words[word], word < 2 ? early : late);
    k.store(k.vectorOf(words), place, 16);
  };
  bool halves = values.encoding.bits() == 16;
  Value place = k.at(k.offset(tile, k.shl(lane, 4)), part, halves ? 1024 : 512);
  clear(place, masks[0], masks[1]);
  if (halves)
    clear(k.offset(place, 512), masks[2], masks[3]);
}
