// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Products.h"

#include "dialects/Fused/Weights.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::host;
using formats::Format;

/// Columns [column, column + 16) of the row at `row`, as float32; `count` of them exist.
static Value emitColumns(KernelBuilder &k, const formats::PackedShape &shape, Type element,
                         Value row, Value column, int64_t count) {
  Format format = shape.format();
  Value mask = count < kLanes ? k.firstLanes(kLanes, k.index(count)) : Value();
  if (!format.isInteger()) {
    int64_t bytes = bytesOf(element);
    return k.loadFloats(kLanes, element, k.offset(row, k.mul(column, bytes)), bytes, mask);
  }
  Value q;
  if (format.element == Format::Element::I8) {
    q = k.extend(k.load(k.vec(kLanes, k.i8()), k.offset(row, column), 1, mask), k.i32());
  } else {
    // An odd count's last byte holds one element more, which the caller ignores.
    Value byteMask = count < kLanes ? k.firstLanes(kLanes / 2, k.index((count + 1) / 2)) : Value();
    Value bytes = k.load(k.vec(kLanes / 2, k.i8()), k.offset(row, k.div(column, 2)), 1, byteMask);
    Value low = k.sar(k.shl(bytes, 4), 4), high = k.sar(bytes, 4);
    SmallVector<int64_t> order;
    for (int64_t i = 0; i < kLanes / 2; ++i)
      order.append({i, i + kLanes / 2});
    q = k.extend(k.shuffle(low, high, order), k.i32());
  }
  // A group is a multiple of 16 columns or the whole row, so these share one.
  Value group = format.group == Format::channel ? k.index(0) : k.div(column, format.group);
  Value scale =
      k.widen(k.load(k.f16(), k.offset(row, k.add(k.mul(group, 2), shape.chunkScales(0))), 2));
  if (format.zeroPoint) {
    Value zero = k.load(k.i8(), k.offset(row, k.add(group, shape.chunkZeros(0))), 1);
    q = k.sub(q, k.splat(k.extend(zero, k.i32()), kLanes));
  }
  return k.mulF(k.toFloat(q), k.splat(scale, kLanes));
}

FailureOr<int64_t> sluice::host::emitEmbedding(KernelBuilder &k, fused::EmbeddingOp op,
                                               const KernelInterface &interface, Value begin,
                                               Value end) {
  FailureOr<formats::PackedShape> table = fused::tableShape(op);
  if (failed(table))
    return failure();
  const formats::PackedShape &shape = *table;
  Type element = fused::elementOf(op.getTable().getType());
  int64_t width = shape.columns();

  k.loop(begin, end, 1, [&](Value number) {
    Value token = k.load(k.i32(), k.offset(interface.pointer(op.getTokens()), k.mul(number, 4)), 4);
    Value row = k.offset(interface.pointer(op.getTable()),
                         k.mul(k.toIndex(k.clampIndex(token, shape.rows())), shape.tileBytes()));
    Value result = k.offset(interface.resultPointer(0), k.mul(number, width * 4));
    int64_t full = width / kLanes * kLanes;
    if (full)
      k.loop(k.index(0), k.index(full), kLanes, [&](Value column) {
        k.store(emitColumns(k, shape, element, row, column, kLanes),
                k.offset(result, k.mul(column, 4)), 4);
      });
    if (full < width) {
      Value lanes = emitColumns(k, shape, element, row, k.index(full), width - full);
      k.store(lanes, k.offset(result, full * 4), 4, k.firstLanes(kLanes, k.index(width - full)));
    }
  });
  return op.getTokens().getType().getDimSize(0);
}
