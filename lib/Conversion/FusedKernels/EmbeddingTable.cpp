// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "EmbeddingTable.h"
#include "KernelInterface.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::kernels;

FailureOr<EmbeddingTable> EmbeddingTable::get(fused::EmbeddingOp op) {
  Type table = op.getTable().getType(), element;
  int64_t rows, width = op.getResult().getType().getDimSize(1);
  if (auto quantized = dyn_cast<quantized::QuantizedTensorType>(table)) {
    if (quantized.getLayout().getKind() != quantized::LayoutKind::Rows)
      return op.emitOpError() << "table must have layout rows, found " << table;
    rows = quantized.getRows();
    element = quantized.getFormat().getElement();
  } else {
    rows = cast<RankedTensorType>(table).getDimSize(0);
    element = cast<RankedTensorType>(table).getElementType();
  }
  auto shape =
      formats::PackedShape::get(formatOf(table), {formats::Layout::Kind::Rows}, rows, width);
  if (!shape)
    return op.emitOpError() << llvm::toString(shape.takeError());
  return EmbeddingTable{*shape, element, rows, width};
}
