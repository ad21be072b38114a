// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Formats/Synthetic.h"
#include "sluice/Formats/GgufBlocks.h"

#include "llvm/Support/ErrorHandling.h"

#include <algorithm>
#include <bit>
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

namespace {
/// Moments of a uniform distribution over the numbers that were added.
struct Moments {
  double mean = 0, square = 0;
  int count = 0;
  void add(double x) {
    ++count;
    mean += (x - mean) / count;
    square += (x * x - square) / count;
  }
};
} // namespace

void SyntheticTensor::setMasks() {
  using Scale = Encoding::Scale;
  Encoding format = packed.format();
  double deviation = 1 / std::sqrt(static_cast<double>(packed.columns()));
  // +-2^e [1, 2), uniform, has a mean square of 7/3 * 4^e.
  int exponent = static_cast<int>(std::lround(std::log2(deviation / std::sqrt(7.0 / 3))));
  if (!format.isScaled()) {
    elementMasks = floatMasks(format.element, exponent);
    return;
  }
  constexpr uint64_t all = ~uint64_t(0);
  auto repeat8 = [](uint64_t byte) { return byte * 0x0101010101010101u; };
  auto half = [](double value) {
    return repeat16(std::max<uint16_t>(floatToF16(static_cast<float>(value)), 1));
  };
  elementMasks = {all, 0};
  // FP8: exponents 4 to 7, of which none belongs to NaN.
  if (!format.isInteger())
    elementMasks = {repeat8(0x9F), repeat8(0x20)};
  Moments integers, codes;
  for (int q = 0; q < 1 << format.bits(); ++q) {
    int sign = format.code() == Encoding::Code::Signed ? 1 << (format.bits() - 1) : 0;
    if ((elementMasks.keep & q) != static_cast<uint64_t>(q))
      continue;
    int bits = q | static_cast<int>(elementMasks.set & 0xFF);
    for (int zero : {-2, -1})
      integers.add(format.numberOf(static_cast<int8_t>((bits ^ sign) - sign)) -
                   static_cast<float>(format.hasZeroPoint() ? zero : 0));
  }
  double mean = integers.mean, square = integers.square;
  switch (format.scale) {
  case Scale::F16:
    if (format.hasOffset()) {
      double scale = deviation / std::sqrt(square - mean * mean);
      scaleMasks = {0, half(scale)};
      offsetMasks = {0, half(-scale * mean)};
    } else {
      scaleMasks = {repeat16(0x8000), half(deviation / std::sqrt(square))};
    }
    break;
  case Scale::BF16:
    scaleMasks = {repeat16(0x8000),
                  repeat16(floatToBf16(static_cast<float>(deviation / std::sqrt(square))))};
    break;
  case Scale::F32: {
    auto scale = static_cast<float>(deviation / std::sqrt(square));
    scaleMasks = {0x8000000080000000u, std::bit_cast<uint32_t>(scale) * 0x0000000100000001u};
    break;
  }
  case Scale::I8:
    for (int code = 64; code < 72; ++code)
      codes.add(code);
    scaleMasks = {repeat8(0x87), repeat8(0x40)};
    superMasks[0] = {0, half(deviation / (std::sqrt(codes.square * square) * format.superUnit()))};
    break;
  case Scale::E8M0:
  case Scale::E4M3: {
    uint16_t code = 1;
    while (code < 126 && format.scaleOf(code, 0) < deviation / std::sqrt(square))
      ++code;
    scaleMasks = {0, repeat8(code)};
    break;
  }
  case Scale::U6:
  case Scale::U4: {
    for (int code = 0; code < 1 << format.scaleBits(); ++code)
      codes.add(code);
    scaleMasks = offsetMasks = {all, 0};
    // The mean square of s q - mean m, where fields s and m are distributed alike.
    double all2 = codes.square * (square + mean * mean) - 2 * std::pow(mean * codes.mean, 2);
    double scale = deviation / std::sqrt(all2);
    superMasks[0] = {0, half(scale)};
    superMasks[1] = {0, half(scale * mean)};
    break;
  }
  }
  if (format.hasZeroPoint())
    offsetMasks = zeros();
}

/// Of every 2 * `bits` bits the lower half by one pair of masks, the upper half by the other.
static SyntheticMasks alternate(SyntheticMasks low, SyntheticMasks high, uint64_t bits) {
  uint64_t mask = bits == 32 ? 0xFFFFFFFFu : 0x0000FFFF0000FFFFu;
  return {(low.keep & mask) | (high.keep & ~mask), (low.set & mask) | (high.set & ~mask)};
}

SyntheticPattern SyntheticTensor::recordRegions() const {
  const Encoding &format = packed.format();
  RecordShape record(format);
  SyntheticPattern pattern;
  pattern.append(record.unitsAt(), elementMasks);
  pattern.append(record.supersAt() - record.unitsAt(), format.offset == Encoding::Offset::F16
                                                           ? alternate(scaleMasks, offsetMasks, 32)
                                                           : scaleMasks);
  pattern.append(record.bytes() - record.supersAt(),
                 format.superNumbers() == 2 ? alternate(superMasks[0], superMasks[1], 16)
                                            : superMasks[0]);
  return pattern;
}

void SyntheticTensor::setRegions() {
  const Encoding &format = packed.format();
  Layout::Kind kind = packed.layout().kind;
  if (kind == Layout::Kind::Records) {
    regions.regions = recordRegions().regions;
    return;
  }
  if (kind == Layout::Kind::Blocks) {
    regions.append(2, scaleMasks);
    regions.append(GgufBlock::of(format)->bytes - 2, elementMasks);
    return;
  }
  auto appendChunk = [&](SyntheticPattern &to, int64_t chunk) {
    int64_t elements = packed.chunkElements(chunk), scales = packed.chunkScales(chunk),
            offsets = packed.chunkOffsets(chunk), supers = packed.chunkSupers(chunk);
    int64_t units = packed.chunkGroups(chunk) * packed.rowsPerTile(), offsetBytes = 0;
    if (format.hasFields())
      offsetBytes = format.scale == Encoding::Scale::U6 ? units / 2 : 0;
    else
      offsetBytes = units * format.offsetBits() / 8;
    int64_t numbers = format.supersPerRow(packed.chunkColumns(chunk)) * format.superNumbers();
    to.append(elements, elementMasks);
    to.append(scales - elements, {});
    to.append(offsets - scales, scaleMasks);
    to.append(offsetBytes, offsetMasks);
    to.append(supers - offsets - offsetBytes, {});
    for (int64_t i = 0; i < numbers; ++i)
      to.append(packed.rowsPerTile() * 2, superMasks[i % format.superNumbers()]);
    to.append(packed.chunkBytes(chunk) - supers - numbers * packed.rowsPerTile() * 2, {});
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
