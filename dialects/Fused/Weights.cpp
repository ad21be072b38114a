// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Fused/Weights.h"

#include "sluice/Formats/Activations.h"

#include "mlir/IR/TypeUtilities.h"

using namespace mlir;
using namespace sluice;

Type fused::elementOf(Type weight) {
  if (auto quantized = dyn_cast<quantized::QuantizedTensorType>(weight))
    return quantized.getFormat().getElement();
  return getElementTypeOrSelf(weight);
}

FailureOr<formats::PackedShape> fused::tableShape(EmbeddingOp op) {
  Type table = op.getTable().getType();
  auto packed = dyn_cast<quantized::QuantizedTensorType>(table);
  if (packed && packed.getLayout().getKind() != quantized::LayoutKind::Rows)
    return op.emitOpError() << "table must have layout rows, found " << table;
  int64_t rows = packed ? packed.getRows() : cast<RankedTensorType>(table).getDimSize(0);
  llvm::Expected<formats::PackedShape> shape =
      formats::PackedShape::get(quantized::formatOf(table), {formats::Layout::Kind::Rows}, rows,
                                op.getResult().getType().getDimSize(1));
  if (!shape)
    return op.emitOpError() << llvm::toString(shape.takeError());
  return *shape;
}

int64_t fused::accumulationColumns(formats::Format format) {
  return format.group == formats::Format::channel
             ? formats::activationGroup
             : std::min<int64_t>(format.group, formats::activationGroup);
}
