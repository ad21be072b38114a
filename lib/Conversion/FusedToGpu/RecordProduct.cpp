// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "RecordProduct.h"

#include <cmath>

using namespace mlir;
using namespace sluice;
using namespace sluice::device;
using formats::Encoding;
using formats::RecordShape;

RecordProduct::Values RecordProduct::loadWords(Value from, int64_t words) {
  if (words == 1)
    return {k.load(k.i32(), from, 4)};
  return k.lanes(k.load(k.vec(words, k.i32()), from, words * 4));
}

Value RecordProduct::operandPlace(Value inputs, int64_t zeros) {
  // Columns 2s and 2s + 1 of the operand have the inputs of sub-block s, where lanes 4 (2s) + s and
  // 4 (2s + 1) + s are.
  Value subBlock = k.bitAnd(lane, 3);
  Value active = k.equal(subBlock, k.shr(lane, 3));
  Value place = k.add(inputs, k.add(k.shl(subBlock, 6), k.shl(k.bitAnd(k.shr(lane, 2), 1), 5)));
  return k.select(active, place, k.constI32(zeros));
}

RecordProduct::Values RecordProduct::loadOperands(Value from) {
  Values operands;
  // Two operands at a time.
  for (unsigned o = 0; o < kOperands; o += 2)
    llvm::append_range(operands, loadWords(k.offset(from, o / 4 * 256 + o % 4 * 8), 4));
  return operands;
}

SmallVector<RecordProduct::Input> RecordProduct::loadInput(const PreparedInput &input,
                                                           Value number) {
  Value subBlock = k.bitAnd(lane, 3);
  Value active = k.equal(subBlock, k.shr(lane, 3));
  int64_t perToken = input.padded * 2;
  Value place = k.add(k.mul(number, 2 * RecordShape::columns), input.fragments.offset);
  // Both are places in the block's shared memory.
  Value from = operandPlace(place, input.zeros.offset);
  Value shared = k.offset(input.fragmentsAt, -input.fragments.offset);
  Value step = input.tokens > 1 ? k.select(active, k.constI32(perToken), k.constI32(0)) : Value();
  Value units = k.mul(k.add(k.shl(number, 2), subBlock), input.unitFloats() * 4);
  SmallVector<Input> result;
  for (int64_t token = 0; token < input.tokens; ++token) {
    if (token)
      from = k.add(from, step);
    Input one;
    one.operands = loadOperands(k.offset(shared, from));
    Value at = k.offset(k.offset(input.scalesAt, units),
                        token * input.padded / 64 * input.unitFloats() * 4);
    int64_t floats = 2 + (input.hasSums ? 2 * input.sumsPerGroup() : 0);
    for (int64_t word = 0; word < floats; word += 4)
      for (Value bits : loadWords(k.offset(at, word * 4), std::min<int64_t>(4, floats - word)))
        one.units.push_back(k.bitcast(bits, k.f32()));
    result.push_back(std::move(one));
  }
  return result;
}

RecordProduct::Numbers RecordProduct::loadNumbers(Value record) {
  const Encoding &encoding = shape.encoding();
  Value units = k.offset(record, shape.unitsAt()), supers = k.offset(record, shape.supersAt());
  Value row = k.shr(lane, 2);
  Numbers numbers;
  switch (encoding.scale) {
  case Encoding::Scale::F16:
    if (shape.unit() == 128)
      numbers.units = loadWords(k.offset(units, k.shl(row, 3)), 2);
    else if (shape.unit() == 16 || encoding.hasOffset())
      numbers.units = loadWords(k.offset(units, k.shl(lane, 4)), 4);
    else
      numbers.units = loadWords(k.offset(units, k.shl(lane, 3)), 2);
    break;
  case Encoding::Scale::I8:
  case Encoding::Scale::E8M0:
  case Encoding::Scale::E4M3:
  case Encoding::Scale::U4:
    if (shape.unit() == 16)
      numbers.units = loadWords(k.offset(units, k.shl(lane, 3)), 2);
    else
      numbers.units = loadWords(k.offset(units, k.shl(lane, 2)), 1);
    break;
  case Encoding::Scale::BF16:
  case Encoding::Scale::F32:
    llvm_unreachable("records have no such scales");
  case Encoding::Scale::U6:
    numbers.units = loadWords(k.offset(units, k.shl(lane, 2)), 1);
    numbers.units.push_back(k.extendUnsigned(
        k.load(k.i16(), k.offset(k.offset(units, 128), k.shl(lane, 1)), 2), k.i32()));
    break;
  }
  if (int64_t count = encoding.superNumbers())
    numbers.supers = loadWords(k.offset(supers, k.mul(row, 4 * count)), count);
  return numbers;
}

