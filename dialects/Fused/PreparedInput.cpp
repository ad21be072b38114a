// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Fused/PreparedInput.h"

#include "dialects/Fused/Weights.h"

#include "sluice/Formats/Activations.h"

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

PreparedImage PreparedImage::get(PreparedType type) {
  PreparedImage image;
  image.records = type.getRecords();
  image.format = image.records ? formats::Encoding{formats::Encoding::Element::F16}
                               : type.getEncodings().front().getValue();
  image.tokens = type.getTokens();
  image.columns = type.getColumns();
  image.setTokens = std::min<int64_t>(kSetTokens, llvm::alignTo(image.tokens, 8));
  image.paddedTokens = llvm::alignTo(image.tokens, image.setTokens);
  // A record has 256 columns.
  image.paddedColumns = llvm::alignTo(image.columns, image.records ? formats::RecordShape::columns
                                                                   : formats::activationGroup);
  for (quantized::EncodingAttr attribute : type.getEncodings()) {
    formats::Encoding encoding = attribute.getValue();
    if (image.records || !encoding.hasZeroPoint())
      continue;
    int64_t unit = accumulationColumns(encoding);
    image.sumColumns = image.sumColumns ? std::min(image.sumColumns, unit) : unit;
  }
  auto take = [&](int64_t bytes) {
    int64_t start = image.bytes;
    image.bytes = llvm::alignTo(start + bytes, 128);
    return start;
  };
  image.numbers = take(image.paddedColumns / image.pieceColumns() * image.pieceBytes());
  if (image.records)
    image.scales = take(image.paddedTokens * 4);
  else if (image.format.isScaled())
    image.scales = take(image.paddedColumns / formats::activationGroup * image.paddedTokens * 4);
  if (image.sumColumns)
    image.sums = take(image.paddedColumns / image.sumColumns * image.paddedTokens * 4);
  return image;
}

int64_t fused::preparedBytes(PreparedType type) {
  return type.getImage() ? PreparedImage::get(type).bytes : PreparedShape::get(type).bytes;
}
