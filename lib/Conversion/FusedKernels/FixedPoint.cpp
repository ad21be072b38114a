// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "FixedPoint.h"

#include <limits>

using namespace mlir;
using namespace sluice;
using namespace sluice::kernels;

Value kernels::magnitudeBits(ComputeBuilder &k, Value x) {
  return k.bitAnd(k.bitcast(x, k.like(x.getType(), k.i32())), 0x7FFFFFFF);
}

ActivationScale kernels::activationScale(ComputeBuilder &k, Value greatest) {
  auto number = [&](double value) { return k.number(k.f32(), value); };
  Value finite = k.less(greatest, k.constI32(0x7F800000));
  Value m = k.bitcast(greatest, k.f32());
  Value usable = k.bitAnd(finite, k.lessF(number(formats::activationFloor), m));
  Value limit = number(formats::activationLimit);
  Value inverse = k.select(usable, k.divF(limit, m), number(0.0));
  Value scale = k.select(finite, k.divF(m, limit), number(std::numeric_limits<float>::quiet_NaN()));
  return {usable, inverse, scale};
}