std::pair<RecordProduct::Values, RecordProduct::Values>
RecordProduct::operand(unsigned number, ArrayRef<Values> planes) {
  Values words, others;
  for (unsigned r = 0; r < 4; ++r) {
    if (twice()) {
      formats::LookupTable table = formats::LookupTable::of(shape.encoding());
      auto half = [&](const int8_t *bytes) {
        uint32_t word = 0;
        for (unsigned i = 0; i < 4; ++i)
          word |= uint32_t(uint8_t(bytes[i])) << 8 * i;
        return k.constI32(static_cast<int32_t>(word));
      };
      Value index = planes[number % 4][r];
      Value flipped = k.bitXor(index, static_cast<int32_t>(0x88888888));
      if (number >= kOperands / 2) {
        index = k.shr(index, 16);
        flipped = k.shr(flipped, 16);
      }
      words.push_back(k.permute(half(table.a), half(table.a + 4), index));
      others.push_back(k.permute(half(table.b), half(table.b + 4), flipped));
      continue;
    }
    Value word;
    for (RecordShape::Piece piece : shape.pieces(number)) {
      Value part = planes[piece.plane][r];
      if (piece.to > piece.from)
        part = k.shl(part, piece.to - piece.from);
      else if (piece.from > piece.to)
        part = k.shr(part, piece.from - piece.to);
      if (piece.width < 8)
        part = k.bitAnd(
            part, static_cast<int32_t>((((1u << piece.width) - 1) << piece.to) * 0x01010101u));
      word = word ? k.bitOr(word, part) : part;
    }
    words.push_back(word);
  }
  return {words, others};
}

Value RecordProduct::byteTimes(Value word, unsigned number, Value d, double bias) {
  // The byte becomes bits 8 to 15 of 2^15, whose lowest bit is 2^-8: the float 2^15 + byte.
  Value selector = k.constI32(0x7604 | number << 4);
  Value sum = k.bitcast(k.permute(word, k.constI32(0x47000000), selector), k.f32());
  return k.fma(d, sum, k.mulF(d, k.number(-32768.0 - bias)));
}

