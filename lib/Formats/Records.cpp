// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Formats/Records.h"

#include "llvm/Support/ErrorHandling.h"

#include <algorithm>
#include <array>
#include <cassert>

using namespace llvm;
using namespace sluice::formats;

using Code = Encoding::Code;
using Offset = Encoding::Offset;
using Scale = Encoding::Scale;

std::string RecordShape::problem(const Encoding &encoding) {
  if (!encoding.isInteger())
    return "records are of integers";
  if (encoding.hasZeroPoint())
    return "records have no zero points";
  if (encoding.scale == Scale::F32)
    return "records have no f32 scales";
  bool wide = encoding.group == Encoding::channel || encoding.group >= 128;
  // Groups of 64 have their scale in both units of 32.
  if (wide && (encoding.scale != Scale::F16 || encoding.offset != Offset::None))
    return "records have units of 128 columns with f16 scales only";
  if (encoding.group == 16 && encoding.offset == Offset::F16)
    return "records have f16 offsets for units of 32 columns only";
  return "";
}

RecordShape::RecordShape(const Encoding &encoding) : enc(encoding) {
  assert(problem(encoding).empty());
  unitColumns = enc.group == Encoding::channel || enc.group >= 128 ? 128
                : enc.group == 16                                  ? 16
                                                                   : 32;
  int64_t units = columns / unitColumns * rows;
  if (enc.hasFields())
    unitBytes = units * enc.scaleBits() * 2 / 8;
  else
    unitBytes = units * (enc.scaleBits() + enc.offsetBits()) / 8;
  superBytes = rows * 2 * enc.superNumbers();
}

unsigned RecordShape::fraction(unsigned operand) const {
  if (enc.code() == Code::Table)
    return 0;
  bool bottom = enc.code() == Code::Unsigned && enc.bits() >= 4 && operand >= operands / 2;
  return bottom ? 0 : 8 - enc.bits();
}

SmallVector<RecordShape::Piece, 4> RecordShape::pieces(unsigned operand) const {
  assert(enc.code() != Code::Table);
  unsigned bits = enc.bits(), free = 8 - bits;
  std::array<SmallVector<Piece, 4>, operands> all;
  // Bits [low, low + left) of a plane's byte are free.
  std::array<unsigned, operands> low{}, left{};
  for (unsigned p = 0; p < bits; ++p) {
    unsigned at = fraction(p);
    all[p].push_back({p, at, at, bits});
    low[p] = at ? 0 : bits;
    left[p] = free;
  }
  // At the bottom first what is free there: it need not be moved.
  for (unsigned o = bits; o < operands; ++o)
    if (!fraction(o) && low[o - bits] == 0) {
      all[o].push_back({o - bits, 0, 0, free});
      left[o - bits] = 0;
    }
  for (unsigned o = bits; o < operands; ++o) {
    unsigned have = all[o].empty() ? 0 : free, need = bits - have, end = fraction(o) + bits;
    while (need) {
      // From the top down: the plane with the fewest free bits that has enough, else with the most.
      unsigned best = operands;
      for (unsigned p = 0; p < bits; ++p) {
        if (!left[p])
          continue;
        if (best == operands || (left[p] >= need ? left[best] < need || left[p] < left[best]
                                                 : left[best] < need && left[p] > left[best]))
          best = p;
      }
      assert(best < operands && "b planes have room for 8 elements of b bits");
      unsigned width = std::min(need, left[best]);
      left[best] -= width;
      end -= width;
      need -= width;
      all[o].push_back({best, low[best] + left[best], end, width});
    }
  }
  return all[operand];
}

/// The lane that has a row's sub-block.
static int64_t laneOf(int64_t row, int64_t column) { return 4 * (row % 8) + column / 32 % 4; }

