// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Fused/PreparedInput.h"

#include "dialects/Fused/Weights.h"

#include "llvm/Support/MathExtras.h"

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
  int64_t groups = llvm::divideCeil(shape.padded, 128);
  shape.numbers = take(shape.tokens * shape.padded * (format.isInteger() ? 2 : 4));
  if (!format.isScaled())
    return shape;
  shape.accumulationColumns = fused::accumulationColumns(format);
  int64_t perGroup =
      shape.accumulationColumns >= 128 ? 1 : 128 / shape.accumulationColumns;
  shape.scales = take(shape.tokens * groups * 4);
  shape.sums = take(shape.tokens * groups * perGroup * 4);
  shape.biases = take(shape.tokens * groups * perGroup * 4);
  return shape;
}