void RecordProduct::scalesOf(const Numbers &numbers, Units &units) {
  const Encoding &encoding = shape.encoding();
  auto half = [&](Value word, unsigned number) {
    Value bits = k.truncate(number ? k.shr(word, 16) : word, k.i16());
    return k.widen(k.bitcast(bits, k.f16()));
  };
  auto forUnits = [&](llvm::function_ref<void(unsigned g, unsigned h, unsigned r)> body) {
    for (unsigned g = 0; g < 2; ++g)
      for (unsigned h = 0; h < halves(); ++h)
        for (unsigned r = 0; r < 2; ++r)
          body(g, h, r);
  };
  // Where the byte of a unit and row lies.
  auto word = [&](unsigned g) { return shape.unit() == 16 ? numbers.units[g] : numbers.units[0]; };
  auto byte = [&](unsigned g, unsigned h, unsigned r) {
    return shape.unit() == 16 ? 2 * h + r : 2 * g + r;
  };
  switch (encoding.scale) {
  case Encoding::Scale::F16:
    forUnits([&](unsigned g, unsigned h, unsigned r) {
      bool wide = shape.unit() == 16 || encoding.hasOffset();
      units.scale[g][h][r] = half(numbers.units[wide ? 2 * g + h : g], r);
      if (encoding.hasOffset())
        units.offset[g][h][r] = half(numbers.units[2 * g + 1], r);
    });
    return;
  case Encoding::Scale::I8: {
    // Plus 128 they are unsigned.
    Values biased;
    for (Value bits : numbers.units)
      biased.push_back(k.bitXor(bits, static_cast<int32_t>(0x80808080)));
    Value d[2] = {half(numbers.supers[0], 0), half(numbers.supers[0], 1)};
    if (encoding.superUnit() != 1)
      for (Value &super : d)
        super = k.mulF(super, k.number(encoding.superUnit()));
    forUnits([&](unsigned g, unsigned h, unsigned r) {
      units.scale[g][h][r] =
          byteTimes(biased[shape.unit() == 16 ? g : 0], byte(g, h, r), d[r], 128);
    });
    return;
  }
  case Encoding::Scale::E8M0:
  case Encoding::Scale::E4M3: {
    // The byte is a float's exponent: of 2^(e - 127), twice the scale; or the low four bits of one
    // and the three bits below it, 2^-119 times the scale.
    bool power = encoding.scale == Encoding::Scale::E8M0;
    int at = power ? 23 : 20;
    forUnits([&](unsigned g, unsigned h, unsigned r) {
      int shift = at - 8 * static_cast<int>(byte(g, h, r));
      Value bits = word(g);
      bits = shift > 0 ? k.shl(bits, shift) : shift < 0 ? k.shr(bits, -shift) : bits;
      bits = k.bitAnd(bits, power ? 0x7F800000 : 0x07F00000);
      units.scale[g][h][r] = k.mulF(k.bitcast(bits, k.f32()), k.number(power ? 0.5 : 0x1p119));
    });
    return;
  }
  case Encoding::Scale::U4: {
    forUnits([&](unsigned g, unsigned h, unsigned r) {
      Value d = half(numbers.supers[r], 0), m = k.negF(half(numbers.supers[r], 1));
      Value low = k.bitAnd(word(g), 0x0F0F0F0F), high = k.bitAnd(k.shr(word(g), 4), 0x0F0F0F0F);
      units.scale[g][h][r] = byteTimes(low, byte(g, h, r), d, 0);
      units.offset[g][h][r] = byteTimes(high, byte(g, h, r), m, 0);
    });
    return;
  }
  case Encoding::Scale::BF16:
  case Encoding::Scale::F32:
    llvm_unreachable("records have no such scales");
  case Encoding::Scale::U6: {
    // A field at bit 0, 6 or 12 of the mantissa of 2^23, 2^17 or 2^11 adds itself.
    Value first = numbers.units[0], second = numbers.units[1];
    Value upper = k.bitOr(k.shr(first, 24), k.shl(second, 8));
    Value words[2][2] = {{first, k.shr(first, 18)}, {upper, k.shr(upper, 18)}};
    for (unsigned g = 0; g < 2; ++g)
      for (unsigned field = 0; field < 4; ++field) {
        unsigned r = field / 2, bit = field % 3 * 6;
        Value factor = half(numbers.supers[r], field % 2);
        if (field % 2)
          factor = k.negF(factor);
        Value bits = k.bitAnd(words[g][field / 3], int64_t(63) << bit);
        bits = k.bitOr(bits, k.constI32((127 + 23 - bit) << 23));
        Value number = k.fma(factor, k.bitcast(bits, k.f32()),
                             k.mulF(factor, k.number(-static_cast<double>(1 << (23 - bit)))));
        (field % 2 ? units.offset : units.scale)[g][0][r] = number;
      }
    return;
  }
  }
}

SmallVector<RecordProduct::Values> RecordProduct::loadPlanes(Value record) {
  SmallVector<Values> planes;
  for (unsigned p = 0; p < shape.encoding().bits(); ++p)
    planes.push_back(
        loadWords(k.offset(k.offset(record, p * RecordShape::planeBytes), k.shl(lane, 4)), 4));
  return planes;
}

double RecordProduct::factor(unsigned group) const {
  return std::ldexp(1.0, -static_cast<int>(shape.fraction(4 * group)));
}

SmallVector<RecordProduct::Values> RecordProduct::loadHalves(Value record, unsigned quarter) {
  unsigned group = quarter / 2;
  const Encoding &encoding = shape.encoding();
  SmallVector<Values> planes = loadPlanes(record);
  Units units;
  scalesOf(loadNumbers(record), units);
  Type pair = k.vec(2, k.f16());
  auto twoOf = [&](Value number, double times) {
    if (times != 1)
      number = k.mulF(number, k.number(times));
    return k.bitcast(k.packPair(number, number, k.f16()), pair);
  };
  // [unit of 16][row]
  Value scales[2][2], offsets[2][2];
  for (unsigned h = 0; h < halves(); ++h)
    for (unsigned r = 0; r < 2; ++r) {
      scales[h][r] = twoOf(units.scale[group][h][r], halfFactor(encoding) * factor(group));
      if (encoding.hasOffset())
        offsets[h][r] = twoOf(units.offset[group][h][r], halfFactor(encoding));
    }
  bool isUnsigned = encoding.code() == Encoding::Code::Unsigned;
  // A byte below 0x64 is 1024 plus itself as an f16; a signed one is made unsigned, 128 more.
  Value high = k.constI32(0x64646464);
  Value less =
      k.bitcast(k.constI32(static_cast<int32_t>(isUnsigned ? 0xE400E400 : 0xE480E480)), pair);
  SmallVector<Values> products;
  for (unsigned o = 2 * quarter; o < 2 * quarter + 2; ++o) {
    auto [words, others] = operand(o, planes);
    unsigned h = halves() == 2 ? o / 2 % 2 : 0;
    for (unsigned i = 0; i < 4; i += 2) {
      Values product(4);
      for (unsigned r = 0; r < 2; ++r) {
        Value word = words[i + r];
        constexpr auto tops = static_cast<int32_t>(0x80808080);
        if (twice()) {
          // Byte by byte, without carries from one to the next.
          Value other = others[i + r];
          Value sum = k.add(k.bitAnd(word, 0x7F7F7F7F), k.bitAnd(other, 0x7F7F7F7F));
          word = k.bitXor(sum, k.bitAnd(k.bitXor(word, other), tops));
        }
        if (!isUnsigned)
          word = k.bitXor(word, tops);
        for (unsigned half = 0; half < 2; ++half) {
          Value bits = k.permute(word, high, k.constI32(half ? 0x4342 : 0x4140));
          Value number = k.addF(k.bitcast(bits, pair), less);
          number = encoding.hasOffset() ? k.fma(number, scales[h][r], offsets[h][r])
                                        : k.mulF(number, scales[h][r]);
          product[2 * half + r] = k.bitcast(number, k.i32());
        }
      }
      products.push_back(std::move(product));
    }
  }
  return products;
}

