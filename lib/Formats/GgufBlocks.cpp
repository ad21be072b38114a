// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Formats/GgufBlocks.h"

#include "GgufGrids.h"

#include "llvm/Support/Endian.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cstring>

using namespace llvm;
using namespace sluice::formats;
using llvm::support::endian::read16le;
using llvm::support::endian::read32le;
using llvm::support::endian::write16le;

//===----------------------------------------------------------------------===//
// Elements
//===----------------------------------------------------------------------===//

/// Pieces of elements: `count` of them, each of `bits` bits, in bytes that first have piece 0, 1,
/// 2,
/// ... at their low end, then the next `stride` pieces above these, and so on; `stride` bytes hold
/// a run of 8 / bits * stride elements. All of GGUF's element arrays are of this form.
template <unsigned bits, int count, int stride, typename Visit> static void forPieces(Visit visit) {
  constexpr int run = 8 / bits * stride;
  for (int i = 0; i < count; ++i)
    visit(i, i / run * stride + i % stride, i % run / stride * bits);
}

/// ORs pieces of elements into q, at bit `low`.
template <unsigned bits, int count, int stride>
static void readPieces(const uint8_t *from, int8_t *q, unsigned low = 0) {
  forPieces<bits, count, stride>([&](int i, int byte, unsigned shift) {
    unsigned piece = (from[byte] >> shift) & ((1u << bits) - 1);
    q[i] = static_cast<int8_t>((low ? q[i] : 0) | static_cast<int>(piece << low));
  });
}

/// The inverse: the bits from `low` on of q + bias.
template <unsigned bits, int count, int stride>
static void writePieces(const int8_t *q, uint8_t *to, unsigned low = 0, int bias = 0) {
  std::memset(to, 0, static_cast<size_t>(count) * bits / 8);
  forPieces<bits, count, stride>([&](int i, int byte, unsigned shift) {
    unsigned piece = (static_cast<unsigned>(q[i] + bias) >> low) & ((1u << bits) - 1);
    to[byte] = static_cast<uint8_t>(to[byte] | piece << shift);
  });
}

static void addBias(int8_t *q, int count, int bias) {
  for (int i = 0; i < count; ++i)
    q[i] = static_cast<int8_t>(q[i] + bias);
}

//===----------------------------------------------------------------------===//
// Blocks of 32 and 64 columns
//===----------------------------------------------------------------------===//

/// Q4_0, Q4_1, Q5_0, Q5_1 and IQ4_NL: f16 numbers, bit 4 of the elements, the low 4 bits.
template <bool hasOffset, bool five, int bias>
static void readBlock32(const uint8_t *block, const RowNumbers &to) {
  to.scales[0] = read16le(block);
  block += 2;
  if constexpr (hasOffset) {
    to.offsets[0] = read16le(block);
    block += 2;
  }
  readPieces<4, 32, 16>(block + (five ? 4 : 0), to.q);
  if constexpr (five) {
    uint32_t high = read32le(block);
    for (int i = 0; i < 32; ++i)
      to.q[i] = static_cast<int8_t>(to.q[i] | (high >> i & 1) << 4);
  }
  addBias(to.q, 32, -bias);
}

template <bool hasOffset, bool five, int bias>
static void writeBlock32(const RowNumbers &from, uint8_t *block) {
  write16le(block, from.scales[0]);
  block += 2;
  if constexpr (hasOffset) {
    write16le(block, from.offsets[0]);
    block += 2;
  }
  if constexpr (five) {
    uint32_t high = 0;
    for (int i = 0; i < 32; ++i)
      high |= (static_cast<uint32_t>(from.q[i] + bias) >> 4 & 1) << i;
    llvm::support::endian::write32le(block, high);
    block += 4;
  }
  writePieces<4, 32, 16>(from.q, block, 0, bias);
}

static void readQ8_0(const uint8_t *block, const RowNumbers &to) {
  to.scales[0] = read16le(block);
  std::memcpy(to.q, block + 2, 32);
}
static void writeQ8_0(const RowNumbers &from, uint8_t *block) {
  write16le(block, from.scales[0]);
  std::memcpy(block + 2, from.q, 32);
}