BitFields RecordShape::element(int64_t row, int64_t column) const {
  unsigned operand = column / 128 * 4 + column / 8 % 4;
  int64_t i = column % 8;
  int64_t word = 16 * laneOf(row, column) + 4 * (row / 8 + 2 * (i / 4));
  if (enc.code() == Code::Table) {
    int64_t nibble = i % 4 + 4 * (operand / 4);
    return {{operand % 4 * planeBytes + word + nibble / 2, unsigned(4 * (nibble % 2)), 4, 0}};
  }
  BitFields fields;
  for (Piece piece : pieces(operand))
    fields.push_back({piece.plane * planeBytes + word + i % 4, piece.from, piece.width,
                      piece.to - fraction(operand)});
  return fields;
}

/// Field `number` of the 48 bits of a lane: six bits, which may cross bytes.
static BitFields sixBits(int64_t unitsAt, int64_t lane, int64_t number) {
  BitFields fields;
  for (unsigned bit = 6 * number, done = 0; done < 6;) {
    int64_t byte = bit < 32 ? 4 * lane + bit / 8 : 128 + 2 * lane + (bit - 32) / 8;
    unsigned shift = bit % 8, width = std::min(6 - done, 8 - shift);
    fields.push_back({unitsAt + byte, shift, width, done});
    bit += width;
    done += width;
  }
  return fields;
}

BitFields RecordShape::scale(int64_t row, int64_t column) const {
  int64_t lane = laneOf(row, column), g = column / 128, h = column / 16 % 2, r = row / 8;
  int64_t at = unitsAt();
  switch (enc.scale) {
  case Scale::F16:
    if (unitColumns == 128)
      return {{at + 8 * (row % 8) + 4 * g + 2 * r, 0, 16, 0}};
    if (unitColumns == 16)
      return {{at + 16 * lane + 8 * g + 4 * h + 2 * r, 0, 16, 0}};
    if (enc.offset == Offset::F16)
      return {{at + 16 * lane + 8 * g + 2 * r, 0, 16, 0}};
    return {{at + 8 * lane + 4 * g + 2 * r, 0, 16, 0}};
  case Scale::I8:
  case Scale::E8M0:
  case Scale::E4M3:
    if (unitColumns == 16)
      return {{at + 8 * lane + 4 * g + 2 * h + r, 0, 8, 0}};
    return {{at + 4 * lane + 2 * g + r, 0, 8, 0}};
  case Scale::U4:
    return {{at + 8 * lane + 4 * g + 2 * h + r, 0, 4, 0}};
  case Scale::U6:
    break;
  case Scale::BF16:
  case Scale::F32:
    llvm_unreachable("records have no such scales");
  }
  return sixBits(at, lane, 4 * g + 2 * r);
}

BitFields RecordShape::offset(int64_t row, int64_t column) const {
  int64_t lane = laneOf(row, column), g = column / 128, h = column / 16 % 2, r = row / 8;
  int64_t at = unitsAt();
  if (enc.offset == Offset::F16)
    return {{at + 16 * lane + 8 * g + 2 * r + 4, 0, 16, 0}};
  assert(enc.hasFields());
  if (enc.scale == Scale::U4)
    return {{at + 8 * lane + 4 * g + 2 * h + r, 4, 4, 0}};
  return sixBits(at, lane, 4 * g + 2 * r + 1);
}

int64_t RecordShape::super(int64_t row, int64_t number) const {
  int64_t r = row / 8, count = enc.superNumbers();
  return supersAt() + 4 * count * (row % 8) + 2 * count * r + 2 * number;
}

LookupTable LookupTable::of(const Encoding &encoding) {
  ArrayRef<int8_t> table = encoding.table();
  LookupTable result;
  auto sign = [](int x) { return x < 0 ? -1 : 0; };
  for (int i = 0; i < 8; ++i) {
    bool found = false;
    for (int signA : {0, -1})
      for (int signB : {0, -1}) {
        int a = table[i] - signB, b = table[8 + i] - signA;
        if (!found && sign(a) == signA && sign(b) == signB && a < 128 && b < 128) {
          result.a[i] = static_cast<int8_t>(a);
          result.b[i] = static_cast<int8_t>(b);
          found = true;
        }
      }
    if (!found)
      llvm_unreachable("a table that cannot be looked up so");
  }
  return result;
}