RecordProduct::Values RecordProduct::multiply(const fused::InputPlan &plan, ArrayRef<Input> inputs,
                                              Value record, Values sums,
                                              llvm::function_ref<void()> release) {
  const Encoding &encoding = shape.encoding();
  SmallVector<Values> planes = loadPlanes(record);
  Numbers numbers = loadNumbers(record);
  release();
  bool isUnsigned = encoding.code() == Encoding::Code::Unsigned;
  // [token][group][unit of 16]
  SmallVector<std::array<std::array<Values, 2>, 2>> products(inputs.size());
  for (auto &ofToken : products)
    for (auto &ofGroup : ofToken)
      for (Values &registers : ofGroup)
        registers = Values(4, k.constI32(0));
  for (unsigned o = 0; o < kOperands; ++o) {
    auto [words, others] = operand(o, planes);
    unsigned g = o / 4, h = halves() == 2 ? o / 2 % 2 : 0;
    for (auto [token, input] : llvm::enumerate(inputs)) {
      Values &registers = products[token][g][h];
      ArrayRef<Value> x = ArrayRef<Value>(input.operands).slice(2 * o, 2);
      registers = k.mmaInt8(registers, words, x, isUnsigned);
      if (twice())
        registers = k.mmaInt8(registers, others, x);
    }
  }
  Units units;
  scalesOf(numbers, units);
  for (auto [token, input] : llvm::enumerate(inputs))
    for (unsigned g = 0; g < 2; ++g)
      for (unsigned r = 0; r < 2; ++r) {
        Value &sum = sums[2 * token + r];
        auto exact = [&](unsigned h) {
          const Values &registers = products[token][g][h];
          return k.toFloat(k.add(k.shl(registers[2 * r], 8), registers[2 * r + 1]));
        };
        // The steps are for the first weight's operands.
        Value step = input.units[g];
        if (factor(g) != plan.stepFactors[g])
          step = k.mulF(step, k.number(factor(g) / plan.stepFactors[g]));
        if (halves() == 1) {
          sum = k.fma(exact(0), k.mulF(units.scale[g][0][r], step), sum);
        } else {
          Value both =
              k.fma(exact(1), units.scale[g][1][r], k.mulF(exact(0), units.scale[g][0][r]));
          sum = k.fma(both, step, sum);
        }
        if (!encoding.hasOffset())
          continue;
        // The input may have sums of smaller units, for other weights that read it.
        unsigned perGroup = plan.sumsPerGroup();
        auto inputSum = [&](unsigned number) { return input.units[2 + g * perGroup + number]; };
        if (halves() == 1) {
          Value total = perGroup == 1 ? inputSum(0) : k.addF(inputSum(0), inputSum(1));
          sum = k.fma(units.offset[g][0][r], total, sum);
        } else {
          sum = k.fma(units.offset[g][0][r], inputSum(0), sum);
          sum = k.fma(units.offset[g][1][r], inputSum(1), sum);
        }
      }
  return sums;
}

Value RecordProduct::addSubBlocks(Value low, Value high) {
  Value odd = k.equal(k.bitAnd(lane, 1), k.constI32(1));
  Value mine = k.select(odd, high, low), others = k.select(odd, low, high);
  mine = k.addF(mine, k.shuffleXor(others, 1));
  return k.addF(mine, k.shuffleXor(mine, 2));
}
