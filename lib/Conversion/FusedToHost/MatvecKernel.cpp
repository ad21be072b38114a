// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Products.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::host;
using formats::Format;

/// Tokens that share a pass over the weights: their sums must fit in registers.
static constexpr int64_t kMaxTokens = 8;

Format sluice::host::formatOf(Type weight) {
  auto elementOf = [](Type type) {
    return type.isF16()        ? Format::Element::F16
           : type.isBF16()     ? Format::Element::BF16
           : type.isF32()      ? Format::Element::F32
           : type.isInteger(8) ? Format::Element::I8
                               : Format::Element::I4;
  };
  if (auto quantized = dyn_cast<quantized::QuantizedTensorType>(weight)) {
    quantized::FormatAttr format = quantized.getFormat();
    if (!format.isInteger())
      return {elementOf(format.getElement())};
    return {elementOf(format.getElement()), format.getGroup(), format.getZeroPoint()};
  }
  return {elementOf(cast<RankedTensorType>(weight).getElementType())};
}

/// The packed weight's segments with their tiles, in order. The operation's verifier has checked
/// that they fit.
static SmallVector<PackedSegment> packedSegments(fused::MatvecOp op) {
  SmallVector<PackedSegment> result;
  ArrayRef<int64_t> rows = op.getSegments();
  if (std::optional<ArrayAttr> orders = op.getOrder(); orders && !orders->empty()) {
    for (auto order : orders->getAsRange<quantized::RowOrderAttr>())
      result.push_back({order});
  } else {
    for (int64_t i = 0, e = rows.size(); i < e; ++i)
      result.push_back({quantized::RowOrderAttr::get(op.getContext(), "natural", i, 0)});
  }
  int64_t tile = 0;
  for (PackedSegment &segment : result) {
    segment.tiles = segment.order.toSegment().tiles(rows[segment.order.getFirst()]);
    segment.firstTile = tile;
    tile += segment.tiles;
  }
  return result;
}

FailureOr<int64_t> sluice::host::emitMatvec(KernelBuilder &k, fused::MatvecOp op,
                                            const KernelInterface &interface, Value begin,
                                            Value end) {
  if (op.getWeights().size() != 1)
    return op.emitOpError() << "has " << op.getWeights().size()
                            << " weights, expected one packed weight";
  auto type = dyn_cast<quantized::QuantizedTensorType>(op.getWeights().front().getType());
  if (!type || type.getLayout().getKind() != quantized::LayoutKind::Lanes)
    return op.emitOpError() << "weight must be packed in layout lanes, found "
                            << op.getWeights().front().getType();
  if (op.getTokens() > kMaxTokens)
    return op.emitOpError() << "has " << op.getTokens() << " tokens, host kernels take at most "
                            << kMaxTokens;
  SmallVector<PackedSegment> segments = packedSegments(op);
  int64_t tiles = segments.back().firstTile + segments.back().tiles;

  Format format = formatOf(type);
  auto shape = formats::PackedShape::get(format, {formats::Layout::Kind::Lanes}, tiles * kLanes,
                                         op.getColumns());
  if (!shape)
    return op.emitOpError() << llvm::toString(shape.takeError());
  int64_t accumulators = cast<fused::HostScheduleAttr>(*op.getSchedule()).getAccumulators();

  FailureOr<PreparedInput> input = emitPrologue(k, op, interface, format);
  if (failed(input))
    return failure();

  LogicalResult result = success();
  Value weights = interface.pointer(op.getWeights().front());
  k.loop(begin, end, 1, [&](Value tile) {
    SmallVector<Value> sums = emitTileProducts(
        k, *shape, *input, k.offset(weights, k.mul(tile, shape->tileBytes())), accumulators);
    // A chain of comparisons finds the tile's segment; there are at most a handful.
    std::function<void(size_t)> emitSegment = [&](size_t number) {
      const PackedSegment &segment = segments[number];
      auto finish = [&] {
        Value inSegment = k.sub(tile, k.index(segment.firstTile));
        for (auto [token, sum] : llvm::enumerate(sums))
          if (succeeded(result))
            result = emitEpilogue(k, op, interface, segment, inSegment, sum, token);
      };
      if (number + 1 == segments.size())
        return finish();
      Value here = k.less(tile, k.index(segment.firstTile + segment.tiles));
      k.ifElse(here, finish, [&] { emitSegment(number + 1); });
    };
    emitSegment(0);
  });
  if (failed(result))
    return failure();
  return tiles;
}
