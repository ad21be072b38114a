// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Fused/Weights.h"

#include "sluice/Formats/Activations.h"

#include "mlir/IR/TypeUtilities.h"
#include "llvm/ADT/STLExtras.h"

using namespace mlir;
using namespace sluice;

Type fused::elementOf(Type weight) {
  if (auto quantized = dyn_cast<quantized::QuantizedTensorType>(weight))
    return quantized.getEncoding().getElement();
  return getElementTypeOrSelf(weight);
}

FailureOr<formats::PackedShape> fused::tableShape(EmbeddingOp op) {
  Type table = op.getTable().getType();
  auto packed = dyn_cast<quantized::QuantizedTensorType>(table);
  if (packed && packed.getLayout().getKind() != quantized::LayoutKind::Rows)
    return op.emitOpError() << "table must have layout rows, found " << table;
  int64_t rows = packed ? packed.getRows() : cast<RankedTensorType>(table).getDimSize(0);
  llvm::Expected<formats::PackedShape> shape =
      formats::PackedShape::get(quantized::encodingOf(table), {formats::Layout::Kind::Rows}, rows,
                                op.getResult().getType().getDimSize(1));
  if (!shape)
    return op.emitOpError() << llvm::toString(shape.takeError());
  return *shape;
}

FailureOr<SmallVector<fused::PackedPart, 1>> fused::packedParts(ProductOp op) {
  ArrayRef<int64_t> segments = op.getSegments();
  SmallVector<quantized::RowOrderAttr> orders;
  for (Attribute order : op.getOrder().value_or(ArrayAttr::get(op->getContext(), {})))
    orders.push_back(cast<quantized::RowOrderAttr>(order));
  bool several = op.getWeights().size() > 1;
  SmallVector<PackedPart, 1> parts;
  quantized::LayoutAttr layout;
  size_t nextSegment = 0, nextOrder = 0;
  int64_t tile = 0;
  for (Value weight : op.getWeights()) {
    auto type = dyn_cast<quantized::QuantizedTensorType>(weight.getType());
    if (!type || !type.getLayout().isForGpu())
      return op->emitOpError() << "weight must be packed in layout mma or records, found "
                               << weight.getType();
    if (several && type.getLayout().getKind() != quantized::LayoutKind::Records)
      return op->emitOpError()
             << "has several weights, which must be packed in layout records, found " << type;
    if (layout && type.getLayout() != layout)
      return op->emitOpError() << "has weights packed in chunks of " << layout.getColumns()
                               << " and " << type.getLayout().getColumns() << " columns";
    layout = type.getLayout();
    // The segments that this weight has, and their order.
    size_t firstSegment = nextSegment;
    SmallVector<int64_t> rows;
    for (int64_t left = type.getRows(); left > 0 && nextSegment < segments.size(); ++nextSegment) {
      rows.push_back(segments[nextSegment]);
      left -= segments[nextSegment];
    }
    if (llvm::sum_of(rows) != type.getRows())
      return op->emitOpError() << "has a weight of " << type.getRows()
                               << " rows, which are no whole number of segments";
    SmallVector<Attribute> own;
    auto isOwn = [&](int64_t segment) {
      return segment >= int64_t(firstSegment) && segment < int64_t(nextSegment);
    };
    for (; nextOrder < orders.size() && isOwn(orders[nextOrder].getFirst()); ++nextOrder) {
      quantized::RowOrderAttr order = orders[nextOrder];
      if (order.isZip() && !isOwn(order.getSecond()))
        return op->emitOpError() << "zips segments of two weights, " << order;
      own.push_back(quantized::RowOrderAttr::get(
          op->getContext(), order.getKind(), order.getFirst() - firstSegment,
          order.getSecond() - (order.isZip() ? firstSegment : 0)));
    }
    llvm::Expected<int64_t> count =
        quantized::countPackedRows(ArrayAttr::get(op->getContext(), own), rows);
    if (!count)
      return op->emitOpError() << "has a row order that does not fit: "
                               << llvm::toString(count.takeError());
    llvm::Expected<formats::PackedShape> shape = formats::PackedShape::get(
        type.getEncoding().getValue(), layout.toLayout(), *count, op.getColumns());
    if (!shape)
      return op->emitOpError() << llvm::toString(shape.takeError());
    parts.push_back({*shape, tile});
    tile = parts.back().endTile();
  }
  return parts;
}

int64_t fused::accumulationColumns(formats::Encoding format) {
  return formats::accumulationColumns(format, formats::activationGroup);
}
