// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Formats/Synthetic.h"
#include "sluice/Formats/GgufBlocks.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstring>

using namespace llvm;
using namespace sluice::formats;

static uint64_t repeat16(uint64_t bits) { return bits * 0x0001000100010001u; }

SyntheticTensor::SyntheticTensor(const PackedShape &shape, uint64_t seed)
    : packed(shape), seed(seed) {
  Format format = shape.format();
  double deviation = 1 / std::sqrt(static_cast<double>(shape.columns()));
  // +-2^e [1, 2), uniform, has a mean square of 7/3 * 4^e.
  int exponent = static_cast<int>(std::lround(std::log2(deviation / std::sqrt(7.0 / 3))));
  switch (format.element) {
  case Format::Element::F32:
    elementMasks = {0x807FFFFF807FFFFFu,
                    static_cast<uint64_t>(exponent + 127) * 0x0080000000800000u};
    return;
  case Format::Element::F16:
    elementMasks = {repeat16(0x83FF),
                    repeat16(static_cast<uint64_t>(std::max(exponent, -14) + 15) << 10)};
    return;
  case Format::Element::BF16:
    elementMasks = {repeat16(0x807F), repeat16(static_cast<uint64_t>(exponent + 127) << 7)};
    return;
  case Format::Element::I8:
  case Format::Element::I4:
    break;
  }
  double square = 0;
  int count = 0;
  for (int q = format.qMin(); q <= format.qMax(); ++q)
    for (int zero : {-2, -1}) {
      int value = q - (format.zeroPoint ? zero : 0);
      square += value * value;
      ++count;
    }
  elementMasks = {~uint64_t(0), 0};
  uint16_t scale = floatToF16(static_cast<float>(deviation / std::sqrt(square / count)));
  scaleMasks = {repeat16(0x8000), repeat16(std::max<uint16_t>(scale, 1))};
}

void SyntheticTensor::generate(int64_t firstWord, MutableArrayRef<uint8_t> out) const {
  int64_t begin = firstWord * 16, end = begin + static_cast<int64_t>(out.size());
  assert(firstWord >= 0 && end <= packed.bytes() && "outside the matrix");

  // Bytes [from, to) of the matrix under one pair of masks, cut to [begin, end). All masks repeat
  // every 8 bytes, and their numbers are aligned to their own size in the matrix, so a region may
  // start anywhere in a word.
  auto fill = [&](int64_t from, int64_t to, SyntheticMasks masks) {
    from = std::max(from, begin);
    to = std::min(to, end);
    for (int64_t at = from; at < to;) {
      int64_t half = at / 8, skip = at % 8, bytes = std::min(8 - skip, to - at);
      uint64_t bits =
          (syntheticBits(seed, static_cast<uint64_t>(half / 2), static_cast<uint64_t>(half % 2)) &
           masks.keep) |
          masks.set;
      bits >>= 8 * skip;
      std::memcpy(out.data() + (at - begin), &bits, static_cast<size_t>(bytes));
      at += bytes;
    }
  };
  Layout::Kind kind = packed.layout().kind;
  bool blocks = kind == Layout::Kind::BlocksQ8_0 || kind == Layout::Kind::BlocksQ4_0;
  for (int64_t tile = begin / packed.tileBytes(); tile * packed.tileBytes() < end; ++tile) {
    int64_t base = tile * packed.tileBytes();
    if (blocks) {
      int64_t bytes = kind == Layout::Kind::BlocksQ8_0 ? q8_0BlockBytes : q4_0BlockBytes;
      for (int64_t block = 0; block < packed.groups(); ++block) {
        fill(base + block * bytes, base + block * bytes + 2, scaleMasks);
        fill(base + block * bytes + 2, base + (block + 1) * bytes, elementMasks);
      }
      continue;
    }
    for (int64_t chunk = 0; chunk < packed.chunks(); ++chunk) {
      int64_t at = base + packed.chunkOffset(chunk), stop = at + packed.chunkBytes(chunk);
      int64_t elementsEnd = at + packed.chunkElements(chunk),
              scalesBegin = at + packed.chunkScales(chunk);
      int64_t zerosBegin = at + packed.chunkZeros(chunk);
      int64_t zerosEnd =
          zerosBegin +
          (packed.format().zeroPoint ? packed.chunkGroups(chunk) * packed.rowsPerTile() : 0);
      fill(at, elementsEnd, elementMasks);
      fill(elementsEnd, scalesBegin, {});
      fill(scalesBegin, zerosBegin, scaleMasks);
      fill(zerosBegin, zerosEnd, zeros());
      fill(zerosEnd, stop, {});
    }
  }
}
