// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Products.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::host;
using formats::Encoding;

/// Tokens that share a pass over the weights: their sums must fit in registers.
static constexpr int64_t kMaxTokens = 8;

FailureOr<PackedProduct> PackedProduct::get(fused::ProductOp op) {
  if (op.getWeights().size() != 1)
    return op->emitOpError() << "has " << op.getWeights().size()
                             << " weights, expected one packed weight";
  auto type = dyn_cast<quantized::QuantizedTensorType>(op.getWeights().front().getType());
  if (!type || type.getLayout().getKind() != quantized::LayoutKind::Lanes)
    return op->emitOpError() << "weight must be packed in layout lanes, found "
                             << op.getWeights().front().getType();
  FailureOr<SmallVector<PackedSegment>> segments = kernels::packedSegments(op);
  if (failed(segments))
    return failure();
  int64_t tiles = segments->back().firstTile + segments->back().tiles;
  auto shape = formats::PackedShape::get(kernels::encodingOf(type), {formats::Layout::Kind::Lanes},
                                         tiles * kLanes, op.getColumns());
  if (!shape)
    return op->emitOpError() << llvm::toString(shape.takeError());
  return PackedProduct{std::move(*segments), *shape};
}

FailureOr<int64_t> sluice::host::emitMatvec(KernelBuilder &k, fused::MatvecOp op,
                                            const KernelInterface &interface, Value begin,
                                            Value end) {
  if (op.getTokens() > kMaxTokens)
    return op.emitOpError() << "has " << op.getTokens() << " tokens, host kernels take at most "
                            << kMaxTokens;
  FailureOr<PackedProduct> product = PackedProduct::get(op);
  if (failed(product))
    return failure();
  auto &[segments, shape] = *product;
  int64_t accumulators = cast<fused::HostScheduleAttr>(*op.getSchedule()).getAccumulators();

  FailureOr<PreparedInput> input = emitPrologue(k, op, interface, shape.format());
  if (failed(input))
    return failure();

  LogicalResult result = success();
  Value weights = interface.pointer(op.getWeights().front());
  k.loop(begin, end, 1, [&](Value tile) {
    SmallVector<Value> sums = emitTileProducts(
        k, shape, *input, k.offset(weights, k.mul(tile, shape.tileBytes())), accumulators);
    kernels::emitForSegment(k, segments, tile, [&](size_t number, Value inSegment) {
      for (auto [token, sum] : llvm::enumerate(sums))
        if (succeeded(result))
          result = emitEpilogue(k, op, interface, product->segments[number], inSegment, sum,
                                k.index(token));
    });
  });
  if (failed(result))
    return failure();
  return shape.tiles();
}