static void readMXFP4(const uint8_t *block, const RowNumbers &to) {
  to.scales[0] = block[0];
  readPieces<4, 32, 16>(block + 1, to.q);
}
static void writeMXFP4(const RowNumbers &from, uint8_t *block) {
  block[0] = static_cast<uint8_t>(from.scales[0]);
  writePieces<4, 32, 16>(from.q, block + 1);
}

static void readNVFP4(const uint8_t *block, const RowNumbers &to) {
  // ggml takes code 7F for zero, and ignores the sign.
  for (int g = 0; g < 4; ++g)
    to.scales[g] = block[g] == 0x7F ? 0 : block[g] & 0x7F;
  readPieces<4, 64, 8>(block + 4, to.q);
}
static void writeNVFP4(const RowNumbers &from, uint8_t *block) {
  for (int g = 0; g < 4; ++g)
    block[g] = static_cast<uint8_t>(from.scales[g]);
  writePieces<4, 64, 8>(from.q, block + 4);
}

//===----------------------------------------------------------------------===//
// Super-blocks
//===----------------------------------------------------------------------===//

static void readQ2_K(const uint8_t *block, const RowNumbers &to) {
  for (int g = 0; g < 16; ++g) {
    to.scales[g] = block[g] & 15;
    to.offsets[g] = block[g] >> 4;
  }
  readPieces<2, 256, 32>(block + 16, to.q);
  to.supers[0] = read16le(block + 80);
  to.supers[1] = read16le(block + 82);
}
static void writeQ2_K(const RowNumbers &from, uint8_t *block) {
  for (int g = 0; g < 16; ++g)
    block[g] = static_cast<uint8_t>(from.scales[g] | from.offsets[g] << 4);
  writePieces<2, 256, 32>(from.q, block + 16);
  write16le(block + 80, from.supers[0]);
  write16le(block + 82, from.supers[1]);
}

/// Q3_K's 16 scales of 6 bits in 12 bytes: low 4 bits of scales g and g + 8 in byte g; high 2 bits
/// of scales g, g + 4, g + 8, g + 12 in byte 8 + g.
static void readQ3_K(const uint8_t *block, const RowNumbers &to) {
  readPieces<2, 256, 32>(block + 32, to.q);
  readPieces<1, 256, 32>(block, to.q, 2);
  addBias(to.q, 256, -4);
  int8_t scales[16];
  readPieces<4, 16, 8>(block + 96, scales);
  readPieces<2, 16, 4>(block + 104, scales, 4);
  for (int g = 0; g < 16; ++g)
    to.scales[g] = static_cast<uint8_t>(scales[g] - 32);
  to.supers[0] = read16le(block + 108);
}
static void writeQ3_K(const RowNumbers &from, uint8_t *block) {
  writePieces<1, 256, 32>(from.q, block, 2, 4);
  writePieces<2, 256, 32>(from.q, block + 32, 0, 4);
  int8_t scales[16];
  for (int g = 0; g < 16; ++g)
    scales[g] = static_cast<int8_t>(static_cast<int8_t>(from.scales[g]) + 32);
  writePieces<4, 16, 8>(scales, block + 96);
  writePieces<2, 16, 4>(scales, block + 104, 4);
  write16le(block + 108, from.supers[0]);
}

