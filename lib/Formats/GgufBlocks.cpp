// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Formats/GgufBlocks.h"

#include "llvm/Support/Endian.h"

#include <cassert>
#include <cstring>

using namespace llvm;
using namespace sluice::formats;

static constexpr size_t columns = ggufBlockColumns, half = columns / 2;

void sluice::formats::readQ8_0(ArrayRef<uint8_t> blocks, MutableArrayRef<int8_t> q,
                               MutableArrayRef<uint16_t> scales) {
  assert(blocks.size() == scales.size() * q8_0BlockBytes && q.size() == scales.size() * columns);
  const uint8_t *from = blocks.data();
  int8_t *to = q.data();
  for (uint16_t &scale : scales) {
    scale = llvm::support::endian::read16le(from);
    std::memcpy(to, from + 2, columns);
    from += q8_0BlockBytes;
    to += columns;
  }
}

void sluice::formats::readQ4_0(ArrayRef<uint8_t> blocks, MutableArrayRef<int8_t> q,
                               MutableArrayRef<uint16_t> scales) {
  assert(blocks.size() == scales.size() * q4_0BlockBytes && q.size() == scales.size() * columns);
  const uint8_t *from = blocks.data();
  int8_t *to = q.data();
  for (uint16_t &scale : scales) {
    scale = llvm::support::endian::read16le(from);
    for (size_t i = 0; i < half; ++i) {
      to[i] = static_cast<int8_t>((from[2 + i] & 15) - 8);
      to[i + half] = static_cast<int8_t>((from[2 + i] >> 4) - 8);
    }
    from += q4_0BlockBytes;
    to += columns;
  }
}

void sluice::formats::writeQ8_0(ArrayRef<int8_t> q, ArrayRef<uint16_t> scales,
                                MutableArrayRef<uint8_t> blocks) {
  assert(blocks.size() == scales.size() * q8_0BlockBytes && q.size() == scales.size() * columns);
  const int8_t *from = q.data();
  uint8_t *to = blocks.data();
  for (uint16_t scale : scales) {
    llvm::support::endian::write16le(to, scale);
    std::memcpy(to + 2, from, columns);
    from += columns;
    to += q8_0BlockBytes;
  }
}

void sluice::formats::writeQ4_0(ArrayRef<int8_t> q, ArrayRef<uint16_t> scales,
                                MutableArrayRef<uint8_t> blocks) {
  assert(blocks.size() == scales.size() * q4_0BlockBytes && q.size() == scales.size() * columns);
  const int8_t *from = q.data();
  uint8_t *to = blocks.data();
  for (uint16_t scale : scales) {
    llvm::support::endian::write16le(to, scale);
    for (size_t i = 0; i < half; ++i)
      to[2 + i] = static_cast<uint8_t>(((from[i] + 8) & 15) | ((from[i + half] + 8) & 15) << 4);
    from += columns;
    to += q4_0BlockBytes;
  }
}
