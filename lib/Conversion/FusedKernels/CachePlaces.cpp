// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "CachePlaces.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::kernels;

Value kernels::sequenceOf(ComputeBuilder &k, const KernelInterface &interface, int64_t count,
                          Value sequences, Value row) {
  if (count == 1)
    return k.index(0);
  if (!sequences)
    return row;
  Value stored = k.load(k.i32(), k.at(interface.pointer(sequences), row, 4), 4);
  return k.toIndex(k.clampIndex(stored, count));
}

PackedTile kernels::packedTile(ComputeBuilder &k, const KernelInterface &interface, Value starts,
                               int64_t sequences, int64_t rows, int64_t tile, Value number) {
  Value base = interface.pointer(starts);
  auto startOf = [&](Value place) {
    return k.toIndex(k.clampIndex(k.load(k.i32(), place, 4), rows + 1));
  };
  auto tilesBefore = [&](Value start, Value sequence) {
    return k.add(k.div(start, tile), sequence);
  };
  PackedTile result;
  // The last one whose first tile is not behind this one. Loads do not wait for each other.
  result.sequence = k.index(0);
  for (int64_t s = 1; s < sequences; ++s) {
    Value first = tilesBefore(startOf(k.offset(base, 4 * s)), k.index(s));
    Value isBehind = k.less(number, first);
    result.sequence = k.add(result.sequence, k.select(isBehind, k.index(0), k.index(1)));
  }
  Value entry = k.at(base, result.sequence, 4);
  result.begin = startOf(entry);
  result.end = startOf(k.offset(entry, 4));
  Value inSequence = k.max(k.sub(number, tilesBefore(result.begin, result.sequence)), k.index(0));
  result.first = k.add(result.begin, k.mul(inSequence, tile));
  return result;
}

Value kernels::lastRowOf(ComputeBuilder &k, const KernelInterface &interface, Value starts,
                         int64_t rows, Value sequence) {
  Value end = k.load(k.i32(), k.offset(k.at(interface.pointer(starts), sequence, 4), 4), 4);
  return k.toIndex(k.clampIndex(k.sub(end, 1), rows));
}

HeadTiles::HeadTiles(ComputeBuilder &k, const KernelInterface &interface,
                     const formats::CacheShape &shape, FlatSymbolRefAttr cache, Value pages,
                     Value sequence, Value head)
    : shape(shape), base(k.at(interface.cachePointer(cache), k.toI64(head), shape.headBytes())) {
  if (pages)
    row = k.at(interface.pointer(pages), k.toI64(sequence), shape.tiles() * 4);
  else if (shape.sequences != 1)
    base = k.at(base, k.toI64(sequence), shape.heads * shape.headBytes());
}

Value HeadTiles::at(ComputeBuilder &k, Value tile) const {
  return row ? atPage(k, pageOf(k, tile)) : k.at(base, k.toI64(tile), shape.tileBytes());
}

Value HeadTiles::pageOf(ComputeBuilder &k, Value tile) const {
  return k.load(k.i32(), k.at(row, k.toI64(tile), 4), 4);
}

Value HeadTiles::atPage(ComputeBuilder &k, Value page) const {
  return k.at(base, k.toI64(k.toIndex(k.clampIndex(page, shape.pages))), shape.pageBytes());
}

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
  Value sequence = sequenceOf(k, interface, shape.sequences, append.getSequences(), token);
  base =
      HeadTiles(k, interface, shape, append.getCacheAttr(), append.getPages(), sequence, k.index(0))
          .at(k, k.div(at, formats::cacheTile));
  inTile = k.rem(at, formats::cacheTile);
}

Value AppendPlace::of(ComputeBuilder &k, Value index) const {
  Value head = k.div(index, shape.dim), d = k.rem(index, shape.dim);
  Value byte = formats::cacheCodeByte<Value>(cacheArithmetic(k), shape, inTile, d);
  return k.offset(base, k.add(k.mul(k.toI64(head), shape.headBytes()), k.toI64(byte)));
}