/// Q4_K's and Q5_K's 8 scales and 8 minima of 6 bits in 12 bytes: bytes 0-3 scales 0-3, bytes 4-7
/// minima 0-3, each with 2 bits of scale (minimum) 4 + g on top; bytes 8-11 the low 4 bits of scale
/// 4 + g and, above them, of its minimum.
static void readFields(const uint8_t *from, const RowNumbers &to) {
  for (int g = 0; g < 4; ++g) {
    to.scales[g] = from[g] & 63;
    to.offsets[g] = from[4 + g] & 63;
    to.scales[4 + g] = static_cast<uint16_t>((from[8 + g] & 15) | from[g] >> 6 << 4);
    to.offsets[4 + g] = static_cast<uint16_t>(from[8 + g] >> 4 | from[4 + g] >> 6 << 4);
  }
}
static void writeFields(const RowNumbers &from, uint8_t *to) {
  for (int g = 0; g < 4; ++g) {
    to[g] = static_cast<uint8_t>(from.scales[g] | from.scales[4 + g] >> 4 << 6);
    to[4 + g] = static_cast<uint8_t>(from.offsets[g] | from.offsets[4 + g] >> 4 << 6);
    to[8 + g] = static_cast<uint8_t>((from.scales[4 + g] & 15) | from.offsets[4 + g] << 4);
  }
}

template <bool five> static void readQ45_K(const uint8_t *block, const RowNumbers &to) {
  to.supers[0] = read16le(block);
  to.supers[1] = read16le(block + 2);
  readFields(block + 4, to);
  readPieces<4, 256, 32>(block + (five ? 48 : 16), to.q);
  if constexpr (five)
    readPieces<1, 256, 32>(block + 16, to.q, 4);
}
template <bool five> static void writeQ45_K(const RowNumbers &from, uint8_t *block) {
  write16le(block, from.supers[0]);
  write16le(block + 2, from.supers[1]);
  writeFields(from, block + 4);
  writePieces<4, 256, 32>(from.q, block + (five ? 48 : 16));
  if constexpr (five)
    writePieces<1, 256, 32>(from.q, block + 16, 4);
}

static void readQ6_K(const uint8_t *block, const RowNumbers &to) {
  readPieces<4, 256, 64>(block, to.q);
  readPieces<2, 256, 32>(block + 128, to.q, 4);
  addBias(to.q, 256, -32);
  for (int g = 0; g < 16; ++g)
    to.scales[g] = block[192 + g];
  to.supers[0] = read16le(block + 208);
}
static void writeQ6_K(const RowNumbers &from, uint8_t *block) {
  writePieces<4, 256, 64>(from.q, block, 0, 32);
  writePieces<2, 256, 32>(from.q, block + 128, 4, 32);
  for (int g = 0; g < 16; ++g)
    block[192 + g] = static_cast<uint8_t>(from.scales[g]);
  write16le(block + 208, from.supers[0]);
}

static void readIQ4_XS(const uint8_t *block, const RowNumbers &to) {
  to.supers[0] = read16le(block);
  unsigned high = read16le(block + 2);
  for (int g = 0; g < 8; ++g) {
    unsigned low = block[4 + g / 2] >> (4 * (g % 2)) & 15;
    to.scales[g] = static_cast<uint8_t>((low | (high >> (2 * g) & 3) << 4) - 32);
  }
  readPieces<4, 256, 16>(block + 8, to.q);
}
static void writeIQ4_XS(const RowNumbers &from, uint8_t *block) {
  write16le(block, from.supers[0]);
  unsigned high = 0;
  std::memset(block + 4, 0, 4);
  for (int g = 0; g < 8; ++g) {
    unsigned scale = static_cast<unsigned>(static_cast<int8_t>(from.scales[g]) + 32);
    high |= (scale >> 4 & 3) << (2 * g);
    block[4 + g / 2] = static_cast<uint8_t>(block[4 + g / 2] | (scale & 15) << (4 * (g % 2)));
  }
  write16le(block + 2, static_cast<uint16_t>(high));
  writePieces<4, 256, 16>(from.q, block + 8);
}

static void readTQ2_0(const uint8_t *block, const RowNumbers &to) {
  readPieces<2, 256, 32>(block, to.q);
  addBias(to.q, 256, -1);
  to.scales[0] = read16le(block + 64);
}

static void readTQ1_0(const uint8_t *block, const RowNumbers &to) {
  int8_t *q = to.q;
  // Digits of `count` bytes, the first of each byte first; the product's overflow drops those
  // above.
  auto readDigits = [&](const uint8_t *from, int count, int digits) {
    unsigned power = 1;
    for (int digit = 0; digit < digits; ++digit, power *= 3)
      for (int i = 0; i < count; ++i)
        *q++ = static_cast<int8_t>((from[i] * power & 0xFF) * 3 / 256) - 1;
  };
  readDigits(block, 32, 5);
  readDigits(block + 32, 16, 5);
  readDigits(block + 48, 4, 4);
  to.scales[0] = read16le(block + 52);
}

