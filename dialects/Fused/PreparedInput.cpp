// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Fused/PreparedInput.h"

#include "dialects/Fused/Weights.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::fused;

PreparedShape PreparedShape::get(PreparedType type) {
  PreparedShape shape;
  shape.tokens = type.getTokens();
  shape.columns = type.getColumns();
  shape.padded = llvm::alignTo(shape.columns, 32);
  auto take = [&](int64_t bytes) {
    int64_t start = shape.bytes;
    shape.bytes = llvm::alignTo(start + bytes, 64);
    return start;
  };
  formats::Encoding format = type.getEncodings().front().getValue();
  int64_t perGroup = shape.blocks() * kTokenBlock;
  shape.numbers =
      take(shape.groups() * perGroup * formats::activationGroup * (format.isInteger() ? 2 : 4));
  if (!format.isScaled())
    return shape;
  shape.accumulationColumns = fused::accumulationColumns(format);
  shape.scales = take(shape.groups() * perGroup * 4);
  if (format.hasOffset())
    shape.sums = take(shape.groups() * shape.sumsPerGroup() * perGroup * 4);
  return shape;
}
