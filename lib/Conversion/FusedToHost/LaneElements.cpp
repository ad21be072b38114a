// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "LaneElements.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::host;
using formats::Encoding;

Value IntegerElements::load(int64_t byte, int64_t part) {
  Value &value = loaded[{byte, part}];
  if (value)
    return value;
  VectorType bytes = k.vec(2 * partLanes(), k.i8());
  Value stored = k.load(bytes, k.offset(elements, byte + part * 2 * partLanes()), 2 * partLanes());
  if (format.code() == Encoding::Code::Table)
    return value = stored;
  return value = isSignExtended() ? k.extend(stored, k.i16()) : k.extendUnsigned(stored, k.i16());
}

Value IntegerElements::operand(int64_t pair, int64_t part) {
  int64_t place = pair / 8 * 32 * format.bits();
  Value q;
  for (Encoding::Plane plane : format.planes()) {
    int64_t bit = pair % 8 * plane.width, shift = bit % 8;
    Value piece = load(place + bit / 8 * 32, part);
    place += 32 * plane.width;
    if (isSignExtended() && !isBiased(format, pair % 8)) {
      q = shift ? k.sar(piece, shift) : piece;
      continue;
    }
    if (shift)
      piece = k.shr(piece, shift);
    // A zero-extended byte needs no mask at its top.
    if (shift + plane.width < 8 || isSignExtended())
      piece = k.bitAnd(piece, (1 << plane.width) - 1);
    if (plane.low)
      piece = k.shl(piece, plane.low);
    q = q ? k.bitOr(q, piece) : piece;
  }
  if (isBiased(format, pair % 8))
    return k.bitXor(q, -format.qMin());
  if (format.code() != Encoding::Code::Table)
    return q;
  // Each 16 bytes look up the table on their own.
  SmallVector<int8_t> entries;
  for (int64_t i = 0; i < 2 * partLanes(); ++i)
    entries.push_back(format.table()[i % 16]);
  auto type = cast<VectorType>(q.getType());
  Value table = arith::ConstantOp::create(k.b, k.loc,
                                          DenseElementsAttr::get(type, ArrayRef<int8_t>(entries)));
  StringRef lookUp = k.isa == Isa::Avx2 ? "llvm.x86.ssse3.pshuf.b.128" : "llvm.x86.avx2.pshuf.b";
  return k.extend(k.intrinsic(lookUp, type, {table, q}), k.i16());
}

void sluice::host::prefetchElements(KernelBuilder &k, const formats::PackedShape &shape, Value tile,
                                    Value place, int64_t bytes, int64_t tiles, unsigned locality) {
  // Between the elements of two tiles lie scales and zero points, which are asked for where they
  // are used.
  int64_t elementBytes = shape.chunkScales(0);
  Value ahead = k.add(place, kPrefetchBytes);
  Value inTile = k.less(ahead, k.index(elementBytes));
  ahead =
      k.add(ahead, k.select(inTile, k.index(0), k.index(tiles * shape.tileBytes() - elementBytes)));
  Value pointer = k.outside(tile, ahead);
  for (int64_t byte = 0; byte < bytes; byte += kLineBytes)
    k.prefetch(k.outside(pointer, k.index(byte)), locality);
}

kernels::GroupNumbers sluice::host::loadGroupNumbers(KernelBuilder &k,
                                                     const formats::PackedShape &shape, Value tile,
                                                     Value group, Value super,
                                                     std::optional<bool> isOdd,
                                                     int64_t prefetchedTiles) {
  auto pointerTo = [&](int64_t section, Value place, Type element) {
    Value pointer = k.offset(k.offset(tile, section), k.mul(place, bytesOf(element) * kLanes));
    // The next tile's scales wait in the second cache.
    if (prefetchedTiles)
      k.prefetch(k.outside(pointer, k.index(prefetchedTiles * shape.tileBytes())), /*locality=*/2);
    return pointer;
  };
  auto real = [&](int64_t section, Value place, Type element) {
    return k.loadFloats(kLanes, element, pointerTo(section, place, element),
                        bytesOf(element) * kLanes);
  };
  auto byte = [&](int64_t section, Value place) {
    Value bytes = k.load(k.vec(kLanes, k.i8()), pointerTo(section, place, k.i8()), kLanes);
    return k.extendUnsigned(bytes, k.i32());
  };
  return kernels::emitGroupNumbers(k, shape, {real, byte}, group, super, isOdd);
}

Value sluice::host::loadFloatElements(KernelBuilder &k, const Encoding &format, Value pointer) {
  if (format.isScaled()) {
    Value bytes = k.load(k.vec(kLanes, k.i8()), pointer, kLanes);
    return k.widen(k.decodeE4M3(bytes));
  }
  Type element = format.element == Encoding::Element::F16    ? Type(k.f16())
                 : format.element == Encoding::Element::BF16 ? Type(k.b.getBF16Type())
                                                             : k.f32();
  return k.loadFloats(kLanes, element, pointer, bytesOf(element) * kLanes);
}

int64_t sluice::host::floatColumnBytes(const Encoding &format) {
  return kLanes * format.bits() / 8;
}

int64_t sluice::host::floatChains(Isa isa, int64_t accumulators, int64_t tokens) {
  return std::max<int64_t>(1, std::min(accumulators, (isa == Isa::Avx2 ? 4 : 16) / tokens));
}