static void readQ8_K(const uint8_t *block, const RowNumbers &to) {
  to.scales[0] = read32le(block);
  std::memcpy(to.q, block + 4, 256);
}

//===----------------------------------------------------------------------===//
// Grids
//===----------------------------------------------------------------------===//

/// Eight elements of IQ2 or IQ3: a point, or two of four elements, and their signs. An index into
/// the table has the sign above the point's code.
template <unsigned bits> static void readSigned(unsigned points, unsigned signs, int8_t *q) {
  for (unsigned i = 0; i < 8; ++i) {
    unsigned code = points >> (i * bits) & ((1u << bits) - 1);
    q[i] = static_cast<int8_t>(code | (signs >> i & 1) << 3);
  }
}

/// Eight signs of which seven bits are stored.
static unsigned evenSigns(unsigned bits) {
  bits &= 127;
  return bits | (std::popcount(bits) & 1u) << 7;
}

/// Scales of 4 bits, of two groups a byte.
static void readNibbleScales(const uint8_t *from, unsigned groups, const RowNumbers &to) {
  for (unsigned g = 0; g < groups; ++g)
    to.scales[g] = 2 * (from[g / 2] >> (4 * (g % 2)) & 15u) + 1;
}

static void readIQ2_XXS(const uint8_t *block, const RowNumbers &to) {
  ArrayRef<uint16_t> grid = gridPoints(GgufGrid::IQ2_XXS);
  to.supers[0] = read16le(block);
  for (unsigned g = 0; g < 8; ++g) {
    const uint8_t *from = block + 2 + 8 * g;
    uint32_t signs = read32le(from + 4);
    to.scales[g] = 2 * (signs >> 28) + 1;
    for (unsigned i = 0; i < 4; ++i)
      readSigned<2>(grid[from[i]], evenSigns(signs >> (7 * i)), to.q + 32 * g + 8 * i);
  }
}

static void readIQ2_XS(const uint8_t *block, const RowNumbers &to) {
  ArrayRef<uint16_t> grid = gridPoints(GgufGrid::IQ2_XS);
  to.supers[0] = read16le(block);
  readNibbleScales(block + 66, 16, to);
  for (unsigned i = 0; i < 32; ++i) {
    unsigned word = read16le(block + 2 + 2 * i);
    readSigned<2>(grid[word & 511], evenSigns(word >> 9), to.q + 8 * i);
  }
}

static void readIQ2_S(const uint8_t *block, const RowNumbers &to) {
  ArrayRef<uint16_t> grid = gridPoints(GgufGrid::IQ2_S);
  const uint8_t *low = block + 2, *signs = block + 34, *high = block + 66;
  to.supers[0] = read16le(block);
  readNibbleScales(block + 74, 16, to);
  for (unsigned i = 0; i < 32; ++i) {
    unsigned point = low[i] | (high[i / 4] >> (2 * (i % 4)) & 3u) << 8;
    readSigned<2>(grid[point], signs[i], to.q + 8 * i);
  }
}

static void readIQ3_XXS(const uint8_t *block, const RowNumbers &to) {
  ArrayRef<uint16_t> grid = gridPoints(GgufGrid::IQ3_XXS);
  to.supers[0] = read16le(block);
  for (unsigned g = 0; g < 8; ++g) {
    const uint8_t *points = block + 2 + 8 * g;
    uint32_t signs = read32le(block + 66 + 4 * g);
    to.scales[g] = 2 * (signs >> 28) + 1;
    for (unsigned i = 0; i < 4; ++i) {
      unsigned both = grid[points[2 * i]] | unsigned(grid[points[2 * i + 1]]) << 12;
      readSigned<3>(both, evenSigns(signs >> (7 * i)), to.q + 32 * g + 8 * i);
    }
  }
}

