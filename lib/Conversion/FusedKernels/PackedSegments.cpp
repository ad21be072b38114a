// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "PackedSegments.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::kernels;
using llvm::SmallBitVector;

FailureOr<SmallVector<PackedSegment>> kernels::packedSegments(fused::ProductOp op) {
  SmallVector<PackedSegment> result;
  ArrayRef<int64_t> rows = op.getSegments();
  ArrayAttr orders = op.getOrder().value_or(ArrayAttr());
  if (auto count = quantized::countPackedRows(orders, rows); !count)
    return op->emitOpError() << "has a row order that does not fit: "
                             << llvm::toString(count.takeError());
  if (orders && !orders.empty())
    for (auto order : orders.getAsRange<quantized::RowOrderAttr>())
      result.push_back({order});
  else
    for (int64_t i = 0, e = rows.size(); i < e; ++i)
      result.push_back({quantized::RowOrderAttr::get(op->getContext(), "natural", i, 0)});
  int64_t tile = 0;
  for (PackedSegment &segment : result) {
    segment.firstTile = tile;
    segment.tiles = segment.order.toSegment().tiles(rows[segment.order.getFirst()]);
    tile += segment.tiles;
  }
  return result;
}

void kernels::emitForSegment(ComputeBuilder &k, ArrayRef<PackedSegment> segments, Value tile,
                             llvm::function_ref<void(size_t, Value)> body) {
  // A chain of comparisons; there are at most a handful.
  std::function<void(size_t)> emitFrom = [&](size_t number) {
    const PackedSegment &segment = segments[number];
    auto here = [&] { body(number, k.sub(tile, segment.firstTile)); };
    if (number + 1 == segments.size())
      return here();
    k.ifElse(k.less(tile, k.index(segment.firstTile + segment.tiles)), here,
             [&] { emitFrom(number + 1); });
  };
  emitFrom(0);
}

const SmallBitVector &EpilogueSources::of(Value value) {
  auto found = known.find(value);
  if (found != known.end())
    return found->second;
  SmallBitVector result(op.getSegments().size());
  auto argument = dyn_cast<BlockArgument>(value);
  if (argument && argument.getParentRegion() == &op.getEpilogue()) {
    result.set(argument.getArgNumber());
  } else if (Operation *inner = value.getDefiningOp();
             inner && op.getEpilogue().isAncestor(inner->getParentRegion())) {
    for (Value operand : inner->getOperands())
      result |= of(operand);
  }
  return known[value] = result;
}

FailureOr<bool> EpilogueSources::areIn(const PackedSegment &segment, Operation *user, Value value) {
  const SmallBitVector &used = of(value);
  if (used.none())
    return user->emitOpError()
           << "in an epilogue reads a value that does not depend on the product";
  bool inside = false;
  int64_t outside = -1;
  for (unsigned source : used.set_bits()) {
    if (segment.holds(source))
      inside = true;
    else
      outside = source;
  }
  if (inside && outside >= 0)
    return user->emitOpError()
           << "combines rows of segments " << segment.order.getFirst() << " and " << outside
           << ", which the row order keeps in different tiles (zip would join them)";
  return inside;
}
