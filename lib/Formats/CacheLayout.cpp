// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Formats/CacheLayout.h"

#include "llvm/ADT/SmallVector.h"
#include "llvm/Support/Endian.h"
#include "llvm/Support/MathExtras.h"

#include <cassert>

using namespace llvm;
using namespace sluice::formats;

int64_t CacheShape::paddedDim() const {
  bool halfBytes = encoding.bits() == 4;
  bool isE4M3 = encoding.element == CacheEncoding::Element::E4M3;
  switch (order) {
  case CacheOrder::Rows:
    return dim;
  case CacheOrder::LanesKeys:
    return alignTo(dim, halfBytes ? 32 : 16);
  case CacheOrder::LanesValues:
    return alignTo(dim, halfBytes || isE4M3 ? 32 : 16);
  case CacheOrder::MmaKeys:
    return alignTo(dim, halfBytes ? 64 : 32);
  case CacheOrder::MmaValues:
    return alignTo(dim, 32);
  }
  llvm_unreachable("not an order");
}

int64_t CacheShape::bytes() const {
  if (!isTiled())
    return sequences * positions * heads * encoding.bytesPerVector(dim);
  return (pages ? pages : sequences) * heads * headBytes();
}

std::optional<std::string> sluice::formats::checkMmaCache(const CacheShape &shape) {
  if (shape.dim < 1 || shape.dim > 256)
    return "a GPU's cache needs heads of 1 to 256 elements, found " + std::to_string(shape.dim);
  if (shape.encoding.element == CacheEncoding::Element::F32)
    return std::string("GPU kernels have no caches of f32");
  return std::nullopt;
}

static CacheArithmetic<int64_t> plainArithmetic() {
  return {std::plus<int64_t>(), std::multiplies<int64_t>(), std::divides<int64_t>(),
          std::modulus<int64_t>()};
}

int64_t sluice::formats::cacheCodeByte(const CacheShape &shape, int64_t p, int64_t d) {
  static const CacheArithmetic<int64_t> arithmetic = plainArithmetic();
  return cacheCodeByte<int64_t>(arithmetic, shape, p, d);
}

/// Bits of an element of a float encoding.
static uint16_t floatBits(CacheEncoding::Element element, float x) {
  switch (element) {
  case CacheEncoding::Element::F16:
    return floatToF16(x);
  case CacheEncoding::Element::BF16:
    return floatToBf16(x);
  default:
    return floatToE4M3(x);
  }
}

static float floatOf(CacheEncoding::Element element, uint16_t bits) {
  switch (element) {
  case CacheEncoding::Element::F16:
    return f16ToFloat(bits);
  case CacheEncoding::Element::BF16:
    return bf16ToFloat(bits);
  default:
    return e4m3ToFloat(static_cast<uint8_t>(bits));
  }
}

/// Calls `each(element, byte of its code, shift of its code)` for a vector, padding included.
template <typename Each>
static void forEachCode(const CacheShape &shape, int64_t position, Each each) {
  assert(shape.isTiled() && position >= 0 && position < shape.positions);
  int64_t tile = position / cacheTile * shape.tileBytes();
  for (int64_t d = 0, end = shape.paddedDim(); d < end; ++d)
    each(d, tile + cacheCodeByte(shape, position % cacheTile, d),
         isCacheHighNibble(shape, d) ? 4 : 0);
}

static int64_t scalePlace(const CacheShape &shape, int64_t position, int64_t group) {
  return position / cacheTile * shape.tileBytes() + cacheScaleByte(shape, group) +
         position % cacheTile * 2;
}

void sluice::formats::storeCacheVector(const CacheShape &shape, MutableArrayRef<uint8_t> head,
                                       int64_t position, ArrayRef<float> x) {
  assert(static_cast<int64_t>(x.size()) == shape.dim);
  CacheEncoding encoding = shape.encoding;
  if (!encoding.isInteger()) {
    forEachCode(shape, position, [&](int64_t d, int64_t byte, int) {
      uint16_t bits = d < shape.dim ? floatBits(encoding.element, x[d]) : 0;
      if (encoding.bits() == 16)
        llvm::support::endian::write16le(&head[byte], bits);
      else
        head[byte] = static_cast<uint8_t>(bits);
    });
    return;
  }
  SmallVector<int8_t, 256> codes(shape.dim);
  SmallVector<uint16_t, 8> scales(shape.groups());
  quantizeCacheVector(encoding, x, codes, scales);
  forEachCode(shape, position, [&](int64_t d, int64_t byte, int shift) {
    auto code = static_cast<uint8_t>(d < shape.dim ? codes[d] : 0);
    head[byte] =
        encoding.bits() == 8
            ? code
            : static_cast<uint8_t>((head[byte] & (0xF0 >> shift)) | ((code & 0xF) << shift));
  });
  for (int64_t group = 0; group < shape.groups(); ++group)
    llvm::support::endian::write16le(&head[scalePlace(shape, position, group)], scales[group]);
}

void sluice::formats::loadCacheVector(const CacheShape &shape, ArrayRef<uint8_t> head,
                                      int64_t position, MutableArrayRef<float> x,
                                      MutableArrayRef<float> scales) {
  assert(static_cast<int64_t>(x.size()) == shape.dim);
  CacheEncoding encoding = shape.encoding;
  SmallVector<float, 8> read(shape.groups());
  for (int64_t group = 0; group < shape.groups(); ++group)
    read[group] =
        f16ToFloat(llvm::support::endian::read16le(&head[scalePlace(shape, position, group)]));
  forEachCode(shape, position, [&](int64_t d, int64_t byte, int shift) {
    if (d >= shape.dim)
      return;
    if (!encoding.isInteger()) {
      uint16_t bits =
          encoding.bits() == 16 ? llvm::support::endian::read16le(&head[byte]) : head[byte];
      x[d] = floatOf(encoding.element, bits);
      return;
    }
    int code = static_cast<int8_t>(head[byte]);
    if (encoding.bits() == 4)
      code = SignExtend32<4>(head[byte] >> shift & 0xF);
    x[d] = static_cast<float>(code) * read[d / encoding.groupElements(shape.dim)];
  });
  if (!scales.empty())
    copy(read, scales.begin());
}