static void readIQ3_S(const uint8_t *block, const RowNumbers &to) {
  ArrayRef<uint16_t> grid = gridPoints(GgufGrid::IQ3_S);
  const uint8_t *low = block + 2, *high = block + 66, *signs = block + 74;
  to.supers[0] = read16le(block);
  readNibbleScales(block + 106, 8, to);
  auto point = [&](unsigned i) -> unsigned {
    return grid[low[i] | (high[i / 8] >> (i % 8) & 1u) << 8];
  };
  for (unsigned i = 0; i < 32; ++i)
    readSigned<3>(point(2 * i) | point(2 * i + 1) << 12, signs[i], to.q + 8 * i);
}

/// Eight elements of IQ1: an index into the table has the sign of delta above the point's code.
static void readDelta(unsigned low, unsigned high, bool isNegative, int8_t *q) {
  readSigned<2>(gridPoints(GgufGrid::IQ1)[low | high << 8], isNegative ? 255 : 0, q);
}

static void readIQ1_S(const uint8_t *block, const RowNumbers &to) {
  to.supers[0] = read16le(block);
  for (unsigned g = 0; g < 8; ++g) {
    unsigned word = read16le(block + 34 + 2 * g);
    to.scales[g] = 2 * (word >> 12 & 7) + 1;
    for (unsigned i = 0; i < 4; ++i)
      readDelta(block[2 + 4 * g + i], word >> (3 * i) & 7, word >> 15, to.q + 32 * g + 8 * i);
  }
}

static void readIQ1_M(const uint8_t *block, const RowNumbers &to) {
  unsigned super = 0;
  for (unsigned w = 0; w < 4; ++w) {
    unsigned word = read16le(block + 48 + 2 * w);
    super |= word >> 12 << (4 * w);
    for (unsigned i = 0; i < 4; ++i)
      to.scales[4 * w + i] = 2 * (word >> (3 * i) & 7) + 1;
  }
  to.supers[0] = static_cast<uint16_t>(super);
  for (unsigned i = 0; i < 32; ++i) {
    unsigned high = block[32 + i / 2] >> (4 * (i % 2));
    readDelta(block[i], high & 7, high & 8, to.q + 8 * i);
  }
}

//===----------------------------------------------------------------------===//
// The types
//===----------------------------------------------------------------------===//

using Element = Encoding::Element;
using Offset = Encoding::Offset;
using Scale = Encoding::Scale;

