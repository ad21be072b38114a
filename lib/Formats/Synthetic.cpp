// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Formats/Synthetic.h"
#include "sluice/Formats/GgufBlocks.h"

#include "llvm/Support/ErrorHandling.h"

#include <algorithm>
#include <cassert>
#include <cmath>

using namespace llvm;
using namespace sluice::formats;

static uint64_t repeat16(uint64_t bits) { return bits * 0x0001000100010001u; }

/// +-2^exponent * [1, 2).
static SyntheticMasks floatMasks(Encoding::Element element, int exponent) {
  if (element == Encoding::Element::F32)
    return {0x807FFFFF807FFFFFu, static_cast<uint64_t>(exponent + 127) * 0x0080000000800000u};
  if (element == Encoding::Element::F16)
    return {repeat16(0x83FF), repeat16(static_cast<uint64_t>(std::max(exponent, -14) + 15) << 10)};
  assert(element == Encoding::Element::BF16 && "a float");
  return {repeat16(0x807F), repeat16(static_cast<uint64_t>(exponent + 127) << 7)};
}

SyntheticPattern sluice::formats::syntheticVector(Encoding::Element element, uint64_t seed) {
  SyntheticPattern pattern;
  pattern.seed = seed;
  pattern.append(8, floatMasks(element, -1));
  return pattern;
}

SyntheticTensor::SyntheticTensor(const PackedShape &shape, uint64_t seed) : packed(shape) {
  regions.seed = seed;
  setMasks();
  setRegions();
}

void SyntheticTensor::setMasks() {
  Encoding format = packed.format();
  double deviation = 1 / std::sqrt(static_cast<double>(packed.columns()));
  // +-2^e [1, 2), uniform, has a mean square of 7/3 * 4^e.
  int exponent = static_cast<int>(std::lround(std::log2(deviation / std::sqrt(7.0 / 3))));
  if (!format.isInteger()) {
    elementMasks = floatMasks(format.element, exponent);
    return;
  }
  assert(format.isPlainInteger() && "only what the quantizer makes is generated");
  double square = 0;
  int count = 0;
  for (int q = format.qMin(); q <= format.qMax(); ++q)
    for (int zero : {-2, -1}) {
      int value = q - (format.hasZeroPoint() ? zero : 0);
      square += value * value;
      ++count;
    }
  elementMasks = {~uint64_t(0), 0};
  uint16_t scale = floatToF16(static_cast<float>(deviation / std::sqrt(square / count)));
  scaleMasks = {repeat16(0x8000), repeat16(std::max<uint16_t>(scale, 1))};
}

void SyntheticTensor::setRegions() {
  Layout::Kind kind = packed.layout().kind;
  if (kind == Layout::Kind::Blocks) {
    regions.append(2, scaleMasks);
    regions.append(GgufBlock::of(packed.format())->bytes - 2, elementMasks);
    return;
  }
  auto appendChunk = [&](SyntheticPattern &to, int64_t chunk) {
    int64_t elements = packed.chunkElements(chunk), scales = packed.chunkScales(chunk),
            zeroPoints = packed.chunkOffsets(chunk);
    int64_t zerosEnd =
        zeroPoints +
        (packed.format().hasZeroPoint() ? packed.chunkGroups(chunk) * packed.rowsPerTile() : 0);
    to.append(elements, elementMasks);
    to.append(scales - elements, {});
    to.append(zeroPoints - scales, scaleMasks);
    to.append(zerosEnd - zeroPoints, zeros());
    to.append(packed.chunkBytes(chunk) - zerosEnd, {});
  };
  SyntheticPattern first, last;
  appendChunk(first, 0);
  appendChunk(last, packed.chunks() - 1);
  if (first == last) {
    regions.regions = std::move(first.regions);
    return;
  }
  for (int64_t chunk = 0; chunk < packed.chunks(); ++chunk)
    appendChunk(regions, chunk);
}

void SyntheticTensor::generate(int64_t firstWord, MutableArrayRef<uint8_t> out) const {
  assert(firstWord >= 0 && firstWord * 16 + static_cast<int64_t>(out.size()) <= packed.bytes() &&
         "outside the matrix");
  regions.generate(static_cast<uint64_t>(firstWord) * 16, out.data(), out.size());
}
