// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "GroupNumbers.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::kernels;
using formats::Encoding;

Type kernels::scaleType(ComputeBuilder &k, const Encoding &format) {
  switch (format.scale) {
  case Encoding::Scale::F16:
    return k.f16();
  case Encoding::Scale::BF16:
    return k.b.getBF16Type();
  case Encoding::Scale::F32:
    return k.f32();
  default:
    llvm_unreachable("scales that are no floats");
  }
}

/// A zero-extended byte as a signed number.
static Value signedByte(ComputeBuilder &k, Value byte) { return k.sar(k.shl(byte, 24), 24); }

GroupNumbers kernels::emitGroupNumbers(ComputeBuilder &k, const formats::PackedShape &shape,
                                       const GroupReader &reader, Value group, Value super,
                                       std::optional<bool> odd) {
  const Encoding &format = shape.format();
  int64_t scales = shape.chunkScales(0), offsets = shape.chunkOffsets(0);
  auto superNumber = [&](int64_t which) {
    return reader.real(shape.chunkSupers(0), k.add(k.mul(super, format.superNumbers()), which),
                       k.f16());
  };
  auto asFloat = [&](Value bits) { return k.bitcast(bits, k.like(bits.getType(), k.f32())); };
  GroupNumbers numbers;
  switch (format.scale) {
  case Encoding::Scale::F16:
  case Encoding::Scale::BF16:
  case Encoding::Scale::F32:
    numbers.scale = reader.real(scales, group, scaleType(k, format));
    break;
  case Encoding::Scale::I8:
    numbers.scale = k.mulF(k.toFloat(signedByte(k, reader.byte(scales, group))), superNumber(0));
    if (format.superUnit() != 1)
      numbers.scale = k.mulF(numbers.scale, k.number(numbers.scale.getType(), format.superUnit()));
    break;
  case Encoding::Scale::E8M0: {
    Value code = reader.byte(scales, group);
    // 2^(code - 128), which is subnormal for 0 and 1.
    Value normal = k.shl(k.sub(code, 1), 23), subnormal = k.shl(k.add(code, 1), 21);
    numbers.scale =
        asFloat(k.select(k.less(code, k.integer(code.getType(), 2)), subnormal, normal));
    break;
  }
  case Encoding::Scale::E4M3: {
    // The fields of a float32 whose exponent is 120 too small; half of it is wanted.
    Value bits = asFloat(k.shl(reader.byte(scales, group), 20));
    numbers.scale = k.mulF(bits, k.number(bits.getType(), 0x1p119));
    break;
  }
  case Encoding::Scale::U6:
  case Encoding::Scale::U4: {
    Value both = reader.byte(scales, group);
    Value field = k.bitAnd(both, 15), offsetField = k.shr(both, 4);
    if (format.scale == Encoding::Scale::U6) {
      Value high = reader.byte(offsets, k.div(group, 2));
      if (!odd) {
        Value isOdd = k.equal(k.rem(group, 2), k.index(1));
        high = k.select(isOdd, k.shr(high, 4), high);
      } else if (*odd) {
        high = k.shr(high, 4);
      }
      field = k.bitOr(field, k.shl(k.bitAnd(high, 3), 4));
      offsetField = k.bitOr(offsetField, k.shl(k.bitAnd(high, 12), 2));
    }
    numbers.scale = k.mulF(k.toFloat(field), superNumber(0));
    Value negated = k.sub(k.integer(field.getType(), 0), offsetField);
    numbers.offset = k.mulF(k.toFloat(negated), superNumber(1));
    break;
  }
  }
  if (format.offset == Encoding::Offset::F16)
    numbers.offset = reader.real(offsets, group, k.f16());
  if (format.hasZeroPoint())
    numbers.zero = signedByte(k, reader.byte(offsets, group));
  return numbers;
}