static constexpr GgufBlock blockTypes[] = {
    {"Q4_0",
     {Element::I4, 32},
     32,
     18,
     readBlock32<false, false, 8>,
     writeBlock32<false, false, 8>},
    {"Q4_1",
     {Element::U4, 32, Offset::F16},
     32,
     20,
     readBlock32<true, false, 0>,
     writeBlock32<true, false, 0>},
    {"Q5_0",
     {Element::I5, 32},
     32,
     22,
     readBlock32<false, true, 16>,
     writeBlock32<false, true, 16>},
    {"Q5_1",
     {Element::U5, 32, Offset::F16},
     32,
     24,
     readBlock32<true, true, 0>,
     writeBlock32<true, true, 0>},
    {"Q8_0", {Element::I8, 32}, 32, 34, readQ8_0, writeQ8_0},
    {"IQ4_NL",
     {Element::IQ4NL, 32},
     32,
     18,
     readBlock32<false, false, 0>,
     writeBlock32<false, false, 0>},
    {"MXFP4", {Element::E2M1, 32, Offset::None, Scale::E8M0}, 32, 17, readMXFP4, writeMXFP4},
    {"NVFP4", {Element::E2M1, 16, Offset::None, Scale::E4M3}, 64, 36, readNVFP4, writeNVFP4},
    {"Q2_K", {Element::U2, 16, Offset::Field, Scale::U4}, 256, 84, readQ2_K, writeQ2_K},
    {"Q3_K", {Element::I3, 16, Offset::None, Scale::I8}, 256, 110, readQ3_K, writeQ3_K},
    {"Q4_K",
     {Element::U4, 32, Offset::Field, Scale::U6},
     256,
     144,
     readQ45_K<false>,
     writeQ45_K<false>},
    {"Q5_K",
     {Element::U5, 32, Offset::Field, Scale::U6},
     256,
     176,
     readQ45_K<true>,
     writeQ45_K<true>},
    {"Q6_K", {Element::I6, 16, Offset::None, Scale::I8}, 256, 210, readQ6_K, writeQ6_K},
    {"IQ4_XS", {Element::IQ4NL, 32, Offset::None, Scale::I8}, 256, 136, readIQ4_XS, writeIQ4_XS},
    {"TQ1_0", {Element::I3, 256}, 256, 54, readTQ1_0, nullptr},
    {"TQ2_0", {Element::I3, 256}, 256, 66, readTQ2_0, nullptr},
    {"Q8_K", {Element::I8, 256, Offset::None, Scale::F32}, 256, 292, readQ8_K, nullptr},
    {"IQ2_XXS", {Element::IQ2, 32, Offset::None, Scale::I8}, 256, 66, readIQ2_XXS, nullptr},
    {"IQ2_XS", {Element::IQ2, 16, Offset::None, Scale::I8}, 256, 74, readIQ2_XS, nullptr},
    {"IQ2_S", {Element::IQ2, 16, Offset::None, Scale::I8}, 256, 82, readIQ2_S, nullptr},
    {"IQ3_XXS", {Element::IQ3XXS, 32, Offset::None, Scale::I8}, 256, 98, readIQ3_XXS, nullptr},
    {"IQ3_S", {Element::IQ3S, 32, Offset::None, Scale::I8}, 256, 110, readIQ3_S, nullptr},
    {"IQ1_S", {Element::IQ1, 32, Offset::None, Scale::I8}, 256, 50, readIQ1_S, nullptr},
    {"IQ1_M", {Element::IQ1, 16, Offset::None, Scale::I8}, 256, 56, readIQ1_M, nullptr},
};

const GgufBlock *GgufBlock::of(const Encoding &encoding) {
  const auto *found = find_if(blockTypes, [&](const GgufBlock &type) {
    return type.encoding == encoding && !type.isRepacked();
  });
  return found == std::end(blockTypes) ? nullptr : found;
}

const GgufBlock *GgufBlock::named(StringRef name) {
  const auto *found = find_if(blockTypes, [&](const GgufBlock &type) { return type.name == name; });
  return found == std::end(blockTypes) ? nullptr : found;
}

/// Goes to the next block.
static void advance(const GgufBlock &type, RowNumbers &numbers) {
  numbers.q += type.columns;
  numbers.scales += type.encoding.groupsPerRow(type.columns);
  if (numbers.offsets)
    numbers.offsets += type.encoding.groupsPerRow(type.columns);
  if (numbers.supers)
    numbers.supers += type.encoding.superNumbers();
}

void GgufBlock::read(ArrayRef<uint8_t> blocks, RowNumbers to) const {
  assert(blocks.size() % static_cast<size_t>(bytes) == 0 && "whole blocks");
  for (; !blocks.empty(); blocks = blocks.drop_front(static_cast<size_t>(bytes))) {
    readBlock(blocks.data(), to);
    advance(*this, to);
  }
}

void GgufBlock::write(const EncodedRow &row, MutableArrayRef<uint8_t> blocks) const {
  assert(row.q.size() * static_cast<size_t>(bytes) ==
             blocks.size() * static_cast<size_t>(columns) &&
         "one block for so many columns");
  RowNumbers from = {const_cast<int8_t *>(row.q.data()), const_cast<uint32_t *>(row.scales.data()),
                     nullptr, const_cast<uint16_t *>(row.offsets.data()),
                     const_cast<uint16_t *>(row.supers.data())};
  for (; !blocks.empty(); blocks = blocks.drop_front(static_cast<size_t>(bytes))) {
    writeBlock(from, blocks.data());
    advance(*this, from);
  }
}
